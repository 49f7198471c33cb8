"""What is said of a notebook elsewhere, read from the notebook: title, minutes, first answer, figures, exercises."""

import re
from base64 import b64decode
from dataclasses import dataclass

import nbformat

import measure

EXERCISE = re.compile(r"^(`{3,})\{exercise\}\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
SENTENCE = re.compile(r".+?[.?!](?=\s|$)", re.DOTALL)
THE_CHECK = "The cell "  # begins the sentence of an exercise that says where its code is checked


@dataclass(frozen=True)
class Figure:
    """A figure of a notebook: its stored picture, and what is said of it."""

    name: str
    alt: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Exercise:
    """An exercise: its label, level (None where it has none), and what it asks; whether it leaves code to write."""

    label: str
    level: int | None
    asks: str
    code: bool

    @property
    def name(self):
        return self.label.removeprefix("ex-").replace("-", " ")


@dataclass(frozen=True)
class Notebook:
    """What is said elsewhere about a notebook."""

    page: str  # as in _toc.yml: chapters/03-mini-batch
    title: str
    minutes: int
    answer: str
    figures: tuple[Figure, ...]
    exercises: tuple[Exercise, ...]


def sentences(text):
    """Return the sentences of a text, each on one line; a text that has no end is one.

    >>> sentences("It is 0.5,\\nsay. Is it? (No")
    ['It is 0.5, say.', 'Is it?', '(No']
    """
    text = re.sub(r"\s+", " ", text).strip()
    found = SENTENCE.findall(text)
    return [sentence.strip() for sentence in (*found, text[sum(map(len, found)) :]) if sentence.strip()]


def asked(text):
    """Return what an exercise asks: its sentences up to the first question, or all but where the code is checked.

    >>> asked("You want a mean. What is it? And why?"), asked("Write `f`. The cell below says whether it is right.")
    ('You want a mean. What is it?', 'Write `f`.')
    """
    told = [sentence for sentence in sentences(text) if not sentence.startswith(THE_CHECK)]
    first = next((i for i, sentence in enumerate(told) if sentence.endswith("?")), len(told))
    return " ".join(told[: first + 1])


def moved(text, page, slugs=()):
    """Return a text of a chapter as a page in book/ has it: links to chapters, and to its own headings, lead there.

    >>> moved("[a](05-memory.ipynb#x), [b](../book/losses.ipynb), [c](#why), [d](#d)", "chapters/01-a", {"why"})
    '[a](../chapters/05-memory.ipynb#x), [b](../book/losses.ipynb), [c](../chapters/01-a.ipynb#why), [d](#d)'
    """
    text = re.sub(r"\]\((\d\d-[\w-]+\.ipynb)", r"](../chapters/\1", text)
    return re.sub(r"\]\(#([\w-]+)\)", lambda m: f"](../{page}.ipynb#{m[1]})" if m[1] in slugs else m[0], text)


def first_words(source):
    """Return the first sentence under a page's title.

    >>> first_words("(a)=\\n# T\\n\\n**One** is. Two is.\\n")
    '**One** is.'
    """
    blocks = re.split(r"\n\s*\n", source[re.search(r"^# .*$", source, re.MULTILINE).end() :].strip())
    return sentences(next(block for block in blocks if re.match(r"[\w*\"“]", block)))[0]


def answer(source):
    """Return the first item of a short answer: of its list, or the first sentence before that; "" where is none.

    >>> answer(":::{admonition} The short answer\\n:class: short-answer\\n\\n- **One.** And\\n  so on.\\n- Two.\\n:::")
    '**One.** And so on.'
    """
    box = re.search(r"^:class: short-answer\n+(.*?)^:::", source, re.MULTILINE | re.DOTALL)
    if not box:
        return ""
    if not box[1].startswith("- "):
        return sentences(box[1])[0]
    return re.sub(r"\s+", " ", re.split(r"\n(?=- )", box[1])[0].removeprefix("- ")).strip()


def exercises(cells):
    """Return the exercises in the cells of a notebook, in order."""
    found = []
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        for block in EXERCISE.finditer(cell.source) if cell.cell_type == "markdown" else ():
            options = dict(re.findall(r"^:(\w+): *(.*)$", block[2], re.MULTILINE))
            text = re.sub(r"^:\w+:.*\n", "", block[2], flags=re.MULTILINE)
            level = re.search(r"\blevel-(\d)\b", options.get("class", ""))
            solved = "{solution" in cell.source[block.end() :]
            left = following is not None and following.cell_type == "code" and not solved
            found.append(Exercise(options["label"], int(level[1]) if level else None, asked(text), left))
    return tuple(found)


def figures(cells):
    """Return the figures in the cells of a notebook that have a name and a stored picture, in order."""
    found = []
    for cell in cells:
        told = cell.metadata.get("mystnb", {})
        pictures = [o.data["image/png"] for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
        if pictures and "name" in told.get("figure", {}):
            name, caption = told["figure"]["name"], told["figure"].get("caption", "")
            found.append(Figure(name, told.get("image", {}).get("alt", ""), caption, b64decode(pictures[0])))
    return tuple(found)


def read(path):
    """Return what is said elsewhere about the notebook at ``path``: where it has no short answer, its first words."""
    notebook = nbformat.read(path, as_version=4)
    page = f"{path.parent.name}/{path.stem}"
    headings = [h for cell in notebook.cells for h in re.findall(r"^#+ (.*)$", cell.source, re.MULTILINE)]
    slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = moved(cell.source, page, slugs)
        elif caption := cell.metadata.get("mystnb", {}).get("figure", {}).get("caption"):
            cell.metadata["mystnb"]["figure"]["caption"] = moved(caption, page, slugs)
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    return Notebook(
        page=page,
        title=re.search(r"^# (.*)$", texts[0], re.MULTILINE)[1],
        minutes=measure.measured(notebook).minutes,
        answer=next(filter(None, map(answer, texts)), "") or first_words(texts[0]),
        figures=figures(notebook.cells),
        exercises=exercises(notebook.cells),
    )

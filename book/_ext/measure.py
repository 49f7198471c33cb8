"""How long a chapter is, counted in its notebook: `python book/_ext/chapters.py measure` prints it for every chapter.

A **fold** is what a page shows closed: a directive with the class `dropdown`, and all cells from a `solution-start` of
that class to its `solution-end`. **Words** are those of the markdown cells, without code, mathematics, comments, and
the names and options of directives; a word is what stands between spaces and has a letter or a digit. A box's title
counts with what is in the box; a role counts by what it shows, a reference as one word. **Visible lines** are those
that are not blank, of code cells not tagged `hide-input` or `remove-input` and of code in the text, outside folds. The
**first figure** is the first image in the text or in a cell's output. **Minutes** are words outside folds / 200 +
visible lines / 10.
"""

import re
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import nbformat

HIDDEN = {"hide-input", "remove-input"}
PLACES = {"minutes": "<!-- minutes -->", "claims settled": "<!-- claims settled here -->"}
BUDGET = {"words": 2500, "folded": 1500, "lines": 200, "longest": 20, "widest": 76, "before": 300, "minutes": 45}

OPTION = re.compile(r"\s*:[\w-]+:")
FENCE = re.compile(r"\s*(`{3,}|~{3,}|:{3,})\s*(\{[^}]*\})?\s*(.*)")
NOT_TEXT = re.compile(r"<!--.*?-->|\$\$.*?\$\$(?: *\([\w-]+\))?|(?<!\\)\$[^$]+\$", re.DOTALL)  # comments, mathematics
NOT_WORDS = [  # what goes from a line, and what stays of it
    (re.compile(r"\{[^}`]+\}`([^`<]*?)\s*(?:<[^`>]*>)?`"), r"\1"),  # a role
    (re.compile(r"(`+).+?\1"), " "),
    (re.compile(r"!?\[([^\]]*)\]\([^)]*\)"), r"\1"),
    (re.compile(r"^\s*\(\S+\)=\s*$|^\s*\{[.#][^}]*\}\s*$"), " "),  # a label, attributes
]


@dataclass
class Length:
    """What is counted in one chapter; ``before`` is None where there is no figure."""

    words: int = 0
    folded: int = 0
    lines: int = 0
    longest: int = 0
    widest: int = 0
    before: int | None = None

    @property
    def minutes(self):
        return round(self.words / 200 + self.lines / 10)

    def over(self):
        """Return what is over its budget, e.g. ``["widest"]``; a chapter without a figure is over that of its first."""
        return [name for name, most in BUDGET.items() if (value := getattr(self, name)) is None or value > most]


def words(line):
    """Return how many words a line of text has.

    >>> words("See {eq}`eq-two`, `lr` and the {term}`floors <noise floor>`, [as told](x.md).")
    7
    """
    for pattern, kept in NOT_WORDS:
        line = pattern.sub(kept, line)
    return sum(any(map(str.isalnum, word)) for word in line.split())


class _Text:
    """Reads the markdown cells of one notebook, line by line; fences and the folds of solutions may span cells."""

    def __init__(self, length):
        self.length, self.fences, self.solution = length, [], False

    @property
    def folded(self):
        return self.solution or any(fold for _, _, fold in self.fences)

    def read(self, source):
        lines = NOT_TEXT.sub(lambda found: "\n" * found[0].count("\n"), source).splitlines()
        for number, line in enumerate(lines):
            fence = FENCE.fullmatch(line)
            if self.fences and self.fences[-1][1]:  # within code: only its own end means anything
                if fence and _ends(fence, self.fences[-1][0]):
                    self.fences.pop()
                elif self.fences[-1][1] == "code" and not OPTION.match(line):
                    self.code([line], self.folded)
            elif fence:
                self.fence(fence, lines[number + 1 :])
            elif self.fences and OPTION.match(line):
                pass  # an option
            else:
                self.text(line)

    def fence(self, fence, following):
        marks, name, title = fence.groups()
        if self.fences and _ends(fence, self.fences[-1][0]):
            self.fences.pop()
            return
        name = (name or "").strip("{}")
        options = " ".join(takewhile(OPTION.match, following))
        fold = bool(re.search(r":class:.*\bdropdown\b", options)) or name == "dropdown"
        inside = "mathematics" if name == "math" else "code" if not name or name.startswith("code") else ""
        self.fences.append((marks, inside, fold))
        if name == "solution-start":
            self.solution = fold
        elif name == "solution-end":
            self.solution = False
        elif name in ("figure", "image"):
            self.figure()
        if name in ("admonition", "dropdown"):
            self.count(words(title))

    def text(self, line):
        if re.search(r"!\[[^\]]*\]\(", line):
            self.figure()
        self.count(words(line))

    def count(self, found):
        if self.folded:
            self.length.folded += found
        else:
            self.length.words += found

    def figure(self):
        if self.length.before is None and not self.folded:
            self.length.before = self.length.words

    def code(self, lines, hidden):
        lines = [line.rstrip() for line in lines if line.strip()]
        if not hidden and lines:
            self.length.lines += len(lines)
            self.length.widest = max(self.length.widest, *map(len, lines))


def _ends(fence, marks):
    return not fence[2] and not fence[3] and fence[1][0] == marks[0] and len(fence[1]) >= len(marks)


def measured(notebook):
    """Return the :class:`Length` of a notebook node."""
    length = Length()
    text = _Text(length)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text.read(cell.source)
        elif cell.cell_type == "code":
            hidden = text.folded or bool(HIDDEN & set(cell.metadata.get("tags", [])))
            before = length.lines
            text.code(cell.source.splitlines(), hidden)
            length.longest = max(length.longest, length.lines - before)
            if any(kind.startswith("image/") for output in cell.outputs for kind in output.get("data", {})):
                text.figure()
    return length


def absent(notebook):
    """Return the parts of a chapter that a notebook has no place for: its minutes, its table of claims."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return [name for name, place in PLACES.items() if place not in text]


def table(paths):
    """Return the table of the chapters at ``paths``; a sign ! stands after what is over budget."""
    heads = ["words", "folded", "lines", "longest", "widest", "before", "minutes"]
    rows = [("chapter", *heads, "without"), ("at most", *(f"{BUDGET[name]:,}" for name in heads), "")]
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        length = measured(notebook)
        values = {name: getattr(length, name) for name in heads}
        shown = ["none" if value is None else f"{value:,}" for value in values.values()]
        shown = [text + "!" * (name in length.over()) for name, text in zip(heads, shown, strict=True)]
        rows.append((Path(path).stem, *shown, ", ".join(absent(notebook))))
    first = max(len(row[0]) for row in rows)
    columns = "".join(f"{{:<{width}}}" for width in [first + 2, *[9] * len(heads)]) + "{}"
    return "\n".join(columns.format(*row).rstrip() for row in rows)

"""What pages say about the chapters, read from the notebooks when the pages are made, so that it cannot grow stale.

A page of text has places, comments on a line of their own, which this extension fills:

    <!-- pages of this part -->        on a part page: each page of its part, by title, minutes, first answer and figure
    <!-- exercises by level -->        every exercise, with its chapter and what it asks
    <!-- key figures -->               the first figure of every chapter, with its caption and its file
    <!-- plan: 60 minutes: 03-mini-batch ex-cosine -->    what to read and to do, with its minutes

A part page is the first page of its part in `_toc.yml`, and named `book/part-...`. An exercise has its level in its
directive, `:class: level-1`.
"""

import re
import zipfile
from io import BytesIO
from pathlib import Path

from PIL import Image

import excerpts
import ledger_page
import pages

FIGURES = "_build/figures"  # under the source tree, where Sphinx finds them; made anew by every build
SMALL = 480  # pixels: twice as wide as a key figure is shown
LEVELS = {  # what an exercise of a level is, and the minutes that a plan allows for it: our guess, nobody was timed
    1: ("reckon, or write one line", 10),
    2: ("write or change a program", 25),
    3: ("derive it, or set up an experiment", 50),
}
PLACE = re.compile(r"^<!-- (pages of this part|exercises by level|key figures|plan: .*?) -->$", re.MULTILINE)


def numbered(page, title):
    """Return a title with its chapter's number before it."""
    number = pages.number(page)
    return f"{number}. {title}" if number else title


def picture(notebook):
    """Return the notebook's first figure, small, as a link to where it stands; "" where it has none."""
    if not notebook.figures:
        return ""
    first = notebook.figures[0]
    shown = f"![{ledger_page._plain(first.alt)}](/{FIGURES}/small/{first.name}.png)"
    return f"{{.key-figure}}\n[{shown}](#{first.name})\n"


def listed(notebook):
    """Return a notebook as its part's page lists it."""
    quiet = f"{{.quiet}}\n{notebook.minutes} minutes"
    if notebook.exercises:
        quiet += f", {len(notebook.exercises)} exercises"
    heading = f"## [{numbered(notebook.page, notebook.title)}](../{notebook.page}.ipynb)"
    return "\n".join([heading, "", picture(notebook), notebook.answer, "", quiet, ""])


def described(path):
    """Return a page of text as its part's page lists it: its title, and its first sentence."""
    text = path.read_text(encoding="utf-8")
    title = re.search(r"^# (.*)$", text, re.MULTILINE)[1]
    return f"## [{title}](../book/{path.name})\n\n{excerpts.first_words(text)}\n"


def part(names, notebooks, source):
    """Return the list of a part's pages.

    Args:
        names: the pages of the part, without the part page.
        notebooks: {page: Notebook}.
        source: the directory of the sources.
    """
    return "\n".join(
        listed(notebooks[name]) if name in notebooks else described(Path(source, f"{name}.md")) for name in names
    )


def by_level(notebooks):
    """Return the list of all exercises, a part for each level."""
    lines = []
    for level in (*LEVELS, None):
        here = [(n, e) for n in notebooks.values() for e in n.exercises if e.level == level]
        if here:
            meaning = f"Level {level}: {LEVELS[level][0]}" if level else "Without a level yet"
            lines += [f"### {meaning}", ""]
        for notebook, exercise in here:
            code = ", leaves code to write" if exercise.code else ""
            number = pages.number(notebook.page)
            where = f"chapter {number}{code}" if number else f"{notebook.title}{code}"
            lines.append(f"- **[{exercise.name}](#{exercise.label})** ({where}): {exercise.asks}")
        lines.append("")
    return "\n".join(lines)


def key_figures(notebooks):
    """Return the first figure of each chapter: small, its caption, its file."""
    lines = []
    for notebook in notebooks.values():
        if notebook.figures and pages.number(notebook.page):
            first = notebook.figures[0]
            file = f"{{download}}`PNG </{FIGURES}/{first.name}.png>`"
            lines += [f"### {numbered(notebook.page, notebook.title)}", "", picture(notebook), first.caption, ""]
            lines += [f"{{.quiet}}\n{file}, {len(png(first)) // 1000} kB", ""]
    return "\n".join(lines)


def png(figure):
    """Return a figure as a file: as large as the notebook stores it, as light as the pages show it."""
    written = BytesIO()
    pages.lighter(BytesIO(figure.png)).save(written, "PNG", optimize=True)
    return written.getvalue()


def plan(told, notebooks):
    """Return what to read and what to do, as a list with minutes.

    Args:
        told: ``"60 minutes: 03-mini-batch ex-cosine"``: the time, then chapters and exercises in order.
        notebooks: {page: Notebook}.

    Raises:
        ValueError: a name is no chapter and no exercise, an exercise has no level, or all takes longer than there is.
    """
    time, _, names = told.partition(" minutes: ")
    chapters = {Path(page).name: notebook for page, notebook in notebooks.items()}
    known = {e.label: e for n in notebooks.values() for e in n.exercises}
    lines, total = [], 0
    for name in names.split():
        if name in chapters:
            n, minutes = chapters[name], chapters[name].minutes
            lines.append(f"- [{numbered(n.page, n.title)}](../{n.page}.ipynb), {minutes} minutes")
        elif name in known and known[name].level:
            minutes = LEVELS[known[name].level][1]
            lines.append(f"  - exercise [{known[name].name}](#{name}), level {known[name].level}, {minutes} minutes")
        else:
            raise ValueError(f"plan: {name!r}: expected a chapter, or an exercise that has a level")
        total += minutes
    if total > int(time):
        raise ValueError(f"plan: its pages and exercises take {total} minutes: expected at most {time}")
    return "\n".join([*lines, "", f"{{.quiet}}\n{total} minutes in all", ""])


def filled(text, name, site_map, notebooks, source):
    """Return a page's text with its places filled; ``site_map`` is {part page: the other pages of its part}."""

    def fill(place):
        what = place[1]
        if what == "pages of this part":
            if name not in site_map:
                raise ValueError(f"{name}: {place[0]} is for a page that begins a part, named {pages.PART}...")
            return part(site_map[name], notebooks, source)
        if what.startswith("plan: "):
            return plan(what.removeprefix("plan: "), notebooks)
        return {"exercises by level": by_level, "key figures": key_figures}[what](notebooks)

    return PLACE.sub(fill, text)


# --- In a build ------------------------------------------------------------------------------------------------------


def _parts(app):
    """{part page: the other pages of its part}."""
    trees = [[str(item) for item in tree.items] for tree in app.config.external_site_map.root.subtrees]
    return {first: others for first, *others in trees if first.startswith(pages.PART)}


def _notebooks(app):
    """{page: Notebook} of the notebooks of this book, in its order."""
    trees = app.config.external_site_map.root.subtrees
    paths = [Path(app.srcdir, f"{item}.ipynb") for tree in trees for item in tree.items]
    return {notebook.page: notebook for notebook in (excerpts.read(path) for path in paths if path.is_file())}


def _begin(app):
    """Write the key figures, and one file with all figures and what is said of them, for the pages to link to."""
    app.book_notebooks = _notebooks(app)
    folder = Path(app.srcdir, FIGURES)
    (folder / "small").mkdir(parents=True, exist_ok=True)
    said = [
        f"Figures of *{app.config.html_title or app.config.project}*, by {app.config.author}.",
        "Licence: CC BY 4.0, https://creativecommons.org/licenses/by/4.0/\n",
    ]
    with zipfile.ZipFile(folder / "figures.zip", "w") as together:
        for notebook in app.book_notebooks.values():
            for figure in notebook.figures:
                said.append(f"## {figure.name}.png\n\nFrom: {numbered(notebook.page, notebook.title)}\n")
                said.append(f"{figure.caption}\n\nAlt text: {figure.alt}\n")
                together.writestr(zipfile.ZipInfo(f"{figure.name}.png"), png(figure))
            for figure in notebook.figures[:1]:
                (folder / f"{figure.name}.png").write_bytes(png(figure))
                with Image.open(BytesIO(figure.png)) as whole:
                    size = SMALL, round(whole.height * SMALL / whole.width)
                    thumbnail = whole.convert("RGBA").resize(size, Image.Resampling.LANCZOS)
                    thumbnail.save(folder / "small" / f"{figure.name}.png")
        together.writestr(zipfile.ZipInfo("figures.md"), "\n".join(said))


def _fill(app, docname, source):
    if PLACE.search(source[0]):
        source[0] = filled(source[0], docname, _parts(app), app.book_notebooks, app.srcdir)


def _again(app, env, *changes):
    """The pages that have places: a notebook may have changed, though they have not."""
    paths = (Path(env.doc2path(name)) for name in env.found_docs)
    texts = {path: path.read_text(encoding="utf-8") for path in paths if path.suffix == ".md"}
    return [env.path2doc(path) for path, text in texts.items() if PLACE.search(text)]


def setup(app):
    app.connect("builder-inited", _begin)
    app.connect("env-get-outdated", _again)
    app.connect("source-read", _fill)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

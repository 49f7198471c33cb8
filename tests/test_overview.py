"""What is taken from the chapters: part pages, exercises by level, plans, figures as files, notebooks to download."""

import doctest
import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import excerpts
import nbformat
import overview
import pytest
import yaml
from bs4 import BeautifulSoup
from nbformat import v4
from PIL import Image, ImageChops

import chapters
from conftest import ROOT

FILES = chapters.notebooks(ROOT)
NOTEBOOKS = {notebook.page: notebook for notebook in map(excerpts.read, FILES)}
EXERCISES = {exercise.label: exercise for notebook in NOTEBOOKS.values() for exercise in notebook.exercises}
PARTS = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))["parts"]


@pytest.mark.parametrize("module", [excerpts, overview], ids=lambda m: m.__name__)
def test_the_examples_run(module):
    failed, _ = doctest.testmod(module)
    assert not failed


# --- What is read from a notebook ------------------------------------------------------------------------------------

ASKS = "Do it, all of it, at 0.5 and at 2. What have you seen?"
EXERCISE = f"```{{{{exercise}}}}\n:label: ex-{{}}\n{{}}\n{ASKS} Go.\n```"
SOLUTION = "````{solution-start} ex-a\n:class: dropdown\n````"


def test_an_exercise_is_read_with_its_level_and_whether_it_leaves_code_to_write():
    text, code = v4.new_markdown_cell, v4.new_code_cell
    cells = [
        text("# T\n\n" + EXERCISE.format("a-b", ":class: level-2\n")),
        code("def f(): ..."),
        text(SOLUTION),
        text(EXERCISE.format("c", "") + "\n\n" + SOLUTION),
        code("1"),
        text(EXERCISE.format("d", ":class: wide level-3\n")),
    ]
    found = excerpts.exercises(cells)
    assert [(e.label, e.name, e.level, e.code) for e in found] == [
        ("ex-a-b", "a b", 2, True),
        ("ex-c", "c", None, False),
        ("ex-d", "d", 3, False),
    ]
    assert {e.asks for e in found} == {ASKS}


@pytest.mark.parametrize(
    ("box", "found"),
    [
        ("- **One.** And\n  more.\n- Two.", "**One.** And more."),
        ("First words. Others.\n\n- One.", "First words."),
    ],
)
def test_the_answer_of_a_chapter_is_the_first_of_its_short_answer(box, found):
    source = f"# T\n\n:::{{admonition}} The short answer\n:class: short-answer\n\n{box}\n:::\n"
    assert excerpts.answer(source) == found
    assert excerpts.answer("# T\n\nNo box.") == ""


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_exercise_of_a_notebook_is_found_and_has_a_level(path):
    """Add `:class: level-1` (2, 3) under the exercise's label; book/teachers.md says what the levels mean."""
    source = path.read_text(encoding="utf-8")
    found = NOTEBOOKS[f"{path.parent.name}/{path.stem}"].exercises
    assert [e.label for e in found] == re.findall(r"\{exercise\}[^:]*:label: (ex-[\w-]+)", source)
    assert len(found) == source.count("{exercise}")
    assert [e.label for e in found if e.level not in overview.LEVELS] == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_what_an_exercise_asks_is_told_whole(path):
    """Whole sentences as they stand in the notebook, the first question among them."""
    cells = nbformat.read(path, as_version=4).cells
    whole = " ".join(" ".join(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    for exercise in NOTEBOOKS[f"{path.parent.name}/{path.stem}"].exercises:
        _, _, text = whole.partition(f":label: {exercise.label} ")
        text = text.partition("```")[0]
        assert exercise.asks.count("?") == min(text.count("?"), 1), exercise.label
        assert re.search(r"[.?!]$", exercise.asks) and "The cell" not in exercise.asks, exercise.label
        said = re.sub(r"\]\([^)]*\)", "", exercise.asks)  # links lead from another page
        assert re.sub(r"\]\([^)]*\)", "", text).count(said.split(". ")[-1]) == 1, exercise.label


def test_every_chapter_has_a_title_an_answer_and_a_key_figure():
    for page, notebook in NOTEBOOKS.items():
        if page.startswith("chapters/"):
            assert notebook.title and notebook.answer and notebook.figures and notebook.exercises, page
            assert len(notebook.figures[0].alt) > 40 and notebook.figures[0].caption, page


# --- Plans -----------------------------------------------------------------------------------------------------------


def notebook(page, minutes, *exercises):
    return excerpts.Notebook(page, "T", minutes, "A.", (), exercises)


SMALL = {
    "chapters/01-a": notebook("chapters/01-a", 20, excerpts.Exercise("ex-x", 1, "Do.", False)),
    "chapters/02-b": notebook("chapters/02-b", 30, excerpts.Exercise("ex-y", None, "Do.", False)),
}


def test_a_plan_adds_up_the_minutes():
    told = overview.plan("60 minutes: 01-a ex-x 02-b", SMALL)
    assert told.splitlines()[0] == "- [1. T](../chapters/01-a.ipynb), 20 minutes"
    assert told.splitlines()[1] == "  - exercise [x](#ex-x), level 1, 10 minutes"
    assert told.rstrip().endswith("60 minutes in all")


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ("59 minutes: 01-a ex-x 02-b", "take 60 minutes: expected at most 59"),
        ("60 minutes: 01-b", "'01-b': expected a chapter, or an exercise that has a level"),
        ("60 minutes: ex-z", "'ex-z': expected a chapter, or an exercise"),
        ("60 minutes: ex-y", "'ex-y': expected a chapter, or an exercise that has a level"),
    ],
)
def test_a_plan_that_does_not_hold_is_refused(told, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        overview.plan(told, SMALL)


def test_a_place_for_a_part_on_another_page_is_refused():
    with pytest.raises(ValueError, match="book/faq: <!-- pages of this part --> is for a page that begins a part"):
        overview.filled("# T\n\n<!-- pages of this part -->\n", "book/faq", {}, SMALL, ROOT)


@pytest.mark.parametrize("hours", [1, 3, 10])
def test_teachers_have_a_plan_for_so_many_hours_that_leaves_room_for_talk(hours):
    source = (ROOT / "book" / "teachers.md").read_text(encoding="utf-8")
    (told,) = re.findall(rf"<!-- plan: ({60 * hours} minutes: .*) -->", source)
    (total,) = re.findall(r"(\d+) minutes in all", overview.plan(told, NOTEBOOKS))
    assert 0.6 * 60 * hours <= int(total) <= 60 * hours


# --- The pages -------------------------------------------------------------------------------------------------------


def soup(site, page):
    return BeautifulSoup((site / f"{page}.html").read_text(encoding="utf-8"), "html.parser")


def leads(page, link):
    """The page that a relative link on ``page`` leads to, without its anchor."""
    return Path(page).parent.joinpath(link.partition("#")[0]).as_posix().replace("book/../", "").removesuffix(".html")


def words(tag):
    return " ".join(tag.get_text().split())


@pytest.mark.site
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part["caption"])
def test_a_part_has_a_page_that_lists_its_pages_in_order(site, part):
    first, *others = [chapter["file"] for chapter in part["chapters"]]
    assert first.startswith("book/part-"), f"{part['caption']}: a part begins with its page, book/part-..."
    page = soup(site, first)
    assert page.h1.contents[0] == part["caption"]
    listed = page.select("section > section:has(> h2)")
    assert [leads(first, section.h2.a["href"]) for section in listed] == others
    for name, section in zip(others, listed, strict=True):
        if name not in NOTEBOOKS:
            continue
        told = NOTEBOOKS[name]
        number = re.match(r"chapters/(\d+)", name)
        assert not number or words(section.h2).startswith(f"{int(number[1])}. ")
        assert f"{told.minutes} minutes" in words(section)
        assert re.sub(r"\W", "", told.answer)[:8].lower() in re.sub(r"\W", "", section.get_text()).lower()
        if told.figures:
            picture = section.select_one(".key-figure a img")
            assert picture["alt"].split()[:5] == told.figures[0].alt.split()[:5]
            assert leads(first, picture.find_parent("a")["href"]) == name
            assert picture.find_parent("a")["href"].endswith(f"#{told.figures[0].name}")


@pytest.mark.site
def test_the_contents_lead_from_a_part_s_name_to_its_page(site):
    page = soup(site, "chapters/03-mini-batch")
    captions = page.select("#contents > p")
    assert [words(caption) for caption in captions] == [part["caption"] for part in PARTS]
    found = [leads("chapters/x", caption.a["href"]).replace("chapters/../", "") for caption in captions]
    assert found == [part["chapters"][0]["file"] for part in PARTS]
    listed = {leads("chapters/x", a["href"]).replace("chapters/../", "") for a in page.select("#contents li a")}
    assert listed & set(found) == set()


@pytest.mark.site
def test_the_page_for_teachers_lists_every_exercise_under_its_level(site):
    page = soup(site, "book/teachers")
    listed = page.select_one("section#exercises-by-level")
    for level in overview.LEVELS:
        section = listed.find("section", id=re.compile(f"^level-{level}-"))
        found = [link["href"].partition("#")[2] for link in section.select("li > p > strong a, li > strong a")]
        assert found == [e.label for e in EXERCISES.values() if e.level == level]
    assert "Without a level" not in listed.get_text()


@pytest.mark.site
def test_key_figures_are_files_with_their_captions(site):
    page = soup(site, "book/teachers")
    for notebook in NOTEBOOKS.values():
        if notebook.page.startswith("chapters/"):
            first = notebook.figures[0]
            (link,) = page.select(f"a[download][href$='/{first.name}.png']")
            assert (site / "book" / link["href"]).read_bytes() == overview.png(first)
    (link,) = page.select("a[download][href$='/figures.zip']")
    with zipfile.ZipFile(site / "book" / link["href"]) as together:
        figures = [figure for notebook in NOTEBOOKS.values() for figure in notebook.figures]
        assert sorted(together.namelist()) == sorted(["figures.md", *(f"{figure.name}.png" for figure in figures)])
        said = together.read("figures.md").decode("utf-8")
        assert "CC BY 4.0" in said
        for figure in figures:
            data = together.read(f"{figure.name}.png")
            shown, stored = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(figure.png))
            assert (shown.format, shown.size) == ("PNG", stored.size) and len(data) < len(figure.png)
            seen = ImageChops.difference(shown.convert("L"), stored.convert("L")).histogram()
            assert sum(seen[33:]) < 0.01 * sum(seen)  # the eye sees no difference
            assert f"## {figure.name}.png" in said and figure.alt in said and figure.caption in said


def test_the_text_and_figures_are_under_the_licence_that_the_page_names():
    licence = (ROOT / "LICENSE-TEXT").read_text(encoding="utf-8")
    assert licence.startswith("Attribution 4.0 International") and "BY-" not in licence
    assert "[CC BY 4.0](https://creativecommons.org/licenses/by/4.0/)" in (ROOT / "book" / "teachers.md").read_text(
        encoding="utf-8"
    )


# --- Notebooks to download -------------------------------------------------------------------------------------------


@pytest.mark.site
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_notebook_is_downloaded_as_it_is_and_begins_in_an_empty_folder(site, path, tmp_path):
    name = path.relative_to(ROOT).with_suffix("").as_posix()
    link = soup(site, name).select_one(".lead-in a[download]")
    downloaded = (site / name).parent / link["href"]
    assert downloaded.read_bytes() == path.read_bytes() and downloaded.name == path.name
    notebook = nbformat.read(downloaded, as_version=4)
    nbformat.validate(notebook)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code").source
    done = subprocess.run(
        [sys.executable, "-c", f"{first}\nprint(bl.__name__)"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("batchlab\n", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_notebook_needs_no_file_beside_it(path):
    """No picture by its path, no file or module of the book's tree: what it reads comes with the package."""
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert re.findall(r"!\[[^\]]*\]\((?!https?:|data:)[^)]*\)|\{(?:figure|image|literalinclude|download)\}", text) == []
    assert re.findall(r"\.\./[^\s\"']*|[\"'](?:chapters|book|results|experiments|src)/[^\"']*[\"']", code) == []

"""The parts of a chapter, in a small book that has each of them: filled, folded, at hand, in a real browser."""

import functools
import re
import threading
from http.server import ThreadingHTTPServer

import measure
import nbformat
import parts
import pytest
import terms
from bs4 import BeautifulSoup
from nbformat import v4
from test_browser import NARROW, Quiet, browser, overflow, unset, violations, visit

from batchlab import claims

import chapters
from conftest import ROOT, built, working_tree

__all__ = ["browser", "visit"]  # fixtures
CLAIM = claims.load()["every-step-descends"]
CARD = claims.Card(CLAIM, {s.name: {"estimate": 0.5, "low": 0.4, "high": 0.6} for s in CLAIM.statistics}, "ten seeds")
SLUG = CLAIM.chapter

FIRST = """\
(chapter-sample)=
# How wrong is one batch?

You can't afford the gradient of all examples, so you average a few and hope.

:::{admonition} The short answer
:class: short-answer

- Sixteen times the batch, a sixteenth of the *squared* error.
- Below the {term}`noise floor` a smaller rate helps, {term}`as the floor says <Noise floor>`.
- A step of {term}`batch gradient descent`, past the {term}`Critical batch size`, hardly saves one.
:::

<!-- minutes --> · one core, ten seeds · a recipe is at the end"""
THEN = """\
## The argument

::::{admonition} Guess first
:class: guess

Sixteen times the batch: how much smaller is the error?

:::{admonition} The answer
:class: dropdown

Four times; {eq}`eq-law` says why.
:::
::::

:::{admonition} Why: variances of independent draws add
:class: dropdown derivation

One line is enough.

$$ E = V / B $$ (eq-law)
:::
"""
LAST = "## Claims settled here\n\n<!-- claims settled here -->"


def code(source, number, *outputs, hidden=True):
    cell = v4.new_code_cell(source, execution_count=number, outputs=list(outputs))
    cell.metadata = {"tags": ["hide-input"]} if hidden else {}
    return cell


def sample():
    data, metadata = CARD._repr_mimebundle_()
    shown = v4.new_output("execute_result", data=data, metadata=metadata, execution_count=3)
    cells = [v4.new_markdown_cell(FIRST), code(chapters.SETUP, 1), v4.new_markdown_cell(THEN)]
    cells += [code("B = 16\n\nB**0.5", 2, hidden=False), code("bl.claims.check(...)", 3, shown)]
    return v4.new_notebook(cells=[*cells, v4.new_markdown_cell(LAST)])


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The pages of a book with one chapter, the sample; and the ledger and the glossary."""
    tree = working_tree(tmp_path_factory.mktemp("sample"))
    for path in chapters.notebooks(tree):
        path.unlink()
    (tree / "chapters" / f"{SLUG}.ipynb").write_text(chapters.dumped(chapters.normalised(sample())), encoding="utf-8")
    places = re.findall("<!-- ledger: .*? -->", (tree / "index.md").read_text(encoding="utf-8"))
    (tree / "index.md").write_text("\n\n".join(["# A book", "Of one chapter.", *places]), encoding="utf-8")
    files = [f"chapters/{SLUG}", "book/claims", "book/notation", "book/glossary", "book/references"]
    toc = "format: jb-book\nroot: index\nparts:\n- caption: All\n  chapters:\n"
    (tree / "_toc.yml").write_text(toc + "".join(f"  - file: {name}\n" for name in files), encoding="utf-8")
    return built(tree)


@pytest.fixture(scope="module")
def chapter(pages):
    return BeautifulSoup((pages / "chapters" / f"{SLUG}.html").read_text(encoding="utf-8"), "html.parser")


@pytest.fixture(scope="module")
def address(pages):
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=pages)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/chapters/{SLUG}.html"
        server.shutdown()


# ---- what the build fills


def test_the_minutes_are_computed_and_stand_where_their_place_is(chapter):
    minutes = measure.measured(sample()).minutes
    line = chapter.find("p", class_="quiet").get_text()
    assert line == f"{minutes} minutes · one core, ten seeds · a recipe is at the end"


def test_the_table_at_the_end_has_every_claim_of_the_chapter(pages, chapter):
    rows = chapter.select("table.settled tbody tr")
    own = [claim for claim in claims.load().values() if claim.chapter == SLUG]
    assert [row.a["href"] for row in rows] == [f"../book/claims.html#{claim.id}" for claim in own]
    for claim, row in zip(own, rows, strict=True):
        assert claims.VERDICTS[claim.verdict] in row.find(class_="ledger-verdict").get_text()
        assert all(article in row.find(class_="ledger-source").get_text() for article in claim.articles)
    row = rows[own.index(CLAIM)]
    shown = [li.get_text().strip() for li in row.select("li")]
    deciding = [s for s in CLAIM.statistics if s.kind == "registered"] or CLAIM.statistics
    expected = [f": {claims.value(s, CARD.measured[s.name])}; {s.requirement}" for s in deciding]
    assert len(shown) == len(expected) and all(text in line for text, line in zip(expected, shown, strict=True)), shown
    for other in set(rows) - {row}:
        assert other.select("td")[1].get_text().strip() in ("not measured", "nothing that can be measured decides it")


def test_the_search_leaves_to_the_ledger_what_the_table_repeats(pages):
    found = (pages / "_static" / "search.js").read_text(encoding="utf-8")
    assert found.count(CLAIM.says) == 1 and "Claims settled here" in found


def test_the_notebook_that_is_downloaded_has_its_places_still(pages):
    path = pages / "_sources" / "chapters" / f"{SLUG}.ipynb"
    assert nbformat.read(path, as_version=4) == chapters.normalised(sample())


@pytest.mark.parametrize(
    "text",
    [
        "<!-- minutes --> once\n\n<!-- minutes --> twice",
        "It takes <!-- minutes -->.",
        "# A title\n<!-- claims settled here -->",
    ],
)
def test_a_place_that_is_no_place_is_refused(text):
    with pytest.raises(ValueError, match=r"03-x: <!-- .* --> must stand once, where a paragraph begins"):
        parts.filled(v4.new_notebook(cells=[v4.new_markdown_cell(text)]), "03-x", {})


def test_a_card_says_that_it_is_a_call_that_is_folded(chapter):
    assert [fold.summary.get_text() for fold in chapter.select(".fold")] == ["The code", "The call"]


# ---- folds


def test_a_fold_opens_by_keyboard(address, visit):
    page, troubles = visit(address)
    for fold in [".guess details", ".derivation", ".fold:has(+ .cell_output .claim-card)"]:
        summary = page.locator(f"{fold} > summary")
        inside = page.locator(f"{fold} > :not(summary)").first
        assert not inside.is_visible()
        summary.press("Enter")
        assert inside.is_visible()
        summary.press("Space")
        assert not inside.is_visible()
    assert troubles == []


def test_a_link_opens_the_fold_that_it_leads_into(address, visit):
    page, troubles = visit(address)
    fold = page.locator(".derivation")
    page.locator(".guess summary").click()
    page.locator(".guess details a").click()
    assert fold.get_attribute("open") is not None
    fold.evaluate("fold => (fold.open = false)")
    page.goto("about:blank")
    page.goto(f"{address}#equation-eq-law")
    assert fold.get_attribute("open") is not None
    assert page.locator("#equation-eq-law").evaluate("e => e.getBoundingClientRect().top < innerHeight")
    assert troubles == []


def test_the_script_opens_a_fold_where_the_browser_does_not(address, visit):
    """To change the address without going there opens nothing by itself."""
    page, _ = visit(address, size={"width": 1280, "height": 200})
    page.evaluate("history.replaceState(null, '', '#equation-eq-law')")
    assert page.locator(".derivation[open]").count() == 0
    page.evaluate("dispatchEvent(new Event('hashchange'))")
    assert page.locator(".derivation[open]").count() == 1
    assert 0 < page.locator("#equation-eq-law").evaluate("e => e.getBoundingClientRect().top") < 200


@pytest.mark.parametrize("scripts", [True, False])
def test_on_paper_every_fold_is_open_with_and_without_a_script(browser, address, scripts):
    context = browser.new_context(java_script_enabled=scripts)
    page = context.new_page()
    page.goto(address)
    page.emulate_media(media="print")
    texts = ["Four times;", "One line is enough.", "bl.claims.check(...)", "import subprocess"]
    assert [text for text in texts if page.get_by_text(text).first.bounding_box()["height"] < 5] == []
    context.close()


# ---- terms


def test_a_term_is_found_by_its_english_words_and_described_at_its_first_use(chapter):
    links = chapter.select("main a[href*='glossary.html#']")
    assert [link.get_text() for link in links] == [
        "noise floor", "as the floor says", "batch gradient descent", "Critical batch size",
    ]  # fmt: skip
    described = [link.get("aria-describedby") for link in links]
    names = ["noise-floor", None, "batch-gradient-descent", "critical-batch-size"]
    assert described == [name and f"meaning-of-term-{name}" for name in names]
    for name in filter(None, described):
        [meaning] = chapter.find_all(id=name)
        assert len(meaning.get_text()) > 60 and meaning.a is None
    assert "stops improving" in chapter.find(id=described[0]).get_text()


def test_the_glossary_describes_nothing_that_it_says_itself(pages):
    glossary = BeautifulSoup((pages / "book" / "glossary.html").read_text(encoding="utf-8"), "html.parser")
    assert glossary.select(".term, .meaning") == []


def test_a_meaning_shows_to_the_keyboard_and_closes_with_escape(address, visit):
    page, troubles = visit(address)
    term, meaning = page.locator(".term").first, page.locator(".meaning").first
    assert not meaning.is_visible()
    term.focus()
    assert meaning.is_visible()
    assert violations(page) == []
    page.keyboard.press("Escape")
    assert not meaning.is_visible() and term.evaluate("e => e === document.activeElement")
    term.blur()
    term.focus()
    assert meaning.is_visible()
    page.keyboard.press("Tab")
    assert not meaning.is_visible()
    assert troubles == []


def test_a_meaning_shows_to_the_pointer_and_stays_while_the_pointer_is_on_it(address, visit):
    page, _ = visit(address)
    term, meaning = page.locator(".term").first, page.locator(".meaning").first
    term.hover()
    assert meaning.is_visible()
    meaning.hover()
    page.wait_for_timeout(400)
    assert meaning.is_visible()
    page.mouse.move(5, 400)
    meaning.wait_for(state="hidden")
    term.click()
    page.wait_for_url("**/glossary.html#term-noise-floor")


def test_a_meaning_shows_to_the_first_tap_and_the_second_follows_the_link(browser, address):
    context = browser.new_context(viewport=NARROW, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(address)
    term, meaning = page.locator(".term").last, page.locator(".meaning").last
    term.evaluate("term => (term.style = 'position: absolute; right: 0')")  # at the edge, where there is no room
    term.tap()
    assert meaning.is_visible() and page.url == address
    box = meaning.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= NARROW["width"] and box["width"] > 250
    page.locator("h1").tap()
    assert not meaning.is_visible()
    term.evaluate("term => (term.onfocus = term.onblur = null)")  # as where a tap gives no focus
    term.tap()
    assert meaning.is_visible()
    page.locator("h1").tap()
    assert not meaning.is_visible()
    term.tap()
    term.tap()
    page.wait_for_url("**/glossary.html#term-critical-batch-size")
    context.close()


def test_without_a_script_a_term_is_a_link_that_is_described(browser, address):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    assert not page.locator(".meaning").first.is_visible()
    page.locator(".term").first.click()
    page.wait_for_url("**/glossary.html#term-noise-floor")
    context.close()


def test_the_parts_are_whole_and_accessible_open_and_closed(address, visit):
    page, troubles = visit(address)
    found = violations(page)
    page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        found += [*violations(page), *unset(page), *overflow(page)]
    page.set_viewport_size(NARROW)
    assert [*found, *violations(page), *unset(page), *overflow(page), *troubles] == []


@pytest.mark.parametrize("entry", ["noise floor (噪声下限)", "noise floor"])
def test_the_names_of_a_term(entry):
    assert terms.names(entry) == {"noise floor"}


def test_no_two_terms_of_the_glossary_have_a_name_in_common():
    text = (ROOT / "book" / "glossary.md").read_text(encoding="utf-8")
    entries = re.findall(r"^(\S.*\([^)]*\))$", text, re.MULTILINE)
    assert len(entries) >= 40
    names = [name for entry in entries for name in terms.names(entry)]
    assert sorted(set(names)) == sorted(names)


# ---- how long a chapter is

HAND_COUNTED = """\
(label-of-chapter)=
# Five words of a title

It is *six* words, $x + y$ apart: `code` {term}`floors <noise floor>` and [a link](to/no-word.md). <!-- nothing -->

```python
two = 1

lines = 2
```

:::{admonition} Two words
:class: short-answer

- three words – here
- See {eq}`eq-law`, $a
  b$.
:::

$$ E
= V $$ (eq-law)

::::{admonition} Guess first
:class: guess

Four words are visible?

:::{admonition} The answer
:class: dropdown

Three are not.

```
hidden = True
```
:::
::::
"""
#   title 5; "It is six words apart floors and a link" 9; box 2 + 3 + 2; guess 2 + 4.  In the fold: 2 + 3.


def solution(*cells):
    start, end = (
        "````{solution-start} ex-a\n:class: dropdown\n\nWhy this.\n````",
        "````{solution-end}\n````\n\nThe end.",
    )
    return [v4.new_markdown_cell(start), *cells, v4.new_markdown_cell(end)]


def figure(*tags):
    image = v4.new_output("display_data", data={"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"})
    cell = code("plt.plot()", 1, image)
    cell.metadata["tags"] = list(tags)
    return cell


COUNTS = [  # (cells, what is counted)
    ([], {"words": 0, "folded": 0, "lines": 0, "longest": 0, "widest": 0, "before": None, "minutes": 0}),
    ([v4.new_markdown_cell(HAND_COUNTED)], {"words": 27, "folded": 5, "lines": 2, "longest": 0, "widest": 9}),
    ([code("a = 1\n\n\nbb = 22  ", 1, hidden=False)], {"lines": 2, "longest": 2, "widest": 7}),
    ([code("a = 1\nb = 2", 1)], {"lines": 0, "longest": 0, "widest": 0}),
    (solution(code("a = 1", 1, hidden=False), figure()), {"words": 2, "folded": 2, "lines": 0, "before": None}),
    ([*solution(), code("a = 1", 1, hidden=False)], {"words": 2, "lines": 1}),
    (
        [v4.new_markdown_cell("One two."), figure("hide-input"), v4.new_markdown_cell("Three.")],
        {"before": 2, "words": 3},
    ),
    ([v4.new_markdown_cell("One two.\n\n![It falls](a.png)\n\nThree.")], {"before": 2, "words": 5}),
    ([v4.new_markdown_cell("One.\n\n```{figure} a.png\nIts caption.\n```")], {"before": 1, "words": 3}),
    ([v4.new_markdown_cell("```{code-block} python\n:linenos:\na = 1\n```")], {"words": 0, "lines": 1}),
    ([v4.new_markdown_cell("```{math}\n:label: eq-a\na = 1\n```\nOne.")], {"words": 1, "lines": 0}),
    ([v4.new_markdown_cell("w " * 800), code("x\n" * 100, 1, hidden=False)], {"minutes": 14}),
]


@pytest.mark.parametrize(("cells", "counts"), COUNTS)
def test_a_chapter_is_measured_as_by_hand(cells, counts):
    length = measure.measured(v4.new_notebook(cells=cells))
    assert {name: getattr(length, name) for name in counts} == counts


@pytest.mark.parametrize("name", measure.BUDGET)
def test_what_is_over_its_budget_is_named(name):
    most = {field: measure.BUDGET[field] for field in ("words", "folded", "lines", "longest", "widest", "before")}
    most |= {"words": 2500, "lines": 200}  # together 32 minutes
    assert measure.Length(**most).over() == []
    if name == "minutes":
        assert "minutes" in measure.Length(**most | {"words": 8000}).over()
    else:
        assert measure.Length(**most | {name: most[name] + 1}).over() == [name]
    assert measure.Length().over() == ["before"]


def test_the_command_prints_every_chapter_and_flags_what_is_over(tmp_path, capsys):
    long = v4.new_notebook(cells=[v4.new_markdown_cell("w " * 2501), figure("hide-input")])
    for name, notebook in [("01-sample", sample()), ("02-long", long)]:
        (tmp_path / f"{name}.ipynb").write_text(chapters.dumped(notebook), encoding="utf-8")
    assert chapters.main(["measure", *map(str, sorted(tmp_path.iterdir()))]) is None
    head, most, short, over = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head[1:] == ["words", "folded", "lines", "longest", "widest", "before", "minutes", "without"]
    assert most[2:] == ["2,500", "1,500", "200", "20", "76", "300", "45"]
    assert short == ["01-sample", "86", "17", "2", "2", "6", "none!", "1"]
    assert over == ["02-long", "2,501!", "0", "0", "0", "0", "2,501!", "13", "minutes,", "claims", "settled"]

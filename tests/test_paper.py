"""The whole book as one PDF, read again by another program: outline, numbers, links, code; nothing cut or folded."""

import ctypes
import doctest
import re
import sys
from pathlib import Path

import browser
import nbformat
import paper
import pypdfium2
import pypdfium2.raw as pdfium
import pytest
from bs4 import BeautifulSoup
from playwright.sync_api import sync_playwright

import chapters
from conftest import ROOT

pytestmark = pytest.mark.site
COLUMN = 642  # CSS pixels: A4 without the margins of book/_templates/paper.html
A_BOX_CUTS = """() => [...document.querySelectorAll("main, pre, table, img, math, .formula, .equation")]
    .filter((box) => box.scrollWidth > box.clientWidth + 1 && getComputedStyle(box).display !== "inline"
        || box.getBoundingClientRect().right > document.body.getBoundingClientRect().right + 1)
    .map((box) => `${box.closest("main")?.id}: ${box.outerHTML.slice(0, 200)}`)"""


def bare(text):
    """Return a text without what printing may change: spaces, and the hyphens of a line's end."""
    return re.sub(r"[\s\u00ad\ufffe\u0000\u0002]+", "", text)


@pytest.fixture(scope="module")
def chromium():
    path = browser.found()
    if path is None:
        pytest.skip("no Chromium: put one on PATH, or its path into BATCHLAB_CHROMIUM")
    return path


@pytest.fixture(scope="module")
def html(site):
    """The one page, as text and parsed."""
    text = paper.whole(site)
    return text, BeautifulSoup(text, "html.parser")


@pytest.fixture(scope="module")
def pdf(site, chromium, tmp_path_factory):
    """The PDF as `make pdf` writes it, opened."""
    path = tmp_path_factory.mktemp("paper") / "book.pdf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BATCHLAB_CHROMIUM", chromium)
        assert paper.main([str(site), str(path)]) is None
    assert path.stat().st_size < 20_000_000
    with pypdfium2.PdfDocument(path) as document:
        yield document


@pytest.fixture(scope="module")
def sheets(pdf):
    """The text of every sheet."""
    return [page.get_textpage().get_text_range() for page in pdf]


def links(document):
    """Return every link of a PDF as (sheet it is on, sheet it leads to or None, address or None), from 0."""
    found = []
    for number, page in enumerate(document):
        place, link = ctypes.c_int(0), pdfium.FPDF_LINK()
        while pdfium.FPDFLink_Enumerate(page, place, link):
            target, action = pdfium.FPDFLink_GetDest(document, link), pdfium.FPDFLink_GetAction(link)
            sheet = pdfium.FPDFDest_GetDestPageIndex(document, target) if target else None
            size = pdfium.FPDFAction_GetURIPath(document, action, None, 0) if action else 0
            words = ctypes.create_string_buffer(size)
            if size:
                pdfium.FPDFAction_GetURIPath(document, action, words, size)
            found.append((number, sheet, words.value.decode() or None))
    return found


def test_the_examples_run():
    failed, run = doctest.testmod(paper)
    assert run and not failed


def test_every_page_of_the_site_is_in_it_in_the_order_of_the_contents(site, html):
    front = BeautifulSoup((site / "index.html").read_text(encoding="utf-8"), "html.parser")
    written = {p.relative_to(site).as_posix() for p in site.rglob("*.html")} - {"404.html"}
    listed = [link["href"].replace("#", "index.html") for link in front.select("#contents a")]
    assert set(listed) == written
    assert [text["id"] for text in html[1].find_all("main")] == [paper.key(page) for page in listed]


def test_names_are_unique_and_links_lead_to_them(html):
    names = [tag["id"] for tag in html[1].find_all(id=True)]
    assert len(set(names)) == len(names)
    addresses = [link["href"] for link in html[1].find_all("a", href=True)]
    assert {a for a in addresses if a.startswith("#")} <= {f"#{name}" for name in names}
    assert [a for a in addresses if not a.startswith(("#", "https://", "http://", "mailto:"))] == []


def test_nothing_stays_folded_or_is_for_a_screen(html):
    assert html[1].select("details:not([open]), script, button, .meaning, .playground, .headerlink, [loading]") == []
    assert len(html[1].find_all("details")) > 100
    assert len(html[1].select(".tag_playground figure img")) == html[0].count("tag_playground")


def test_the_outline_and_the_contents_name_every_page_where_it_begins(html, pdf, sheets):
    titles = {text["id"]: text.h1.get_text().strip() for text in html[1].find_all("main")}
    top = [(bare(mark.get_title()), mark.get_dest().get_index()) for mark in pdf.get_toc() if mark.level == 0]
    assert [title for title, _ in top] == ["Contents", *map(bare, titles.values())]
    starts = dict(top[1:])
    assert sorted(set(starts.values())) == list(starts.values())  # each begins a sheet of its own, in order
    listed = bare("".join(sheets[top[0][1] : top[1][1]]))  # the contents take two sheets
    for title, start in starts.items():
        assert f"{title}{start + 1}" in listed
        assert title.split(".")[-1] in bare(sheets[start])


def test_the_outline_goes_down_to_the_sections(html, pdf):
    marks = {bare(mark.get_title()) for mark in pdf.get_toc()}
    assert {bare(h.get_text()) for h in html[1].select("main h2, main h3")} <= marks


def test_every_link_leads_to_a_sheet_or_to_another_site(html, pdf):
    found = links(pdf)
    assert [(on, to, at) for on, to, at in found if (to is None) == (at is None)] == []
    assert {to for _, to, _ in found if to is not None} <= set(range(len(pdf)))
    assert [at for _, _, at in found if at and (not at.startswith("http") or "127.0.0.1" in at)] == []
    written = [link["href"].startswith("#") for link in html[1].find_all("a", href=True) if link.get_text(strip=True)]
    assert sum(to is not None for _, to, _ in found) >= sum(written) > 500  # one that is broken over lines counts twice


def test_every_sheet_has_its_number_and_something_to_read(sheets):
    assert [number for number, text in enumerate(sheets, 1) if len(text.split()) < 5] == []
    without = [number for number, text in enumerate(sheets, 1) if str(number) not in text.split()]
    assert without == [1]  # the cover
    assert 100 < len(sheets) < 1000


@pytest.mark.parametrize("path", chapters.notebooks(ROOT), ids=lambda p: p.stem)
def test_the_last_line_of_every_cell_is_there(sheets, path):
    told = bare("".join(sheets))
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code" and cell.source]
    shown = [cell for cell in cells if not {"remove-input", "playground"} & set(cell.metadata.get("tags", []))]
    assert [cell.source for cell in shown if bare(cell.source.splitlines()[-1]) not in told] == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_is_cut_and_nothing_is_dark(tmp_path, chromium, html, theme):
    path = tmp_path / "book.html"
    path.write_text(html[0], encoding="utf-8")
    with sync_playwright() as playwright:
        program = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = program.new_page(viewport={"width": COLUMN, "height": 970}, color_scheme=theme)
        page.emulate_media(media="print")
        page.goto(path.as_uri())
        page.evaluate("document.fonts.ready.then(() => null)")
        assert page.evaluate(A_BOX_CUTS) == []
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("[...document.images].filter((i) => getComputedStyle(i).filter !== 'none').length") == 0
        assert page.evaluate("[...document.images].filter((i) => !i.naturalWidth).length") == 0
        page.evaluate("document.querySelector('main pre').style.whiteSpace = 'pre'")  # a fault would be found
        page.evaluate("document.querySelector('main pre').append('x'.repeat(200))")
        assert len(page.evaluate(A_BOX_CUTS)) >= 1
        program.close()


@pytest.mark.parametrize(
    ("page", "body", "printed"),
    [
        ("a.html", '<p id="x"><a href="#x">x</a></p>', '<p id="a--x"><a href="#a--x">x</a></p>'),
        ("a.html", '<a href="c/b.html#x">x</a>', '<a href="#c-b--x">x</a>'),
        ("c/b.html", '<a href="../a.html">x</a><a href="#">y</a>', '<a href="#a">x</a><a href="#c-b">y</a>'),
        ("a.html", '<a href="_sources/a.ipynb">x</a>', "x"),
        ("a.html", '<a href="https://x.org/#y">x</a>', '<a href="https://x.org/#y">x</a>'),
        ("a.html", '<p id="x"></p><p id="x"></p>', '<p id="a--x"></p><p></p>'),
        ("a.html", "<details><summary>s</summary>x</details>", '<details open=""><summary>s</summary>x</details>'),
        ("a.html", '<a aria-describedby="m">x</a><div class="meaning" id="m">y</div>', "<a>x</a>"),
        (
            "a.html",
            '<div class="cell"><details class="fold"></details><div class="cell_output">y</div></div>',
            '<div class="cell"><div class="cell_output">y</div><details class="fold" open=""></details></div>',
        ),
        (
            "a.html",
            '<p class="lead-in"><span>Chapter 4</span> <a href="#">Download</a></p><h1>T</h1>',
            '<h1><span class="chapter">Chapter 4<i>.</i> </span>T</h1>',
        ),
    ],
)
def test_a_page_on_paper(page, body, printed):
    text = paper.on_paper(page, BeautifulSoup(body, "html.parser"), ["a.html", "c/b.html"], Path("/site"))
    assert str(text) == printed


def test_folded_code_is_printed_once():
    fold = '<h1>{0}</h1><details class="fold"><summary>The code</summary><pre>import a</pre></details>'
    texts = {f"{name}.html": BeautifulSoup(fold.format(name), "html.parser") for name in "ab"}
    paper.say_once(texts, {"a.html": "A", "b.html": "B"})
    assert texts["a.html"].details["id"] == "a--fold-0"
    assert str(texts["b.html"].p) == '<p class="quiet">The code is that of <a href="#a--fold-0">A</a>.</p>'


@pytest.mark.parametrize(
    ("chromium", "site", "says"),
    [
        ("", ROOT, "no browser to print with: install Chromium or Google Chrome"),
        ("/no/such/chromium", ROOT, "BATCHLAB_CHROMIUM = '/no/such/chromium': expected the path of a Chromium"),
        (sys.executable, ROOT / "book", "holds no site: run `make book`"),
    ],
)
def test_what_is_missing_is_named(monkeypatch, tmp_path, chromium, site, says):
    monkeypatch.setenv("BATCHLAB_CHROMIUM", chromium)
    assert says in paper.main([str(site), str(tmp_path / "book.pdf")])
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_prints_nothing_is_an_error(tmp_path):
    path = tmp_path / "book.pdf"
    path.write_bytes(b"of another day")
    with pytest.raises(RuntimeError, match="printed no PDF"):
        paper.printed("<p>x</p>", sys.executable, path, "--disable-pdf-tagging")
    assert not path.exists()

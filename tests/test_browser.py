"""Every page of the site in a real browser, in both themes and at two widths, with the network closed."""

import functools
import gzip
import os
import re
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import axe_playwright_python
import mathematics
import pytest
from playwright.sync_api import sync_playwright

from batchlab import claims

from conftest import ROOT

pytestmark = pytest.mark.site
AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NARROW, WIDE = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
FRONT = "index.html"
FIRST = sorted((ROOT / "chapters").glob("*.ipynb"))[:1]
MOST_BYTES = 250_000  # a page, compressed, with all it loads before somebody scrolls
COMPRESSED = {".html", ".css", ".js", ".svg"}


@pytest.fixture(scope="module")
def browser():
    path = os.environ.get("BATCHLAB_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium: put one on PATH, or its path into BATCHLAB_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address(site):
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def visit(browser):
    """Return a function that opens an address and returns (page, troubles); the list goes on filling."""
    contexts = []

    def visit(url, *, theme="light", size=WIDE):
        context = browser.new_context(viewport=size, color_scheme=theme)
        contexts.append(context)
        page, troubles = context.new_page(), []

        def route(route):
            if urlsplit(route.request.url).hostname in ("127.0.0.1", None):
                route.continue_()
            else:
                troubles.append(f"outside request: {route.request.url}")
                route.abort()

        def failed(request):  # what the next navigation cut short, a favicon for one, is no fault of the page
            if request.failure != "net::ERR_ABORTED":
                troubles.append(f"failed: {request.url}")

        context.route("**/*", route)
        page.on("console", lambda m: troubles.append(f"console: {m.text}"))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("requestfailed", failed)
        page.on("response", lambda r: troubles.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
        page.goto(url, wait_until="load")
        page.evaluate("document.fonts.ready.then(() => null)")
        return page, troubles

    yield visit
    for context in contexts:
        context.close()


def names(site):
    return sorted(p.relative_to(site).as_posix() for p in site.rglob("*.html") if "_static" not in p.parts)


# After two frames the page has heard of what was opened or resized just before.
SETTLED = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"


def violations(page, **options):
    """Return what axe-core finds against a page, by default with every rule: up to three elements for each rule."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE)
    options = {"resultTypes": ["violations"], **options}
    page.evaluate(SETTLED)
    found = page.evaluate("async (options) => (await axe.run(document, options)).violations", options)
    return [f"{v['id']}: {n['html'][:160]}: {n['failureSummary']}" for v in found for n in v["nodes"][:3]]


def overflow(page):
    """Return how many pixels a page is wider than its window, and what sticks out."""
    return page.evaluate(
        """() => {
            const room = document.documentElement.clientWidth;
            const extra = Math.max(document.documentElement.scrollWidth, document.body.scrollWidth) - room;
            if (extra <= 0) return [];
            const out = [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > room);
            return [`sideways: ${extra}`, ...out.slice(0, 5).map(e => e.outerHTML.slice(0, 120))];
        }"""
    )


def unset(page):
    """Return what still reads as LaTeX or Markdown, formulas wider than their line, and a font that is missing."""
    return page.evaluate(
        r"""() => {
            const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
            while (walker.nextNode()) {
                const node = walker.currentNode;
                if (node.parentElement.closest('code, pre, script')) continue;
                if (/\\[a-zA-Z(\[]|\$[^$\d][^$]*\$|\][({][#.]/.test(node.data))
                    found.push(`unset: ${node.data.slice(0, 120)}`);
            }
            for (const formula of document.querySelectorAll('.formula'))
                if (formula.scrollWidth > formula.clientWidth) found.push(`too wide: ${formula.textContent}`);
            const face = [...document.fonts].find(face => face.family.includes('STIX Two Math'));
            if (document.querySelector('math') && face?.status !== 'loaded')
                found.push('the font of mathematics is missing');
            return found;
        }"""
    )


def test_every_page_is_whole_and_accessible(site, address, visit):
    """One visit a page: wide and light with every rule, then dark for its colours, then narrow for its shape."""
    found = []
    for name in names(site):
        page, troubles = visit(address + name)
        page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
        faults = [*overflow(page), *unset(page), *violations(page)]
        page.emulate_media(color_scheme="dark")
        faults += violations(page, runOnly=["color-contrast"])
        page.set_viewport_size(NARROW)
        faults += [*overflow(page), *unset(page)]
        faults += violations(page, rules={"color-contrast": {"enabled": False}})
        found += [f"{name}: {fault}" for fault in [*faults, *troubles]]
        page.context.close()
    assert not found, "\n".join(found)


def test_no_page_is_heavy(site, address, visit):
    """Bytes before scrolling, on a telephone, text counted as GitHub Pages sends it: compressed."""
    heavy, sizes = {}, {}
    for path in site.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            sizes[path.relative_to(site).as_posix()] = len(gzip.compress(data) if path.suffix in COMPRESSED else data)
    for name in names(site):
        page, seen = visit("about:blank", size=NARROW)[0], set()
        page.on("request", lambda request, seen=seen: seen.add(urlsplit(request.url).path.lstrip("/")))
        page.goto(address + name, wait_until="load")
        page.evaluate("document.fonts.ready.then(() => null)")
        weight = sum(sizes[path] for path in seen)
        if weight > MOST_BYTES or name not in seen:
            heavy[name] = weight, seen
        page.context.close()
    assert heavy == {}


ADVISOR = "chapters/15-choosing-a-batch-size.html"
LINES = """spans => spans.map(span => {
    const box = span.closest("pre"), range = document.createRange();
    range.selectNodeContents(span);
    const ends = [...range.getClientRects()].map(line => line.right);
    return { rows: new Set([...range.getClientRects()].map(line => line.top)).size,
             over: Math.max(...ends) - box.getBoundingClientRect().right };
})"""


def test_on_a_telephone_what_was_printed_breaks_into_lines_and_columns_stay_in_line(address, visit):
    page, _ = visit(address + ADVISOR)
    page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    assert {line["rows"] for line in page.locator(".said").evaluate_all(LINES)} == {1}
    page.set_viewport_size(NARROW)
    lines = page.locator(".said").evaluate_all(LINES)
    assert max(line["rows"] for line in lines) > 1 and max(line["over"] for line in lines) <= 0
    sideways = "boxes => boxes.filter(box => box.scrollWidth > box.clientWidth).map(box => box.textContent)"
    wide = page.locator(".cell_output pre").evaluate_all(sideways)
    assert wide and all(re.search(r"\S {2,}\S", text) for text in wide)  # tables, and nothing else
    report = page.locator(".cell_output pre", has_text="Train with a batch of").first
    assert report.evaluate("box => box.scrollWidth <= box.clientWidth")


def test_on_a_telephone_panels_are_larger_than_fits_and_scroll_by_keyboard_too(address, visit):
    page, troubles = visit(address + ADVISOR, size=NARROW)
    panels = page.locator(".panels").first
    assert panels.locator("img").bounding_box()["width"] == 640
    assert panels.get_attribute("tabindex") == "0"  # Safari reaches nothing that scrolls by itself
    panels.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('.panels').scrollLeft > 0")
    page.set_viewport_size(WIDE)
    assert panels.evaluate("box => box.scrollWidth <= box.clientWidth && !box.hasAttribute('tabindex')")
    assert panels.locator("img").bounding_box()["width"] > 640
    page.emulate_media(media="print")
    page.set_viewport_size(NARROW)
    assert panels.locator("img").bounding_box()["width"] <= NARROW["width"]
    assert troubles == []


def test_the_sign_of_a_root_stands_as_high_over_a_low_letter_as_over_a_high_one(address, visit):
    page, _ = visit(address + "book/rescale.html")
    roots = "".join(mathematics.mathml(rf"\sqrt {letter}") for letter in "rB")
    page.evaluate("roots => document.querySelector('h1').insertAdjacentHTML('afterend', `<p>${roots}</p>`)", roots)
    low, high = page.locator("h1 + p msqrt").evaluate_all(
        "roots => roots.map(root => root.getBoundingClientRect().top)"
    )
    assert low == pytest.approx(high, abs=0.5)


def favourite_word(page):
    """Return the word of eight letters or more that the paragraphs of a page use most."""
    prose = " ".join(page.locator("main p").all_inner_texts())
    words = re.findall(r"\b[a-z]{8,}\b", prose)
    return max(sorted(set(words)), key=words.count)


def first_hits(page, queries):
    """Return the address of the first hit of each query, asked of the open search."""
    return page.evaluate("queries => queries.map(query => findInBook(query).hits[0]?.address)", queries)


@pytest.mark.parametrize("path", FIRST, ids=lambda p: p.stem)
def test_search_finds_a_word_of_the_first_chapter(address, visit, path):
    word = favourite_word(visit(f"{address}chapters/{path.stem}.html")[0])
    page, troubles = visit(address + "book/glossary.html")
    page.keyboard.press("/")
    page.locator("input[type=search]").fill(word)
    page.wait_for_selector("#search li a")
    hits = page.locator("#search li a").evaluate_all("links => links.map(link => link.pathname)")
    assert any(hit.endswith(f"chapters/{path.stem}.html") for hit in hits)
    page.keyboard.press("Enter")
    page.wait_for_url(f"**{hits[0]}#*")
    assert troubles == []


def test_search_finds_every_claim_by_its_sentence_and_every_term_by_its_chinese(address, visit):
    page, _ = visit(address + "book/glossary.html")
    page.keyboard.press("Control+k")
    page.wait_for_function("window.bookIndex")
    ledger = claims.load(ROOT / "book" / "claims.yml")
    found = first_hits(page, [claim.says for claim in ledger.values()])
    assert found == [f"book/claims.html#{claim}" for claim in ledger]
    terms = page.locator("dl.glossary dt").all_inner_texts()
    chinese = {word: i for i, term in enumerate(terms) for word in re.findall(r"[\u3400-\u9fff]+", term)}
    assert len(chinese) >= 40
    anchors = page.locator("dl.glossary dt").evaluate_all("terms => terms.map(term => term.id)")
    assert first_hits(page, list(chinese)) == [f"book/glossary.html#{anchors[i]}" for i in chinese.values()]


def test_next_and_previous_lead_through_the_book(address, visit):
    page, troubles = visit(address + FRONT)
    page.locator("a[rel=next]").click()
    page.wait_for_url(re.compile(f"^(?!.*{FRONT})"))
    page.locator("a[rel=prev]").click()
    page.wait_for_url(f"**/{FRONT}")
    assert troubles == []


def test_the_button_changes_the_theme_and_the_next_page_keeps_it(address, visit):
    page, troubles = visit(address + FRONT, theme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    page.locator("#theme").click()
    light = page.evaluate(paper)
    page.reload()
    assert page.evaluate(paper) == light != dark
    assert troubles == []


def test_the_contents_open_on_a_telephone_and_lead_on(address, visit):
    page, troubles = visit(address + FRONT, size=NARROW)
    link = page.locator("#contents a[href*='chapters/']").first
    assert not link.is_visible()
    page.get_by_role("button", name="Contents").click()
    link.click()
    page.wait_for_url("**/chapters/*.html")
    assert troubles == []


@pytest.mark.parametrize("path", FIRST, ids=lambda p: p.stem)
def test_code_is_copied_and_a_figure_enlarges_by_keyboard(address, visit, path):
    page, troubles = visit(f"{address}chapters/{path.stem}.html")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    cell = page.locator(".cell_input:visible").first
    cell.hover()
    cell.get_by_role("button", name="Copy").click()
    cell.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == cell.locator("pre").text_content()
    page.locator("figure .enlarge").first.press("Enter")
    page.locator("#picture img").wait_for()
    page.keyboard.press("Escape")
    assert not page.locator("#picture").is_visible()
    assert troubles == []


@pytest.mark.parametrize("path", FIRST, ids=lambda p: p.stem)
def test_on_paper_no_code_is_cut_and_nothing_is_folded(address, visit, path):
    page, _ = visit(f"{address}chapters/{path.stem}.html")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 400, "height": 600})  # a small sheet: narrower than many lines of code
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    cut = "boxes => boxes.filter(box => box.scrollWidth > box.clientWidth).map(box => box.textContent)"
    assert page.locator("pre").evaluate_all(cut) == []
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0


@pytest.mark.parametrize("how", [{"format": "A4"}, {"prefer_css_page_size": True}], ids=lambda how: next(iter(how)))
def test_the_cheat_sheet_is_one_page_of_a4(address, visit, how):
    page, _ = visit(address + "book/cheat-sheet.html", theme="dark")
    sheet = page.pdf(**how)
    assert len(re.findall(rb"/Type\s*/Page\b", sheet)) == 1
    (size,) = re.findall(rb"/MediaBox \[0 0 ([.\d]+) ([.\d]+)", sheet)
    assert [float(side) for side in size] == pytest.approx([595.3, 841.9], abs=1)  # points
    page.emulate_media(media="print")
    assert page.locator("#cheat-sheet section").evaluate_all("parts => parts.every(part => part.offsetHeight > 20)")
    assert not page.get_by_role("button", name="Contents").is_visible()


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">', "image-alt"),
        ('<p style="color: #bbb; background: #fff">pale</p>', "color-contrast"),
        ('<div style="width: 3000px">wide</div>', "sideways"),
        ('<script src="http://cdn.example.org/a.js"></script>', "outside request"),
        ('<script src="/missing.js"></script>', "404"),
        ("<script>undefined_name()</script>", "undefined_name"),
        ("<script>console.log('chatter')</script>", "chatter"),
        (r"<p>\(x^2\)</p>", "unset"),
        ("<p>where $x$ is</p>", "unset"),
        ("<p>[refuted](#claim)</p>", "unset"),
        ("<math><mi>x</mi></math>", "font of mathematics"),
        ('<div class="formula" style="width: 9px; overflow: auto"><math><mi>xxxxxxx</mi></math></div>', "too wide"),
        ("<p>plain, for $5 or <code>$HOME$</code></p>", None),
    ],
)
def test_a_fault_in_a_page_is_found(tmp_path, visit, body, fault):
    head = '<meta charset="utf-8"><title>t</title><link rel="icon" href="data:,">'
    page_text = f'<!doctype html><html lang="en"><head>{head}</head><main><h1>t</h1>{body}</main></html>'
    (tmp_path / "index.html").write_text(page_text, encoding="utf-8")
    handler = functools.partial(Quiet, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page, troubles = visit(f"http://127.0.0.1:{server.server_port}/index.html")
        found = str([*troubles, *violations(page), *unset(page), *overflow(page)])
        server.shutdown()
    assert found == "[]" if fault is None else fault in found

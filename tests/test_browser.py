"""Every page of the site in a real browser, in both themes and at two widths, with the network closed."""

import functools
import os
import re
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import axe_playwright_python
import pytest
import yaml
from playwright.sync_api import sync_playwright

from conftest import ROOT

pytestmark = pytest.mark.site
AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDTHS = {"narrow": 390, "wide": 1280}
ROOT_PAGE = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))["root"] + ".html"
FIRST = sorted((ROOT / "chapters").glob("*.ipynb"))[:1]


@pytest.fixture(scope="module")
def browser():
    path = os.environ.get("BATCHLAB_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium: put one on PATH, or its path into BATCHLAB_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(site):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def visit(browser):
    """Return a function that opens an address and returns (page, troubles); the list goes on filling."""
    contexts = []

    def visit(url, *, theme="light", width=1280, height=900):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
        contexts.append(context)
        context.add_init_script(f"localStorage.mode = '{theme}'; localStorage.theme = '{theme}'")
        page, troubles = context.new_page(), []

        def route(route):
            if urlsplit(route.request.url).hostname in ("127.0.0.1", None):
                route.continue_()
            else:
                troubles.append(f"outside request: {route.request.url}")
                route.abort()

        context.route("**/*", route)
        page.on("console", lambda m: troubles.append(f"console: {m.text}") if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("requestfailed", lambda r: troubles.append(f"failed: {r.url}"))
        page.on("response", lambda r: troubles.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
        page.goto(url, wait_until="load")
        page.evaluate("async () => { if (window.MathJax?.startup) await MathJax.startup.promise }")
        page.wait_for_timeout(400)  # the theme lets the keyboard reach what scrolls 300 ms after loading
        return page, troubles

    yield visit
    for context in contexts:
        context.close()


def names(site):
    """Every page of the site but the first address, which only leads on to the introduction."""
    found = {p.relative_to(site).as_posix() for p in site.rglob("*.html") if "_static" not in p.parts}
    return sorted(found - {"index.html"})


def violations(page):
    """Return what axe-core finds against a page, every rule on: up to three elements for each rule."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("async () => (await axe.run(document, {resultTypes: ['violations']})).violations")
    return [f"{v['id']}: {n['html'][:160]}: {n['failureSummary']}" for v in found for n in v["nodes"][:3]]


def overflow(page):
    """Return how many pixels a page is wider than its window, and what sticks out."""
    return page.evaluate(
        """() => {
            const room = document.documentElement.clientWidth;
            const extra = Math.max(document.documentElement.scrollWidth, document.body.scrollWidth) - room;
            if (extra <= 0) return [];
            const out = [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > room);
            return [extra, ...out.slice(0, 5).map(e => e.outerHTML.slice(0, 120))];
        }"""
    )


def unset_mathematics(page):
    """Return the mathematics of a page that MathJax has not typeset, and any it could not read."""
    return page.evaluate(
        """() => [...document.querySelectorAll('.math')].filter(e => !e.querySelector('mjx-container'))
            .concat([...document.querySelectorAll('mjx-merror')]).map(e => e.textContent.slice(0, 120))"""
    )


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS.keys())
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_page_is_whole_and_accessible(site, address, visit, theme, width):
    found = []
    for name in names(site):
        page, troubles = visit(address + name, theme=theme, width=width)
        assert page.evaluate("document.documentElement.dataset.theme") == theme
        faults = [*troubles, *unset_mathematics(page), *overflow(page)]  # before axe, which fetches on its own
        found += [f"{name}: {fault}" for fault in [*faults, *violations(page)]]
        page.context.close()
    assert not found, "\n".join(found)


def favourite_word(page):
    """Return the word of eight letters or more that the paragraphs of a page use most."""
    prose = " ".join(page.locator("article p").all_inner_texts())
    words = re.findall(r"\b[a-z]{8,}\b", prose)
    return max(sorted(set(words)), key=words.count)


@pytest.mark.parametrize("path", FIRST, ids=lambda p: p.stem)
def test_search_finds_a_word_of_the_first_chapter(address, visit, path):
    word = favourite_word(visit(f"{address}chapters/{path.stem}.html")[0])
    page, troubles = visit(address + ROOT_PAGE)
    page.keyboard.press("Control+K")
    page.locator("input[type=search]:visible").first.fill(word)
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results ul.search li a")
    hits = page.locator("#search-results ul.search li a").evaluate_all("links => links.map(a => a.pathname)")
    assert any(hit.endswith(f"chapters/{path.stem}.html") for hit in hits)
    assert troubles == []


def test_next_and_previous_lead_through_the_book(address, visit):
    page, troubles = visit(address + ROOT_PAGE)
    page.locator("a.right-next").click()
    page.wait_for_url(re.compile(f"^(?!.*{ROOT_PAGE})"))
    page.locator("a.left-prev").click()
    page.wait_for_url(f"**/{ROOT_PAGE}")
    assert troubles == []


def test_the_first_address_leads_to_the_introduction(browser, address):
    page = browser.new_page()
    page.goto(address)
    page.wait_for_url(f"**/{ROOT_PAGE}")
    page.close()


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">', "image-alt"),
        ('<p style="color: #bbb; background: #fff">pale</p>', "color-contrast"),
        ('<div style="width: 3000px">wide</div>', "sideways"),
        ('<script src="http://cdn.example.org/a.js"></script>', "outside request"),
        ('<script src="/missing.js"></script>', "404"),
        ("<script>undefined_name()</script>", "undefined_name"),
        ('<span class="math">x^2</span>', "x^2"),
        ("<p>plain</p>", None),
    ],
)
def test_a_fault_in_a_page_is_found(tmp_path, browser, visit, body, fault):
    page_text = f'<!doctype html><html lang="en"><title>t</title><main><h1>t</h1>{body}</main></html>'
    (tmp_path / "index.html").write_text(page_text, encoding="utf-8")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page, troubles = visit(f"http://127.0.0.1:{server.server_port}/index.html")
        wide = ["sideways"] if overflow(page) else []
        troubles = [t for t in troubles if "favicon" not in t]
        found = str([*troubles, *violations(page), *unset_mathematics(page), *wide])
        server.shutdown()
    assert found == "[]" if fault is None else fault in found

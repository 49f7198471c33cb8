"""The whole book as one PDF: every page of the built site, in the order of its contents, printed by Chromium.

    python book/_ext/paper.py [_build/html [book.pdf]]

The pages are those of the site as they are, so there is nothing that only the PDF would say. Here they become one
page: names are made unique, links between pages become links within it, what only a screen can do goes, and what is
folded opens. It is printed twice, for only then the contents know on which page each chapter begins.
"""

import argparse
import os
import posixpath
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pikepdf
from bs4 import BeautifulSoup
from jinja2 import Template

BOOK = Path(__file__).resolve().parents[1]
SITE = BOOK.parent / "_build" / "html"
NAME = "batch-size-measured.pdf"
FOR_A_SCREEN = ".headerlink, .lead-in a, .meaning, .onward, .playground, script"
NAMES = ("id", "aria-describedby", "aria-labelledby", "for", "name")
SECONDS = 900  # the longest a print may take


def key(page):
    """Return what a page of the site is called within the one page; a name on it is called ``key--name``.

    >>> key("chapters/04-throughput.html")
    'chapters-04-throughput'
    """
    return page.removesuffix(".html").replace("/", "-")


def contents(front):
    """Return the parts of the book from the front page, parsed: [{"caption", "pages": [address, ...]}, ...]."""
    found = []
    for listed in front.select("#contents ul"):
        caption = listed.find_previous_sibling("p")
        links = [*(caption.find_all("a") if caption else ()), *listed.find_all("a")]  # a part's own page comes first
        pages = [link["href"].replace("#", "index.html") for link in links]
        found.append({"caption": caption.get_text() if caption else "", "pages": pages})
    return found


def leads(page, link, pages):
    """Return where a link on ``page`` leads within the one page: "#name", the link itself to elsewhere, or None.

    >>> leads("chapters/a.html", "../book/b.html#x", ["chapters/a.html", "book/b.html"])
    '#book-b--x'
    >>> leads("chapters/a.html", "../_sources/a.ipynb", ["chapters/a.html"])  # a file beside the pages
    """
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return link
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(parts.path))) if parts.path else page
    if path not in pages:
        return None
    return f"#{key(path)}--{unquote(parts.fragment)}" if parts.fragment else f"#{key(path)}"


def on_paper(page, text, pages, site):
    """Make of a page's text, parsed, a part of the one page; pictures are found in the directory ``site``."""
    for node in text.select(FOR_A_SCREEN):
        node.decompose()
    seen = set()
    for node in text.find_all(True):
        for name in NAMES:
            if name in node.attrs:
                node[name] = f"{key(page)}--{node[name]}"
        if "id" in node.attrs:
            if node["id"] in seen:
                del node["id"]  # a link leads to the first of a name
            else:
                seen.add(node["id"])
        node.attrs.pop("aria-describedby", None)
    for link in text.find_all("a", href=True):
        place = leads(page, link["href"], pages)
        if place is None:
            link.unwrap()
        else:
            link["href"] = place
    for picture in text.find_all("img"):
        picture["src"] = (site / posixpath.dirname(page) / unquote(picture["src"])).resolve().as_uri()
        del picture["loading"], picture["decoding"]
    for fold in text.find_all("details"):
        fold["open"] = ""
    for drawn in text.select(".cell > .fold + .cell_output"):
        drawn.insert_after(drawn.find_previous_sibling(class_="fold").extract())  # the figure first, then its code
    number = text.select_one(".lead-in span")
    if number:
        number = number.extract().get_text()
        text.h1.insert(0, BeautifulSoup(f'<span class="chapter">{number}<i>.</i> </span>', "html.parser"))
    for empty in text.select(".lead-in"):
        empty.decompose()
    return text


def say_once(texts, titles):
    """Put a link in the place of folded code that stands word for word before, as every chapter's first cell does."""
    seen = {}
    for page, text in texts.items():
        for fold in text.select("details.fold"):
            code = fold.pre.get_text()
            if code in seen:
                name, title = seen[code]
                again = BeautifulSoup('<p class="quiet">The code is that of <a></a>.</p>', "html.parser")
                again.a["href"], again.a.string = f"#{name}", title
                fold.replace_with(again.p)
            else:
                seen[code] = f"{key(page)}--fold-{len(seen)}", titles[page]
                fold["id"] = seen[code][0]


def whole(site, numbers=None):
    """Return the HTML of the whole book on one page.

    Args:
        site: the directory of the built site.
        numbers: {key of a page: the number of the sheet on which it begins}; without it the contents show none.
    """
    site = Path(site).resolve()
    front = BeautifulSoup((site / "index.html").read_text(encoding="utf-8"), "html.parser")
    parts = contents(front)
    pages = [page for part in parts for page in part["pages"]]
    texts = {}
    for page in pages:
        soup = BeautifulSoup((site / page).read_text(encoding="utf-8"), "html.parser")
        texts[page] = on_paper(page, soup.find("main"), pages, site)
    titles = {page: " ".join(text.h1.get_text().split()) for page, text in texts.items()}
    say_once(texts, titles)
    squares = texts[pages[0]].select_one(".ledger-squares")
    template = Template((BOOK / "_templates" / "paper.html").read_text(encoding="utf-8"), autoescape=True)
    return template.render(
        title=front.select_one(".bar .name").get_text(),
        licence=" ".join(front.select_one("footer p").get_text().split()),
        cover=str(squares or ""),
        style=(site / "_static" / "book.css").as_uri(),
        parts=parts,
        titles=titles,
        texts={page: text.decode_contents() for page, text in texts.items()},
        key=key,
        numbers=numbers or {},
    )


def printed(html, chromium, path, flag):
    """Print a page to the PDF ``path`` with a Chromium, under one more flag of its own.

    Raises:
        RuntimeError: it printed nothing; with its last words.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        source = Path(folder, "book.html")
        source.write_text(html, encoding="utf-8")
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", flag]
        command += [f"--user-data-dir={folder}/profile", "--no-pdf-header-footer", f"--print-to-pdf={path}"]
        path.unlink(missing_ok=True)
        done = subprocess.run([*command, source.as_uri()], capture_output=True, text=True, timeout=SECONDS)
    if not path.is_file():
        raise RuntimeError(f"{chromium} printed no PDF (exit status {done.returncode}): {done.stderr[-2000:]}")


def sheets(pdf):
    """Return {name of a place that a link leads to: the number of its sheet, from 1}."""
    with pikepdf.open(pdf) as document:
        numbers = {page.objgen: number for number, page in enumerate(document.pages, 1)}
        return {name.lstrip("/"): numbers[place[0].objgen] for name, place in document.Root.Dests.items()}


def small(pdf):
    """Write a PDF again with its objects packed: half the bytes, since a tagged one has a hundred thousand."""
    with pikepdf.open(pdf, allow_overwriting_input=True) as document:
        document.save(pdf, object_stream_mode=pikepdf.ObjectStreamMode.generate)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", nargs="?", type=Path, default=SITE, help="the built site (default: _build/html)")
    parser.add_argument("pdf", nargs="?", type=Path, help=f"what to write (default: {NAME} in the site)")
    given = parser.parse_args(arguments)
    chromium = os.environ.get("BATCHLAB_CHROMIUM")
    if not chromium:
        return "no browser to print with: install Chromium or Google Chrome, or name one in BATCHLAB_CHROMIUM"
    if shutil.which(chromium) is None:
        return f"BATCHLAB_CHROMIUM = {chromium!r}: expected the path of a Chromium or Google Chrome"
    if not (given.site / "index.html").is_file():
        return f"{given.site} holds no site: run `make book`"
    path = (given.pdf or given.site / NAME).resolve()
    printed(whole(given.site), chromium, path, "--disable-pdf-tagging")  # where everything is
    printed(whole(given.site, sheets(path)), chromium, path, "--generate-pdf-document-outline")
    small(path)


if __name__ == "__main__":
    sys.exit(main())  # a text goes to stderr, and the exit code is 1

"""What the search looks in: one entry for every section, claim and term of the book, so that a hit is a place.

The index is a script, not JSON, because a page opened from a disk may not fetch anything else. It is loaded when a
reader opens the search; book/_static/book.js ranks and shows what is found.
"""

import json
import re
from pathlib import Path

HEADINGS = ["h1", "h2", "h3", "h4", "h5", "h6"]
BLOCKS = ["p", "li", "td", "th", "dt", "dd", "br"]
LEFT_OUT = ["pre", "script", "style", ".claim-card", ".settled", ".headerlink"]  # cards repeat what the ledger says


def words(element):
    """Return the text of an element on one line, without the marks beside its headings and without code."""
    element = element.__copy__()
    for part in element.select(", ".join(LEFT_OUT)):
        part.decompose()
    for block in element.find_all(BLOCKS):
        block.append(" ")
    return re.sub(r"\s+", " ", element.get_text()).strip()


def entries(text):
    """Return [anchor, heading, words] for every section and glossary term of a page's text.

    >>> from bs4 import BeautifulSoup
    >>> html = '<section id="a"><h1>A</h1><p>one</p><section id="b"><h2>B</h2><p>two</p></section></section>'
    >>> entries(BeautifulSoup(html, "html.parser"))
    [['a', 'A', 'one'], ['b', 'B', 'two']]
    """
    found = []
    for section in text.find_all("section", id=True):
        heading = section.find(HEADINGS, recursive=False)
        if heading is None:
            continue
        parts = [p for p in section.find_all(True, recursive=False) if p is not heading and not _elsewhere(p)]
        found.append([section["id"], words(heading), " ".join(filter(None, map(words, parts)))])
    for term in text.select("dl.glossary > dt[id]"):
        found.append([term["id"], words(term), words(term.find_next_sibling("dd"))])
    return found


def _elsewhere(part):
    """Whether a part of a section has entries of its own."""
    return part.name == "section" and part.find(HEADINGS, recursive=False) or "glossary" in part.get("class", [])


def write(path, pages):
    """Write the index of ``pages``: {address: (title, entries)}."""
    index = [[address, title, found] for address, (title, found) in sorted(pages.items())]
    Path(path).write_text(f"bookIndex={json.dumps(index, ensure_ascii=False, separators=(',', ':'))}", encoding="utf-8")

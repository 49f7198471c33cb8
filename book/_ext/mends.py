"""Mend the text of a page as Sphinx wrote it, for readers with assistive technology, on telephones, or in a hurry.

Each mend is one function from a page's text to nothing, with its reason. tests/test_browser.py finds them missing.
"""

import re

from bs4 import BeautifulSoup

# Pygments wraps every token in a span; a page is drawn sooner without those that book/_style gives no colour.
PLAIN_TOKEN = re.compile(r'<span class="(?!(?:[kscm][a-z0-9]{0,2}|n[bcdf]|ow)")[a-z0-9]{1,3}">([^<]*)</span>')
PERCENT = re.compile(r"(\d) %")
GAP = re.compile(r" {2,}(?=\S)")  # between two columns of what a cell printed
NARROW = 36  # characters of such a line that a telephone shows
WIDE = 950  # pixels: a figure that wide has several panels, and on a telephone letters of 5 pixels
EARLY = 300  # words: a figure that stands before so many may be seen before scrolling


def references_are_a_list(text):
    """docutils gives citations roles of digital publishing that ARIA has withdrawn or forbids in a list."""
    for citation in text.select('[role="doc-biblioentry"]'):
        citation["role"] = "listitem"
    for link in text.select('[role="doc-backlink"]'):
        del link["role"]


def empty_headers_are_cells(text):
    """The corner of a pandas table is a header that heads nothing."""
    for header in text.find_all("th"):
        if not header.get_text(strip=True) and not header.find("img"):
            header.name = "td"


def links_to_a_place_say_so(text):
    """A screen reader would read the sign # aloud."""
    for link in text.select("a.headerlink"):
        link["aria-label"] = link.get("title", "Link to this place")


def tables_scroll_alone(text):
    """A table wider than a telephone scrolls in a box of its own, not with the page."""
    for table in text.find_all("table"):
        table.wrap(text.new_tag("div", attrs={"class": "table"}))


def sentences_that_were_printed_break(text):
    """On a telephone a long line that a cell printed breaks, in a table only where the last column begins early."""
    for printed in text.select(".cell_output pre"):
        if any(part.get_text() for part in printed.find_all(True)):
            continue  # coloured: a traceback
        lines = printed.get_text().splitlines(keepends=True)
        wide = any(gap.end() > NARROW for line in lines for gap in GAP.finditer(line))
        printed.clear()
        for line in lines:
            if len(line.rstrip()) > NARROW and not (wide and GAP.search(line)):
                said = text.new_tag("span", attrs={"class": "said"})
                said.string = line
                printed.append(said)
            else:
                printed.append(line)


def wide_figures_scroll_alone(text, sizes):
    """A figure of several panels is shown larger on a telephone than fits, in a box of its own."""
    for picture in text.select("img"):
        if (sizes(picture["src"].rsplit("/", 1)[-1]) or (0,))[0] > WIDE:
            if picture.parent.name == "p":  # which can hold no box
                picture.parent["class"] = [*picture.parent.get("class", []), "panels"]
            else:
                picture.wrap(text.new_tag("div", attrs={"class": "panels"}))


def folds_need_no_script(text):
    """An admonition of class dropdown, a solution for one, becomes a <details>; so it folds, and prints, by itself."""
    for box in text.select("div.admonition.dropdown"):
        box.name = "details"
        title = box.find(class_="admonition-title")
        title.name = "summary"
        for link in title.find_all("a"):
            link.unwrap()  # a link in a summary could not be reached without folding it
    for box in text.select("details.hide"):
        what = "output" if "above-output" in box["class"] else "call" if _makes_a_card(box) else "code"
        box["class"] = ["fold"]
        summary = text.new_tag("summary")
        summary.string = f"The {what}"
        box.find("summary").replace_with(summary)


def _makes_a_card(box):
    return box.parent is not None and box.parent.find(class_="claim-card") is not None


def pictures_keep_their_place(text, sizes):
    """A picture below the first screen or the first picture is fetched when it comes near; its size holds its place."""
    words, first = 0, True
    for node in text.descendants:
        if getattr(node, "name", None) == "img":
            size = sizes(node["src"].rsplit("/", 1)[-1])
            if size:
                node["width"], node["height"] = size
            node["decoding"] = "async"
            if words > EARLY or not first:
                node["loading"] = "lazy"
            first = False
        elif isinstance(node, str):
            words += len(node.split())


def pieces_stand_in_their_figures(text):
    """A piece of the playground comes after the plain figure that it replaces: it goes above that figure's caption."""
    for place in text.select(".tag_playground + .playground"):
        place.find_previous("figcaption").insert_before(place)


def percents_keep_their_number(text):
    """On a telephone "17 %" would be torn in two at the end of a line: the space between them must not break."""
    for string in text.find_all(string=PERCENT):
        if not string.find_parent(["pre", "code", "script", "style"]):
            string.replace_with(PERCENT.sub("\\1\u00a0%", string))


def mended(html, sizes=lambda name: None):
    """Return the text of a page, parsed and mended.

    Args:
        html: what Sphinx made of a document, without the frame.
        sizes: gives (width, height) in pixels of a picture by its file's name, or None.
    """
    text = BeautifulSoup(PLAIN_TOKEN.sub(r"\1", html), "html.parser")
    references_are_a_list(text)
    empty_headers_are_cells(text)
    links_to_a_place_say_so(text)
    tables_scroll_alone(text)
    sentences_that_were_printed_break(text)
    wide_figures_scroll_alone(text, sizes)
    folds_need_no_script(text)
    percents_keep_their_number(text)
    pieces_stand_in_their_figures(text)
    pictures_keep_their_place(text, sizes)
    return text

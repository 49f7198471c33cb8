"""The built site builds without a warning (the fixture `site`), its links lead somewhere, and it keeps to itself."""

import doctest
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import lookup
import mathematics
import mathfont
import measure
import mends
import nbformat
import pages as frame
import pytest
import terms
import yaml
from bs4 import BeautifulSoup

import chapters
from conftest import ROOT

pytestmark = pytest.mark.site
LOADING = [  # what a browser fetches by itself: (tag, attribute)
    *[("script", "src"), ("img", "src"), ("img", "srcset"), ("source", "src"), ("source", "srcset"), ("iframe", "src")],
    *[("audio", "src"), ("video", "src"), ("video", "poster"), ("embed", "src"), ("object", "data"), ("track", "src")],
    *[("link", "href"), ("use", "href"), ("image", "href"), ("form", "action"), ("input", "src")],
]
OUTSIDE = re.compile(r"(https?:)?//\S", re.IGNORECASE)
IN_CSS = re.compile(r"""(?:url\(\s*|@import\s+)["']?\s*((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)
# An address in a page's own script is a load waiting to happen; the licence of clipboard.js and XML names are not.
IN_SCRIPT = re.compile(r"""["'`]((?:https?:)?//(?!www\.w3\.org/)[^"'`\s]+)""", re.IGNORECASE)


def toc():
    tree = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))

    def files(node):
        if isinstance(node, dict):
            yield from (node[key] for key in ("root", "file") if key in node)
        for child in node.values() if isinstance(node, dict) else node:
            if isinstance(child, (dict, list)):
                yield from files(child)

    return sorted(files(tree))


def test_every_page_is_in_the_contents():
    """A chapter or page that stands in the tree is in the table of contents, and the other way round."""
    found = [*chapters.notebooks(ROOT), *(ROOT / "book").glob("*.md"), ROOT / "index.md"]
    assert toc() == sorted(path.relative_to(ROOT).with_suffix("").as_posix() for path in found)


@pytest.fixture(scope="module")
def pages(site):
    """Every page of the site, parsed: {path relative to the site: soup}."""
    found = {p.relative_to(site).as_posix(): p for p in site.rglob("*.html") if "_static" not in p.parts}
    assert {f"{name}.html" for name in toc()} <= found.keys()
    return {name: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for name, path in found.items()}


def target(page, link):
    """Return (page or file, anchor) that a relative link on ``page`` leads to, or None for a link to another site."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    path = Path(page).parent / unquote(parts.path) if parts.path else Path(page)
    clean = []
    for part in path.parts:
        clean = clean[:-1] if part == ".." else [*clean, part]
    return "/".join(clean), unquote(parts.fragment)


def anchors(soup):
    return {tag[key] for key in ("id", "name") for tag in soup.find_all(attrs={key: True})}


def broken_links(pages, is_file):
    """Return every link or address in the pages that leads to no file or no anchor, as sentences."""
    ids = {name: anchors(soup) for name, soup in pages.items()}
    found = []
    for name, soup in pages.items():
        links = [tag["href"] for tag in soup.find_all(href=True)] + [tag["src"] for tag in soup.find_all(src=True)]
        refresh = soup.find("meta", attrs={"http-equiv": re.compile("refresh", re.IGNORECASE)})
        links += [refresh["content"].split("url=")[1]] if refresh else []
        for link in links:
            leads = target(name, link)
            if leads is None or link.startswith("data:"):
                continue
            path, anchor = leads
            if path not in pages and not is_file(path):
                found.append(f"{name}: {link} leads to no file")
            elif anchor and path in pages and anchor not in ids[path]:
                found.append(f"{name}: {link} leads to no anchor")
    return found


def outside_resources(soup):
    """Return every address of another site that a page would load, or names in a script of its own."""
    found = [t[a] for tag, a in LOADING for t in soup.find_all(tag) if t.has_attr(a) and OUTSIDE.match(t[a].strip())]
    for tag in soup.find_all(style=True):
        found += IN_CSS.findall(tag["style"])
    for tag in soup.find_all("style"):
        found += IN_CSS.findall(tag.get_text())
    for tag in soup.find_all("script"):
        found += IN_SCRIPT.findall(tag.get_text())
    return found


def without_alt(soup):
    """Return the images of a page that say nothing to who cannot see them."""
    return [str(img)[:200] for img in soup.find_all("img") if not img.get("alt", "").strip()]


def test_every_internal_link_and_anchor_resolves(site, pages):
    assert broken_links(pages, lambda path: (site / path).is_file()) == []


def test_no_page_loads_anything_from_another_site(pages):
    assert {name: found for name, soup in pages.items() if (found := outside_resources(soup))} == {}


def test_the_stand_in_is_as_high_as_the_type_that_it_stands_in_for():
    """STIX Two Text's ascent and descent, from its table hhea; CSS multiplies what overrides say by size-adjust.

    Else the text moves up by three pixels when its type arrives, and Lighthouse counts every line of the page.
    """
    style = (ROOT / "book" / "_style" / "1-frame.css").read_text(encoding="utf-8")
    faces = re.findall(r'@font-face \{\s*font-family: "Near STIX";(.*?)\}', style, re.DOTALL)
    assert len(faces) == 3  # regular, italic, bold
    for face in faces:
        size, ascent, descent = (
            float(re.search(rf"{name}: ([\d.]+)%", face)[1]) / 100
            for name in ("size-adjust", "ascent-override", "descent-override")
        )
        assert size * ascent == pytest.approx(0.762, abs=0.002)
        assert size * descent == pytest.approx(0.238, abs=0.002)


def test_no_style_sheet_loads_anything_from_another_site(site):
    sheets = list(site.rglob("*.css"))
    assert sheets
    found = {str(p.relative_to(site)): IN_CSS.findall(p.read_text(encoding="utf-8")) for p in sheets}
    assert {name: addresses for name, addresses in found.items() if addresses} == {}


def test_every_image_has_alt_text(pages):
    assert {name: found for name, soup in pages.items() if (found := without_alt(soup))} == {}


def unsized(soup):
    """Return the pictures of a page that leave no place free until they come, or are fetched though far below."""
    images = soup.find_all("img", src=True)
    bare = [img for img in images if not img.get("width", "").isdigit() or not img.get("height", "").isdigit()]
    eager = [img for img in images if img.get("loading") != "lazy"]
    return [img["src"] for img in [*bare, *eager[1:]]]


def test_every_picture_keeps_its_place_and_waits_until_it_is_near(pages):
    assert {name: found for name, soup in pages.items() if (found := unsized(soup))} == {}


def test_the_whole_site_is_small(site):
    """A megabyte for each chapter, half of that its notebook to download, and one for all that is no chapter."""
    most = 1_000_000 * (1 + len(list(site.glob("chapters/*.html"))))
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < most


def test_every_page_says_what_it_is(pages):
    """A title and a description of its own, which search engines and cards show."""
    titles = [soup.title.get_text() for soup in pages.values()]
    descriptions = [soup.find("meta", attrs={"name": "description"})["content"] for soup in pages.values()]
    assert len(set(titles)) == len(set(descriptions)) == len(pages)
    assert max(map(len, descriptions)) <= 160 and min(map(len, descriptions)) > 0


def test_the_font_of_mathematics_has_every_character_of_every_formula(pages):
    """A single letter is drawn in its mathematical italic, and h in that of Planck's constant."""
    formulas = [element for soup in pages.values() for element in soup.find_all("math")]
    assert len(formulas) > 100
    used = {ord(character) for element in formulas for character in element.get_text()}
    italic = {0x210E if c == "h" else 0x1D44E + ord(c) - ord("a") for c in map(chr, used) if "a" <= c <= "z"}
    italic |= {0x1D434 + c - ord("A") for c in used if ord("A") <= c <= ord("Z")}
    assert (used | italic) - mathfont.characters() == set()


@pytest.mark.parametrize("module", [lookup, mathematics, measure, frame, terms], ids=lambda m: m.__name__)
def test_the_examples_of_the_build_run(module):
    failed, run = doctest.testmod(module)
    assert run and not failed


def test_a_formula_that_is_unknown_is_no_formula():
    with pytest.raises(mathematics.LatexError):
        mathematics.mathml(r"\nosuchcommand{x}")


@pytest.mark.parametrize("path", chapters.notebooks(ROOT), ids=lambda p: p.stem)
def test_the_alt_text_of_every_figure_reaches_its_page(pages, path):
    shown = {img.get("alt") for img in pages[f"{path.parent.name}/{path.stem}.html"].find_all("img")}
    cells = nbformat.read(path, as_version=4).cells
    written = {cell.metadata.get("mystnb", {}).get("image", {}).get("alt") for cell in cells} - {None}
    assert written <= shown


def test_no_page_offers_a_launch_button_that_has_no_address(pages):
    links = {tag["href"] for soup in pages.values() for tag in soup.find_all("a", href=True)}
    assert [link for link in links if re.search(r"colab|mybinder|/blob/|jupyterhub", link)] == []


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ('<a href="b.html">b</a>', "a.html: b.html leads to no file"),
        ('<a href="#there">b</a>', "a.html: #there leads to no anchor"),
        ('<a href="sub/../c.html#x">b</a>', "a.html: sub/../c.html#x leads to no anchor"),
        ('<img src="no.png">', "a.html: no.png leads to no file"),
        ('<meta http-equiv="Refresh" content="0; url=no.html">', "a.html: no.html leads to no file"),
        ('<a id="here" href="#here">b</a><a href="c.html#y">c</a><a href="https://x.org/">x</a>', None),
    ],
)
def test_a_broken_link_is_found(html, fault):
    pages = {"a.html": BeautifulSoup(html, "html.parser"), "c.html": BeautifulSoup('<p id="y">', "html.parser")}
    assert broken_links(pages, lambda path: False) == ([] if fault is None else [fault])


@pytest.mark.parametrize(
    ("html", "count"),
    [
        ('<script src="https://cdn.example.org/a.js"></script>', 1),
        ('<script src="//cdn.example.org/a.js"></script>', 1),
        ('<script>const URL = "https://cdn.example.org/a.js"</script>', 1),
        ('<link rel="stylesheet" href="http://fonts.example.org/a.css">', 1),
        ('<style>@import "https://fonts.example.org/a.css"; p {background: url(//x.org/a.png)}</style>', 2),
        ('<p style="background: url(https://x.org/a.png)">', 1),
        ('<iframe src="https://x.org/"></iframe>', 1),
        ('<a href="https://x.org/">to read</a><script src="_static/a.js"></script>', 0),
    ],
)
def test_an_outside_resource_is_found(html, count):
    assert len(outside_resources(BeautifulSoup(html, "html.parser"))) == count


def test_an_image_without_alt_text_is_found():
    soup = BeautifulSoup('<img src="a.png"><img src="b.png" alt=" "><img src="c.png" alt="c">', "html.parser")
    assert len(without_alt(soup)) == 2


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ('<img src="a" width="3" height="2"><img src="b" width="3" height="2" loading="lazy">', []),
        ('<img src="a" width="3"><img src="b" width="3" height="2" loading="lazy">', ["a"]),
        ('<img src="a" width="3" height="2"><img src="b" width="3" height="2">', ["b"]),
    ],
)
def test_a_picture_without_a_place_is_found(html, found):
    assert unsized(BeautifulSoup(html, "html.parser")) == found


PLAIN = "<p>" + "word " * 301 + "</p>"
SAID = "Train with a batch of 96, for the least time."
ROW = "lr   0.00509   was 0.002; square root of the gain"
WIDE_ROW = "data             the best size of it   17.25"


def printed(text):
    return f'<div class="cell_output"><pre>{text}</pre></div>'


@pytest.mark.parametrize(
    ("html", "mended"),
    [
        (
            "<table><tr><th></th><td>1</td></tr></table>",
            '<div class="table"><table><tr><td></td><td>1</td></tr></table></div>',
        ),
        (
            '<div class="solution dropdown admonition"><p class="admonition-title">To <a href="#e">5</a></p>x</div>',
            '<details class="solution dropdown admonition"><summary class="admonition-title">To 5</summary>x</details>',
        ),
        (
            '<details class="hide above-input"><summary aria-label="Toggle"><p>Show</p></summary>x</details>',
            '<details class="fold"><summary>The code</summary>x</details>',
        ),
        (
            '<div><details class="hide above-input"><summary>Show</summary>x</details><i class="claim-card"></i></div>',
            '<div><details class="fold"><summary>The call</summary>x</details><i class="claim-card"></i></div>',
        ),
        ('<img src="a.png"/>', '<img decoding="async" height="2" src="a.png" width="3"/>'),
        (
            f'{PLAIN}<img src="a.png"/>',
            f'{PLAIN}<img decoding="async" height="2" loading="lazy" src="a.png" width="3"/>',
        ),
        ('<span class="n">f</span><span class="p">(</span><span class="mi">1</span>', 'f(<span class="mi">1</span>'),
        (
            '<div class="cell tag_playground"><figure><img src="b.png"/><figcaption>c</figcaption></figure></div>\n'
            '<div class="playground"></div>',
            '<div class="cell tag_playground"><figure><img decoding="async" src="b.png"/><div class="playground"></div>'
            "<figcaption>c</figcaption></figure></div>\n",
        ),
        (
            '<figure><img src="w.png"/></figure><p><img src="w.png"/></p>',
            '<figure><div class="panels"><img decoding="async" height="400" src="w.png" width="951"/></div></figure>'
            '<p class="panels"><img decoding="async" height="400" loading="lazy" src="w.png" width="951"/></p>',
        ),
        (
            printed(f"{SAID}\nshort  \n{ROW}"),
            printed(f'<span class="said">{SAID}\n</span>short  \n<span class="said">{ROW}</span>'),
        ),
        (printed(f"{SAID}\n{ROW}\n{WIDE_ROW}"), printed(f'<span class="said">{SAID}\n</span>{ROW}\n{WIDE_ROW}')),
        (printed(f'<span class="k">{SAID}</span>'), printed(f'<span class="k">{SAID}</span>')),
        (f"<pre>{SAID}</pre>", f"<pre>{SAID}</pre>"),
        ("<p>17 % of it</p><pre>17 % 3</pre>", "<p>17\u00a0% of it</p><pre>17 % 3</pre>"),
        ('<a class="headerlink" title="To it">#</a>', '<a aria-label="To it" class="headerlink" title="To it">#</a>'),
    ],
)
def test_a_page_is_mended(html, mended):
    found = mends.mended(html, {"a.png": (3, 2), "w.png": (951, 400)}.get)
    for tag in found.find_all(True):
        tag.attrs = {key: tag.attrs[key] for key in sorted(tag.attrs)}
    assert str(found) == mended

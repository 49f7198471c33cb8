"""The frame of every page: contents, description, style; and what a site has besides its pages.

`book/_templates/layout.html` is the frame; this module mends the text that goes into it, tells it what it asks for, and
writes the style sheet, the search's index and, where the book has an address, the sitemap.
"""

import hashlib
import re
from pathlib import Path
from xml.sax.saxutils import escape

from markupsafe import Markup
from PIL import Image

import lookup
import mends
import terms
from batchlab.playground._piece import style as playground

BOOK = Path(__file__).resolve().parents[1]
PART = "book/part-"  # what the names of part pages begin with
FRONT_PICTURE = "_static/question.png"
LONGEST_DESCRIPTION = 160  # characters: search engines and cards show no more
COLOURS = 192  # in a figure: the eye sees no difference, and the file is a third


def style():
    """Return the one style sheet, book/_style in order and the playground's, without comments and indentation."""
    css = "".join(path.read_text(encoding="utf-8") for path in sorted((BOOK / "_style").glob("*.css"))) + playground()
    return re.sub(r"\n\s*", "\n", re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)).strip() + "\n"


def lighter(file):
    """Return the picture in a file, or in a path, as the book has it: on white, with so many colours."""
    with Image.open(file) as picture:
        flat = Image.new("RGB", picture.size, "white")
        flat.paste(picture, mask=picture.convert("RGBA").getchannel("A"))
    return flat.quantize(COLOURS, dither=Image.Dither.NONE)


def fingerprint():
    """Return what changes when style or script change, so that a browser keeps neither too long."""
    return hashlib.sha256(style().encode() + (BOOK / "_static" / "book.js").read_bytes()).hexdigest()[:8]


def description(text):
    """Return the first words of a page: whole paragraphs, or as much of them as fits.

    >>> description(mends.mended("<h1>T</h1><p>One.</p><p>" + "Two and three. " * 20 + "</p>"))
    'One. Two and three. Two and three. Two and three. Two and three. Two and three. Two and three. Two and three. Two and three. Two and three. Two and three. …'
    """  # noqa: E501
    words = ""
    for paragraph in text.find_all("p"):
        words = f"{words} {lookup.words(paragraph)}".strip()
        if len(words) > LONGEST_DESCRIPTION:
            return words[: LONGEST_DESCRIPTION - 2].rsplit(" ", 1)[0] + " …"
        if len(words) > LONGEST_DESCRIPTION / 2:
            break
    return words


def sections(text):
    """Return {"id", "title"} of every heading of the second level."""
    found = []
    for section in text.select("section[id]:has(> h2)"):
        title = section.h2.__copy__()
        for link in title.select(".headerlink"):
            link.decompose()
        for link in title.find_all("a"):
            link.unwrap()  # it stands within a link
        found.append({"id": section["id"], "title": Markup(title.decode_contents())})
    return found


def parts(env):
    """Return the table of contents: {"caption", "page", "pages": [{"name", "title", "number"}]} for each part.

    ``page`` is the part's own page, to which its caption leads; None where it has none.
    """
    found = []
    for tree in env.external_site_map.root.subtrees:
        own = next((str(name) for name in tree.items if name.startswith(PART)), None)
        names = [str(name) for name in tree.items if name != own]
        listed = [{"name": n, "title": env.titles[n].astext(), "number": number(n)} for n in names]
        found.append({"caption": tree.caption, "page": own, "pages": listed})
    return found


def number(name):
    """Return the number of a chapter, or None for any other page.

    >>> number("chapters/04-throughput"), number("book/claims")
    (4, None)
    """
    match = re.match(r"chapters/(\d+)-", name)
    return int(match[1]) if match else None


def address(app, name):
    """Return where a page of a published book is; the front page is the book's own address."""
    return app.config.html_baseurl + ("" if name == app.config.root_doc else app.builder.get_target_uri(name))


def _frame(app, pagename, templatename, context, doctree):
    sources = {name: Path(app.srcdir, uri) for uri, name in app.builder.images.items()}

    def size(name):
        if name in sources:
            with Image.open(sources[name]) as picture:
                return picture.size

    text = mends.mended(context.get("body", ""), size)
    terms.at_hand(text, terms.meanings(app))
    context["body"] = str(text)
    first = text.find("img")
    context |= {
        "address": address(app, pagename),
        "author": app.config.author,
        "description": description(text) or app.config.html_title,
        "fingerprint": app.book_fingerprint,
        "html_baseurl": app.config.html_baseurl,
        "number": number(pagename),
        "parts": parts(app.env),
        "picture": "_images/" + first["src"].rsplit("/", 1)[-1] if first else FRONT_PICTURE,
        "picture_alt": first.get("alt", "") if first else "",
        "sections": sections(text),
    }
    if doctree is not None:
        title = lookup.words(text.h1) if text.h1 else pagename
        found = [] if pagename.startswith(PART) else lookup.entries(text)  # what a part page says stands elsewhere too
        app.book_pages[pagename] = (title, found)


def _begin(app):
    app.book_pages, app.book_fingerprint = {}, fingerprint()


def _finish(app, exception):
    if exception is not None or app.builder.format != "html":
        return
    out = Path(app.outdir)
    (out / "_static" / "book.css").write_text(style(), encoding="utf-8")
    found = {app.builder.get_target_uri(name): entry for name, entry in app.book_pages.items()}
    lookup.write(out / "_static" / "search.js", found)
    for path in (out / "_images").glob("*.png"):
        lighter(path).save(path, optimize=True)
    if app.config.html_baseurl:
        places = "".join(f"<url><loc>{escape(address(app, name))}</loc></url>\n" for name in app.book_pages)
        sitemap = f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{places}</urlset>\n'
        (out / "sitemap.xml").write_text(f'<?xml version="1.0" encoding="UTF-8"?>\n{sitemap}', encoding="utf-8")


def setup(app):
    app.connect("builder-inited", _begin)
    app.connect("html-page-context", _frame, priority=900)
    app.connect("build-finished", _finish)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": False}

"""Mend, in the pages as written, what Sphinx, its theme and pandas leave wrong for readers with assistive technology.

Each mend is one function from a parsed page to nothing, with its reason. tests/test_browser.py finds them missing.
"""

from pathlib import Path

from bs4 import BeautifulSoup


def references_are_a_list(page):
    """docutils gives citations roles of digital publishing that ARIA has withdrawn or forbids in a list."""
    for citation in page.select('[role="doc-biblioentry"]'):
        citation["role"] = "listitem"
    for link in page.select('[role="doc-backlink"]'):
        del link["role"]


def sidebar_is_navigation(page):
    """The theme leaves title and search of the sidebar outside every landmark."""
    for sidebar in page.select(".bd-sidebar-primary"):
        sidebar["role"] = "navigation"
        sidebar["aria-label"] = "Book"


def empty_headers_are_cells(page):
    """The corner of a pandas table is a header that heads nothing."""
    for header in page.find_all("th"):
        if not header.get_text(strip=True) and not header.find("img"):
            header.name = "td"


MENDS = [references_are_a_list, sidebar_is_navigation, empty_headers_are_cells]


def mend_pages(app, exception):
    """Rewrite every page of a finished HTML build."""
    if exception is not None or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        if "_static" in path.relative_to(app.outdir).parts:
            continue
        page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        for mend in MENDS:
            mend(page)
        path.write_text(str(page), encoding="utf-8")


def setup(app):
    app.connect("build-finished", mend_pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

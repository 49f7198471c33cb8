"""The pieces of the playground in the book's pages: each page holds the pieces it shows, whole, and loads nothing.

A notebook's cell that is a piece (`bl.playground.descent()`) has a plain figure as its stored output. When its page is
made, the moving piece is put beside the figure and takes its place where scripts run. A page of text has the directive
`{playground} target`, whose body is what stands there without scripts. The module is written into the page itself,
since a browser imports no file for a page opened from a disk.
"""

import re

import nbformat
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from batchlab.playground import _piece

PLACE = re.compile(r'<div class="playground" data-piece="(\w+)"')


def placed(notebook):
    """Return a copy of a notebook node in which a place for the moving one follows every cell with a stored piece.

    ``mends.pieces_stand_in_their_figures`` takes it into the figure.
    """
    notebook, cells = nbformat.from_dict(notebook), []
    for cell in notebook.cells:
        cells.append(cell)
        for output in cell.get("outputs", []):
            if told := output.get("data", {}).pop(_piece.MIME, None):
                moving = _piece.embedded(told["piece"], told["settings"])
                cells.append(nbformat.v4.new_markdown_cell(f"```{{raw}} html\n{moving}\n```"))
    notebook.cells = cells
    return notebook


def _place(app, docname, source):
    if _piece.MIME in source[0]:
        source[0] = nbformat.writes(placed(nbformat.reads(source[0], as_version=4)))


class Playground(SphinxDirective):
    """``{playground} target``: a piece with its default settings; the body is shown where no script runs."""

    required_arguments = 1
    has_content = True

    def run(self):
        box = nodes.container(classes=["playground-place"])
        self.state.nested_parse(self.content, self.content_offset, box)
        moving = _piece.embedded(self.arguments[0], {})
        return [box, nodes.raw("", moving, format="html")]


def _scripts(app, pagename, templatename, context, doctree):
    names = dict.fromkeys(PLACE.findall(context.get("body", "")))
    context["body"] = context.get("body", "") + "".join(map(_piece.script, names))


def setup(app):
    app.add_directive("playground", Playground)
    app.connect("source-read", _place)
    app.connect("html-page-context", _scripts, priority=950)  # after the page's text was mended
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

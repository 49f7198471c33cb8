r"""Typeset mathematics when the book is built: LaTeX becomes MathML, which browsers draw and screen readers read.

No script runs in the page. What the converter does not know is a warning, and so no build. Write `\left( ... \right)^2`
and not `\Bigl( ... \Bigr)^2`, whose last bracket Chromium sets too small, and no `\underbrace`, which it may cut apart.
"""

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

CONVERT = LatexToMathML(fancy_error=False)
STRUT = '<mspace height="0.7em"></mspace>'  # over a letter as low as r Chromium would hang the sign below the line


def mathml(latex, *, display=False):
    r"""Return the <math> element of a formula.

    Raises:
        LatexError: a command or an environment is unknown, or a bracket is left open.

    >>> mathml("B^2")
    '<math><msup><mi>B</mi><mn>2</mn></msup></math>'
    >>> mathml(r"\sqrt r")
    '<math><msqrt><mspace height="0.7em"></mspace><mi>r</mi></msqrt></math>'
    """
    element = CONVERT.convert_with_local_state(latex.strip(), displaystyle=display)
    element = element.replace("<msqrt>", f"<msqrt>{STRUT}")
    return element.replace("</mo><mtext>", "</mo><mi></mi><mtext>")  # or `= \text{...}` loses the space of its sign


def _converted(node, *, display):
    try:
        return mathml(node.astext(), display=display)
    except LatexError as error:
        logging.getLogger(__name__).warning("%s in the formula %r", error, node.astext(), location=node)
        return ""


def _inline(self, node):
    self.body.append(_converted(node, display=False))
    raise nodes.SkipNode


def _block(self, node):
    self.body.append(self.starttag(node, "div", CLASS="equation"))
    self.body.append(f'<div class="formula">{_converted(node, display=True)}</div>')
    if node["number"]:
        self.body.append(f'<span class="number">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

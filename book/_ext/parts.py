"""Fill two places of a notebook when its page is made: the minutes it takes, and the claims that it settles.

The places are comments, so that they are nothing in JupyterLab. `<!-- minutes -->` begins a paragraph; the whole of it
is set small. `<!-- claims settled here -->` becomes a table of the ledger's claims for this chapter, with the evidence
that the notebook's own outputs hold.
"""

import re
from pathlib import Path

import nbformat

import ledger_page as page
import measure
from batchlab import claims as ledger

MINUTES, SETTLED = measure.PLACES["minutes"], measure.PLACES["claims settled"]


def settled(claims, evidence):
    """Return the table of some claims: what was said, the verdict, and the measured numbers that it rests on.

    Args:
        claims: the claims, in the order of the rows.
        evidence: {claim id: {"measured": ...}} for those of them that were measured.
    """
    lines = ["::::{list-table}", ":header-rows: 1", ":widths: 50 50", ":class: settled", ""]
    lines += ["* - What was said, and the verdict", "  - Measured [with its interval], and required"]
    for claim in claims:
        lines += [f"* - [{page._plain(claim.says)}](../book/claims.md#{claim.id})", ""]
        source = "our own" if claim.own else page._articles(claim)
        lines += [f"    {page._verdict(claim.verdict)} [· {source}]{{.ledger-source}}", "", "  -"]
        if claim.id not in evidence:
            lines[-1] += " not measured" if claim.statistics else " nothing that can be measured decides it"
            continue
        deciding = [s for s in claim.statistics if s.kind == "registered"] or claim.statistics
        for s in deciding:
            value = page._minus(page._plain(ledger.value(s, evidence[claim.id]["measured"][s.name])))
            name, required = page._plain(s.short or s.name.replace("_", " ")), page._minus(page._plain(s.requirement))
            kind = "" if s.kind == "registered" else f" [{s.kind}]{{.ledger-kind}}"
            lines.append(f"    - {name}: **{value}**; {required}{kind}")
    return "\n".join([*lines, "::::"])


def filled(notebook, slug, claims):
    """Return a copy of a notebook node with its places filled.

    Raises:
        ValueError: a place stands twice, or the minutes do not begin a paragraph.
    """
    notebook = nbformat.from_dict(notebook)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    found = [output.metadata["batchlab"] for output in outputs if "batchlab" in output.get("metadata", {})]
    own = [claim for claim in claims.values() if claim.chapter == slug]
    parts = {
        MINUTES: f"{{.quiet}}\n{measure.measured(notebook).minutes} minutes",
        SETTLED: settled(own, {entry["claim"]: entry for entry in found}),
    }
    texts = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    for place, part in parts.items():
        places = [m for cell in texts for m in re.finditer(re.escape(place), cell.source)]
        if len(places) > 1 or any(not re.search(r"(^|\n[ \t]*\n)$", m.string[: m.start()]) for m in places):
            raise ValueError(f"{slug}: {place} must stand once, where a paragraph begins")
        for cell in texts:
            cell.source = cell.source.replace(place, part)
    return notebook


def _fill(app, docname, source):
    if Path(app.env.doc2path(docname)).suffix == ".ipynb" and any(p in source[0] for p in measure.PLACES.values()):
        claims = ledger.load(Path(app.srcdir, "book", "claims.yml"))
        notebook = filled(nbformat.reads(source[0], as_version=4), Path(docname).name, claims)
        source[0] = nbformat.writes(notebook)


def setup(app):
    app.connect("source-read", _fill)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

"""Write the claims ledger's page from book/claims.yml and from the evidence stored in the executed chapters.

The page book/claims.md says in its own words what the ledger is; this extension fills in what can be counted. Evidence
is what `batchlab.claims.check` left in a chapter's outputs (the key "batchlab" of an output's metadata), so the page
shows a number only if a chapter really measured it.
"""

import re
from pathlib import Path

import nbformat
import yaml
from pybtex.database import parse_file

from batchlab import claims as ledger

ROOT = Path(__file__).resolve().parents[2]
PAGE = "book/claims"
CHAPTERS = {
    "01-gradient-descent": "Gradient descent",
    "02-stochastic-gradient-descent": "Stochastic gradient descent",
    "03-mini-batch": "Mini-batch",
    "04-throughput": "Throughput",
    "05-memory": "Memory",
    "06-learning-rate-and-batch-size": "Learning rate and batch size",
    "07-noise-scale-and-critical-batch-size": "Noise scale and critical batch size",
    "08-large-batch-training": "Large-batch training",
    "09-growing-the-batch": "Growing the batch",
    "10-overfitting": "Overfitting",
    "11-generalisation-gap": "The generalisation gap",
    "12-data-parallel": "Data parallel",
    "13-applications": "Applications",
    "14-tools": "Tools",
    "15-choosing-a-batch-size": "Choosing a batch size",
}
CALL = re.compile(r"""claims\.check\(\s*["']([^"']+)["']""")


# ---- what the repository holds


def contradictions(path):
    """Return the ledger's list of contradictions: {id, question, sides: [{article, says, claim?}], settled_by}."""
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))["contradictions"]


def bibliography(path):
    """Return the keys of a BibTeX file; what pybtex cannot read, or a key that stands twice, is its error."""
    return list(parse_file(path, "bibtex").entries)


def chapters(directory):
    """Return what each executed chapter in ``directory`` says of the ledger.

    Returns:
        {slug: {"calls": [claim id, ...], "evidence": [{"claim", "measured", "note"}, ...]}}: the claims that its code
        checks, and the evidence that its outputs hold.
    """
    found = {}
    for path in sorted(Path(directory).glob("*.ipynb")):
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        outputs = [output for cell in cells for output in cell.outputs]
        found[path.stem] = {
            "calls": [claim for cell in cells for claim in CALL.findall(cell.source)],
            "evidence": [o.metadata["batchlab"] for o in outputs if "batchlab" in o.get("metadata", {})],
        }
    return found


def faults(claims, contradictions, keys, chapters):
    """Return what does not fit together in the ledger, one sentence each with the id in it; empty when all is well.

    Args:
        claims: {id: Claim}, from ``batchlab.claims.load``.
        contradictions: from :func:`contradictions`.
        keys: the bibliography's keys.
        chapters: from :func:`chapters`.
    """
    return [
        *_faults_of_claims(claims, keys),
        *_faults_of_contradictions(contradictions, claims),
        *_faults_of_chapters(chapters, claims),
    ]


def _faults_of_claims(claims, keys):
    for number, claim in enumerate(claims.values(), 1):
        if claim.number != number:
            yield f"claim {claim.id!r}: number {claim.number} in place {number}"
        if claim.chapter not in CHAPTERS:
            yield f"claim {claim.id!r}: unknown chapter {claim.chapter!r}"
        for source in claim.sources:
            if source not in keys:
                yield f"claim {claim.id!r}: source {source!r} is not in book/references.bib"


def _faults_of_contradictions(contradictions, claims):
    seen = set()
    for entry in contradictions:
        name = f"contradiction {entry['id']!r}"
        if entry["id"] in seen:
            yield f"{name}: this id stands twice"
        seen.add(entry["id"])
        if entry["settled_by"] not in CHAPTERS:
            yield f"{name}: unknown chapter {entry['settled_by']!r}"
        if len(entry["sides"]) < 2:
            yield f"{name}: it takes two sides to contradict"
        for side in entry["sides"]:
            if side.get("claim", next(iter(claims))) not in claims:
                yield f"{name}: unknown claim {side['claim']!r}"


def _faults_of_chapters(chapters, claims):
    checked = {}
    for slug, chapter in chapters.items():
        for claim in chapter["calls"]:
            if claim not in claims:
                yield f"chapter {slug}: checks an unknown claim {claim!r}"
            elif claims[claim].chapter != slug:
                yield f"chapter {slug}: checks claim {claim!r}, which belongs to {claims[claim].chapter}"
            checked.setdefault(claim, []).append(slug)
        if sorted(e["claim"] for e in chapter["evidence"]) != sorted(chapter["calls"]):
            yield (
                f"chapter {slug}: its code checks {sorted(chapter['calls'])}, but its outputs hold evidence for "
                f"{sorted(e['claim'] for e in chapter['evidence'])}: execute it again"
            )
        for evidence in chapter["evidence"]:
            if evidence["claim"] in claims:
                yield from _faults_of_evidence(slug, claims[evidence["claim"]], evidence["measured"])
    for claim, slugs in checked.items():
        if len(slugs) > 1:
            yield f"claim {claim!r}: checked {len(slugs)} times ({', '.join(slugs)})"
    for claim in claims.values():
        if claim.chapter in chapters and claim.statistics and claim.id not in checked:
            yield f"claim {claim.id!r}: not checked in {claim.chapter}"


def _faults_of_evidence(slug, claim, measured):
    if sorted(measured) != sorted(s.name for s in claim.statistics):
        yield f"chapter {slug}: evidence for {claim.id!r} is of {sorted(measured)}, not of what the ledger tests"
        return
    for statistic in claim.statistics:
        low, high = measured[statistic.name]["low"], measured[statistic.name]["high"]
        if not low <= high or not statistic.met(low, high):
            yield (
                f"chapter {slug}: claim {claim.id!r}, {statistic.name} from {low} to {high}: "
                f"required {statistic.requirement}"
            )


# ---- the page


def result(statistic, measured):
    """Return a measured statistic in words, with its interval where it has one.

    >>> result(ledger.Statistic("share", "share", "above", 0.05), {"estimate": 0.15, "low": 0.13, "high": 0.172})
    '0.15 (95% interval 0.13 to 0.172)'
    """
    if measured["low"] == measured["high"]:
        return _number(measured["estimate"])
    level = "90%" if "90% interval" in statistic.means else "95%"
    return (
        f"{_number(measured['estimate'])} ({level} interval {_number(measured['low'])} to {_number(measured['high'])})"
    )


def _number(x, digits=3):
    return _minus(f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.{digits}g}")


def _minus(text):
    """The sign that a printed page has for a number's hyphen."""
    return text.replace("-", "−")


def _plain(text):
    """Escape what MyST would read as markup, and set subscripts: λ_max, S_min, B_crit."""
    text = re.sub(r"([\\`*_{}\[\]<>|#$~])", r"\\\1", text)
    return re.sub(r"\b([λSB])\\_([a-z]+)", r"\1{sub}`\2`", text)


def _verdict(verdict, words=None):
    """Set a verdict with its sign and its colour, in its own words or in ``words``."""
    return f"[{words or ledger.VERDICTS[verdict]}]{{.ledger-verdict .claim-{verdict}}}"


def _link(slug, text, chapters):
    return f"[{text}](../chapters/{slug}.ipynb)" if slug in chapters else text


def _articles(claim):
    return ("article " if len(claim.articles) == 1 else "articles ") + ", ".join(claim.articles)


def summary(claims, evidence):
    """Return the table of verdicts: how many claims have each, and how many of those are measured."""
    lines = ["| Verdict | Claims | Measured so far |", "| :-- | --: | --: |"]
    for verdict in ledger.VERDICTS:
        ids = [claim.id for claim in claims.values() if claim.verdict == verdict]
        lines.append(f"| {_verdict(verdict)} | {len(ids)} | {sum(i in evidence for i in ids)} |")
    lines.append(f"| all | {len(claims)} | {len(evidence)} |")
    return "\n".join(lines)


def contradiction_table(entries, claims, chapters):
    """Return the table of contradictions, one row a question."""
    lines = ["::::{list-table}", ":header-rows: 1", ":widths: 30 70", ":class: ledger-contradictions", ""]
    lines += ["* - The question", "  - What the articles say, and the verdict"]
    for entry in entries:
        settled = _link(entry["settled_by"], f"chapter {int(entry['settled_by'][:2])}", chapters)
        later = "" if entry["settled_by"] in chapters else ", not written yet"
        lines += [f"* - {_plain(entry['question'])}", "", f"    Settled in {settled}{later}.", "", "  -"]
        for side in entry["sides"]:
            says = f"{side['article']}: {_plain(side['says'])}"
            if "claim" in side:
                verdict = claims[side["claim"]].verdict
                says += " " + _verdict(verdict, f"[{ledger.VERDICTS[verdict]}](#{side['claim']})")
            lines.append(f"    - {says}")
    return "\n".join([*lines, "::::"])


def index(claims, evidence, chapters):
    """Return the table of all claims by number: where each is tested, and with which verdict."""
    lines = ["| No. | Claim | Verdict | Measured |", "| --: | :-- | :-- | :-- |"]
    for claim in claims.values():
        chapter = f"chapter {int(claim.chapter[:2])}"
        done = _link(claim.chapter, chapter, chapters) if claim.id in evidence else f"not yet ({chapter})"
        lines.append(f"| {claim.number} | [{claim.id}](#{claim.id}) | {_verdict(claim.verdict)} | {done} |")
    return "\n".join(lines)


def entry(claim, evidence):
    """Return one claim's entry; ``evidence`` is None while it is not measured."""
    words = ledger.VERDICTS[claim.verdict]
    verdict = words.capitalize() if evidence else f"Expected: {words}"
    lines = [
        f"{{#{claim.id}}}",
        f"### {claim.id}",
        "",
        f"[Claim {claim.number}, {_articles(claim)}]{{.ledger-source}}",
        "",
        f"> {_plain(claim.says)}",
        "",
        _verdict(claim.verdict, verdict) + ("" if evidence else " (not measured yet)"),
        "",
        _plain(claim.because),
        "",
    ]
    for s in claim.statistics:
        value = f" **Measured: {result(s, evidence['measured'][s.name])}.**" if evidence else ""
        lines.append(f"- {_plain(s.means)} Required: {_minus(_plain(s.requirement))}.{value}")
    notes = [_plain(evidence["note"])] if evidence and evidence["note"] else []
    if claim.protocols:
        notes.append(f"Protocol: {', '.join(claim.protocols)}.")
    if claim.sources:
        notes.append("See " + ", ".join(f"{{cite:t}}`{key}`" for key in claim.sources) + ".")
    return "\n".join([*lines, "", " ".join(notes), ""])


def entries(claims, evidence, chapters):
    """Return every claim's entry, chapter by chapter."""
    parts = []
    for slug, title in CHAPTERS.items():
        here = [claim for claim in claims.values() if claim.chapter == slug]
        if here:
            where = f"Tested in {_link(slug, f'chapter {int(slug[:2])}', chapters)}."
            parts.append(
                f"## {int(slug[:2])}. {title}\n\n{where if slug in chapters else 'Chapter not written yet.'}\n"
            )
            parts += [entry(claim, evidence.get(claim.id)) for claim in here]
    return "\n".join(parts)


def page(text, root=ROOT):
    """Fill the places of book/claims.md that are marked <!-- ledger: summary --> and so on."""
    path = Path(root) / "book" / "claims.yml"
    claims, written = ledger.load(path), chapters(Path(root) / "chapters")
    evidence = {e["claim"]: e for chapter in written.values() for e in chapter["evidence"]}
    parts = {
        "summary": summary(claims, evidence),
        "contradictions": contradiction_table(contradictions(path), claims, written),
        "index": index(claims, evidence, written),
        "entries": entries(claims, evidence, written),
    }
    for name, part in parts.items():
        placeholder = f"<!-- ledger: {name} -->"
        if text.count(placeholder) != 1:
            raise ValueError(f"book/claims.md has {placeholder!r} {text.count(placeholder)} times: expected once")
        text = text.replace(placeholder, part)
    return text


def _fill(app, docname, source):
    if docname == PAGE:
        source[0] = page(source[0], app.srcdir)


def setup(app):
    app.connect("source-read", _fill)
    app.connect("env-get-outdated", lambda app, env, added, changed, removed: [PAGE] if PAGE in env.found_docs else [])
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

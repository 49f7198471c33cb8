"""What the ledger, its register, the chapters and the bibliography owe one another.

    python book/_ext/ledger.py register

writes today's date and the hash of its text into book/registered.csv for every test that is marked ``registered`` and
not registered yet: run it, and commit, before the test is measured. The file only grows.
"""

import csv
import datetime
import re
import sys
from pathlib import Path

import nbformat
import yaml
from pybtex.database import parse_file

from batchlab import claims as ledger

ROOT = Path(__file__).resolve().parents[2]
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
LABEL = re.compile(r"^\(([\w-]+)\)=$", re.MULTILINE)


# ---- what the repository holds


def contradictions(path):
    """Return the contradictions: [{id, question, sides: [{article, says, claim?}], settled_by, figures}, ...]."""
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))["contradictions"]


def bibliography(path):
    """Return the keys of a BibTeX file; what pybtex cannot read, or a key that stands twice, is its error."""
    return list(parse_file(path, "bibtex").entries)


def chapters(directory):
    """Return what each executed chapter in ``directory`` says of the ledger.

    Returns:
        {slug: {"calls": [claim id, ...], "evidence": [{"claim", "measured", "note"}, ...], "figures": [name, ...],
        "labels": [label, ...]}}: the claims that its code checks, the evidence that its outputs hold, what its figures
        are called, and what its sections are.
    """
    found = {}
    for path in sorted(Path(directory).glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4).cells
        cells = [cell for cell in notebook if cell.cell_type == "code"]
        text = "\n\n".join(cell.source for cell in notebook if cell.cell_type == "markdown")
        outputs = [output for cell in cells for output in cell.outputs]
        found[path.stem] = {
            "calls": [claim for cell in cells for claim in CALL.findall(cell.source)],
            "evidence": [o.metadata["batchlab"] for o in outputs if "batchlab" in o.get("metadata", {})],
            "figures": [c.metadata.mystnb.figure.name for c in cells if "figure" in c.metadata.get("mystnb", {})],
            "labels": LABEL.findall(text),
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
        *_faults_of_contradictions(contradictions, claims, chapters),
        *_faults_of_chapters(chapters, claims),
    ]


def _faults_of_claims(claims, keys):
    for own in (False, True):
        for number, claim in enumerate((c for c in claims.values() if c.own == own), 1):
            if claim.number != number:
                yield f"claim {claim.id!r}: number {claim.number} in place {number}"
    for claim in claims.values():
        if claim.chapter not in CHAPTERS:
            yield f"claim {claim.id!r}: unknown chapter {claim.chapter!r}"
        for source in claim.sources:
            if source not in keys:
                yield f"claim {claim.id!r}: source {source!r} is not in book/references.bib"


def _faults_of_evidence_kinds(claim):
    """A verdict rests on tests that were registered and could fail, one for each half, and on conditions varied."""
    registered = [s for s in claim.statistics if s.kind == "registered"]
    if claim.verdict != "holds-if":
        if claim.statistics and not registered:
            yield f"claim {claim.id!r}: its verdict rests on {_kinds(claim.statistics)}: no registered test"
        return
    for half in ledger.HALVES:
        if not any(s.half == half for s in registered):
            yield f"claim {claim.id!r}: the half that {half} has no registered test"
    if claim.may:
        yield f"claim {claim.id!r}: it says 'may': one protocol that shows it is enough for 'holds', not 'holds-if'"
    if not claim.conditions:
        yield f"claim {claim.id!r}: holds, if what? `if` names no condition"
    for condition in claim.conditions:
        if condition not in claim.because:
            yield f"claim {claim.id!r}: its condition {condition!r} is not in the words of `because`"
        if not any(s.varies == condition for s in registered):
            yield f"claim {claim.id!r}: no registered test varies its condition {condition!r}"


def _kinds(statistics):
    return " and ".join(sorted({{"identity": "identities", "finding": "findings"}[s.kind] for s in statistics}))


def _faults_of_contradictions(contradictions, claims, chapters):
    seen, drawn = set(), {name for chapter in chapters.values() for name in chapter["figures"]}
    for entry in contradictions:
        name = f"contradiction {entry['id']!r}"
        if entry["id"] in seen:
            yield f"{name}: this id stands twice"
        seen.add(entry["id"])
        if entry["settled_by"] not in CHAPTERS:
            yield f"{name}: unknown chapter {entry['settled_by']!r}"
        if len(entry["sides"]) < 2:
            yield f"{name}: it takes two sides to contradict"
        if not entry.get("figures"):
            yield f"{name}: it links to no figure that settles it"
        for figure in entry.get("figures", ()):
            if figure not in drawn:
                yield f"{name}: no chapter has a figure {figure!r}"
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
        if claim.chapter in chapters:
            yield from _faults_of_evidence_kinds(claim)


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


# ---- the register


def withdrawn(claims, register):
    """Return the tests that were registered and stand in the ledger no more: [(claim id, statistic, day), ...]."""
    stands = {(claim.id, s.name) for claim in claims.values() for s in claim.statistics}
    return [(*test, day) for test, (day, _) in register.items() if test not in stands]


def register(path, today):
    """Append the tests that are marked registered and not in the register yet; return their names.

    Args:
        path: the ledger; its register is ``registered.csv`` beside it.
        today: the date to write, as in ``2026-11-27``.
    """
    book = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    known = ledger.register(Path(path).with_name("registered.csv"))
    new = []
    for entry in [*book.get("claims", []), *book.get("own", [])]:
        test = entry.get("test", {"statistics": {}})
        for name, fields in test["statistics"].items():
            if fields["kind"] == "registered" and (entry["id"], name) not in known:
                new.append((today, entry["id"], name, ledger.digest(entry["id"], test, name)))
    with open(Path(path).with_name("registered.csv"), "a", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            rows.writerow(["date", "claim", "statistic", "sha256"])
        rows.writerows(new)
    return [f"{claim}: {name}" for _, claim, name, _ in new]


if __name__ == "__main__":
    if sys.argv[1:] != ["register"]:
        sys.exit(__doc__)
    print("\n".join(register(ROOT / "book" / "claims.yml", str(datetime.date.today()))) or "nothing new")

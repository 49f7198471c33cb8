"""Write the claims ledger's page from book/claims.yml and from the evidence stored in the executed chapters.

The page book/claims.md says in its own words what the ledger is; this extension fills in what can be counted. Evidence
is what `batchlab.claims.check` left in a chapter's outputs (the key "batchlab" of an output's metadata), so the page
shows a number only if a chapter really measured it.
"""

import re
from pathlib import Path

from batchlab import claims as ledger
from ledger import CHAPTERS, ROOT, chapters, contradictions, withdrawn

PAGE = "book/claims"
PAGES = {PAGE: ("summary", "kinds", "contradictions", "index", "own", "entries"), "index": ("squares", "legend")}


def result(measured, level=""):
    """Return a measured statistic in words, with its interval where it has one, and the level where one is named.

    >>> result({"estimate": 0.15, "low": 0.13, "high": 0.172}, "90%")
    '0.15 (90% interval 0.13 to 0.172)'
    """
    if measured["low"] == measured["high"]:
        return _number(measured["estimate"])
    named = f"{level} interval " if level else ""
    return f"{_number(measured['estimate'])} ({named}{_number(measured['low'])} to {_number(measured['high'])})"


def levels(statistics):
    """Return the level of each statistic's interval, "" where its words name none; "the same" has the last one's.

    >>> first, same = (ledger.Statistic(w, w, "above", 0) for w in ("Loss; 90% interval.", "The same for accuracy."))
    >>> levels([first, same])
    ['90%', '90%']
    """
    found, last = [], ""
    for s in statistics:
        named = re.search(r"(\d+%) intervals?\b", s.means)
        last = named[1] if named else last if s.means.startswith("The same") else ""
        found.append(last)
    return found


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
    articles = [claim for claim in claims.values() if not claim.own]
    for verdict in (*ledger.VERDICTS, "all"):
        ids = [claim.id for claim in articles if verdict in ("all", claim.verdict)]
        words = verdict if verdict == "all" else _verdict(verdict)
        lines.append(f"| {words} | {len(ids)} | {sum(i in evidence for i in ids)} |")
    return "\n".join(lines)


def kinds(claims, evidence):
    """Return the table of statistics: how many of each kind, and how many of those are measured."""
    lines = ["| Kind | Statistics | Measured so far |", "| :-- | --: | --: |"]
    for kind in ledger.KINDS:
        ids = [claim.id for claim in claims.values() for s in claim.statistics if s.kind == kind]
        lines.append(f"| {kind} | {len(ids)} | {sum(i in evidence for i in ids)} |")
    return "\n".join(lines)


def contradiction_table(entries, claims, chapters):
    """Return the table of contradictions, one row a question, with links to the figures that settle it."""
    lines = ["::::{list-table}", ":header-rows: 1", ":widths: 30 70", ":class: ledger-contradictions", ""]
    lines += ["* - The question", "  - What the articles say, and the verdict"]
    for entry in entries:
        settled = _link(entry["settled_by"], f"chapter {int(entry['settled_by'][:2])}", chapters)
        settled += "" if entry["settled_by"] in chapters else ", not written yet"
        drawn = {figure for chapter in chapters.values() for figure in chapter["figures"]}
        shown = " and ".join(f"{{numref}}`{figure}`" for figure in entry.get("figures", ()) if figure in drawn)
        settled += f": see {shown}" if shown else ""
        lines += [f"* - {_plain(entry['question'])}", "", f"    Settled in {settled}.", "", "  -"]
        for side in entry["sides"]:
            says = f"{side['article']}: {_plain(side['says'])}"
            if "claim" in side:
                verdict = claims[side["claim"]].verdict
                says += " " + _verdict(verdict, f"[{ledger.VERDICTS[verdict]}](#{side['claim']})")
            lines.append(f"    - {says}")
    return "\n".join([*lines, "::::"])


def index(claims, evidence, chapters, own=False):
    """Return the table of the articles' claims, or of the book's own: number, verdict, and where each is tested."""
    lines = ["| No. | Claim | Verdict | Measured |", "| --: | :-- | :-- | :-- |"]
    for claim in (claim for claim in claims.values() if claim.own == own):
        chapter = f"chapter {int(claim.chapter[:2])}"
        done = _link(claim.chapter, chapter, chapters) if claim.id in evidence else f"not yet ({chapter})"
        lines.append(f"| {claim.number} | [{claim.id}](#{claim.id}) | {_verdict(claim.verdict)} | {done} |")
    return "\n".join(lines)


def entry(claim, evidence, gone=(), labels=()):
    """Return one claim's entry.

    Args:
        claim: a ``batchlab.claims.Claim``.
        evidence: what its chapter measured; None while it has not.
        gone: the tests of this claim that were registered and withdrawn since, as [(statistic, day), ...].
        labels: the sections that can be linked to; of ``claim.also`` the others are left out.
    """
    words = ledger.VERDICTS[claim.verdict]
    verdict = words.capitalize() if evidence else f"Expected: {words}"
    lines = [
        f"{{#{claim.id}}}",
        f"### {claim.id}",
        "",
        f"[{'Our own' if claim.own else f'Claim {claim.number}, {_articles(claim)}'}]{{.ledger-source}}",
        "",
        f"> {_plain(claim.says)}",
        "",
        _verdict(claim.verdict, verdict) + ("" if evidence else " (not measured yet)"),
        "",
        _plain(claim.because),
        "",
    ]
    for s, level in zip(claim.statistics, levels(claim.statistics), strict=True):
        value = f" **Measured: {result(evidence['measured'][s.name], level)}.**" if evidence else ""
        half = {"holds": ", where it holds", "fails": ", where it fails"}.get(s.half, "")
        kind = f"[{s.evidence}{half}]{{.ledger-kind}}"
        twin = s.short and [other.means for other in claim.statistics].count(s.means) > 1  # only the short name differs
        name = f"*{_plain(s.short)}.* " if twin else ""
        lines.append(f"- {name}{_plain(s.means)} Required: {_minus(_plain(s.requirement))}.{value} {kind}")
    notes = [_plain(evidence["note"])] if evidence and evidence["note"] else []
    if claim.protocols:
        notes.append(f"Protocol: {', '.join(claim.protocols)}.")
    if claim.sources:
        notes.append("See " + ", ".join(f"{{cite:t}}`{key}`" for key in claim.sources) + ".")
    if more := [label for label in claim.also if label in labels]:
        notes.append("More evidence: " + ", ".join(f"[](#{label})" for label in more) + ".")
    if gone:
        tests = ", ".join(f"{name.replace('_', ' ')} ({day})" for name, day in gone)
        notes.append(f"Registered and withdrawn since, for the reasons in the changelog: {tests}.")
    return "\n".join([*lines, "", " ".join(notes), ""])


def entries(claims, evidence, chapters, gone):
    """Return every claim's entry, chapter by chapter; ``gone`` is from ``ledger.withdrawn``."""
    parts, labels = [], {label for chapter in chapters.values() for label in chapter["labels"]}
    for slug, title in CHAPTERS.items():
        here = [claim for claim in claims.values() if claim.chapter == slug]
        if here:
            where = f"Tested in {_link(slug, f'chapter {int(slug[:2])}', chapters)}."
            parts.append(
                f"## {int(slug[:2])}. {title}\n\n{where if slug in chapters else 'Chapter not written yet.'}\n"
            )
            for claim in here:
                left = [(name, day) for where, name, day in gone if where == claim.id]
                parts.append(entry(claim, evidence.get(claim.id), left, labels))
    return "\n".join(parts)


def _settled(claim, evidence, chapters):
    """Whether a claim's verdict stands: it is measured, or its written chapter says why nothing decides it."""
    return claim.id in evidence or (not claim.statistics and claim.chapter in chapters)


def squares(claims, evidence, chapters):
    """Return the ledger in one picture, as HTML: a square for each claim of the articles, its verdict's sign, a link.

    A square is filled where the verdict stands and hollow where it is only expected. Words for those who do not see it
    stand in the link.
    """
    lines = ["```{raw} html", '<ol class="ledger-squares">']
    for claim in claims.values():
        if not claim.own:
            state = "" if _settled(claim, evidence, chapters) else " expected"
            words = f"{claim.id}: {'expected, ' if state else ''}{ledger.VERDICTS[claim.verdict]}"
            lines.append(
                f'<li><a class="claim-{claim.verdict}{state}" href="{PAGE}.html#{claim.id}" title="{words}">'
                f"<span>{words}</span></a></li>"
            )
    return "\n".join([*lines, "</ol>", "```"])


def legend(claims, evidence, chapters):
    """Return how many verdicts stand, and which; and, where some claims wait for their chapter, how many."""
    articles = [claim for claim in claims.values() if not claim.own]
    stand = [claim.verdict for claim in articles if _settled(claim, evidence, chapters)]
    verdicts = (f"{stand.count(v)} {_verdict(v, words.replace(',', ''))}" for v, words in ledger.VERDICTS.items())
    wait = len(articles) - len(stand)
    told = f" The {wait} hollow squares wait, and show the verdict that we expect." if wait else ""
    return f"{len(stand)} verdicts stand: {', '.join(verdicts)}.{told}"


def page(text, name, root=ROOT):
    """Fill the places of a page that are marked <!-- ledger: summary --> and so on; ``name`` is one of PAGES."""
    path = Path(root) / "book" / "claims.yml"
    claims, written = ledger.load(path), chapters(Path(root) / "chapters")
    evidence = {e["claim"]: e for chapter in written.values() for e in chapter["evidence"]}
    gone = withdrawn(claims, ledger.register(path.with_name("registered.csv")))
    parts = {
        "summary": lambda: summary(claims, evidence),
        "kinds": lambda: kinds(claims, evidence),
        "contradictions": lambda: contradiction_table(contradictions(path), claims, written),
        "index": lambda: index(claims, evidence, written),
        "own": lambda: index(claims, evidence, written, own=True),
        "entries": lambda: entries(claims, evidence, written, gone),
        "squares": lambda: squares(claims, evidence, written),
        "legend": lambda: legend(claims, evidence, written),
    }
    for part in PAGES[name]:
        placeholder = f"<!-- ledger: {part} -->"
        if text.count(placeholder) != 1:
            raise ValueError(f"{name}.md has {placeholder!r} {text.count(placeholder)} times: expected once")
        text = text.replace(placeholder, parts[part]())
    return text


def _fill(app, docname, source):
    if docname in PAGES:
        source[0] = page(source[0], docname, app.srcdir)


def setup(app):
    app.connect("source-read", _fill)
    app.connect("env-get-outdated", lambda app, env, *changes: [name for name in PAGES if name in env.found_docs])
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

"""The ledger, the chapters and the bibliography hold together, and the ledger's page says what they say."""

import copy
import doctest
import json
import re
import subprocess

import ledger as book
import ledger_page as page
import nbformat
import pytest
import yaml

from batchlab import claims as package

import chapters as chapter_files
from conftest import ROOT

BOOK = ROOT / "book"
CLAIMS = (BOOK / "claims.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def claims():
    return package.load(BOOK / "claims.yml")


@pytest.fixture(scope="module")
def written():
    return book.chapters(ROOT / "chapters")


def test_the_book_has_no_fault(claims, written):
    contradictions = book.contradictions(BOOK / "claims.yml")
    faults = book.faults(claims, contradictions, book.bibliography(BOOK / "references.bib"), written)
    assert not faults, "\n".join(faults)


def test_there_are_66_claims_from_five_articles(claims):
    of_articles = [claim for claim in claims.values() if not claim.own]
    assert [claim.number for claim in of_articles] == list(range(1, 67))
    assert {article for claim in of_articles for article in claim.articles} == {"000", "001", "002", "003", "004"}
    assert {claim.verdict for claim in claims.values()} <= set(package.VERDICTS)
    assert {claim.chapter for claim in claims.values()} <= set(book.CHAPTERS)


def test_every_chapter_in_the_repository_is_one_of_the_plan(written):
    assert set(written) <= set(book.CHAPTERS)


def test_only_chapters_check_claims():
    assert {name: found["calls"] for name, found in book.chapters(BOOK).items() if found["calls"]} == {}


def test_every_reference_is_cited_somewhere():
    text = "".join(p.read_text(encoding="utf-8") for d in ("book", "chapters") for p in (ROOT / d).glob("*.*[mb]*"))
    for key in book.bibliography(BOOK / "references.bib"):
        assert text.count(key) > 1, f"{key} is in references.bib and nowhere else"


def test_the_page_and_a_card_require_in_the_same_words(claims):
    claim = claims["large-b-bias"]
    assert "within [-0.005, 0.005]" in {s.requirement for s in claim.statistics}
    assert r"Required: within \[−0.005, 0.005\]." in page.entry(claim, None)


@pytest.mark.parametrize(
    "text, error",
    [("@misc{a, title = {A}}\n@misc{a, title = {B}}\n", "repeated"), ("@misc{a, title = {A}\n", "syntax error")],
)
def test_a_bibliography_with_a_fault_is_refused(tmp_path, text, error):
    (tmp_path / "some.bib").write_text(text, encoding="utf-8")
    with pytest.raises(Exception, match=error):
        book.bibliography(tmp_path / "some.bib")


# ---- bad ledgers: each case spoils a small sound one, and the message must name what is spoilt

STATISTIC = {"kind": "registered", "means": "share of wet water", "above": 0.5}
CLAIM = {
    "id": "water-is-wet",
    "number": 1,
    "articles": ["000"],
    "says": "Water is wet.",
    "verdict": "holds",
    "because": "It is.",
    "chapter": "01-gradient-descent",
    "sources": ["bottou2018"],
    "test": {"protocol": "exact", "statistics": {"wetness": STATISTIC}},
}
SECOND = CLAIM | {"id": "fire-is-cold", "number": 2, "chapter": "02-stochastic-gradient-descent"}
EVIDENCE = {"claim": "water-is-wet", "measured": {"wetness": {"estimate": 0.9, "low": 0.8, "high": 1.0}}, "note": ""}
SOUND = {
    "claims": [CLAIM, SECOND],
    "contradictions": [
        {
            "id": "which-is-wet",
            "question": "Which is wet?",
            "sides": [
                {"article": "000", "says": "Water.", "claim": "water-is-wet"},
                {"article": "001", "says": "Fire."},
            ],
            "settled_by": "01-gradient-descent",
            "figures": ["fig-wet"],
        }
    ],
    "chapters": {"01-gradient-descent": {"calls": ["water-is-wet"], "evidence": [EVIDENCE], "figures": ["fig-wet"]}},
}


def faults(entries, directory):
    """What is wrong with a ledger, by whichever door it is refused: loading, or the check against the rest."""
    path = directory / "claims.yml"
    path.write_text(yaml.safe_dump({"claims": SOUND["claims"]}), encoding="utf-8")
    book.register(path, "2026-11-21")
    path.write_text(yaml.safe_dump({k: v for k, v in entries.items() if k != "chapters"}), encoding="utf-8")
    try:
        claims = package.load(path)
    except ValueError as refused:
        return [str(refused)]
    return book.faults(claims, book.contradictions(path), ["bottou2018"], entries["chapters"])


def spoil(path, value):
    """Return SOUND with the place at the end of ``path`` replaced, deleted (None) or put through a function."""
    spoilt = copy.deepcopy(SOUND)
    *way, last = path
    place = spoilt
    for key in way:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value(place[last]) if callable(value) else value
    return spoilt


def test_a_sound_ledger_has_no_fault(tmp_path):
    assert faults(SOUND, tmp_path) == []


CLAIM_0, TEST = ("claims", 0), ("claims", 0, "test", "statistics", "wetness")
CHAPTER = ("chapters", "01-gradient-descent")
MEASURED = (*CHAPTER, "evidence", 0, "measured")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("claims", 1, "id"), "water-is-wet", "'water-is-wet': this id stands twice"),
        ((*CLAIM_0, "verdict"), "true", "'water-is-wet': verdict"),
        ((*CLAIM_0, "number"), 7, "'water-is-wet': number 7 in place 1"),
        ((*CLAIM_0, "sources"), ["nobody1900"], "'water-is-wet': source 'nobody1900'"),
        ((*CLAIM_0, "chapter"), "16-unwritten", "'water-is-wet': unknown chapter '16-unwritten'"),
        ((*CLAIM_0, "because"), None, "'water-is-wet': missing fields ['because']"),
        ((*CLAIM_0, "test"), None, "'water-is-wet': a test is required"),
        ((*CLAIM_0, "test", "protocol"), "XX", "'water-is-wet': protocol = 'XX'"),
        ((*TEST, "above"), None, "'water-is-wet': statistic 'wetness'"),
        (TEST, STATISTIC | {"below": 0.9}, "'water-is-wet': statistic 'wetness'"),
        ((*TEST, "above"), float("nan"), "'water-is-wet': statistic 'wetness': above"),
        ((*CHAPTER, "calls"), ["water-is-wet", "water-is-wet"], "'water-is-wet': checked 2 times"),
        ((*CHAPTER, "calls"), [], "'water-is-wet': not checked in 01-gradient-descent"),
        ((*CHAPTER, "calls"), ["water-is-wet", "air-is-dry"], "unknown claim 'air-is-dry'"),
        ((*CHAPTER, "calls"), ["water-is-wet", "fire-is-cold"], "'fire-is-cold', which belongs to 02-stochastic"),
        ((*CHAPTER, "evidence"), [], "evidence for []: execute it again"),
        (MEASURED, {"dryness": EVIDENCE["measured"]["wetness"]}, "evidence for 'water-is-wet' is of ['dryness']"),
        ((*MEASURED, "wetness", "low"), 0.4, "claim 'water-is-wet', wetness from 0.4 to 1.0: required above 0.5"),
        ((*MEASURED, "wetness", "high"), float("nan"), "claim 'water-is-wet', wetness from 0.8 to nan"),
        (("contradictions", 0, "sides", 0, "claim"), "air-is-dry", "'which-is-wet': unknown claim 'air-is-dry'"),
        (("contradictions", 0, "sides"), lambda sides: sides[:1], "'which-is-wet': it takes two sides"),
        (("contradictions", 0, "settled_by"), "16-unwritten", "'which-is-wet': unknown chapter"),
        (("contradictions", 0, "figures"), ["fig-dry"], "'which-is-wet': no chapter has a figure 'fig-dry'"),
        (("contradictions", 0, "figures"), None, "'which-is-wet': it links to no figure"),
        (("contradictions", 0, "figures"), [], "'which-is-wet': it links to no figure"),
        (("contradictions",), lambda entries: entries * 2, "'which-is-wet': this id stands twice"),
    ],
)
def test_a_bad_ledger_fails_with_the_id_in_the_message(path, value, message, tmp_path):
    found = faults(spoil(path, value), tmp_path)
    assert any(message in fault for fault in found), found


# ---- kinds of evidence: what a verdict may rest on

HALF = {"holds": STATISTIC | {"half": "holds", "varies": "the weather"}, "fails": STATISTIC | {"half": "fails"}}
HOLDS_IF = CLAIM | {
    "verdict": "holds-if",
    "because": "It depends on the weather.",
    "if": ["the weather"],
    "test": {"protocol": "exact", "statistics": HALF},
}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (CLAIM, None),
        (CLAIM | {"may": True}, None),
        (HOLDS_IF, None),
        ({"kind": "identity"}, "its verdict rests on identities: no registered test"),
        ({"kind": "finding"}, "its verdict rests on findings: no registered test"),
        (HOLDS_IF | {"may": True}, "it says 'may'"),
        (HOLDS_IF | {"if": []}, "holds, if what?"),
        (HOLDS_IF | {"because": "It depends."}, "its condition 'the weather' is not in the words of `because`"),
        ({"holds": {"kind": "finding"}}, "the half that holds has no registered test"),
        ({"fails": {"half": "holds"}}, "the half that fails has no registered test"),
        ({"holds": {"varies": "the tide"}}, "no registered test varies its condition 'the weather'"),
    ],
)
def test_a_verdict_rests_on_registered_tests_of_both_halves_and_of_its_condition(entry, message, tmp_path):
    if "kind" in entry:
        entry = CLAIM | {"test": {"protocol": "exact", "statistics": {"wetness": STATISTIC | entry}}}
    elif "id" not in entry:
        statistics = {half: HALF[half] | entry.get(half, {}) for half in HALF}
        entry = HOLDS_IF | {"test": {"protocol": "exact", "statistics": statistics}}
    path = tmp_path / "claims.yml"
    path.write_text(yaml.safe_dump({"claims": [entry]}), encoding="utf-8")
    book.register(path, "2026-11-27")
    found = book.faults(
        package.load(path), [], ["bottou2018"], {"01-gradient-descent": {"calls": [], "evidence": [], "figures": []}}
    )
    rests = [fault for fault in found if "not checked" not in fault]
    assert [f"claim 'water-is-wet': {message}" in fault for fault in rests[:1]] == [True] * bool(message), found


def test_registering_twice_adds_nothing_and_a_test_given_up_stays_in_the_register(tmp_path):
    path = tmp_path / "claims.yml"
    path.write_text(yaml.safe_dump({"claims": [CLAIM], "own": [CLAIM | {"id": "ours", "articles": []}]}))
    assert book.register(path, "2026-11-21") == ["water-is-wet: wetness", "ours: wetness"]
    before = path.with_name("registered.csv").read_text()
    assert book.register(path, "2026-11-27") == [] and path.with_name("registered.csv").read_text() == before
    assert before.startswith("date,claim,statistic,sha256\n2026-11-21,water-is-wet,wetness,")
    path.write_text(yaml.safe_dump({"claims": [CLAIM]}))
    gone = book.withdrawn(package.load(path), package.register(path.with_name("registered.csv")))
    assert gone == [("ours", "wetness", "2026-11-21")]
    text = page.entry(package.load(path)["water-is-wet"], EVIDENCE, [("dryness", "2026-11-21")])
    assert "Registered and withdrawn since, for the reasons in the changelog: dryness (2026-11-21)." in text
    assert "[registered 2026-11-21]{.ledger-kind}" in text


def test_the_register_only_grows():
    """Where the history is at hand, no line of the register was ever changed or taken away."""
    log = ["git", "-C", str(ROOT), "log", "--format=", "--patch", "--first-parent", "-m", "--", "book/registered.csv"]
    history = subprocess.run(log, capture_output=True, text=True)
    lost = [line for line in history.stdout.splitlines() if line.startswith("-") and not line.startswith("---")]
    assert lost == []


# ---- evidence, from the call in a chapter to the page


def chapter_with_evidence(claim, measured, note="60 draws."):
    """A notebook after one call of check, its evidence written by the card itself."""
    data, metadata = package.Card(claim, measured, note)._repr_mimebundle_()
    cell = nbformat.v4.new_code_cell(f'bl.claims.check("{claim.id}", x=1)', execution_count=1)
    cell.outputs = [nbformat.v4.new_output("execute_result", data, metadata=metadata, execution_count=1)]
    return nbformat.v4.new_notebook(cells=[cell])


def copy_ledger(to):
    for name in ("claims.yml", "registered.csv"):
        (to / name).write_bytes((BOOK / name).read_bytes())


@pytest.fixture
def measured_book(claims, tmp_path):
    """A copy of the book with one chapter, in which one claim is measured."""
    claim = claims["large-b-bias"]
    measured = {
        "bias_along_gradient": {"estimate": 0.0002, "low": -0.0004, "high": 0.0008},
        "squared_bias": {"estimate": 2e-5, "low": -1e-5, "high": 5e-5},
    }
    for name in ("book", "chapters"):
        (tmp_path / name).mkdir()
    copy_ledger(tmp_path / "book")
    notebook = chapter_with_evidence(claim, measured)
    (tmp_path / "chapters" / f"{claim.chapter}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    return tmp_path


def test_storing_a_chapter_keeps_its_evidence(measured_book):
    (path,) = (measured_book / "chapters").glob("*.ipynb")
    before = book.chapters(path.parent)
    path.write_text(chapter_files.dumped(chapter_files.normalised(nbformat.read(path, as_version=4))), encoding="utf-8")
    assert book.chapters(path.parent) == before


def test_what_check_leaves_in_a_chapter_is_what_the_page_shows(measured_book, claims):
    text = page.page(CLAIMS, page.PAGE, measured_book)
    entry = text.split("{#large-b-bias}")[1].split("{#large-b-stable-gradient}")[0]
    assert "Measured: 0.0002 (90% interval −0.0004 to 0.0008)." in entry
    assert "[Refuted]" in entry and "60 draws." in entry and "not measured" not in entry
    verdict = "[refuted]{.ledger-verdict .claim-refuted}"
    assert f"| [large-b-bias](#large-b-bias) | {verdict} | [chapter 3](../chapters/03-mini-batch.ipynb) |" in text
    refuted = sum(claim.verdict == "refuted" for claim in claims.values())
    assert f"| {verdict} | {refuted} | 1 |" in text and "| all | 66 | 1 |" in text


def test_a_contradiction_links_to_the_figures_that_settle_it(claims):
    mine = {"water-is-wet": claims["large-b-bias"]}
    text = page.contradiction_table(SOUND["contradictions"], mine, SOUND["chapters"])
    assert "Settled in [chapter 1](../chapters/01-gradient-descent.ipynb): see {numref}`fig-wet`." in text
    assert "Settled in chapter 1, not written yet." in page.contradiction_table(SOUND["contradictions"], mine, {})


def test_the_picture_of_the_ledger_has_a_square_for_every_claim_filled_where_it_is_measured(measured_book, claims):
    text = page.page("<!-- ledger: squares -->\n\n<!-- ledger: legend -->", "index", measured_book)
    articles = [claim.id for claim in claims.values() if not claim.own]
    assert re.findall(r'href="book/claims\.html#([^"]+)"', text) == articles
    settled = [
        c.id for c in claims.values() if c.chapter == "03-mini-batch" and not c.statistics
    ]  # written, untestable
    assert text.count(' expected"') == len(articles) - 1 - len(settled)
    assert '<a class="claim-refuted" href="book/claims.html#large-b-bias" title="large-b-bias: refuted">' in text
    assert f"{1 + len(settled)} verdicts stand: 0 [holds]{{.ledger-verdict .claim-holds}}" in text
    assert f"The {65 - len(settled)} hollow squares wait, and show the verdict that we expect." in text
    assert "hollow" not in page.page("<!-- ledger: squares -->\n\n<!-- ledger: legend -->", "index")  # all are settled


def test_a_chapter_that_checks_one_claim_of_its_own_still_owes_the_others(measured_book, claims):
    found = book.faults(
        claims, [], book.bibliography(BOOK / "references.bib"), book.chapters(measured_book / "chapters")
    )
    found = [fault for fault in found if "not checked" in fault]
    owed = [c.id for c in claims.values() if c.chapter == "03-mini-batch" and c.id != "large-b-bias"]
    assert found == [f"claim {claim!r}: not checked in 03-mini-batch" for claim in owed]


def test_a_claim_without_evidence_is_marked_as_expected_only(claims, tmp_path):
    for name in ("book", "chapters"):
        (tmp_path / name).mkdir()
    copy_ledger(tmp_path / "book")
    text = page.page(CLAIMS, page.PAGE, tmp_path)
    assert text.count("(not measured yet)") == text.count("[Expected: ") == len(claims)
    assert "**Measured: " not in text and "../chapters/" not in text


def test_every_claim_has_one_anchor_and_one_heading(claims):
    lines = page.page(CLAIMS, page.PAGE).splitlines()
    for claim in claims:
        assert lines.count(f"{{#{claim}}}") == lines.count(f"### {claim}") == 1


def test_more_evidence_is_a_section_of_another_chapter_and_the_page_leads_to_it(claims):
    text, labels = page.page(CLAIMS, page.PAGE), {}
    for path in (ROOT / "chapters").glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            labels |= dict.fromkeys(re.findall(r"^\(([a-z-]+)\)=$", cell.source, re.MULTILINE), path.stem)
    assert {20, 24, 41, 42, 60} <= {claim.number for claim in claims.values() if claim.also}
    for claim in claims.values():
        entry = text.split(f"{{#{claim.id}}}")[1].split("\n{#")[0]
        for label in claim.also:
            assert labels[label] != claim.chapter and f"[](#{label})" in entry
        assert ("More evidence" in entry) == bool(claim.also)


@pytest.mark.site
def test_the_built_page_has_every_anchor_and_shows_what_is_measured(site, claims, written):
    html = (site / "book" / "claims.html").read_text(encoding="utf-8")
    for claim in claims:
        assert f'id="{claim}"' in html
    measured = sum(len(chapter["evidence"]) for chapter in written.values())
    assert html.count("(not measured yet)") == len(claims) - measured


@pytest.mark.parametrize("text", ["no place at all", "<!-- ledger: index -->" * 2])
def test_a_page_without_its_places_is_refused(text):
    with pytest.raises(ValueError, match="expected once"):
        page.page(text, page.PAGE)


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (3, "3"), (-0.0004, "−0.0004"), (1e-12, "1e−12"), (0.15623, "0.156"), (2 / 3, "0.667"), (4000, "4,000")],
)
def test_numbers_are_short_and_signed_as_in_print(value, words):
    assert page._number(value) == words


def test_what_myst_would_read_as_markup_is_escaped():
    assert page._plain("below 2/λ_max, |1 − ηλ| and a * b") == "below 2/λ{sub}`max`, \\|1 − ηλ\\| and a \\* b"


def test_the_examples_in_the_docstrings_run():
    failed, tried = doctest.testmod(page)
    assert tried and not failed

"""claims: what a ledger may say, and what evidence may stand against it."""

import math
import re

import pytest
import yaml
from IPython.core.formatters import DisplayFormatter

from batchlab import claims

ENTRY = {
    "id": "water-is-wet",
    "number": 1,
    "articles": ["000"],
    "says": "Water is wet.",
    "verdict": "holds",
    "because": "It is.",
    "chapter": "01-gradient-descent",
    "sources": [],
    "test": {
        "protocol": "exact",
        "statistics": {"wetness": {"kind": "finding", "means": "share of wet water", "above": 0.5}},
    },
}
STATISTIC = {"kind": "finding", "means": "share of wet water"}


@pytest.fixture
def write(tmp_path):
    def write(*entries):
        path = tmp_path / "claims.yml"
        path.write_text(yaml.safe_dump({"claims": list(entries)}))
        return path

    return write


@pytest.fixture
def ledger(write, monkeypatch):
    """check() against a ledger of one claim with the given statistics."""

    def ledger(**statistics):
        book = claims.load(write(ENTRY | {"test": {"protocol": "exact", "statistics": statistics}}))
        monkeypatch.setattr(claims, "_book", lambda: book)

    return ledger


@pytest.mark.parametrize(
    ("condition", "bound", "inside", "outside"),
    [
        ("above", 0.5, (0.51, 0.9), (0.5, 0.9)),
        ("below", 0.5, (0.1, 0.49), (0.1, 0.5)),
        ("within", [-1, 1], (-1, 1), (-0.5, 1.01)),
        ("equals", 3, (3, 3), (3, 3.01)),
    ],
)
def test_the_whole_interval_must_meet_the_condition(ledger, condition, bound, inside, outside):
    ledger(wetness=STATISTIC | {condition: bound})
    low, high = inside
    assert claims.check("water-is-wet", wetness=((low + high) / 2, inside)).claim.id == "water-is-wet"
    with pytest.raises(claims.VerdictChanged, match="water-is-wet.*wetness.*required"):
        claims.check("water-is-wet", wetness=(sum(outside) / 2, outside))


def test_one_failing_statistic_of_two_is_enough(ledger):
    ledger(wetness=STATISTIC | {"above": 0.5}, dryness=STATISTIC | {"below": 0.5})
    claims.check("water-is-wet", wetness=(0.8, (0.7, 0.9)), dryness=(0.1, (0, 0.2)))
    with pytest.raises(claims.VerdictChanged, match="dryness"):
        claims.check("water-is-wet", wetness=(0.8, (0.7, 0.9)), dryness=(0.6, (0, 0.7)))


def test_a_card_carries_its_evidence_and_marks_every_approximate_number(ledger):
    ledger(wetness=STATISTIC | {"above": 0.5})
    card = claims.check("water-is-wet", "10 seeds <b>", wetness=(0.8123, (0.7001, 0.9002)))
    data, metadata = DisplayFormatter().format(card)
    evidence = {"wetness": {"estimate": 0.8123, "low": 0.7001, "high": 0.9002}}
    assert metadata["batchlab"] == {"claim": "water-is-wet", "measured": evidence, "note": "10 seeds <b>"}
    for text in (data["text/plain"], data["text/html"]):
        assert "holds" in text.lower() and "≈ 0.81 [0.70, 0.90]" in text and "finding" in text
    assert "<b>" not in data["text/html"]


def test_a_card_says_what_a_holds_if_turns_on(write, monkeypatch):
    halves = {half: STATISTIC | {"half": half, "above": 0.5} for half in claims.HALVES}
    entry = ENTRY | {"verdict": "holds-if", "if": ["the weather"], "test": {"protocol": "exact", "statistics": halves}}
    book = claims.load(write(entry))
    monkeypatch.setattr(claims, "_book", lambda: book)
    card = claims.check("water-is-wet", holds=(1, (1, 1)), fails=(1, (1, 1)))
    assert repr(card).splitlines()[2] == "  Condition: the weather."
    assert "Water is wet.</span> Condition: the weather. <span" in card._repr_html_()


@pytest.mark.parametrize(("condition", "bound", "shown"), [("below", 0.5, "≈ 0"), ("equals", 0, "0")])
def test_only_exact_facts_are_printed_as_exact(ledger, condition, bound, shown):
    ledger(wetness=STATISTIC | {condition: bound})
    assert f"wetness (finding): {shown}, required" in repr(claims.check("water-is-wet", wetness=(0, (0, 0))))


@pytest.mark.parametrize(
    ("claim_id", "measured", "named"),
    [
        ("water-is-dry", {"wetness": (1, (1, 1))}, "claim_id = 'water-is-dry'"),
        ("water-is-wet", {}, r"measured = \[\]"),
        ("water-is-wet", {"wetnes": (1, (1, 1))}, "wetnes"),
        ("water-is-wet", {"wetness": 1}, "wetness = 1"),
        ("water-is-wet", {"wetness": (1, None)}, "wetness"),
        ("water-is-wet", {"wetness": (1, (1,))}, "wetness"),
        ("water-is-wet", {"wetness": (0.8, (0.9, 0.7))}, "wetness"),
        ("water-is-wet", {"wetness": (0.95, (0.7, 0.9))}, "wetness"),
        ("water-is-wet", {"wetness": (math.nan, (0.7, 0.9))}, "wetness"),
        ("water-is-wet", {"wetness": (0.8, (0.7, math.inf))}, "wetness"),
        ("water-is-wet", {"wetness": ("much", (0.7, 0.9))}, "wetness"),
    ],
)
def test_bad_evidence_is_refused_by_name(ledger, claim_id, measured, named):
    ledger(wetness=STATISTIC | {"above": 0.5})
    with pytest.raises(ValueError, match=named):
        claims.check(claim_id, **measured)


def changed(**fields):
    return {k: v for k, v in (ENTRY | fields).items() if v is not None}


def with_statistic(**fields):
    return changed(test={"protocol": "exact", "statistics": {"wetness": fields}})


@pytest.mark.parametrize(
    "entry",
    [
        changed(verdict="true"),
        changed(because=None),
        changed(colour="blue"),
        changed(number=0),
        changed(test=None),
        changed(verdict="untestable"),
        changed(test={"protocol": "XX", "statistics": {"wetness": STATISTIC | {"above": 0}}}),
        changed(test={"protocol": "FE", "statistics": {}}),
        with_statistic(kind="finding", means="no condition"),
        with_statistic(kind="finding", means="two conditions", above=0, below=1),
        with_statistic(kind="finding", means="unknown condition", near=0),
        with_statistic(kind="finding", above=0.5),
        with_statistic(kind="finding", means="reversed", within=[1, -1]),
        with_statistic(kind="finding", means="not finite", above=math.nan),
        with_statistic(means="no kind", above=0.5),
        with_statistic(kind="hunch", means="no such kind", above=0.5),
        with_statistic(kind="registered", means="not in the register", above=0.5),
        with_statistic(kind="finding", half="holds", means="a half of a verdict that has none", above=0.5),
        with_statistic(kind="finding", means="no half", above=0.5) | {"verdict": "holds-if"},
        changed(articles=[]),
    ],
)
def test_a_bad_ledger_is_refused_with_the_id(write, entry):
    with pytest.raises(ValueError, match="water-is-wet"):
        claims.load(write(entry))


def test_an_id_that_stands_twice_is_refused(write):
    with pytest.raises(ValueError, match="water-is-wet.*twice"):
        claims.load(write(ENTRY, ENTRY | {"number": 2}))


def test_an_untestable_claim_cannot_be_checked(write, monkeypatch):
    book = claims.load(write(changed(verdict="untestable", test=None)))
    monkeypatch.setattr(claims, "_book", lambda: book)
    with pytest.raises(ValueError, match=re.escape("'untestable'")):
        claims.check("water-is-wet")


# ---- the register: written before the measurement, and never again

REGISTERED = {"kind": "registered", "means": "share of  wet\nwater", "above": 0.5}
ROW = "2026-11-27,water-is-wet,wetness,{}\n"


def registered(write, fields, protocol="exact"):
    """Load a ledger with the statistic ``fields`` against the register of REGISTERED under the protocol "exact"."""
    path = write(ENTRY | {"test": {"protocol": protocol, "statistics": {"wetness": fields}}})
    test = {"protocol": "exact", "statistics": {"wetness": REGISTERED}}
    sha256 = claims.digest("water-is-wet", test, "wetness")
    path.with_name("registered.csv").write_text("date,claim,statistic,sha256\n" + ROW.format(sha256))
    return claims.load(path)["water-is-wet"].statistics[0]


@pytest.mark.parametrize("harmless", [{}, {"means": "share of wet water"}, {"short": "wetness"}, {"varies": "rain"}])
def test_a_registered_test_bears_its_day(write, harmless):
    assert registered(write, REGISTERED | harmless).evidence == "registered 2026-11-27"


@pytest.mark.parametrize("edit", [{"above": 0.4}, {"means": "share of damp water"}])
def test_a_test_that_was_edited_since_is_refused(write, edit):
    with pytest.raises(ValueError, match="'wetness' was edited since it was registered on 2026-11-27"):
        registered(write, REGISTERED | edit)
    with pytest.raises(ValueError, match="edited"):
        registered(write, REGISTERED, protocol="TE")


def test_a_register_in_which_a_test_stands_twice_is_refused(tmp_path):
    path = tmp_path / "registered.csv"
    path.write_text("date,claim,statistic,sha256\n" + ROW.format("0") + ROW.format("1"))
    with pytest.raises(ValueError, match="stands twice"):
        claims.register(path)


@pytest.mark.parametrize(
    ("estimate", "low", "high", "shown"),
    [
        (-0.9990, -1, -0.998, "≈ -0.9990 [-1.0000, -0.9980]"),
        (6.13, 5.8, 6.5, "≈ 6.13 [5.80, 6.50]"),
        (1234.4, 1200, 1300, "≈ 1,234 [1,200, 1,300]"),
        (0, 0, 0, "≈ 0"),
        (2.1e-12, 2e-12, 2.2e-12, "≈ 2.10e-12 [2.00e-12, 2.20e-12]"),
    ],
)
def test_an_interval_is_rounded_where_its_width_says(estimate, low, high, shown):
    statistic = claims.Statistic("ratio", "a ratio", "above", 0)
    assert claims.value(statistic, {"estimate": estimate, "low": low, "high": high}) == shown

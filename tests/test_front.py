"""The numbers on the front page, README and cheat sheet are those of the ledger's evidence and of the stored rows."""

import re

import ledger as book
import numpy as np
import pytest

from batchlab import claims, results
from batchlab.advise import cells, regrets, stored

from conftest import ROOT

PAGES = {name: (ROOT / name).read_text(encoding="utf-8").replace("\n", " ") for name in ("index.md", "README.md")}
SHEET = (ROOT / "book" / "cheat-sheet.md").read_text(encoding="utf-8")
LINK = r"\]\((?:#|\w[\w-]*\.(?:md|ipynb))"
KNEES = (8, 32, 128, 512, 2048)


@pytest.fixture(scope="module")
def evidence():
    found = book.chapters(ROOT / "chapters").values()
    return {
        (e["claim"], name): value["estimate"]
        for chapter in found
        for e in chapter["evidence"]
        for name, value in e["measured"].items()
    }


@pytest.fixture(scope="module")
def times():
    """Time over that of the fastest size tried, of each power of two from 2 to 1,024: (cases, sizes)."""
    cases, tried = [], 2.0 ** np.arange(1, 11)
    for _, rows in results.read("04-best-batch").groupby("problem"):
        steps = rows.groupby("batch_size").steps.mean()
        at = np.exp(np.interp(np.log(tried), np.log(steps.index), np.log(steps)))
        cases += [at * (K + tried) / (steps * (K + steps.index)).min() for K in KNEES]
    return np.array(cases)


def said(page, pattern):
    """The numbers that ``page`` has where ``pattern`` stands: it must stand there exactly once."""
    found = re.findall(pattern, PAGES[page] if page in PAGES else SHEET)
    assert len(found) == 1, f"{page}: {pattern!r} stands {len(found)} times"
    return [float(x.replace(",", "")) for x in (found[0] if isinstance(found[0], tuple) else found)]


@pytest.mark.parametrize("page", PAGES)
def test_the_first_size_to_try_is_the_safest_single_one(page, times):
    size, median, worst = said(
        page, r"Try (\d+) first.*?(\d+) % slower than the best size at the median.*?([\d.]+) times as long"
    )
    safest = times.max(axis=0).argmin()
    assert size == 2 ** (safest + 1)
    assert median == round(100 * (np.median(times[:, safest]) - 1))
    assert worst == round(times[:, safest].max(), 1)


def test_what_the_advisor_lost_is_what_is_stored():
    kept = stored().values()
    ours = np.array([1 + regrets(k)["ours"][1] for k in kept])

    def median(size):
        times = [{c.batch_size: c.time for c in cells(k)} for k in kept]
        return round(100 * (np.median([t[min(size, max(t))] / min(t.values()) for t in times]) - 1))

    found = said(
        "index.md", r"took (\d+) % more time than the best.*?and (\d+) % at worst, 128 took (\d+) % and 32 took (\d+) %"
    )
    assert found == [round(100 * (np.median(ours) - 1)), round(100 * (ours.max() - 1)), median(128), median(32)]
    assert "On fifteen problems that it had not seen" in PAGES["index.md"] and len(ours) == 15


@pytest.mark.parametrize(
    ("page", "pattern", "test", "shown"),
    [
        (
            "index.md",
            r"cost ([\d.]+) % at the median",
            ("best-batch-size", "median_regret"),
            lambda x: round(100 * x, 1),
        ),
        ("index.md", r"and ([\d.]+) % at worst\. The", ("best-batch-size", "worst_regret"), lambda x: round(100 * x)),
        (
            "index.md",
            r"was at worst (\d+) % slower",
            ("best-batch-size", "knee_worst_regret"),
            lambda x: round(100 * x),
        ),
        (
            "README.md",
            r"cost ([\d.]+) % at the median",
            ("best-batch-size", "median_regret"),
            lambda x: round(100 * x, 1),
        ),
        ("README.md", r"and ([\d.]+) % at worst", ("best-batch-size", "worst_regret"), lambda x: round(100 * x)),
    ],
)
def test_a_number_is_that_of_the_ledger(page, pattern, test, shown, evidence):
    assert said(page, pattern) == [shown(evidence[test])]


def test_the_exponents_of_the_learning_rate_are_those_of_the_ledger(evidence):
    stated = said("index.md", r"exponents were ([\d.]+), ([\d.]+) and ([\d.]+); on text, under AdamW, only ([\d.]+),")
    names = ("sgd_slope", "adam_slope", "sgd_slope_past_critical")
    found = [evidence["lr-batch-relation", name] for name in names] + [evidence["rescaling-rules", "text_adam_slope"]]
    assert stated == [round(value, 2) for value in found]


def test_four_fifths_of_the_loss_were_noise(evidence):
    assert "four fifths of what held it up" in PAGES["index.md"]
    assert evidence["sgd-no-global", "digits_cut"] == pytest.approx(1 / 5, abs=0.03)


def test_which_batch_makes_the_better_model(evidence):
    epochs, steps = said("index.md", r"beat 128 by ([\d.]+) points or more, after 1,024 steps each by ([\d.]+) at most")
    assert epochs == round(100 * evidence["small-b-generalises", "gap_own_rates"], 1)
    assert steps == round(100 * evidence["small-b-generalises", "gap_same_steps"], 1)


def test_every_question_has_an_answer_with_a_link():
    """Fourteen of the articles and the ten that people ask most; what was not measured says so."""
    text = (ROOT / "book" / "faq.md").read_text(encoding="utf-8")
    parts = [re.split(r"^### ", part, flags=re.MULTILINE)[1:] for part in text.split("\n## ")[1:]]
    assert [len(part) for part in parts] == [14, 10]
    for answer in parts[0] + parts[1]:
        assert re.search(r"\]\([#\w]|not measured|measured nothing", answer), answer[:60]


def test_the_pages_speak_of_as_many_claims_and_cases_as_there_are(times):
    for text in PAGES.values():
        assert re.search(r"\b66\b", text) and re.search(r"\b45 cases\b", text) and len(times) == 45


def test_no_page_points_to_a_chapter_that_is_not_written():
    written = {path.stem for path in (ROOT / "chapters").glob("*.ipynb")}
    for name, text in PAGES.items():
        assert {slug for slug in re.findall(r"chapters/([\w-]+)\.ipynb", text)} <= written, name


# --- The cheat sheet -------------------------------------------------------------------------------------------------


def test_every_line_of_the_cheat_sheet_with_a_number_leads_to_its_evidence():
    """A line is an item, a row of a table or a paragraph; the first and an item's own number are left out."""
    lines = [re.sub(r"^\d\. ", "", line) for line in SHEET.splitlines()[4:]]
    numbers = [line for line in lines if re.search(r"\d", re.sub(r"\$[^$]*\$|!?\]\([^)]*\)", "", line))]
    assert len(numbers) >= 15
    assert [line for line in numbers if not re.search(LINK, line)] == []


def test_the_cheat_sheet_tries_the_safest_single_size_first(times):
    told = r"Start with (\d+)\*\*.*?(\d+) % slower than the best size at the median of (\d+) cases, ([\d.]+) times"
    size, median, cases, worst = said("sheet", told)
    safest = times.max(axis=0).argmin()
    assert size == 2 ** (safest + 1) and cases == len(times)
    assert median == round(100 * (np.median(times[:, safest]) - 1))
    assert worst == round(times[:, safest].max(), 1)


def test_the_cheat_sheet_knows_what_being_off_costs():
    """At worst the knee is the critical batch size: then (u + 1 / u - 2) / 4 of the least time is lost, u times off."""
    told = r"factor of (\d) costs an eighth at most, by (\d+) up to ([\d.]+) times the run"
    off, most, times_longer = said("sheet", told)
    assert (off + 1 / off - 2) / 4 == 1 / 8
    assert times_longer == round(1 + (most + 1 / most - 2) / 4, 1)


ON_THE_SHEET = [  # (where it stands, claim, statistic, its factor, decimals)
    (r"at worst (\d+) % slower", "best-batch-size", "knee_worst_regret", 100, 0),
    (r"\*\* ([\d.]+) % slower at the median,", "best-batch-size", "median_regret", 100, 1),
    (r"median, (\d+) % at worst", "best-batch-size", "worst_regret", 100, 0),
    (r"SGD: times \$r\$ \(exponent found: ([\d.]+)\)", "lr-batch-relation", "sgd_slope", 1, 2),
    (r"at most \(([\d.]+)\)", "lr-batch-relation", "adam_slope", 1, 2),
    (r"hardly at all \(([\d.]+)\)", "lr-batch-relation", "sgd_slope_past_critical", 1, 2),
    (r"AdamW on text: ([\d.]+) \(", "rescaling-rules", "text_adam_slope", 1, 2),
    (r"in proportion ended (\d+) points ahead", "rescaling-rules", "sgd_linear_over_none", 100, 0),
    (r"at a large batch: ([\d.]+) points", "warmup-for-large-b", "adam_best_gain", 100, 1),
    (r"batch may grow: ([\d.]+) points apart", "grow-b-during-training", "falling_rate_difference", -100, 1),
    (r"critical batch size ([\d.]+) times too large", "noise-scale-predicts", "ratio", 1, 1),
    (r"18 cases off by ([\d.]+) times", "noise-scale-predicts", "worst_of_18", 1, 1),
    (r"the same gradient, ([\d.]+) of the peak", "checkpointing", "peak_ratio", 1, 2),
    (r"8 beat 128 by ([\d.]+) points or more", "small-b-generalises", "gap_own_rates", 100, 1),
    (r"\(1,024\): by ([\d.]+) at most", "small-b-generalises", "gap_same_steps", 100, 1),
    (r"workers: ([\d.]+) times fewer steps from 8 to 32", "distributed-efficiency", "efficiency_below_critical", 4, 1),
]


@pytest.mark.parametrize(("pattern", "claim", "name", "factor", "decimals"), ON_THE_SHEET, ids=lambda x: str(x)[:30])
def test_a_number_on_the_cheat_sheet_is_that_of_the_ledger(pattern, claim, name, factor, decimals, evidence):
    assert said("sheet", pattern) == [round(factor * evidence[claim, name], decimals)]


def test_what_the_cheat_sheet_says_in_words_is_that_of_the_ledger(evidence):
    for words, claim, name, value, within in (
        ("a fifth of the excess was left", "sgd-no-global", "digits_cut", 1 / 5, 0.03),
        ("the same gradient ([tested](#gradient-accumulation))", "gradient-accumulation", "weighted_error", 0, 1e-6),
        ("the same gradient, 0.65", "checkpointing", "gradient_difference", 0, 1e-6),
        ("none past the critical batch size", "distributed-efficiency", "efficiency_past_critical", 1 / 4, 0.01),
    ):
        assert words in SHEET and evidence[claim, name] == pytest.approx(value, abs=within), words


def test_what_the_cheat_sheet_calls_refuted_is_refuted():
    ledger = claims.load(ROOT / "book" / "claims.yml")
    listed = re.findall(r"\]\(#([\w-]+)\)", SHEET[SHEET.index("## Often said, and refuted") : SHEET.index("## Laws")])
    named = re.findall(r"\[refuted\]\(#([\w-]+)\)", SHEET)
    assert len(listed) == 4 and len(named) == 2
    assert {ledger[claim].verdict for claim in listed + named} == {"refuted"}

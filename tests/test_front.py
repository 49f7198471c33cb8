"""The numbers on the front page and in the README are those of the ledger's evidence and of the stored rows."""

import re

import ledger as book
import numpy as np
import pytest

from batchlab import results

from conftest import ROOT

PAGES = {name: (ROOT / name).read_text(encoding="utf-8").replace("\n", " ") for name in ("index.md", "README.md")}
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
    found = re.findall(pattern, PAGES[page])
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

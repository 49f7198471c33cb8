"""What the advisor writes: every number with its call, nothing unescaped, nothing from outside, all or nothing."""

import json
import math
import os
from html.parser import HTMLParser

import pytest

from batchlab.advise import Measured, Report, decide
from batchlab.advise._measured import Branch, Look, RateRange
from batchlab.advise._svg import figure
from batchlab.stats import Interval

EVIL = "<script>alert('&')</script>"


def report(name=EVIL, **more):
    looks = tuple(Look(k, Interval(100.0 + k, 50.0, math.inf), EVIL) for k in (0, 100, 200))
    measured = Measured(
        32, "adam", ({"lr": 1e-3, "beta1": 0.9},), population=5000,
        timings=tuple((2**k, Interval(0.02 + 2**k / 1e3, 0.018, 0.4)) for k in range(9)),
        load=(0.0, 1e-6), largest=300, largest_longest=100, memory=2**30, bounded=False, looks=looks,
        layers={EVIL: Interval(3.0, 1.0, math.inf)}, ranges=(RateRange(32, (0.1, 0.2), (2.0, 1.0), 0.2, 0.3),),
        branches=(Branch(64, 0.1, Interval(0.0, -0.1, 0.1, 0.9), "kept"),), notes=((EVIL, EVIL),),
    )  # fmt: skip
    return Report(decide(measured, examples=1e5, **more), measured, name, 12.0)


class Page(HTMLParser):
    """Collects what a page is made of, and holds that every element is closed."""

    VOID = {"meta", "circle", "path", "polyline", "polygon", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data


def test_the_page_is_whole_escaped_and_loads_nothing():
    text = report().html()
    page = Page(text)
    assert "script" not in page.tags and EVIL in page.text  # shown as text, and only so
    assert not {"src", "href", "xlink:href", "srcset", "data", "action"} & {name for name, _ in page.attributes}
    assert not {name for name, _ in page.attributes if name.startswith("on")}
    assert "http" not in text.replace("http-equiv", "") and "url(" not in text and "@import" not in text
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    assert ("content", "width=device-width, initial-scale=1") in page.attributes
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert len(labels) == page.tags.count("svg") == 4 and all(len(label) > 20 for label in labels)
    assert "nan" not in text and "inf," not in text


def test_every_number_is_on_the_page_in_the_text_and_in_json_with_its_call():
    r = report()
    found, page, said = json.loads(r.json()), Page(r.html()).text, str(r)
    rows = [row for _, rows in r.sections() for row in rows]
    assert len(rows) > 25
    for title, rows in r.sections():
        for row in rows:
            kept = found["sections"][title][row.name]
            assert kept["call"] and {"value", "unit", "meaning"} <= set(kept)
            assert row.shown() in page and row.shown() in said
    best = found["sections"]["The advice"]["batch size"]
    assert (best["value"], best["low"], best["high"]) == (r.batch_size, r.advice.low, r.advice.high)
    assert Measured.read(json.dumps(found["measured"])) == r.measured
    assert f"batch of {r.batch_size}" in r.headline()


def test_what_could_not_be_judged_is_in_all_three():
    r = report()
    assert (
        EVIL in str(r)
        and {"about": EVIL, "says": EVIL} in json.loads(r.json())["notes"]
        and EVIL in Page(r.html()).text
    )


def test_a_deadline_that_cannot_be_met_is_said():
    assert "too late" in str(report(objective="deadline", deadline=1e-3))
    assert "in time" in str(report(objective="deadline", deadline=1e6))


@pytest.mark.parametrize("ending", ["html", "json", "txt"])
def test_a_report_is_saved_whole(tmp_path, ending):
    r = report()
    r.save(tmp_path / f"found.{ending}")
    text = {"html": r.html(), "json": r.json(), "txt": str(r)}[ending]
    assert (tmp_path / f"found.{ending}").read_text(encoding="utf-8") == text
    assert os.listdir(tmp_path) == [f"found.{ending}"]


def test_saving_fails_without_a_trace(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="path = "):
        report().save(tmp_path / "found.pdf")
    (tmp_path / "found.txt").write_text("older")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        report().save(tmp_path / "found.txt")
    assert os.listdir(tmp_path) == ["found.txt"] and (tmp_path / "found.txt").read_text() == "older"


def test_a_figure_puts_values_where_they_belong():
    """Logarithmic: the middle of 1, 10 and 100 lies halfway, on both axes; upwards is more."""
    svg = figure("t", "x", "y", points=[(1, 1, 1, 1), (10, 10, 10, 10), (100, 100, 100, 100)])
    page = Page(svg)
    xs, ys = ([float(v) for name, v in page.attributes if name == c] for c in ("cx", "cy"))
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.11) and xs[0] < xs[1]
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.11) and ys[0] > ys[1]
    assert figure("t", "x", "y") == ""

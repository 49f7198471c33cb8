"""What was found, in words and numbers: as text, as JSON, as one HTML file."""

import json
import math
import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from batchlab._check import fail
from batchlab.advise._cost import fits
from batchlab.advise._decide import Advice
from batchlab.advise._measured import Measured, plain
from batchlab.stats import Interval

DECIDE = "bl.advise: decide(measured)"
RESCALE = "bl.rescale"
SECONDS = "bl.throughput.measure_throughput"
FITS = "bl.memory.largest_batch"
AIMS = {
    "time": "the least time to a loss on this machine",
    "compute": "the least time with at most 20 % more examples than the fewest",
    "deadline": "the fewest examples with which the run ends in time",
}


@dataclass(frozen=True)
class Row:
    """One number of the report: its name, its value (an ``Interval``, a number or None), its unit, what it means, and
    the call that gives it."""

    name: str
    value: object
    unit: str
    meaning: str
    call: str

    def shown(self):
        """The value in words: 48 (from 24 to 96) examples."""
        if isinstance(self.value, Interval):
            v = self.value
            text = f"{short(v.estimate)} (from {short(v.low)} to {short(v.high)})"
        else:
            text = short(self.value) if isinstance(self.value, (int, float)) else str(self.value)
        return f"{text} {self.unit}".strip()

    def plain(self):
        """The row as JSON has it."""
        v = self.value
        parts = {"value": v}
        if isinstance(v, Interval):
            parts = {"value": v.estimate, "low": v.low, "high": v.high, "level": v.level}
        return plain({**parts, "unit": self.unit, "meaning": self.meaning, "call": self.call})


def short(number):
    """A number in three digits, whole ones in full.

    >>> [short(x) for x in (12345, 0.00123456, 1234.5, float("inf"))]
    ['12,345', '0.00123', '1,234', 'unbounded']
    """
    if isinstance(number, float) and math.isnan(number):
        return "unknown"
    if isinstance(number, float) and math.isinf(number):
        return "unbounded"
    if isinstance(number, int) or abs(number) >= 1000:
        return f"{number:,.0f}"
    return f"{number:.3g}"


@dataclass(frozen=True)
class Report:
    """What ``advise`` returns: the ``advice`` and what it was decided on, ``measured``. Printing shows it.

    ``json()`` and ``html()`` return text; ``save(path)`` writes what the ending of the path says (.json, .html, .txt).
    """

    advice: Advice
    measured: Measured
    name: str = "model"
    seconds: float = 0.0

    @property
    def batch_size(self):
        """The batch size that is recommended, in examples an update."""
        return self.advice.batch_size

    def headline(self):
        """The advice in one sentence."""
        a = self.advice
        return (
            f"Train with a batch of {a.batch_size:,} (anything from {a.low:,} to {a.high:,} is likely to be best), "
            f"for {AIMS[a.objective]}. We are {a.confidence}."
            if a.confidence != "a guess"
            else f"Train with a batch of {a.batch_size:,}, at a guess (the best may lie from {a.low:,} to {a.high:,}), "
            f"for {AIMS[a.objective]}."
        )

    def sections(self):
        """(title, rows) pairs, in the order in which they are shown."""
        return [
            ("The advice", list(_advised(self.advice, self.measured))),
            ("The settings that go with it", list(_settings(self.advice))),
            ("What it costs to be off", list(_off(self.advice, self.measured))),
            ("What it rests on", list(_measured(self.advice, self.measured))),
        ]

    def notes(self):
        """(name, sentence) pairs: what could not be judged, and what was handled in a way of its own."""
        return [*self.advice.notes, *self.measured.notes]

    def __str__(self):
        lines = [self.headline()]
        for title, rows in self.sections():
            if rows:
                width = max(len(row.name) for row in rows)
                lines += ["", title]
                lines += [
                    f"  {row.name.ljust(width)}  {row.shown()}{' · ' * bool(row.meaning)}{row.meaning}" for row in rows
                ]
        lines += ["", "What to know, and what this could not judge"]
        lines += [f"  {name}: {sentence}" for name, sentence in self.notes()]
        return "\n".join(lines)

    def json(self):
        """The report as JSON: each number with its unit, its interval where it has one, and the call that gives it."""
        found = {
            "headline": self.headline(),
            "name": self.name,
            "sections": {title: {row.name: row.plain() for row in rows} for title, rows in self.sections()},
            "notes": [{"about": name, "says": sentence} for name, sentence in self.notes()],
            "measured": json.loads(self.measured.json()),
        }
        return json.dumps(found, indent=1, allow_nan=False)

    def html(self):
        """The report as one HTML page, which loads nothing from anywhere."""
        from batchlab.advise._html import page

        return page(self)

    def save(self, path):
        """Write the report to ``path``, all of it or nothing; the ending says how: .json, .html or .txt.

        Raises ValueError for another ending.
        """
        path = Path(path)
        kinds = {".json": self.json, ".html": self.html, ".txt": self.__str__}
        if path.suffix not in kinds:
            fail("path", str(path), "a name that ends in " + ", ".join(kinds))
        text = kinds[path.suffix]()
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(beside, path)
        except BaseException:
            os.unlink(beside)
            raise


def _advised(a, m):
    size = Interval(a.batch_size, a.low, a.high, 0.8)
    yield Row("batch size", size, "examples", "an update, all accumulated pieces together", DECIDE)
    where = f"{a.pieces} micro-batches accumulated" if a.pieces > 1 else "fits as it is"
    yield Row("micro-batch", a.micro_batch, "examples", where, FITS)
    yield Row("expected loss of time", 100 * a.excess, "%", f"over the best size; 9 times of 10 below "
              f"{100 * a.worst:.2g} %", DECIDE)  # fmt: skip
    yield Row("time a step", a.seconds, "s", "loading included, as far as it was measured", SECONDS)
    if a.total is not None:
        yield Row("the whole run", a.total, "s", f"{short(a.before)} s at a batch of {m.batch_size:,}", DECIDE)
    if a.met is not None:
        said = "in time" if a.met else "too late: no size ends in time on this machine; this is the fastest"
        yield Row("deadline", said, "", "at the median of the critical batch size", DECIDE)
    for devices, size, times in a.devices:
        yield Row(
            f"{devices} devices", times, "times as fast", f"with a batch of {size:,} on all together", "the cost model"
        )


def _settings(a):
    for number, group in enumerate(a.settings or (), 1):
        prefix = f"group {number}: " if len(a.settings) > 1 else ""
        for name, rule in group.rules.items():
            yield Row(
                prefix + name,
                float(group.settings[name]),
                "",
                f"was {short(float(group.before[name]))}; {rule}",
                RESCALE,
            )


def _off(a, m):
    most = fits(m)
    words = {1 / 4: "a quarter of it", 1 / 2: "half of it", 2: "twice it", 4: "four times it"}
    for factor, size, time, low, high in a.off_by:
        pieces = max(1, math.ceil(size / most))
        how = f", {pieces} micro-batches of {math.ceil(size / pieces):,} accumulated" if pieces > 1 else ""
        yield Row(words[factor], Interval(time, low, high, 0.8), "x the time", f"a batch of {size:,}{how}", DECIDE)


def _measured(a, m):
    yield Row("knee", a.knee, "examples", "where a step's fixed cost and its examples cost the same", SECONDS)
    noise = "no noise scale: taken from the knee" if a.noise is None else "from the noise scale and the optimizer"
    noise = "from the steps of whole runs" if m.runs else noise
    yield Row("critical batch size", a.critical, "examples", noise, DECIDE)
    for r in m.runs:
        meaning = f"to the lowest loss of a run with your settings, at a rate of {short(r.lr)}"
        yield Row(f"whole runs with {r.batch_size:,}", statistics.median(r.steps), "steps", meaning, "training with it")
    for look in m.looks:
        yield Row(
            f"noise scale after {look.examples:,}", look.b_simple, "examples", "examples of a short run", look.call
        )
    for name, scale in _few(m.layers):
        yield Row(f"noise scale of {name}", scale, "examples", "this layer's own weights", "bl.noise.two_batch")
    bound = "at least" if m.bounded else "the largest that ran"
    cap = f" under {m.memory / 2**20:,.0f} MiB" if m.memory else ""
    if m.largest:
        yield Row("largest that fits", m.largest, "examples", bound + cap, FITS)
    if m.largest_longest and m.largest_longest != m.largest:
        yield Row("of the longest", m.largest_longest, "examples", bound + cap, FITS)
    for size, seconds in m.timings:
        yield Row(f"a step with {size:,}", seconds, "s", "", SECONDS)
    if m.load is not None:
        how = "while a step runs" if m.overlapped else "before each step"
        yield Row(
            "loading an example", m.load[1], "s", f"{how}; and {short(m.load[0])} s a batch", "timed over the data"
        )
    for r in m.ranges:
        left = "did not leave" if r.diverges is None else f"left at {short(r.diverges)}"
        yield Row(
            f"rate range at {r.batch_size:,}",
            r.steepest,
            "",
            f"lowest loss there; {left}",
            "a rising rate (Smith 2017)",
        )
    for b in m.branches:
        share = Interval(100 * b.excess.estimate, 100 * b.excess.low, 100 * b.excess.high, b.excess.level)
        yield Row(f"branch with {b.batch_size:,}", share, "% more loss", f"{b.verdict}, at a rate of {short(b.lr)}",
                  "training on with it")  # fmt: skip


def _few(layers, most=8):
    """The layers of the largest and smallest noise scales, if there are more than ``most``."""
    known = [(name, scale) for name, scale in layers.items() if scale.estimate > 0]
    known.sort(key=lambda pair: pair[1].estimate)
    return known if len(known) <= most else known[: most // 2] + known[-most // 2 :]

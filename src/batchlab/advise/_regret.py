"""How much time a choice of batch size costs: every rule looked up in one table of a problem, S(B) x t(B).

``benchmarks/advice.py`` makes the tables, at each size with a rate tuned for it, and says how; ``stored`` reads them.
"""

import json
import math
from dataclasses import dataclass

import numpy as np

from batchlab._seeds import generator
from batchlab.advise._cost import step_seconds
from batchlab.advise._decide import decide
from batchlab.advise._measured import Measured
from batchlab.results import folder

OWN = 32  # the batch size at which a problem is given to the advisor, and a rival


@dataclass(frozen=True)
class Cell:
    """Steps to the loss at one batch size and rate, a number a seed (None: not reached), and seconds a step."""

    batch_size: int
    lr: float
    steps: tuple
    seconds: float = math.nan

    @property
    def time(self):
        """Seconds to the loss, the median over the seeds; inf where most did not reach it."""
        return float(np.median([math.inf if s is None else s for s in self.steps])) * self.seconds


def stored(first=False):
    """{problem: what ``benchmarks/advice.py`` stored of it}, in the order of their names; with ``first`` those of the
    first list, after which the advisor was changed."""
    found = sorted((folder("results") / "advice" / ("first" if first else "")).glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in found}


def cells(kept):
    """The table of a stored problem, ``Cell``s by ascending size."""
    return [Cell(**c) for c in kept["cells"]]


def choices(measured):
    """{rule: the batch size it takes} of a ``Measured``.

    "32"; the largest that fits under the cap; Lightning's finder, the largest power of two that does; B = the noise
    scale; AdaptDL's goodput (Qiao et al. 2021), the largest of (B / t(B)) (noise + 32) / (noise + B); and "ours".
    """
    fits = measured.largest_longest or measured.largest
    seconds, noise = step_seconds(measured), decide(measured).noise
    sizes = np.unique(np.geomspace(1, fits, 200).round().astype(int))
    found = {
        "ours": decide(measured).batch_size,
        "32": OWN,
        "largest that fits": fits,
        "Lightning's finder": 2 ** int(math.log2(fits)),
    }
    if noise is not None:
        goodput = [b / seconds(b) * (noise + OWN) / (noise + b) for b in sizes]
        found |= {
            "B = noise scale": min(max(round(noise), 1), fits),
            "AdaptDL's goodput": int(sizes[np.argmax(goodput)]),
        }
    return found


def regrets(kept):
    """{rule: (batch size, time over the best of the table - 1)} of a stored problem; inf where the loss is not reached.

    Between the sizes of the table the time goes straight in both logarithms; beyond its ends it is taken to be that at
    the end, which flatters whoever chose so far away. "ours, its rate" was trained at the advised size and rate.

    >>> line = [(b, {"estimate": 0.01 + b / 3200, "low": 0.009 + b / 3200, "high": 0.011 + b / 3200}) for b in (8, 128)]
    >>> measured = json.loads(Measured(32, "sgd", ({"lr": 0.1},), largest=512).json()) | {"timings": line}
    >>> steps = {8: 400, 32: 100, 512: 300}
    >>> table = [{"batch_size": b, "lr": 0.1, "steps": [s], "seconds": 1.0} for b, s in steps.items()]
    >>> found = regrets({"cells": table, "measured": measured, "advised": table[1]})
    >>> found["32"], found["largest that fits"][0], round(found["largest that fits"][1], 6)
    ((32, 0.0), 512, 2.0)
    """
    return regrets_of(cells(kept), Measured.read(json.dumps(kept["measured"])), Cell(**kept["advised"]))


def regrets_of(table, measured, advised):
    """``regrets`` of a table, what was measured, and the ``Cell`` trained as advised."""
    sizes, seconds = np.log([c.batch_size for c in table]), np.log([c.seconds for c in table])
    times = np.array([c.time for c in table])
    best = float(times.min())

    def at(size):
        place = float(np.clip(math.log(size), sizes[0], sizes[-1]))
        right = int(np.searchsorted(sizes, place - 1e-12))
        if abs(sizes[right] - place) < 1e-9:
            return float(times[right])
        return float(np.exp(np.interp(place, sizes[right - 1 : right + 1], np.log(times[right - 1 : right + 1]))))

    found = {rule: (size, at(size) / best - 1) for rule, size in choices(measured).items()}
    step = math.exp(np.interp(math.log(advised.batch_size), sizes, seconds))
    steps = Cell(advised.batch_size, advised.lr, advised.steps, 1.0).time
    return found | {"ours, its rate": (advised.batch_size, steps * step / best - 1)}


def chance(kept, draws=1000):
    """The regret that the table's few seeds alone explain: the mean over ``draws`` of the regret, in the table as it
    is, of the size that looks best where the seeds of every size are drawn again.

    >>> table = [{"batch_size": b, "lr": 0.1, "steps": s, "seconds": 1.0} for b, s in ((8, [10, 10]), (16, [12, 20]))]
    >>> chance({"cells": table})
    0.0
    """
    table, random = cells(kept), generator(0, "noise")
    times = np.array([c.time for c in table])
    steps = np.array([[math.inf if s is None else s for s in c.steps] for c in table])
    drawn = steps[:, random.integers(steps.shape[1], size=(draws, steps.shape[1]))]  # (sizes, draws, seeds)
    seconds = np.array([c.seconds for c in table])
    return float(np.mean(times[(np.median(drawn, -1) * seconds[:, None]).argmin(0)] / times.min() - 1))

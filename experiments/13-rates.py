"""How much of 13-domains hangs on the choice of its rates? The same runs at every rate around the best.

13-domains chooses each rate once, on four seeds, so that an interval over its seeds doesn't hold that choice. Here are
the rates on both sides too, for the choice to be made again in every resample. "small", "large TE", "large TS": losses
of all ten tasks at powers of two, on the seeds of 13-domains. "steps": to the losses of its six runs of speech, at
rates a factor of 1.5 apart, on its seeds and, to choose on, on ``CHOOSE``; infinite where a run fails. Rates go on
until two on each side of the best are in. Some four minutes on two idle cores.
"""

import math
from dataclasses import replace

import pandas as pd

import batchlab as bl
from batchlab.outcomes import ends

COUNT, CHOOSE, QUALITY = range(1304, 1316), range(1360, 1372), range(1340, 1352)
BESIDE, MOST = 2, 12


def rows(count=COUNT, choose=CHOOSE, quality=QUALITY, tasks=None, cache=None):
    """One row a task, quantity, batch size, rate and seed; "value" is what was found."""
    first, found = bl.results.script("13-domains"), []  # a module of our own, which nobody else sees
    for task, (*_, powers) in first.TASKS.items():
        if tasks is None or task in tasks:
            if powers:
                found += losses(first, task, quality, cache)
            if task.startswith("speaker"):
                seeds = (*count, *choose)
                found += [row for size in first.SIZES for row in steps(first, task, size, seeds, cache)]
    table = pd.DataFrame(found)[["task", "quantity", "batch_size", "lr", "seed", "value"]]
    return table.assign(value=[float(f"{value:.6g}") for value in table.value])


def around(power, rows_of):
    """Rows of ``rows_of(powers)`` for powers up to two on both sides of the best, the lowest mean "score"."""
    powers = list(range(power - BESIDE, power + BESIDE + 1))
    while len(powers) <= MOST:
        found = rows_of(powers)
        best = pd.DataFrame(found).groupby("power").score.mean().idxmin()
        low, high = min(powers[0], best - BESIDE), max(powers[-1], best + BESIDE)
        if (low, high) == (powers[0], powers[-1]):
            return found
        powers = list(range(low, high + 1))
    raise ValueError(f"no best rate among {powers}")


def losses(first, task, seeds, cache):
    """Validation and test losses of the three arms of 13-domains."""
    name, *_, powers = first.TASKS[task]
    data = first.dataset(name)
    data = replace(data, train=tuple(part[: first.MOST] for part in data.train))
    few = first.PASSES * len(data.train[0])
    many = math.ceil(few / first.SMALL) * first.LARGE
    arms = (("small", first.SMALL, few), ("large TE", first.LARGE, few), ("large TS", first.LARGE, many))
    found = []
    for (arm, batch_size, length), power in zip(arms, powers, strict=True):
        schedule = bl.schedules.cosine(length)
        run = first.plain(
            task, data=data, batch_size=batch_size, examples=length, lr_schedule=schedule, evaluate_every=length
        )

        def rows_of(powers, run=run, arm=arm, batch_size=batch_size):
            table = ends(bl.sweep(run, lr=[2.0**k for k in powers], seed=seeds, cache=cache))
            return [
                row(task, f"{arm}, {part}", batch_size, end.lr, end.seed, end[f"{part}_loss"])
                | dict(power=round(math.log2(end.lr)), score=end.val_loss)
                for _, end in table.iterrows()
                for part in ("val", "test")
            ]

        found += around(power, rows_of)
    return found


def steps(first, task, batch_size, seeds, cache):
    """Updates to the loss of 13-domains."""

    def rows_of(powers):
        found = []
        for k in powers:
            first.soonest = lambda run, guess, cache, k=k: float(f"{guess * 1.5**k:.3g}")  # this one, chosen or not
            found += [one | dict(power=k, score=one["value"]) for one in first.steps(task, batch_size, seeds, cache)]
        return found

    return around(0, rows_of)


def row(task, quantity, batch_size, lr, seed, value):
    return dict(task=task, quantity=quantity, batch_size=batch_size, lr=lr, seed=int(seed), value=value)

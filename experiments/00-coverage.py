"""How often the intervals of ``batchlab.stats`` cover the truth.

Each cell draws data whose truth is known, 1,500 times, counts the 95% intervals that hold it, and makes a row of
``results/00-coverage.csv``: the share, its Monte Carlo standard error, and how wide the intervals are on average. All
methods of one n and shape see the same data.

- "normal", "exponential": the mean of n values; the exponential has a skewness of 2.
- "tied", "clear": the paired difference of two arms with five learning rates each, whose validation scores are
  parabolas, and n seeds. Tied: two rates of arm a are equally good by validation, and 1 apart in the test value, where
  one seed's difference between the arms has a standard deviation of 0.7. Clear: one rate is best by far. The truth is
  what the rule gives on average over sets of n seeds. "tuned once" chooses on all seeds, and resamples at the rates
  chosen, with the same kind of interval.
- "classes of 5": the mean of n classes of five seeds each, correlated 0.5 within a class.
"""

import math

import numpy as np
import pandas

from batchlab import stats

SEED, REPEATS, RESAMPLES, LEVEL = 0, 1500, 999, 0.95
METHODS = ("bca", "percentile", "expanded", "bootstrap-t", "t")
SIZES, SHAPES = (5, 10, 20, 40), ("normal", "exponential")
RATES = (0.05, 0.1, 0.2, 0.4, 0.8)
BEST = {"tied": 0.5, "clear": 0.0}  # where arm a's parabola is lowest, in grid steps from 0.2
GIVEN = dict(level=LEVEL, resamples=RESAMPLES)

CELLS = (
    [(method, n, shape) for shape in SHAPES for n in SIZES for method in METHODS]
    + [(m, n, shape) for shape in BEST for n in (10, 20) for m in ("tuned once", "tuned", "averaged over tied rates")]
    + [(m, n, "classes of 5") for n in (5, 10, 20) for m in ("t", "bca", "t, clustered", "bca, clustered")]
)


def mean(rng, method, n, shape, repeats):
    """The intervals, one a repeat, and the truth."""
    draws = rng.normal(0, 1, (repeats, n)) if shape == "normal" else rng.exponential(1, (repeats, n)) - 1
    zero = np.zeros(n)
    return [stats.paired_difference(d, zero, method=method, seed=i, **GIVEN) for i, d in enumerate(draws)], 0.0


def arms(rng, n, shape, repeats):
    """Validation scores and test values of both arms, each (repeats, n, rates)."""
    step, size = np.arange(len(RATES)) - 2.0, (repeats, n, len(RATES))
    shared = rng.normal(0, 1, (repeats, n, 1))  # a seed's luck, the same at all rates
    for lowest, test in ((BEST[shape], step), (0.0, 0 * step)):  # arm a's test value rises by 1 a grid step
        validation = (step - lowest) ** 2 + shared + rng.normal(0, 0.5, size)
        yield validation, test + shared + rng.normal(0, 0.5, size)


def expected(rng, n, shape, rule):
    """What tuning by the rule gives on average, by numpy alone: the truth of the tuned cells."""
    found = []
    for validation, test in arms(rng, n, shape, 40_000):
        scores = validation.mean(1)
        best = scores.argmin(1)[:, None]
        excess = validation - np.take_along_axis(validation, best[:, None, :], 2)
        tied = excess.mean(1) <= excess.std(1, ddof=1) / math.sqrt(n)
        weights = tied if rule == "tied" else np.arange(len(RATES)) == best
        found.append((weights * test.mean(1)).sum(1) / weights.sum(1))
    return float((found[0] - found[1]).mean())


def tuned(rng, method, n, shape, repeats):
    rule = "tied" if method == "averaged over tied rates" else "best"
    truth, found = expected(rng.spawn(1)[0], n, shape, rule), []
    (va_all, ta_all), (vb_all, tb_all) = arms(rng, n, shape, repeats)
    for i, (va, ta, vb, tb) in enumerate(zip(va_all, ta_all, vb_all, tb_all, strict=True)):
        if method == "tuned once":
            a, b = ta[:, va.mean(0).argmin()], tb[:, vb.mean(0).argmin()]
            found.append(stats.paired_difference(a, b, method="expanded", seed=i, **GIVEN))
        else:
            a, b = stats.Arm(RATES, va, ta), stats.Arm(RATES, vb, tb)
            found.append(stats.tuned_difference(a, b, rule=rule, seed=i, **GIVEN))
    return found, truth


def clustered(rng, method, n, shape, repeats):
    own, shared = rng.normal(0, math.sqrt(0.5), (repeats, n, 5)), rng.normal(0, math.sqrt(0.5), (repeats, n, 1))
    draws, zero = (own + shared).reshape(repeats, -1), np.zeros(5 * n)
    kind, _, nested = method.partition(", ")
    clusters = np.repeat(np.arange(n), 5) if nested else None
    given = dict(clusters=clusters, method=kind, **GIVEN)
    return [stats.paired_difference(d, zero, seed=i, **given) for i, d in enumerate(draws)], 0.0


def covered(cell, repeats, seed):
    """The share of a cell's intervals that hold the truth, and their mean width."""
    method, n, shape = cell
    kind = tuned if shape in BEST else clustered if shape == "classes of 5" else mean
    stream = [(n, shape) for _, n, shape in CELLS].index((n, shape))
    intervals, truth = kind(np.random.default_rng((seed, stream)), method, n, shape, repeats)
    low, high = np.array([bounds for _, bounds in intervals]).T
    return float(((low <= truth) & (truth <= high)).mean()), float((high - low).mean())


def rows(cache=None):
    """One row a cell, as ``results/00-coverage.csv`` has them."""
    table = []
    for cell in CELLS:
        share, width = covered(cell, REPEATS, SEED)
        error = math.sqrt(share * (1 - share) / REPEATS)
        table.append((*cell, LEVEL, round(share, 3), round(error, 4), round(width, 3), SEED))
    return pandas.DataFrame(table, columns=["method", "n", "shape", "nominal", "covered", "mcse", "width", "seed"])

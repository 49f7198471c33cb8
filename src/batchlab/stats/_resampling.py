"""Intervals by resampling seeds."""

import warnings

import numpy as np
from scipy import stats

from batchlab._check import count, fail, number, one_of
from batchlab._seeds import generator
from batchlab.stats._intervals import Interval, paired, per_seed


def bootstrap(values, statistic=None, *, level=0.95, method="bca", resamples=9999, seed=0):
    """Bootstrap interval over seeds (Efron 1987), by ``scipy.stats.bootstrap``.

    Args:
        values: array with one row a seed, ``(seeds,)`` or ``(seeds, ...)``; whole rows are resampled.
        statistic: function of such an array that returns a number; by default the mean.
        method: "bca" (bias-corrected and accelerated) or "percentile".

    With few seeds both are too narrow. A nominal 95% interval for the mean of n normal values covers it (percentile;
    bca is a point lower) with 90% at n = 10, 93% at n = 20 and 94% at n = 50: P(|t| < 1.96 sqrt((n - 1) / n)) with
    n - 1 degrees of freedom. Values that are all equal give an interval of width 0.

    Raises ValueError on fewer than two seeds, NaN, or data for which "bca" is not defined.

    >>> estimate, (low, high) = bootstrap([0.71, 0.68, 0.70, 0.73, 0.69, 0.72, 0.70, 0.71, 0.74, 0.67])
    >>> 0.685 < low < 0.70 < estimate < 0.71 < high < 0.725
    True
    """
    values = per_seed("values", values)
    level = number("level", level, above=0, below=1)
    one_of("method", method, ("bca", "percentile"))
    count("resamples", resamples, at_least=100)
    if statistic is None and values.ndim > 1:
        fail("values.ndim", values.ndim, "1, or a statistic that turns rows into one number")
    if statistic is not None and not callable(statistic):
        fail("statistic", statistic, "a function of values that returns a number")
    estimate = float(values.mean() if statistic is None else statistic(values))
    if (values == values[:1]).all():
        return Interval(estimate, estimate, estimate, level)

    def mean(rows, axis):
        return values[rows].mean(axis=axis)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The BCa confidence interval cannot be calculated")  # raised below
        found = stats.bootstrap(
            (np.arange(len(values)),),  # resampling the row numbers keeps a seed's values together
            mean if statistic is None else lambda rows: statistic(values[rows]),
            vectorized=statistic is None,
            n_resamples=resamples,
            confidence_level=level,
            method=method.replace("bca", "BCa"),
            random_state=generator(seed, "noise"),
        ).confidence_interval
    if not (np.isfinite(found.low) and np.isfinite(found.high)):
        fail("method", method, "'percentile' for these values: BCa is not defined where the statistic hardly varies")
    return Interval(estimate, float(found.low), float(found.high), level)


def paired_difference(a, b, *, level=0.95, method="bca", resamples=9999, seed=0):
    """Mean of a - b over seeds, with its bootstrap interval; row i of both comes from the same seed.

    Pairing by seed takes out what the two share (data order, initial weights), so the interval is narrower than that
    of two separate means wherever the results go up and down together.

    >>> estimate, (low, high) = paired_difference([0.71, 0.68, 0.70, 0.73], [0.70, 0.66, 0.70, 0.71])
    >>> round(estimate, 4), 0 <= low < estimate < high < 0.021
    (0.0125, True)
    """
    a, b = paired("a", a, "b", b)
    return bootstrap(a - b, level=level, method=method, resamples=resamples, seed=seed)

"""How large the critical batch size is, as far as looks at the noise or whole runs tell."""

import math
from dataclasses import replace

import numpy as np

# B_crit over the noise scale in the first half of a run, the start left out, and how far single problems scatter about
# it (a standard deviation of the logarithm): read off the stored rows of 07-critical-batch, 07-momentum and 07-adam.
# For "other" a guess between them.
CRITICAL = {"sgd": (1.0, 0.5), "momentum": (1.8, 0.5), "adam": (3.0, 0.6), "adamw": (3.0, 0.6), "other": (1.7, 0.9)}
UNKNOWN = 1.5  # the same where no noise scale is known: then B_crit is taken to lie around the knee
SCATTER = 0.1  # of the logarithm of the steps of whole runs, at least: a rate is tuned by factors of two


def critical_batch(measured, knee):
    """(median, spread, noise scale): B_crit is log-normal about ``median`` with the standard deviation ``spread`` of
    its logarithm; the noise scale is the geometric mean of the looks, each by its exactness, without the first of a
    fresh run; or None."""
    looks = measured.looks[1:] if measured.fresh and len(measured.looks) > 1 else measured.looks
    known = [x.b_simple for x in looks if x.b_simple.estimate > 0 and math.isfinite(x.b_simple.estimate)]
    factor, spread = CRITICAL[measured.family]
    if measured.runs:
        noise = critical_batch(replace(measured, runs=()), knee)[2]
        return *critical_of_runs(measured.runs), noise
    if not known:
        floor = max((x.b_simple.low for x in looks if x.b_simple.low > 0), default=0.0)  # not told from infinity
        middle = max(1.0, min(knee, measured.timings[-1][0]), factor * 2 * floor)
        return middle, UNKNOWN, None
    widths = [min(math.log(x.estimate / x.low), 3.0) / 1.96 if x.low > 0 else 1.5 for x in known]
    weights = 1 / (spread**2 + np.square(widths))  # a run's looks scatter about as much as problems do
    noise = math.exp(np.average([math.log(x.estimate) for x in known], weights=weights))
    sampling = math.sqrt((weights**2 * np.square(widths)).sum()) / weights.sum()
    return factor * noise, math.hypot(spread, sampling), noise


def critical_of_runs(runs):
    """(median, spread) of B_crit by the median steps of ``WholeRuns``: S_min (1 + B_crit / B) by least squares in log
    S, each B_crit weighed by how well it fits, between an eighth of the smallest size and eight times the largest.

    >>> from batchlab.advise._measured import WholeRuns
    >>> runs = [WholeRuns(b, 0.1, (100 * (1 + 64 / b),)) for b in (8, 32, 128, 512)]
    >>> middle, spread = critical_of_runs(runs)
    >>> round(middle), spread < 0.3
    (64, True)
    """
    sizes = np.array([r.batch_size for r in runs], dtype=float)
    logs = np.array([math.log(np.median(r.steps)) for r in runs])
    span = np.linspace(math.log(sizes.min() / 8), math.log(sizes.max() * 8), 1001)
    left = logs - np.log1p(np.exp(span)[:, None] / sizes)
    squares = ((left - left.mean(1, keepdims=True)) ** 2).sum(1)
    scatter = max(SCATTER**2, squares.min() / max(len(sizes) - 2, 1))
    weights = np.exp((squares.min() - squares) / (2 * scatter))
    middle = np.average(span, weights=weights)
    return math.exp(middle), math.sqrt(np.average((span - middle) ** 2, weights=weights))

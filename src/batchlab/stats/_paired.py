"""Differences within a seed: what two runs share (data order, initial weights) drops out."""

from batchlab._check import one_of
from batchlab.stats._intervals import mean_interval, paired
from batchlab.stats._resampling import METHODS, bootstrap, bootstrap_t


def paired_difference(a, b, *, clusters=None, level=0.95, method="bca", resamples=9999, seed=0):
    """Mean of a - b over seeds, with its interval; row i of both comes from the same seed.

    Args:
        a, b: values ``(seeds,)``.
        clusters: one label a row, where seeds are nested in something; each cluster counts once, see ``bootstrap``.
        method: "t" (Student's, see ``mean_interval``), "bootstrap-t" (see ``bootstrap_t``), or one of ``bootstrap``'s.
            With ten seeds take "t": the others' coverage stands in their docstrings.

    Pairing by seed takes out what the two share (data order, initial weights), so the interval is narrower than that
    of two separate means wherever the results go up and down together.

    >>> estimate, (low, high) = paired_difference([0.71, 0.68, 0.70, 0.73], [0.70, 0.66, 0.70, 0.71])
    >>> round(estimate, 4), 0 <= low < estimate < high < 0.021
    (0.0125, True)
    >>> print(paired_difference([7, 8, 9, 10], [6, 6, 6, 6], method="t"))
    2.5 [0.4457, 4.554]
    """
    a, b = paired(a=a, b=b)
    return mean_by(a - b, clusters=clusters, level=level, method=method, resamples=resamples, seed=seed)


def difference_in_differences(a1, a0, b1, b0, *, clusters=None, level=0.95, method="t", resamples=9999, seed=0):
    """Mean of (a1 - a0) - (b1 - b0) over seeds: how much more the change does in a than in b.

    Row i of all four ``(seeds,)`` comes from the same seed. With a the rare classes, b the common ones, 1 the large
    batch and 0 the small one, it is what the large batch costs rare classes beyond what it costs all. ``clusters`` and
    ``method`` are those of ``paired_difference``. Where each arm has learning rates to choose from, give
    ``tuned_difference`` the within-run differences (rare minus common) as test values.

    >>> print(difference_in_differences([5, 7, 6], [3, 4, 4], [2, 2, 3], [1, 2, 2]))
    1.667 [-1.202, 4.535]
    """
    a1, a0, b1, b0 = paired(a1=a1, a0=a0, b1=b1, b0=b0)
    change = (a1 - a0) - (b1 - b0)
    return mean_by(change, clusters=clusters, level=level, method=method, resamples=resamples, seed=seed)


def mean_by(values, *, clusters, level, method, resamples, seed):
    """The mean of ``values`` with the interval that ``method`` names."""
    one_of("method", method, ("t", "bootstrap-t", *METHODS))
    if method == "t":
        return mean_interval(values, clusters=clusters, level=level)
    given = dict(clusters=clusters, level=level, resamples=resamples, seed=seed)
    return bootstrap_t(values, **given) if method == "bootstrap-t" else bootstrap(values, method=method, **given)

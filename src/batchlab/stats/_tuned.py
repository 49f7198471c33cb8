"""Intervals that carry the choice of the learning rate: it is made again in every resample of the seeds."""

from dataclasses import dataclass

import numpy as np

from batchlab._check import array, fail, one_of
from batchlab.stats._clusters import unit_means
from batchlab.stats._resampling import resampled

RULES = ("best", "tied")


@dataclass(frozen=True, eq=False)
class Arm:
    """What was trained at several learning rates: the scores that choose among them, the values to report.

    Args:
        rates: ``(rates,)``, above 0 and rising: the whole grid.
        validation: ``(seeds, rates)``, lower is better (a loss; of accuracies, 1 - accuracy); infinite where a run
            diverged. A rate at which any seed diverged is never chosen.
        test: ``(seeds, rates)``, what is reported, in any units; finite at every rate that is chosen.

    >>> arm = Arm([0.1, 0.2, 0.4], [[1.0, 0.50, 0.7], [1.1, 0.52, 0.51]], [[0.6, 0.8, 0.7], [0.6, 0.8, 0.8]])
    >>> arm.chosen(), arm.chosen("tied")
    ((0.2,), (0.2, 0.4))
    """

    rates: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def __post_init__(self):
        rates = array("rates", self.rates, ndim=1, above=0)
        if (np.diff(rates) <= 0).any():
            fail("rates", self.rates, "rising learning rates, none twice")
        validation, test = (_grid(name, getattr(self, name), len(rates)) for name in ("validation", "test"))
        if (validation == -np.inf).any():
            fail("validation", self.validation, "scores of which lower is better: infinity is for runs that diverged")
        if validation.shape != test.shape:
            fail("test.shape", test.shape, f"{validation.shape}, that of validation")
        if not np.isfinite(validation).all(0).any():
            fail("validation", self.validation, "at least one rate at which no seed diverged")
        for name, value in (("rates", rates), ("validation", validation), ("test", test)):
            object.__setattr__(self, name, value)

    def chosen(self, rule="best", *, clusters=None):
        """The rates chosen on all seeds, a tuple: the best, or those tied with it (``tuned_mean`` says how)."""
        one_of("rule", rule, RULES)
        validation = unit_means(self.validation, clusters)
        weights = _weights(validation, np.full((1, len(validation)), 1 / len(validation)), rule)[0]
        return tuple(self.rates[weights > 0].tolist())


def tuned_mean(arm, *, rule="best", edge="error", clusters=None, level=0.95, resamples=9999, seed=0):
    """Mean test value of an ``Arm`` at its learning rate, chosen again by validation in every resample of seeds.

    Args:
        rule: "best", the rate with the least mean validation score (of several, the smallest); or "tied", the average
            over all rates whose mean validation score isn't worse than the best's by more than one standard error of
            their paired difference: the one-standard-error rule (Breiman et al. 1984), between paired runs.
        edge: a chosen rate at an end of its grid is no optimum, and an error: on all seeds, or in more than a share of
            (1 - level) / 2 of the resamples, so that a bound may hang on it. Widen the grid, or say "allow". (A grid of
            one rate has no ends.)
        clusters: one label a row, where seeds are nested in something: whole clusters are resampled, each counts once.

    What is estimated is what tuning with so many seeds gives, whichever rate it takes. The interval is the "expanded"
    percentile of ``bootstrap``. Where two rates were tied and their test values 1.4 of a seed's standard deviations
    apart, a nominal 95% interval covered with 97% at n = 10 and 96% at n = 20 ("tied": with 96% to 97%, and narrower);
    one that tuned once and resampled at the rates chosen, with 47% and 14%. Where one rate was clearly best, all of
    them covered with 93% to 94% (results/00-coverage.csv).

    Raises ValueError where a rate that some resample chose has a test value that isn't finite, and names it.

    >>> arm = Arm([0.1, 0.2, 0.4], [[9, 5, 7], [9, 6, 7], [9, 5, 8]], [[6, 8, 7], [6, 9, 7], [6, 8, 7]])
    >>> print(tuned_mean(arm))
    8.333 [8, 9]
    """
    return _tuned({"arm": (1, arm)}, rule, edge, clusters, level=level, resamples=resamples, seed=seed)


def tuned_difference(a, b, *, rule="best", edge="error", clusters=None, level=0.95, resamples=9999, seed=0):
    """Mean test value of ``Arm`` a less that of b, each at its own learning rate, chosen again in every resample.

    Row i of both comes from the same seed, and a resample draws the same seeds for both; the grids may differ.
    Arguments and errors are those of ``tuned_mean``. With one rate each it is the plain paired difference. With test
    values that are differences within a run (rare classes minus common ones) it is a difference in differences.

    >>> a = Arm([0.1, 0.2, 0.4], [[9, 5, 7], [9, 6, 7], [9, 5, 8]], [[6, 8, 7], [6, 9, 7], [6, 8, 7]])
    >>> b = Arm([0.4, 0.8, 1.6], [[9, 5, 7], [9, 6, 7], [9, 5, 8]], [[6, 7, 7], [6, 7, 7], [6, 6, 7]])
    >>> print(tuned_difference(a, b))
    1.667 [1, 2]
    """
    return _tuned({"a": (1, a), "b": (-1, b)}, rule, edge, clusters, level=level, resamples=resamples, seed=seed)


def _tuned(arms, rule, edge, clusters, *, level, resamples, seed):
    one_of("rule", rule, RULES)
    one_of("edge", edge, ("error", "allow"))
    for name, (_, arm) in arms.items():
        if not isinstance(arm, Arm):
            fail(name, arm, "a stats.Arm")
    seeds = tuple(len(arm.test) for _, arm in arms.values())
    if len(set(seeds)) > 1:
        fail("seeds", seeds, "equal numbers: arms paired by seed")
    with np.errstate(invalid="ignore"):  # infinities of both signs in one cluster: not finite, whatever comes out
        tables = {
            name: (sign, arm.rates, unit_means(arm.validation, clusters), unit_means(arm.test, clusters))
            for name, (sign, arm) in arms.items()
        }
    units = len(next(iter(tables.values()))[2])

    def statistic(drawn, axis):
        rows = np.atleast_2d(drawn)
        numbers = (rows + units * np.arange(len(rows))[:, None]).ravel()
        shares = np.bincount(numbers, minlength=units * len(rows)).reshape(len(rows), units) / units
        total = 0
        for name, (sign, rates, validation, test) in tables.items():
            weights = _weights(validation, shares, rule)
            if edge == "error":
                _refuse_edge(name, rates, weights, (1 - level) / 2)
            total = total + sign * _values(name, rates, weights, test, shares)
        return total if drawn.ndim == 2 else total[0]

    options = dict(level=level, method="expanded", resamples=resamples, seed=seed)
    return resampled(statistic, units, vectorized=True, **options)


def _refuse_edge(name, rates, weights, tail):
    """Raise where an end of the grid is chosen on all seeds, or in so many resamples that a bound may hang on it."""
    for end in (0, -1) if len(rates) > 1 else ():
        share = (weights[:, end] > 0).mean()
        if share > tail:
            when = f", in {share:.0%} of resamples" if len(weights) > 1 else ""
            where = f"{rates[end]:g} of {name}{when}"
            raise ValueError(f"a chosen lr is at the edge of its grid ({where}): widen it there, or say edge='allow'")


def _values(name, rates, weights, test, shares):
    """For each row of ``shares`` (resamples, units) the mean test value at the rates chosen there."""
    wrong = weights.any(0) & ~np.isfinite(test).all(0)
    if wrong.any():
        fail(f"test of {name} at lr {rates[wrong][0]:g}", test[:, wrong][:, 0], "finite values: some resample chose it")
    return (weights * (shares @ np.where(np.isfinite(test), test, 0))).sum(1)


def _weights(validation, shares, rule):
    """How much each rate counts (resamples, rates): the best alone, or those tied with it alike."""
    usable = np.isfinite(validation).all(0)
    scores = validation[:, usable]
    means = shares @ scores
    best = (means - means.min(1, keepdims=True) <= 1e-12 * np.abs(scores).max()).argmax(1)  # equal but for rounding
    chosen = np.zeros((len(shares), scores.shape[1]))
    chosen[np.arange(len(shares)), best] = 1
    for rate in np.unique(best) if rule == "tied" else ():
        rows, excess = best == rate, scores - scores[:, [rate]]
        mean, square = shares[rows] @ excess, shares[rows] @ excess**2
        error = np.sqrt(np.maximum(square - mean**2, 0) / (len(scores) - 1))
        chosen[rows] = np.maximum(chosen[rows], mean <= error)
    weights = np.zeros((len(shares), len(usable)))
    weights[:, usable] = chosen / chosen.sum(1, keepdims=True)
    return weights


def _grid(name, values, rates):
    try:
        values = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        fail(name, values, "an array of numbers")
    if values.ndim != 2 or values.shape[1] != rates or len(values) < 2:
        fail(f"{name}.shape", values.shape, f"(seeds, {rates}), at least two seeds")
    if np.isnan(values).any():
        fail(name, values, "no NaN: a run that diverged has an infinite validation score")
    return values

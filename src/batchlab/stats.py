"""Intervals over seeds: the bootstrap, paired differences, equivalence, proportions, ratios and two fits.

Everything takes values with one row a seed and returns an ``Interval``, which unpacks as ``claims.check`` wants it:
``(estimate, (low, high))``. NaN is refused everywhere: a run that diverged or missed its target is a failure, to be
counted with ``proportion`` or left out by name, never averaged away.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from batchlab._check import array, count, fail, number, one_of
from batchlab._seeds import generator


@dataclass(frozen=True)
class Interval:
    """An estimate, and the confidence interval [low, high] around it at ``level``.

    >>> estimate, (low, high) = Interval(0.5, 0.4, 0.7)
    >>> print(Interval(0.5, 0.4, 0.7))
    0.5 [0.4, 0.7]
    """

    estimate: float
    low: float
    high: float
    level: float = 0.95

    def __iter__(self):
        return iter((self.estimate, (self.low, self.high)))

    def __str__(self):
        return f"{self.estimate:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Equivalence:
    """A two one-sided test: the mean difference and its (1 - 2 alpha) interval, the margin, and the verdict."""

    estimate: float
    low: float
    high: float
    margin: float
    p: float
    equivalent: bool

    def __iter__(self):
        return iter((self.estimate, (self.low, self.high)))


@dataclass(frozen=True)
class StepsToTarget:
    """S(B) = s_min (1 + b_c / B): both parameters with intervals, and the rms residual of log S over batch sizes."""

    s_min: Interval
    b_c: Interval
    rms_log: float

    def steps(self, batch_size):
        """The fitted number of steps at a batch size (a number or an array)."""
        return self.s_min.estimate * (1 + self.b_c.estimate / np.asarray(batch_size, dtype=float))

    def perfect_scaling(self, batch_size):
        """The steps if twice the batch always halved them: s_min b_c / B, what the law comes to far below b_c.

        >>> law = StepsToTarget(Interval(100, 90, 110), Interval(64, 60, 70), 0.01)
        >>> float(law.perfect_scaling(32)), float(law.steps(32))
        (200.0, 300.0)
        """
        return self.s_min.estimate * self.b_c.estimate / np.asarray(batch_size, dtype=float)

    def overhead_batch(self, overhead=0.2):
        """The batch size that needs ``overhead`` more examples than the fewest possible, as an ``Interval``.

        The law gives E(B) = B S(B) = s_min (B + b_c), so that E / E_min = 1 + B / b_c and the answer is overhead * b_c.
        Up to it, twice the batch is nearly half the steps: the limit of perfect scaling, at 20% the critical batch size
        of Zhang et al. 2025.

        >>> law = StepsToTarget(Interval(100, 90, 110), Interval(64, 60, 70), 0.01)
        >>> law.overhead_batch(0.5)
        Interval(estimate=32.0, low=30.0, high=35.0, level=0.95)
        """
        overhead = number("overhead", overhead, above=0)
        b_c = self.b_c
        return Interval(overhead * b_c.estimate, overhead * b_c.low, overhead * b_c.high, b_c.level)


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
    values = _seeds("values", values)
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

    import warnings

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
    return bootstrap(_pairs(a, b), level=level, method=method, resamples=resamples, seed=seed)


def tost(differences, margin, *, alpha=0.05):
    """Two one-sided t-tests of equivalence (Schuirmann 1987): is the mean difference within (-margin, margin)?

    Equivalent where both one-sided hypotheses, mean <= -margin and mean >= margin, are rejected at ``alpha``: the same
    as the (1 - 2 alpha) t-interval lying inside the margin. State the margin before looking at the data. Not being
    equivalent is not being different: the seeds may be too few to tell.

    >>> tost([0.001, -0.002, 0.003, 0.0, -0.001], margin=0.01).equivalent
    True
    """
    differences = _seeds("differences", differences, ndim=1)
    margin = number("margin", margin, above=0)
    alpha = number("alpha", alpha, above=0, below=0.5)
    mean = float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    if error == 0:
        low = high = mean
        p = 0.0 if abs(mean) < margin else 1.0
    else:
        t = stats.t(len(differences) - 1)
        reach = t.ppf(1 - alpha) * error
        low, high = mean - reach, mean + reach
        p = float(max(t.sf((mean + margin) / error), t.cdf((mean - margin) / error)))
    return Equivalence(mean, float(low), float(high), margin, p, p < alpha)


def proportion(successes, total, *, level=0.95):
    """A share, e.g. of runs that diverged, with Wilson's interval (1927), which is never empty or outside [0, 1].

    >>> print(proportion(0, 10))
    0 [0, 0.2775]
    """
    total = count("total", total)
    successes = count("successes", successes, at_least=0, at_most=total)
    level = number("level", level, above=0, below=1)
    found = stats.binomtest(successes, total).proportion_ci(level, method="wilson")
    return Interval(successes / total, float(found.low), float(found.high), level)


def ratio_of_means(numerators, denominators, *, level=0.95):
    """mean(numerators) / mean(denominators) with Fieller's interval (1954); row i of both comes from the same seed.

    The mean of ratios is biased, and worthless where a denominator may come near 0. Where the mean denominator itself
    cannot be told from 0, no finite interval is right: low and high are then -inf and inf.

    >>> print(ratio_of_means([2.0, 2.2, 1.9, 2.1], [1.0, 1.1, 0.9, 1.0]))
    2.05 [1.962, 2.157]
    """
    a, b = _pairs(numerators, denominators, both=True)
    level = number("level", level, above=0, below=1)
    if b.mean() == 0:
        fail("denominators", denominators, "values whose mean is not 0")
    (var_a, cov), (_, var_b) = np.cov(a, b) / len(a)
    t2 = stats.t(len(a) - 1).ppf((1 + level) / 2) ** 2
    # the ratios r that t does not reject: (mean a - r mean b)^2 <= t^2 (var a - 2 r cov + r^2 var b)
    square, half, rest = b.mean() ** 2 - t2 * var_b, a.mean() * b.mean() - t2 * cov, a.mean() ** 2 - t2 * var_a
    estimate = float(a.mean() / b.mean())
    if square <= 0:
        return Interval(estimate, -math.inf, math.inf, level)
    root = math.sqrt(max(half**2 - square * rest, 0.0))  # below 0 by rounding only
    return Interval(estimate, float((half - root) / square), float((half + root) / square), level)


def loglog_slope(x, y, *, level=0.95, resamples=9999, seed=0):
    """Slope of log y on log x by least squares: the exponent of a power law.

    Args:
        x: positive values ``(points,)``, at least two of them different.
        y: positive values ``(seeds, points)``: the interval is the bootstrap over seeds of the mean slope; or
            ``(points,)``, at least three: the t-interval of the regression, which takes the scatter about the line as
            independent and as all the uncertainty there is.

    >>> slope, (low, high) = loglog_slope([1, 2, 4, 8], [[8, 4.1, 2, 1], [8.2, 4, 2, 0.98], [7.9, 4, 1.9, 1]])
    >>> round(slope, 3), low < slope < high
    (-1.008, True)
    """
    x, y = _positive("x", x), _positive("y", y)
    if x.ndim != 1 or len(np.unique(x)) < 2:
        fail("x", x, "one row of at least two different values")
    if y.ndim not in (1, 2) or y.shape[-1] != len(x):
        fail("y.shape", y.shape, f"({len(x)},) or (seeds, {len(x)})")
    centred = np.log(x) - np.log(x).mean()
    slopes = np.log(y) @ centred / (centred @ centred)
    if y.ndim == 2:
        return bootstrap(slopes, level=level, resamples=resamples, seed=seed)
    level = number("level", level, above=0, below=1)
    if len(x) < 3:
        fail("x", x, "at least three points, or several seeds")
    left = np.log(y) - np.log(y).mean() - slopes * centred
    reach = stats.t(len(x) - 2).ppf((1 + level) / 2) * math.sqrt(left @ left / (len(x) - 2) / (centred @ centred))
    return Interval(float(slopes), float(slopes - reach), float(slopes + reach), level)


def fit_steps_to_target(batch_sizes, steps, *, level=0.95, resamples=2000, seed=0):
    """Fit S(B) = s_min (1 + b_c / B) to measured steps-to-target (the law of McCandlish et al. 2018).

    Args:
        batch_sizes: ``(sizes,)``, at least three different ones.
        steps: ``(seeds, sizes)``, at least two seeds: steps to the target, above 0, none missing.

    Least squares in log S, so that each batch size counts by its relative error. The intervals are percentiles of the
    fit to resampled seeds. Where the data show no bend the law has no answer, and the result says so: b_c = 0 if S does
    not fall with B, and b_c = inf with s_min = 0 if S falls as fast as 1/B throughout. ``rms_log`` is the misfit of
    the law itself, to the mean over seeds of log S: look at it before believing the parameters.

    >>> B = np.array([8, 32, 128, 512])
    >>> fit = fit_steps_to_target(B, [100 * (1 + 64 / B), 110 * (1 + 60 / B), 90 * (1 + 70 / B)])
    >>> round(fit.s_min.estimate), round(fit.b_c.estimate)
    (100, 65)
    """
    batch_sizes, steps = _positive("batch_sizes", batch_sizes), _positive("steps", steps)
    if batch_sizes.ndim != 1 or len(np.unique(batch_sizes)) < 3:
        fail("batch_sizes", batch_sizes, "one row of at least three different sizes")
    if steps.ndim != 2 or len(steps) < 2 or steps.shape[1] != len(batch_sizes):
        fail("steps.shape", steps.shape, f"(seeds, {len(batch_sizes)}), at least two seeds")
    level = number("level", level, above=0, below=1)
    rng = generator(seed, "noise")
    rows = rng.integers(len(steps), size=(count("resamples", resamples, at_least=100), len(steps)))
    logs = np.log(steps)
    # with every seed at every size, least squares depends on the mean over seeds only
    means = np.concatenate([logs.mean(0, keepdims=True), logs[rows].mean(1)])
    s_min, b_c = _fit_bends(batch_sizes, means)
    bounds = [(1 - level) / 2, (1 + level) / 2]
    intervals = [
        Interval(float(v[0]), *(float(q) for q in np.quantile(v[1:], bounds, method="nearest")), level)
        for v in (s_min, b_c)
    ]
    shape = np.log1p(b_c[0] / batch_sizes) if np.isfinite(b_c[0]) else -np.log(batch_sizes)
    left = (means[0] - means[0].mean()) - (shape - shape.mean())
    return StepsToTarget(*intervals, float(np.sqrt(np.mean(left**2))))


def _fit_bends(batch_sizes, means):
    """Least squares of log s_min + log(1 + b_c / B) to each row of ``means``: arrays s_min, b_c.

    Given b_c, the best log s_min is a mean; what is left is a search over log b_c, on a grid and then by parabola.
    """
    span = np.linspace(math.log(batch_sizes.min()) - 8, math.log(batch_sizes.max()) + 8, 3001)
    shapes = np.log1p(np.exp(span)[:, None] / batch_sizes)  # (grid, sizes)
    shapes = shapes - shapes.mean(1, keepdims=True)
    centred = means - means.mean(1, keepdims=True)
    cost = (shapes**2).sum(1) - 2 * centred @ shapes.T  # (rows, grid), up to a constant
    best = cost.argmin(1)
    inside = np.clip(best, 1, len(span) - 2)
    before, at, after = (cost[np.arange(len(means)), inside + i] for i in (-1, 0, 1))
    curvature = before - 2 * at + after
    shift = np.where(curvature > 0, (before - after) / (2 * np.where(curvature > 0, curvature, 1)), 0)
    b_c = np.exp(span[inside] + np.clip(shift, -1, 1) * (span[1] - span[0]))
    s_min = np.exp(means.mean(1) - np.log1p(b_c[:, None] / batch_sizes).mean(1))
    b_c = np.where(best == 0, 0.0, np.where(best == len(span) - 1, np.inf, b_c))
    s_min = np.where(best == 0, np.exp(means.mean(1)), np.where(best == len(span) - 1, 0.0, s_min))
    return s_min, b_c


def _seeds(name, values, ndim=None):
    values = array(name, values, ndim=ndim)
    if values.ndim == 0 or len(values) < 2:
        fail(f"{name}.shape", values.shape, "at least two seeds")
    return values


def _pairs(a, b, both=False):
    a, b = _seeds("a" if not both else "numerators", a, 1), _seeds("b" if not both else "denominators", b, 1)
    if len(a) != len(b):
        fail("lengths", (len(a), len(b)), "equal lengths: values paired by seed")
    return (a, b) if both else a - b


def _positive(name, values):
    values = array(name, values)
    if (values <= 0).any():
        fail(name, values, "numbers above 0 only")
    return values

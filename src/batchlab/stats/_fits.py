"""Two fits: the exponent of a power law, and the law of the steps to a target."""

import math
from dataclasses import dataclass

import numpy as np

from batchlab._check import array, count, fail, number
from batchlab._seeds import generator
from batchlab.stats._intervals import Interval, student_t
from batchlab.stats._resampling import bootstrap


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
        return self.b_c.times(number("overhead", overhead, above=0))


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
    centred, logs = np.log(x) - np.log(x).mean(), np.log(y)
    slopes = logs @ centred / (centred @ centred)
    if y.ndim == 2:
        return bootstrap(slopes, level=level, resamples=resamples, seed=seed)
    if len(x) < 3:
        fail("x", x, "at least three points, or several seeds")
    # from the residuals: scipy's linregress has 1 - r^2 in their place, which is rounding where the law is exact
    left = logs - logs.mean() - slopes * centred
    slope, error = float(slopes), math.sqrt(left @ left / (len(x) - 2) / (centred @ centred))
    reach = student_t(len(x) - 2, level) * error
    return Interval(slope, slope - reach, slope + reach, level)


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


def _positive(name, values):
    values = array(name, values)
    if (values <= 0).any():
        fail(name, values, "numbers above 0 only")
    return values

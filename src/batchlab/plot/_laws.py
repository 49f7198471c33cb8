"""What was measured, drawn on the law that it should follow."""

import numpy as np

from batchlab import _check
from batchlab.plot._axes import axes, points


def against_law(x, measured, law, low=None, high=None, ax=None, label="measured", law_label="law"):
    """Draw measured points, with their intervals, on the line that theory predicts for them.

    Args:
        x: (K,) where the points stand.
        measured: (K,) estimates.
        law: (K,) the prediction at each x; drawn as a line.
        low, high: (K,) ends of each point's interval, in the units of ``measured``; None for exact points.
        ax: where to draw.
        label, law_label: legend entries.

    Returns:
        The ``Axes``.

    Raises:
        ValueError: shapes differ, a value is not finite, or only one of low and high is given.

    >>> against_law([1, 2, 4], [1.1, 0.5, 0.26], law=[1, 0.5, 0.25]).get_legend_handles_labels()[1]
    ['law', 'measured']
    """
    x = _check.array("x", x, ndim=1)
    measured, law = (_check.array(n, v, shape=x.shape) for n, v in [("measured", measured), ("law", law)])
    if (low is None) != (high is None):
        _check.fail("low, high", (low, high), "both ends of the intervals or neither")
    ax = axes(ax)
    order = np.argsort(x)
    (line,) = ax.plot(x[order], law[order], linestyle="-", alpha=0.7, label=law_label)
    if low is None:
        ax.plot(x, measured, "o", color=line.get_color(), markerfacecolor="white", label=label)
        return ax
    low, high = (_check.array(n, v, shape=x.shape) for n, v in [("low", low), ("high", high)])
    if (low > measured).any() or (measured > high).any():
        _check.fail("low, high", (low, high), "intervals that hold the measured values")
    points(ax, x, measured, low, high, line.get_color(), label)
    return ax


def steps_to_target(batch_sizes, steps, fit, ax=None, label="measured"):
    """Draw steps to a target against batch size, with the fitted law S_min (1 + B_crit / B) and perfect scaling.

    Args:
        batch_sizes: (K,) above 0.
        steps: (seeds, K) above 0; drawn as the mean of the logs and the range over seeds.
        fit: what ``stats.fit_steps_to_target`` returned; its B_c must be finite and above 0.

    Returns:
        The ``Axes``, both axes logarithmic. Perfect scaling is the tangent at small batches, S_min B_c / B: twice the
        batch, half the steps. The dotted line marks B_c, where the law is twice its floor.

    Raises:
        ValueError: shapes differ, a value is not above 0, or the fit found no bend.

    >>> from batchlab import stats
    >>> B = [1, 4, 16, 64, 256]
    >>> S = [[100 * (1 + 16 / b) * wobble for b in B] for wobble in (0.99, 1.01)]
    >>> ax = steps_to_target(B, S, stats.fit_steps_to_target(B, S))
    >>> [line.get_label() for line in ax.get_lines()[1:2]]
    ['perfect scaling']
    """
    batch_sizes = _check.array("batch_sizes", batch_sizes, ndim=1)
    steps = _check.array("steps", steps, shape=(None, len(batch_sizes)))
    if (batch_sizes <= 0).any() or (steps <= 0).any():
        _check.fail("batch_sizes, steps", (batch_sizes.min(), steps.min()), "numbers above 0")
    s_min, b_c = fit.s_min.estimate, fit.b_c.estimate
    if not (np.isfinite(b_c) and b_c > 0 and s_min > 0):
        _check.fail("fit", (s_min, b_c), "a fit whose S_min and B_c are finite and above 0")
    ax = axes(ax)
    x = np.geomspace(batch_sizes.min(), batch_sizes.max(), 200)
    (law,) = ax.plot(x, fit.steps(x), label=r"$S_{\min}\,(1 + B_{\mathrm{crit}} / B)$")
    ax.plot(x, fit.perfect_scaling(x), color="0.4", linestyle="--", linewidth=1.2, label="perfect scaling")
    mean = np.exp(np.log(steps).mean(0))
    points(ax, batch_sizes, mean, steps.min(0), steps.max(0), law.get_color(), label)
    ax.axvline(b_c, color="black", linestyle=":", linewidth=1.2)
    ax.set(xscale="log", yscale="log", xlabel="batch size (examples)", ylabel="steps to the target")
    return ax


def throughput(measured, ax=None, label="measured"):
    """Draw examples per second against batch size, with the law B / (t_0 + tau B) and its knee.

    Args:
        measured: what ``throughput.measure_throughput`` returned: medians with 95% intervals, and the fitted law.

    Returns:
        The ``Axes``, both axes logarithmic; the grey band is the knee's interval.

    >>> from batchlab.stats import Interval
    >>> from batchlab.throughput import StepLaw, Throughput, Timing
    >>> law = StepLaw(Interval(1e-3, 1e-3, 1e-3), Interval(1e-5, 1e-5, 1e-5), Interval(100, 90, 110), 0.5, 0.0)
    >>> timings = tuple(Timing(b, Interval(t, t, t), (), True) for b, t in [(1, 1.01e-3), (100, 2e-3)])
    >>> throughput(Throughput(timings, law)).get_lines()[0].get_label()
    '$B / (t_0 + \\\\tau B)$'
    """
    law, knee, timings = measured.law, measured.law.knee, measured.timings
    ax = axes(ax)
    sizes = np.array([t.batch_size for t in timings])
    x = np.geomspace(sizes.min(), sizes.max(), 200)
    (line,) = ax.plot(
        x, x / (law.fixed.estimate + law.per_example.estimate * x), alpha=0.7, label=r"$B / (t_0 + \tau B)$"
    )
    rate, low, high = (sizes / np.array([getattr(t.seconds, e) for t in timings]) for e in ("estimate", "high", "low"))
    points(ax, sizes, rate, low, high, line.get_color(), label)
    if np.isfinite([knee.low, knee.high]).all():
        ax.axvspan(knee.low, knee.high, color="0.85", linewidth=0)
        ax.axvline(knee.estimate, color="black", linestyle=":", linewidth=1.2)
    ax.set(xscale="log", yscale="log", xlabel="batch size (examples)", ylabel="examples per second")
    return ax

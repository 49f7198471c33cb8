"""Figures of the book: arrays in, an ``Axes`` out.

Every function takes data and an optional ``ax``, draws on it (on a new figure's if None), returns it, and touches no
global state. ``plt.style.use(plot.STYLE)`` gives a notebook the book's one style.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from batchlab import _check

STYLE = Path(__file__).with_name("book.mplstyle")
UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
HATCHES = ("", "///", "\\\\\\", "...", "xxx", "---")


def _axes(ax):
    return plt.subplots()[1] if ax is None else ax


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
    ax = _axes(ax)
    order = np.argsort(x)
    (line,) = ax.plot(x[order], law[order], linestyle="-", alpha=0.7, label=law_label)
    if low is None:
        ax.plot(x, measured, "o", color=line.get_color(), markerfacecolor="white", label=label)
        return ax
    low, high = (_check.array(n, v, shape=x.shape) for n, v in [("low", low), ("high", high)])
    if (low > measured).any() or (measured > high).any():
        _check.fail("low, high", (low, high), "intervals that hold the measured values")
    ax.errorbar(
        x,
        measured,
        yerr=[measured - low, high - measured],
        fmt="o",
        color=line.get_color(),
        markerfacecolor="white",
        capsize=3,
        label=label,
    )
    return ax


def seed_band(x, values, ax=None, label=None, coverage=1.0):
    """Draw the median over seeds as a line, and the range that holds the middle ``coverage`` of the seeds as a band.

    The band shows how seeds differ; it is not an interval for the median.

    Args:
        x: (K,) positions.
        values: (seeds, K), one row a seed; NaN where a seed has no value (diverged) leaves a gap for that seed only
            where all seeds are NaN, and is never drawn as a number.
        coverage: share of the seeds inside the band, in (0, 1]; 1 is the whole range.

    Returns:
        The ``Axes``.

    Raises:
        ValueError: shapes differ, fewer than two seeds, infinities, or coverage outside (0, 1].

    >>> ax = seed_band([0, 1], [[1, 2], [3, 4], [2, 3]], label="loss")
    >>> ax.get_lines()[0].get_ydata().tolist()
    [2.0, 3.0]
    """
    x = _check.array("x", x, ndim=1)
    coverage = _check.number("coverage", coverage, above=0, at_most=1)
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != len(x) or len(values) < 2:
        _check.fail("values.shape", values.shape, f"(seeds, {len(x)}) with at least 2 seeds")
    if np.isinf(values).any():
        _check.fail("values", values, "finite numbers, or NaN where a seed has no value")
    ax = _axes(ax)
    some = ~np.isnan(values).all(0)
    middle, low, high = np.full((3, len(x)), np.nan)
    middle[some] = np.nanmedian(values[:, some], axis=0)
    low[some], high[some] = np.nanquantile(values[:, some], [(1 - coverage) / 2, (1 + coverage) / 2], axis=0)
    (line,) = ax.plot(x, middle, label=label)
    ax.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    return ax


def lr_ridge(batch_sizes, lrs, values, best=None, ax=None, label="validation loss"):
    """Draw a grid of batch size by learning rate as a map, and the best rate of each batch size on it.

    Args:
        batch_sizes: (K,) ascending.
        lrs: (L,) ascending, above 0.
        values: (K, L); NaN or infinite where the runs diverged: such cells are hatched, not coloured.
        best: (K,) the best learning rate of each batch size; None marks nothing.
        label: what ``values`` are, with their unit, for the colour bar.

    Returns:
        The ``Axes``; both of its axes are indices with the grid's values as tick labels.

    Raises:
        ValueError: shapes differ, the grid is not ascending, or a best rate is not on the grid.

    >>> ax = lr_ridge([8, 64], [0.1, 0.2], [[0.5, 0.6], [0.7, 0.4]], best=[0.1, 0.2])
    >>> ax.get_lines()[0].get_ydata().tolist()
    [0, 1]
    """
    batch_sizes, lrs = (_check.array(n, v, ndim=1) for n, v in [("batch_sizes", batch_sizes), ("lrs", lrs)])
    for name, grid in [("batch_sizes", batch_sizes), ("lrs", lrs)]:
        if (np.diff(grid) <= 0).any() or grid[0] <= 0:
            _check.fail(name, grid, "an ascending grid of numbers above 0")
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (len(batch_sizes), len(lrs)):
        _check.fail("values.shape", values.shape, f"({len(batch_sizes)}, {len(lrs)})")
    ax = _axes(ax)
    failed = ~np.isfinite(values)
    mesh = ax.imshow(np.ma.masked_array(values, failed).T, origin="lower", aspect="auto", cmap="cividis_r")
    ax.figure.colorbar(mesh, ax=ax, label=label)
    for i, j in zip(*np.nonzero(failed), strict=True):
        ax.add_patch(plt.Rectangle((i - 0.5, j - 0.5), 1, 1, fill=False, hatch="///", linewidth=0, edgecolor="0.5"))
    if best is not None:
        best = _check.array("best", best, shape=batch_sizes.shape)
        if not np.isin(best, lrs).all():
            _check.fail("best", best, "learning rates on the grid")
        ax.plot(range(len(best)), np.searchsorted(lrs, best), "o-", color="white", markeredgecolor="black")
    ax.set_xticks(range(len(batch_sizes)), [f"{b:g}" for b in batch_sizes])
    ax.set_yticks(range(len(lrs)), [f"{lr:.3g}" for lr in lrs])
    ax.set(xlabel="batch size (examples)", ylabel="learning rate")
    ax.grid(False)
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
    ax = _axes(ax)
    x = np.geomspace(batch_sizes.min(), batch_sizes.max(), 200)
    (law,) = ax.plot(x, fit.steps(x), label=r"$S_{\min}\,(1 + B_{\mathrm{crit}} / B)$")
    ax.plot(x, fit.perfect_scaling(x), color="0.4", linestyle="--", linewidth=1.2, label="perfect scaling")
    mean = np.exp(np.log(steps).mean(0))
    spread = [mean - steps.min(0), steps.max(0) - mean]
    ax.errorbar(
        batch_sizes, mean, yerr=spread, fmt="o", color=law.get_color(), markerfacecolor="white", capsize=3, label=label
    )
    ax.axvline(b_c, color="black", linestyle=":", linewidth=1.2)
    ax.set(xscale="log", yscale="log", xlabel="batch size (examples)", ylabel="steps to the target")
    return ax


def throughput(measured, ax=None, label="measured"):
    """Draw examples per second against batch size, with the law B / (a + b B) and its knee.

    Args:
        measured: what ``throughput.measure_throughput`` returned: medians with 95% intervals, and the fitted law.

    Returns:
        The ``Axes``, both axes logarithmic; the grey band is the knee's interval.

    >>> from batchlab.instruments.throughput import StepLaw, Throughput, Timing
    >>> law = StepLaw(1e-3, 1e-5, 100.0, (1e-3, 1e-3), (1e-5, 1e-5), (90.0, 110.0), 0.5, 0.0)
    >>> timings = tuple(Timing(b, 1e-3 + 1e-5 * b, 1e-3 + 1e-5 * b, 1e-3 + 1e-5 * b, (), True) for b in (1, 100))
    >>> throughput(Throughput(timings, law)).get_lines()[0].get_label()
    'B / (a + b B)'
    """
    table, law = measured.table(), measured.law
    ax = _axes(ax)
    x = np.geomspace(table.batch_size.min(), table.batch_size.max(), 200)
    (line,) = ax.plot(x, x / (law.a + law.b * x), alpha=0.7, label="B / (a + b B)")
    rate = table.examples_per_second.to_numpy()
    ends = [rate - table.batch_size / table.high, table.batch_size / table.low - rate]
    ax.errorbar(
        table.batch_size,
        rate,
        yerr=[np.maximum(e, 0) for e in ends],
        fmt="o",
        color=line.get_color(),
        markerfacecolor="white",
        capsize=3,
        label=label,
    )
    if np.isfinite(law.knee_interval).all():
        ax.axvspan(*law.knee_interval, color="0.85", linewidth=0)
        ax.axvline(law.knee, color="black", linestyle=":", linewidth=1.2)
    ax.set(xscale="log", yscale="log", xlabel="batch size (examples)", ylabel="examples per second")
    return ax


def along_training(examples, estimates, low, high, ax=None, label="gradient noise scale"):
    """Draw an estimate with its interval along training, on logarithmic axes.

    Args:
        examples: (K,) examples seen, above 0.
        estimates, low, high: (K,), in examples. NaN, or an end that is not above 0, where the data say nothing: the
            point is left out and its interval reaches the edge of the figure.

    Returns:
        The ``Axes``.

    Raises:
        ValueError: shapes differ, or low <= estimate <= high fails where all three are numbers.

    >>> ax = along_training([10, 100], [20, float("nan")], [15, 0], [25, float("inf")])
    >>> ax.get_lines()[0].get_ydata().tolist()
    [20.0, nan]
    """
    examples = _check.array("examples", examples, ndim=1)
    estimates, low, high = (np.asarray(v, dtype=np.float64) for v in (estimates, low, high))
    if not estimates.shape == low.shape == high.shape == examples.shape:
        _check.fail("shapes", (examples.shape, estimates.shape, low.shape, high.shape), "four arrays of one length")
    if (examples <= 0).any():
        _check.fail("examples", examples, "numbers above 0")
    if (low > estimates).any() or (estimates > high).any():  # comparisons with NaN are False
        _check.fail("low, high", (low, high), "intervals that hold the estimates")
    ax = _axes(ax)
    shown = np.where(estimates > 0, estimates, np.nan)
    (line,) = ax.plot(examples, shown, "o-", markersize=4, label=label)
    known = np.concatenate([v[np.isfinite(v) & (v > 0)] for v in (shown, low, high)])
    floor, ceiling = (known.min() / 3, known.max() * 3) if known.size else (0.1, 10)
    bottom = np.where(np.isfinite(low) & (low > 0), low, floor)
    top = np.where(np.isfinite(high) & (high > 0), high, ceiling)
    ax.fill_between(examples, bottom, top, color=line.get_color(), alpha=0.2, linewidth=0)
    ax.set(xscale="log", yscale="log", xlabel="examples seen", ylabel="examples", ylim=(floor, ceiling))
    return ax


def spectrum(eigenvalues, ax=None, label=None):
    """Draw eigenvalues by rank, largest first, on a logarithmic axis; negative ones as crosses at their size.

    Args:
        eigenvalues: (K,), in any order.

    Returns:
        The ``Axes``.

    Raises:
        ValueError: empty, or not finite.

    >>> ax = spectrum([0.5, 3, -1])
    >>> [line.get_ydata().tolist() for line in ax.get_lines()]
    [[3.0, 0.5], [1.0]]
    """
    values = np.sort(_check.array("eigenvalues", eigenvalues, ndim=1))[::-1]
    rank = np.arange(1, len(values) + 1)
    ax = _axes(ax)
    (line,) = ax.plot(rank[values > 0], values[values > 0], "o", linestyle="none", label=label)
    if (values < 0).any():
        negative = values < 0
        ax.plot(rank[negative], -values[negative], "x", linestyle="none", color=line.get_color(), label="negative")
    ax.set(yscale="log", xlabel="rank", ylabel="eigenvalue (size)")
    return ax


def loss_along_line(line, ax=None, label=None):
    """Draw the loss along the straight line between two solutions.

    Args:
        line: what ``curvature.loss_along_line`` returned: positions ``at`` (K,) and ``loss`` (K,).

    Returns:
        The ``Axes``; a mark stands on each of the two solutions, at 0 and 1, where they are among the positions.

    >>> from batchlab.instruments.curvature import Line
    >>> ax = loss_along_line(Line(np.array([0, 0.5, 1]), np.array([1.0, 3.0, 2.0])))
    >>> ax.get_lines()[1].get_ydata().tolist()
    [1.0, 2.0]
    """
    at, loss = _check.array("line.at", line.at, ndim=1), _check.array("line.loss", line.loss, ndim=1)
    ax = _axes(ax)
    (curve,) = ax.plot(at, loss, label=label)
    ends = np.isin(at, (0, 1))
    ax.plot(at[ends], loss[ends], "o", linestyle="none", color=curve.get_color(), markerfacecolor="white")
    ax.set(xlabel="position: 0 is one solution, 1 the other", ylabel="loss")
    return ax


def memory_stack(sizes, parts, ax=None, unit="kB"):
    """Draw the bytes of a training step by kind, one layer on top of the other, against the batch size.

    Args:
        sizes: (K,) batch sizes, at least two, ascending.
        parts: dict from a kind's name, which becomes its legend entry, to its (K,) bytes, 0 or more; the first kind
            lies at the bottom. At most six, so that each has a hatching of its own and colour is not needed.
        unit: of the vertical axis: "B", "kB", "MB" or "GB", powers of 1000.

    Returns:
        The ``Axes``.

    Raises:
        ValueError: no kinds or more than six, shapes differ, sizes not ascending, negative bytes, or another unit.

    >>> ax = memory_stack([1, 512], {"weights": [60_840, 60_840], "activations": [844, 430_084]})
    >>> [round(float(c.get_paths()[0].vertices[:, 1].max()), 1) for c in ax.collections]
    [60.8, 490.9]
    """
    sizes = _check.array("sizes", sizes, ndim=1)
    if len(sizes) < 2 or (np.diff(sizes) <= 0).any():
        _check.fail("sizes", sizes, "at least two batch sizes, ascending")
    if not isinstance(parts, dict) or not 1 <= len(parts) <= len(HATCHES):
        _check.fail("parts", parts, f"a dict of 1 to {len(HATCHES)} kinds: name -> bytes at each size")
    per_unit = UNITS[_check.one_of("unit", unit, list(UNITS))]
    layers = [_check.array(f"parts[{name!r}]", v, shape=sizes.shape) for name, v in parts.items()]
    for name, layer in zip(parts, layers, strict=True):
        if (layer < 0).any():
            _check.fail(f"parts[{name!r}]", layer, "bytes, 0 or more")
    ax = _axes(ax)
    drawn = ax.stackplot(sizes, np.array(layers) / per_unit, labels=list(parts), alpha=0.75)
    for area, hatch in zip(drawn, HATCHES, strict=False):
        area.set(hatch=hatch, edgecolor="white", linewidth=0)
    ax.set(xlabel="batch size", ylabel=f"memory ({unit})", xlim=(sizes[0], sizes[-1]))
    return ax

"""What has no law: bands, maps, paths, spectra and stacks."""

import matplotlib.pyplot as plt
import numpy as np

from batchlab import _check
from batchlab.plot._axes import axes

UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
HATCHES = ("", "///", "\\\\\\", "...", "xxx", "---")


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
    ax = axes(ax)
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
    ax = axes(ax)
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
    ax = axes(ax)
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
    ax = axes(ax)
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

    >>> from batchlab.curvature import Line
    >>> ax = loss_along_line(Line(np.array([0, 0.5, 1]), np.array([1.0, 3.0, 2.0])))
    >>> ax.get_lines()[1].get_ydata().tolist()
    [1.0, 2.0]
    """
    at, loss = _check.array("line.at", line.at, ndim=1), _check.array("line.loss", line.loss, ndim=1)
    ax = axes(ax)
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
    ax = axes(ax)
    drawn = ax.stackplot(sizes, np.array(layers) / per_unit, labels=list(parts), alpha=0.75)
    for area, hatch in zip(drawn, HATCHES, strict=False):
        area.set(hatch=hatch, edgecolor="white", linewidth=0)
    ax.set(xlabel="batch size", ylabel=f"memory ({unit})", xlim=(sizes[0], sizes[-1]))
    return ax

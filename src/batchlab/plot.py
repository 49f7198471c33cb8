"""Figures of the book: arrays in, an ``Axes`` out.

Every function takes data and an optional ``ax``, draws on it (on a new figure's if None), returns it, and touches no
global state. ``plt.style.use(plot.STYLE)`` gives a notebook the book's one style.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from batchlab import _check

STYLE = Path(__file__).with_name("book.mplstyle")


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


UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
HATCHES = ("", "///", "\\\\\\", "...", "xxx", "---")


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

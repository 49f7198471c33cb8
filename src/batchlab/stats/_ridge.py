"""The ridge: the best learning rate between the rates of a grid, at every batch size, and its exponent in the size."""

import numpy as np

from batchlab._check import array, fail, one_of
from batchlab.stats._resampling import resampled


def best_rates(rates, losses, *, edge="error"):
    """The rate at which a parabola in log rate is lowest, through the best rate of the grid and its two neighbours.

    Args:
        rates: ``(rates,)``, above 0 and rising by equal factors.
        losses: ``(..., rates)``, lower is better; infinite where a run diverged, and then the parabola's limit is half
            a grid step away from it.
        edge: where the best rate is at an end of the grid: "error", or "allow", which takes that rate itself.

    Returns ``(...)``, a rate for each row of losses.

    >>> float(best_rates([0.1, 0.2, 0.4], [2.0, 1.0, 2.0])), float(best_rates([1, 4, 16], [1.0, 0.5, np.inf]))
    (0.2, 2.0)
    """
    rates, losses = _grid(rates, losses)
    one_of("edge", edge, ("error", "allow"))
    best = losses.argmin(-1)
    at_edge = (best == 0) | (best == len(rates) - 1)
    if edge == "error" and at_edge.any():
        where = f"{rates[best[at_edge]][0]:g}" if best.ndim else f"{rates[best]:g}"
        raise ValueError(f"the best lr is at the edge of its grid ({where}): widen it there, or say edge='allow'")
    inner = np.clip(best, 1, len(rates) - 2)[..., None]
    below, middle, above = (np.take_along_axis(losses, inner + k, -1)[..., 0] for k in (-1, 0, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        shift = 0.5 * (below - above) / (below - 2 * middle + above)
    shift = np.where(np.isinf(below), np.where(np.isinf(above), 0.0, 0.5), np.where(np.isinf(above), -0.5, shift))
    shift = np.where(at_edge | np.isnan(shift), 0.0, shift)  # nan: three equal losses
    return rates[best] * (rates[1] / rates[0]) ** shift


def ridge_slope(batch_sizes, rates, losses, *, level=0.95, resamples=9999, seed=0):
    """Slope of log best rate on log batch size: 1 where the linear rule holds, 1/2 for the square root.

    Args:
        batch_sizes: ``(sizes,)``, at least two different ones.
        rates: ``(rates,)``, one grid for all sizes, or ``(sizes, rates)``, as ``best_rates`` takes them.
        losses: ``(seeds, sizes, rates)``; infinite where a run diverged, so that the mean is.

    The rates are those of ``best_rates`` on the mean loss over seeds, found again in every resample of the seeds: the
    interval ("expanded", see ``bootstrap``) carries the tuning. A resample whose best rate is at an end of the grid
    takes that rate; on all seeds it is an error.

    >>> sizes, rates = [1, 2, 4], 2.0 ** np.arange(-3, 6)
    >>> losses = np.log2(rates) ** 2 - 2 * np.log2(rates) * np.log2(sizes)[:, None]  # lowest at rate = size
    >>> print(ridge_slope(sizes, rates, [losses, losses]))
    1 [1, 1]
    """
    batch_sizes = array("batch_sizes", batch_sizes, ndim=1, above=0)
    if len(np.unique(batch_sizes)) < 2:
        fail("batch_sizes", batch_sizes, "at least two different sizes")
    losses = np.asarray(losses, dtype=np.float64)
    if losses.ndim != 3 or losses.shape[1] != len(batch_sizes) or len(losses) < 2:
        fail("losses.shape", losses.shape, f"(seeds, {len(batch_sizes)}, rates), at least two seeds")
    rates = array("rates", rates, above=0)
    if rates.shape not in (losses.shape[1:], losses.shape[2:]):
        fail("rates.shape", rates.shape, f"{losses.shape[2:]} or {losses.shape[1:]}")
    grids = np.broadcast_to(rates, losses.shape[1:])
    for grid, of_size in zip(grids, losses.mean(0), strict=True):
        best_rates(grid, of_size)  # an edge is an error
    centred = np.log(batch_sizes) - np.log(batch_sizes).mean()

    def statistic(drawn, axis):
        means = losses[drawn].mean(axis=-3)  # (..., sizes, rates)
        best = [best_rates(grid, means[..., i, :], edge="allow") for i, grid in enumerate(grids)]
        return np.moveaxis(np.log(best), 0, -1) @ centred / (centred @ centred)

    given = dict(level=level, method="expanded", resamples=resamples, seed=seed)
    return resampled(statistic, len(losses), vectorized=True, **given)


def _grid(rates, losses):
    rates = array("rates", rates, ndim=1, above=0)
    steps = np.diff(np.log(rates))
    if len(rates) < 3 or (steps <= 0).any() or not np.allclose(steps, steps[0], rtol=1e-6):
        fail("rates", rates, "at least three learning rates that rise by equal factors")
    losses = np.asarray(losses, dtype=np.float64)
    if losses.ndim < 1 or losses.shape[-1] != len(rates):
        fail("losses.shape", losses.shape, f"(..., {len(rates)})")
    if np.isnan(losses).any() or (losses == -np.inf).any():
        fail("losses", "NaN or -inf", "numbers, or infinity where a run diverged")
    if not np.isfinite(losses).any(-1).all():
        fail("losses", "infinite at all rates", "at least one rate at which the mean loss is finite")
    return rates, losses

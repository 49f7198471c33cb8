"""Values compared where the training losses are equal, not where the training time is."""

import numpy as np

from batchlab._check import array, fail, number
from batchlab.stats._paired import mean_by

POINTS = 101  # at which a range of losses is looked at


def matched_loss(
    loss_a, value_a, loss_b, value_b, at=None, *, clusters=None, level=0.95, method="t", resamples=9999, seed=0
):
    """Mean over seeds of a's value less b's, where the training losses of both are the same.

    Args:
        loss_a, value_a, loss_b, value_b: ``(seeds, points)``, the training loss and the value to compare (a validation
            accuracy) at the evaluations of each run, in order; row i of all comes from the same seed, a and b may have
            been evaluated at different times.
        at: the loss; or a range ``(low, high)`` of losses, over which the values are averaged (at 101 losses, evenly);
            or None for the widest range that every run of both arms goes through: from the highest of the runs' least
            losses to the lowest of their first ones.
        clusters, method: those of ``paired_difference``.

    A run's value at a loss is the linear interpolation between the first evaluation whose loss is no higher and the one
    before it. Nothing is extrapolated: ValueError names the runs that start below a loss or never reach it.

    >>> losses = [[2.0, 1.0, 0.5], [2.0, 1.2, 0.4]]
    >>> print(matched_loss(losses, [[0, 6, 8], [0, 6, 8]], losses, [[0, 4, 8], [0, 6, 8]], at=1.5).estimate)
    0.5
    """
    arms = [
        (loss, array(f"value_{arm}", value, shape=loss.shape))
        for arm, loss, value in (
            ("a", array("loss_a", loss_a, ndim=2), value_a),
            ("b", array("loss_b", loss_b, ndim=2), value_b),
        )
    ]
    seeds = tuple(len(loss) for loss, _ in arms)
    if seeds[0] != seeds[1] or seeds[0] < 2:
        fail("seeds", seeds, "equal numbers, at least two: runs paired by seed")
    losses = _losses(at, [loss for loss, _ in arms])
    for arm, (loss, _) in zip("ab", arms, strict=True):
        for short, what in (
            (loss.min(1) > losses.min(), f"never reaches {losses.min():g}"),
            (loss[:, 0] < losses.max(), f"starts below {losses.max():g}"),
        ):
            if short.any():
                fail("at", at, f"losses that every run goes through; loss_{arm} {what} in rows {np.flatnonzero(short)}")
    a, b = (_reached(loss, value, losses).mean(1) for loss, value in arms)
    return mean_by(a - b, clusters=clusters, level=level, method=method, resamples=resamples, seed=seed)


def _losses(at, runs):
    """The losses to look at, highest first."""
    if at is None:
        low, high = max(loss.min(1).max() for loss in runs), min(loss[:, 0].min() for loss in runs)
        if low >= high:
            fail("at", at, f"runs with a loss in common: one never goes below {low:g}, one starts at {high:g}")
    elif isinstance(at, (tuple, list)):
        low, high = array("at", at, shape=(2,)).tolist()
        if low >= high:
            fail("at", at, "a range (low, high) with low below high")
    else:
        return np.array([number("at", at)])
    return np.linspace(high, low, POINTS)


def _reached(loss, value, losses):
    """Each run's value where its loss first comes down to each of ``losses``: (seeds, losses)."""
    after = (loss[:, None, :] <= losses[:, None]).argmax(2)  # the first evaluation no higher
    before = np.maximum(after - 1, 0)
    row = np.arange(len(loss))[:, None]
    fall = loss[row, before] - loss[row, after]
    share = np.where(fall > 0, loss[row, before] - losses, 1) / np.where(fall > 0, fall, 1)
    return value[row, before] + share * (value[row, after] - value[row, before])

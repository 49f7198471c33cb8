"""The search for S(B), the fewest steps to a target, where the loss is a known sum of decaying modes."""

import math

import numpy as np
from scipy.optimize import brentq


def first_hit(rates, start, floor, target):
    """Return the smallest real t >= 0 with sum_i start_i rates_i^t + floor_i (1 - rates_i^t) <= target.

    ``inf`` if there is none, or if a mode does not decay. Arrays of one shape; rates at least 0.

    >>> round(first_hit(np.array([0.5]), np.array([1.0]), np.array([0.0]), 0.125), 6)
    3.0
    """
    if rates.max() >= 1 or not np.isfinite(floor).all():
        return math.inf
    if start.sum() <= target:
        return 0.0
    log_rates = np.log(np.maximum(rates, 1e-300))

    def excess(t):
        exponent = np.multiply.outer(t, log_rates)
        return np.exp(exponent) @ start - np.expm1(exponent) @ floor - target

    # By `longest` every mode has died out to rounding. A mode that starts below its floor rises, so the loss need not
    # fall monotonically: look for the first crossing on a grid, then close in on it.
    longest = 40 / -max(log_rates.max(), -40)
    grid = np.concatenate([[0.0], np.geomspace(1e-3 * longest, longest, 100)])
    below = np.flatnonzero(excess(grid) <= 0)
    return brentq(excess, grid[below[0] - 1], grid[below[0]]) if len(below) else math.inf


def fewest_steps(steps, max_lr):
    """Return (steps, lr), the least ``steps(lr)`` for lr in (0, max_lr); (inf, nan) where all are inf.

    >>> fewest, lr = fewest_steps(lambda lr: 1 + (lr - 0.3) ** 2, 2.0)
    >>> round(lr, 3)
    0.3
    """
    grid = max_lr * np.concatenate([np.geomspace(1e-7, 0.5, 60), 1 - np.geomspace(0.45, 1e-6, 30)])
    for _ in range(5):  # a logarithmic grid, then four times a finer one around its best point
        values = [steps(lr) for lr in grid]
        best = int(np.argmin(values))
        fewest, lr = float(values[best]), float(grid[best])
        grid = np.linspace(grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)], 13)
    return (fewest, lr) if math.isfinite(fewest) else (math.inf, math.nan)


def batch_at_steps(steps, wanted):
    """Return the batch size at which the falling function ``steps`` equals ``wanted``; nan if none is found.

    Looked for from 2^-30 to 2^30, to a relative 1e-4.

    >>> round(batch_at_steps(lambda b: 5 * (1 + 12 / b), 10.0), 2)
    12.0
    """

    def excess(log_batch):
        return math.log(max(steps(2**log_batch), 1e-300) / wanted)

    if wanted == 0:
        return math.nan
    low = high = 0.0
    while excess(high) > 0 and high < 30:
        low, high = high, high + 2
    while excess(low) <= 0 and low > -30:
        low, high = low - 2, low
    if not excess(high) <= 0 < excess(low):
        return math.nan
    while not math.isfinite(excess(low)):  # brentq needs numbers at both ends
        middle = 0.5 * (low + high)
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return 2 ** brentq(excess, low, high, xtol=1e-4)

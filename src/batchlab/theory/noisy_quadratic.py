"""The noisy quadratic model of Zhang et al. (2019): SGD on a quadratic whose gradient noise does not depend on where
it is.

L(w) = 1/2 sum_i h_i w_i^2, curvatures h_i = ``eigenvalues`` > 0; the gradient of a batch along direction i is
h_i w_i plus independent noise of variance c_i / B, with c_i = ``variances``, those of one example. ``weights`` is where
it starts, a fixed point. Everything is exact, float64, and has no randomness. ``batch_size`` may be any number
above 0.
"""

import math

import numpy as np

from batchlab._check import array, count, number
from batchlab.theory._steps import batch_at_steps, fewest_steps, first_hit


def risk(eigenvalues, variances, lr, batch_size, steps, weights):
    """Return the expected loss after 0, 1, ... ``steps`` updates, shape (steps + 1,).

    The second moments obey m' = (1 - lr h)^2 m + lr^2 c / B, and the loss is 1/2 sum_i h_i m_i (Zhang et al., 2019).
    Exact at every lr, also where it diverges.

    >>> risk([1.0], [1.0], lr=0.5, batch_size=4, steps=2, weights=[1.0]).round(5)
    array([0.5    , 0.15625, 0.07031])
    """
    h, c, w = _arguments(eigenvalues, variances, weights)
    lr, batch_size = number("lr", lr, above=0), number("batch_size", batch_size, above=0)
    m, risks = w**2, []
    with np.errstate(over="ignore"):  # a loss that grows without bound is rightly inf
        for _ in range(count("steps", steps, at_least=0) + 1):
            risks.append(0.5 * h @ m)
            m = (1 - lr * h) ** 2 * m + lr**2 * c / batch_size
    return np.array(risks)


def floor(eigenvalues, variances, lr, batch_size):
    """Return the expected loss at which SGD stays, sum_i lr c_i / (2 B (2 - lr h_i)); inf from lr = 2 / max h_i on.

    At small lr it is proportional to lr / batch_size (Zhang et al., 2019).

    >>> round(floor([1.0], [1.0], lr=0.5, batch_size=4), 6)
    0.041667
    """
    h, c, w = _arguments(eigenvalues, variances, eigenvalues)
    lr, batch_size = number("lr", lr, above=0), number("batch_size", batch_size, above=0)
    return float(_modes(h, c, w, lr, batch_size)[2].sum())


def steps_to(eigenvalues, variances, lr, batch_size, weights, target):
    """Return after how many updates the expected loss first is ``target``, a real number; inf if never.

    A formula in t that equals ``risk`` at whole steps and runs smoothly between them: round up to count updates.

    >>> round(steps_to([1.0], [1.0], lr=0.5, batch_size=4, weights=[1.0], target=0.0703125), 6)
    2.0
    """
    h, c, w = _arguments(eigenvalues, variances, weights)
    lr, batch_size = number("lr", lr, above=0), number("batch_size", batch_size, above=0)
    return first_hit(*_modes(h, c, w, lr, batch_size), number("target", target, above=0))


def min_steps(eigenvalues, variances, batch_size, weights, target):
    """Return (steps, lr): the fewest updates to the expected loss ``target`` with any constant lr, and that lr.

    The curve S(B), with no simulation and no fit. ``batch_size=math.inf`` is gradient descent without noise.

    >>> steps, lr = min_steps([1.0, 0.1], [1.0, 0.1], 16, [1.0, 1.0], target=0.01)
    >>> round(steps, 1), round(lr, 3)
    (40.2, 0.346)
    """
    h, c, w = _arguments(eigenvalues, variances, weights)
    batch_size = batch_size if batch_size == math.inf else number("batch_size", batch_size, above=0)
    target = number("target", target, above=0)
    return fewest_steps(lambda lr: first_hit(*_modes(h, c, w, lr, batch_size), target), 2 / h.max())


def critical_batch(eigenvalues, variances, weights, target):
    """Return the batch size at which ``min_steps`` is twice its limit without noise, S(inf).

    In the law S = S_min (1 + B_crit / B) of McCandlish et al. (2018) that size is B_crit. Here it needs no fit, and it
    has a value where the law does not hold.

    >>> round(critical_batch([1.0, 0.1], [1.0, 0.1], [1.0, 1.0], target=0.01))
    120
    """

    def steps(batch_size):
        return min_steps(eigenvalues, variances, batch_size, weights, target)[0]

    return batch_at_steps(steps, 2 * steps(math.inf))


def _arguments(eigenvalues, variances, weights):
    h = array("eigenvalues", eigenvalues, ndim=1, above=0)
    return h, array("variances", variances, shape=h.shape, at_least=0), array("weights", weights, shape=h.shape)


def _modes(h, c, w, lr, batch_size):
    """(rates, start, floor) of risk(t) = sum_i start_i rate_i^t + floor_i (1 - rate_i^t)."""
    floor = lr * c / (2 * batch_size * (2 - lr * h)) if lr * h.max() < 2 else np.full(len(h), math.inf)
    return (1 - lr * h) ** 2, 0.5 * h * w**2, floor

"""Closed forms in float64 numpy: what the instruments and the trained models are held against.

Deterministic gradient descent, the noisy quadratic model, mean estimation, the laws of a batch gradient, escape from
a saddle, Adam's noise floor. Gaussian least squares has a file of its own, ``least_squares``.

Everywhere the loss is the mean over the examples of a batch, ``steps`` counts updates, a quadratic is
L(w) = 1/2 sum_i h_i w_i^2 with its minimum at 0 and value 0 there, and ``eigenvalues`` are its curvatures h_i > 0
(leave flat directions out: they change no loss).
"""

import numpy as np

from ._check import array, count, fail, number


def positive(name, value, *, ndim=1):
    """Return ``value`` as a float64 array of ``ndim`` dimensions and numbers above 0, else raise ValueError.

    >>> positive("eigenvalues", [1, 0.5])
    array([1. , 0.5])
    """
    a = array(name, value, ndim=ndim)
    if (a <= 0).any():
        fail(name, value, "numbers above 0 only")
    return a


# --- Deterministic gradient descent on a quadratic ---------------------------------------------------------------


def gd_max_lr(eigenvalues):
    """Return the learning rate at and above which full-batch gradient descent no longer converges: 2 / max eigenvalue.

    Each direction obeys w' = (1 - lr h) w, which shrinks iff |1 - lr h| < 1.

    >>> gd_max_lr([4.0, 1.0])
    0.5
    """
    return float(2 / positive("eigenvalues", eigenvalues).max())


def gd_risk(eigenvalues, lr, steps, weights):
    """Return the loss before each update of full-batch gradient descent and after the last, shape (steps + 1,).

    L(t) = 1/2 sum_i h_i (1 - lr h_i)^(2t) w_i^2, exact at every lr, also where it diverges.

    ``weights``: where it starts, the distances from the minimum along each eigenvector, shaped like ``eigenvalues``.

    >>> gd_risk([4.0, 1.0], lr=0.25, steps=2, weights=[1.0, 1.0]).round(4)
    array([2.5   , 0.2812, 0.1582])
    """
    h = positive("eigenvalues", eigenvalues)
    lr, steps = number("lr", lr, above=0), count("steps", steps, at_least=0)
    w = array("weights", weights, shape=h.shape)
    t = np.arange(steps + 1)[:, None]
    with np.errstate(over="ignore"):  # past gd_max_lr the loss grows without bound: inf is the answer
        return 0.5 * ((1 - lr * h) ** (2 * t)) @ (h * w**2)


def gd_steps(eigenvalues, lr, eps):
    """Return how many updates of full-batch gradient descent multiply the loss by ``eps``, a real number (round up).

    ln(1/eps) / (-2 ln max_i |1 - lr h_i|): exact where the error lies in the slowest direction, otherwise an upper
    bound. ``inf`` where gradient descent does not converge, i.e. for lr >= ``gd_max_lr``; 0 where one step is enough
    for any eps.

    >>> round(gd_steps([4.0, 1.0], lr=0.4, eps=1e-3), 2)
    6.76
    >>> gd_steps([4.0, 1.0], lr=0.5, eps=1e-3)
    inf
    """
    h, lr = positive("eigenvalues", eigenvalues), number("lr", lr, above=0)
    eps = number("eps", eps, above=0, below=1)
    rate = _log_abs_one_minus(lr * h).max()
    return float(np.inf) if rate >= 0 else float(np.log(eps) / (2 * rate))


def _log_abs_one_minus(x):
    """ln|1 - x| without the cancellation at small x; -inf at x = 1."""
    with np.errstate(divide="ignore"):
        return np.where(x < 1, np.log1p(-np.minimum(x, 1)), np.log(np.abs(x - 1)))

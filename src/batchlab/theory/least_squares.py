"""SGD on Gaussian least squares, solved exactly: inputs x ~ N(0, H), targets y = x.w* + noise, a fresh batch each step.

The loss is *half* the squared error, 1/2 (x.w - y)^2, averaged over the batch: the Hessian is then H, of
``eigenvalues`` lambda_i > 0. (torch's mse_loss is twice that: its learning rate is half of the one here.)
``weights`` is the starting error w - w* along each eigenvector, ``label_variance`` that of the label noise, and risk
means *excess* risk, 1/2 E (w - w*)' H (w - w*): the expected loss less label_variance / 2. ``batch_size`` may be any
number above 0.

The second moments m_i of the error obey
m' = (1 - lr lambda)^2 m + (lr^2 / B) (lambda^2 m + lambda <lambda, m>) + lr^2 label_variance lambda / B,
exact for Gaussian inputs: Feuer and Weinstein (1985) for B = 1. The noise grows with the error, so unlike the noisy
quadratic model small batches also have a smaller largest learning rate.
"""

import math

import numpy as np
from scipy.optimize import brentq

from batchlab._check import array, count, number
from batchlab.theory._steps import batch_at_steps, fewest_steps, first_hit


def risk(eigenvalues, lr, batch_size, steps, weights, label_variance=0.0):
    """Return the expected excess risk after 0, 1, ... ``steps`` updates, shape (steps + 1,).

    The recursion above, exact at every lr, also where it diverges.

    >>> risk([1.0], lr=0.5, batch_size=2, steps=2, weights=[1.0])
    array([0.5  , 0.25 , 0.125])
    """
    h, w, lr, batch_size, noise = _arguments(eigenvalues, weights, lr, batch_size, label_variance)
    m, risks = w**2, []
    with np.errstate(over="ignore"):  # a risk that grows without bound is rightly inf
        for _ in range(count("steps", steps, at_least=0) + 1):
            risks.append(0.5 * h @ m)
            m = (1 - lr * h) ** 2 * m + lr**2 / batch_size * (h**2 * m + h * (h @ m) + noise * h)
    return np.array(risks)


def max_lr(eigenvalues, batch_size):
    """Return the learning rate from which the expected risk no longer falls.

    It falls iff q = (lr / B) sum_i lambda_i / (2 - lr lambda_i (1 + 1/B)) < 1 and lr max lambda (1 + 1/B) < 2
    (Feuer and Weinstein, 1985, for B = 1); q grows with lr, so the limit is where q = 1. It approaches
    2 / max lambda as the batch grows. Near it the risk is heavy-tailed: rare runs carry its expectation.

    >>> [round(max_lr(1 / np.arange(1, 51), b), 3) for b in (1, 16, 256)]
    [0.373, 1.747, 1.984]
    """
    h = array("eigenvalues", eigenvalues, ndim=1, above=0)
    batch_size = number("batch_size", batch_size, above=0)
    highest = 2 / (h.max() * (1 + 1 / batch_size))  # q is infinite there
    below = highest * (1 - 1e-15)
    if _q(h, below, batch_size) <= 1:  # a batch so large that no number lies between
        return float(highest)
    return brentq(lambda lr: _q(h, lr, batch_size) - 1, 0, below, xtol=1e-15 * highest)


def floor(eigenvalues, lr, batch_size, label_variance):
    """Return the excess risk at which SGD stays: label_variance q / (2 (1 - q)), q as in ``max_lr``; inf from there on.

    At small lr it is lr label_variance sum lambda / (4 B): proportional to lr / batch_size.

    >>> round(floor([1.0, 0.5], lr=0.5, batch_size=4, label_variance=1.0), 5)
    0.07336
    """
    h, _, lr, batch_size, noise = _arguments(eigenvalues, eigenvalues, lr, batch_size, label_variance)
    if lr >= max_lr(h, batch_size):
        return math.inf
    q = _q(h, lr, batch_size)
    return noise * q / (2 * (1 - q))


def steps_to(eigenvalues, lr, batch_size, weights, target, label_variance=0.0):
    """Return after how many updates the expected excess risk first is ``target``, a real number; inf if never.

    A formula in t that equals ``risk`` at whole steps and runs smoothly between them: round up to count updates.

    >>> round(steps_to([1.0], lr=0.5, batch_size=2, weights=[1.0], target=0.125), 6)
    2.0
    """
    arguments = _arguments(eigenvalues, weights, lr, batch_size, label_variance)
    return first_hit(*_modes(*arguments), number("target", target, above=0))


def min_steps(eigenvalues, batch_size, weights, target, label_variance=0.0):
    """Return (steps, lr): the fewest updates to the expected excess risk ``target`` with any constant lr, and that lr.

    The curve S(B), with no simulation and no fit. ``batch_size=math.inf`` is gradient descent without noise.

    >>> steps, lr = min_steps(np.ones(9), 30, np.ones(9), target=4.5e-3)
    >>> round(steps, 3), round(lr, 3)  # isotropic: ln(1000) / ln(1 + 30/10), and 30/40
    (4.983, 0.75)
    """
    h, w, _, _, noise = _arguments(eigenvalues, weights, 1.0, 1.0, label_variance)
    batch_size = batch_size if batch_size == math.inf else number("batch_size", batch_size, above=0)
    target = number("target", target, above=0)
    limit = 2 / h.max() if batch_size == math.inf else max_lr(h, batch_size)
    return fewest_steps(lambda lr: first_hit(*_modes(h, w, lr, batch_size, noise), target), limit)


def critical_batch(eigenvalues, weights, target, label_variance=0.0):
    """Return the batch size at which ``min_steps`` is twice its limit for large batches, S(inf); nan if that is 0.

    In the law S = S_min (1 + B_crit / B) of McCandlish et al. (2018) that size is B_crit. Here it needs no fit, and
    it has a value where the law does not hold.

    >>> round(critical_batch([1.0, 0.1], [1.0, 1.0], target=0.001), 1)
    4.2
    """

    def steps(batch_size):
        return min_steps(eigenvalues, batch_size, weights, target, label_variance)[0]

    return batch_at_steps(steps, 2 * steps(math.inf))


def noise_scales(eigenvalues, weights, label_variance=0.0):
    """Return (B_simple, B_noise) of one example's gradient at the error ``weights``.

    G = H e, and with r = e' H e + label_variance, Sigma = r H + G G' (fourth moments of a Gaussian), so
    B_simple = tr Sigma / |G|^2 = 1 + r sum lambda / sum lambda^2 e^2 and
    B_noise = tr(H Sigma) / G' H G = 1 + r sum lambda^2 / sum lambda^3 e^2 (definitions: McCandlish et al., 2018).

    >>> noise_scales([1.0, 1.0, 1.0], [1.0, 0.0, 0.0])
    (4.0, 4.0)
    """
    h, e, _, _, noise = _arguments(eigenvalues, weights, 1.0, 1.0, label_variance)
    r = h @ e**2 + noise
    return float(1 + r * h.sum() / (h**2 @ e**2)), float(1 + r * (h @ h) / (h**3 @ e**2))


# --- H = the identity in d dimensions: everything in one line ----------------------------------------------------


def isotropic_max_lr(dimension, batch_size):
    """Return the learning rate from which the risk no longer falls: 2 B / (B + d + 1).

    >>> isotropic_max_lr(dimension=9, batch_size=10)
    1.0
    """
    return 2 * isotropic_lr(dimension, batch_size)


def isotropic_lr(dimension, batch_size):
    """Return the learning rate at which the noiseless risk falls fastest: B / (B + d + 1), half the largest.

    >>> isotropic_lr(dimension=9, batch_size=10)
    0.5
    """
    d, batch_size = count("dimension", dimension), number("batch_size", batch_size, above=0)
    return batch_size / (batch_size + d + 1)


def isotropic_contraction(dimension, batch_size):
    """Return what the noiseless risk is multiplied by at each update at ``isotropic_lr``: (d + 1) / (B + d + 1).

    >>> isotropic_contraction(dimension=9, batch_size=10)
    0.5
    """
    return 1 - isotropic_lr(dimension, batch_size)


def isotropic_steps(dimension, batch_size, eps):
    """Return the updates that multiply the noiseless risk by ``eps`` at ``isotropic_lr``: ln(1/eps) / ln(1 + B/(d+1)).

    Far below B = d + 1 doubling the batch halves the steps; far above it each doubling takes off less and less, though
    there is no floor: with one curvature a large batch makes a Newton step. A real number; round up.

    >>> round(isotropic_steps(dimension=9, batch_size=10, eps=1 / 1024), 6)
    10.0
    """
    d, batch_size = count("dimension", dimension), number("batch_size", batch_size, above=0)
    return -math.log(number("eps", eps, above=0, below=1)) / math.log1p(batch_size / (d + 1))


def isotropic_error(dimension, lr, batch_size, label_variance):
    """Return E|w - w*|^2 at which SGD stays: lr label_variance d / (2 B - lr (B + d + 1)); inf from the limit on.

    The small-lr form, lr label_variance d / (2 B), is too low by the share lr (B + d + 1) / (2 B) of this.

    >>> round(isotropic_error(dimension=9, lr=0.5, batch_size=10, label_variance=1.0), 6)
    0.45
    """
    d, batch_size = count("dimension", dimension), number("batch_size", batch_size, above=0)
    lr, noise = number("lr", lr, above=0), number("label_variance", label_variance, at_least=0)
    room = 2 * batch_size - lr * (batch_size + d + 1)
    return math.inf if room <= 0 else lr * noise * d / room


def _arguments(eigenvalues, weights, lr, batch_size, label_variance):
    h = array("eigenvalues", eigenvalues, ndim=1, above=0)
    return (
        h,
        array("weights", weights, shape=h.shape),
        number("lr", lr, above=0),
        number("batch_size", batch_size, above=0),
        number("label_variance", label_variance, at_least=0),
    )


def _q(h, lr, batch_size):
    return float((h / (2 - lr * h * (1 + 1 / batch_size))).sum() * lr / batch_size)


def _modes(h, w, lr, batch_size, noise):
    """(rates, start, floor) of risk(t) = sum_i start_i rate_i^t + floor_i (1 - rate_i^t)."""
    matrix = np.diag((1 - lr * h) ** 2 + lr**2 * h**2 / batch_size) + lr**2 / batch_size * np.outer(h, h)
    rates, vectors = np.linalg.eigh(matrix)  # the recursion's matrix is symmetric, and positive semi-definite
    rates = np.maximum(rates, 0)
    along = 0.5 * vectors.T @ h
    if rates.max() >= 1:
        return rates, along * (vectors.T @ w**2), np.full(len(h), math.inf)
    return rates, along * (vectors.T @ w**2), along * (vectors.T @ (lr**2 * noise * h / batch_size)) / (1 - rates)

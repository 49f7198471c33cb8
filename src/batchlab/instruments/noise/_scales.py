"""Noise scales from the gradients of single examples."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from batchlab._check import count, fail, one_of
from batchlab._seeds import generator
from batchlab.instruments._flat import checked, gradients, products, wide
from batchlab.instruments.noise._ratio import Parts, estimates, ratio
from batchlab.stats import Interval


@dataclass(frozen=True)
class NoiseScale:
    """What ``noise_scale`` and ``two_batch`` return.

    ``squared_norm`` |G|^2, ``trace`` tr Sigma, ``b_simple`` their ratio in examples, ``b_noise`` in examples (None
    unless asked for).
    """

    squared_norm: Interval
    trace: Interval
    b_simple: Interval
    b_noise: Interval | None = None


def noise_scale(model, loss, x, y, population=None, curvature=False, probes=64, seed=0, memory=2**28):
    """Measure |G|^2, tr Sigma and B_simple (and B_noise with ``curvature``) at the model's parameters.

    ``population``: of how many examples the N in ``x`` are a random sample without replacement. None is endless supply:
    the N are themselves a sample and the intervals say how far from the truth that leaves us. ``population=len(x)``
    says that they are all there is: the numbers are exact, up to rounding, for training on these N.

    |G|^2 is estimated by |g|^2 - tr Sigma / N (times 1 - N/population), without bias; B_simple is a ratio of unbiased
    estimates. No gradient but a running few is stored: ``probes`` + 1 random combinations of all gradients carry
    the interval (and the estimate of tr(H Sigma), at ``probes`` Hessian-vector products), (probes + 1) P numbers.
    The interval holds the ratios that a test does not reject, after Fieller (1954), with the skewness of the estimate
    taken into account. For planted covariances of many shapes and B_simple from 1 to 10^4 it covers 93 to 98%; its weak
    spot is a gradient that lies wholly along the noisiest direction and can barely be told from zero: 88%. That of
    B_noise errs on the wide side at the usual ``probes``.

    Raises ValueError as ``per_example_gradients`` does, and for fewer than 4 examples.

    >>> model = torch.nn.Linear(3, 1, bias=False)
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> x = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    >>> found = noise_scale(model, torch.nn.functional.mse_loss, x, x.sum(1, keepdim=True)).b_simple
    >>> found.low < 4.0 < found.high  # least_squares.noise_scales([1, 1, 1], [1, 1, 1])
    True
    """
    objective, w, x, y = checked(model, loss, x, y)
    n = len(x)
    if n < 4:
        fail("len(x)", n, "at least 4 examples")
    population = math.inf if population is None else count("population", population, at_least=n)
    one_of("curvature", curvature, (True, False))
    probes = min(count("probes", probes, at_least=3), n - 1)
    dtype = wide(w.device)
    mix = torch.from_numpy(_mixing(n, probes, seed)).to(w.device, dtype)

    mixed, squares, shift = torch.zeros(probes + 1, len(w), device=w.device, dtype=dtype), [], None
    for start, g in gradients(objective, w, x, y, memory):
        # Around a point near the mean, so that a covariance far smaller than the mean survives rounding.
        shift = g.mean(0) if shift is None else shift
        g -= shift
        squares.append(torch.linalg.vector_norm(g, dim=1).to(dtype).square())
        mixed += mix[:, start : start + len(g)].to(g.dtype) @ g
    squares = torch.cat(squares)
    own = mixed[0] / math.sqrt(n)  # the mean, seen from the shift
    trace = float((squares.sum() - n * own @ own) / (n - 1))
    trace_moves = mix[1:] @ squares - 2 * mixed[1:] @ own  # how |g_i - G|^2 varies, along the probes
    mixed[0] += math.sqrt(n) * shift

    gram = (mixed @ mixed.T).cpu().numpy()
    moves = trace_moves.cpu().numpy()
    left = 1 - n / population
    covariance = left * 2 * np.mean(moves * gram[0, 1:]) / n**1.5
    parts = Parts(gram, n, left, trace, left * np.mean(moves**2) / n, covariance)
    size = 1 - 1 / population  # Sigma divides by the population, the unbiased trace by one less
    b_noise = None
    if curvature:
        b_noise = _b_noise(mixed, *products(objective, w, x, y, mixed, seed), parts, size)
    return NoiseScale(*estimates(parts, size), b_noise)


def _mixing(n, probes, seed):
    """(probes + 1, n) orthonormal rows, the first constant, the others random: N(G, Sigma) gradients mixed by them are
    sqrt(n) times the mean, and ``probes`` independent draws from N(0, Sigma)."""
    random = generator(seed, "mixing").standard_normal((n, probes + 1))
    random[:, 0] = 1
    rows = np.linalg.qr(random)[0].T
    return rows * np.sign(rows[0, 0])


def _b_noise(mixed, bent, forms, parts, size):
    """B_noise: as B_simple, with u'Hv in the place of u'v. tr(H Sigma) is the mean over the probes of u'Hu.

    tr Sigma is known without probes, so how far the probes miss it tells how far they miss tr(H Sigma): a control
    variate, which for H = I leaves no error of probing. H is estimated too: ``forms`` (pieces, probes + 1) are the u'Hu
    of pieces of the data. The interval leaves out what the control variate gains, to make up for the correlation of
    the errors of H and of the gradients, which is left out as well: it errs on the wide side.
    """
    gram = (mixed @ bent.T).cpu().numpy()
    gram = (gram + gram.T) / 2
    own, plain = np.diag(gram)[1:], np.diag(parts.gram)[1:]
    slope = np.cov(own, plain)[0, 1] / plain.var(ddof=1) if plain.var() > 0 else 0.0
    trace = own.mean() - slope * (plain.mean() - parts.trace)
    probing = own.var(ddof=1) / len(own)
    # What sampling adds to the error of probing is taken in proportion to its part in tr Sigma and |G|^2.
    share = trace / parts.trace if parts.trace > 0 else 0.0
    stretch = gram[0, 0] / parts.gram[0, 0] if parts.gram[0, 0] > 0 else 0.0
    traces = forms[:, 1:].mean(1)
    hessian = parts.left * np.cov(traces, (forms[:, 0] - parts.left * traces) / parts.n) / len(forms)
    variance = probing + parts.trace_variance * share**2 + hessian[0, 0]
    covariance = parts.covariance * share * stretch + hessian[0, 1]
    along = Parts(gram, parts.n, parts.left, trace, variance, covariance, hessian[1, 1])
    if trace <= 0 or gram[0, 0] <= 0:  # a Hessian that curves downwards along the noise or the gradient
        norm = along.squared_norm()
        return Interval(float(size * trace / norm) if norm > 0 else math.nan, -math.inf, math.inf)
    return ratio(along).times(size)

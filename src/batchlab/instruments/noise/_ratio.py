"""Intervals for the ratio of a trace to a squared norm, where the norm may not be told from zero."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import special
from scipy.optimize import brentq

from batchlab.stats import Interval, student_t


@dataclass(frozen=True)
class Parts:
    """What an interval is made of: the Gram matrix of sqrt(n) x the mean (row 0) and of probes of Sigma (other rows),
    n, the share of the variance that sampling leaves, tr Sigma, its estimate's variance and covariance with |G|^2's,
    and what else adds to the variance of |G|^2's."""

    gram: np.ndarray
    n: int
    left: float
    trace: float
    trace_variance: float
    covariance: float
    norm_variance: float = 0.0

    def squared_norm(self):
        return (self.gram[0, 0] / self.n) - self.left * self.trace / self.n


def estimates(parts, size):
    """(|G|^2, tr Sigma, B_simple) as ``Interval``s; ``size`` turns the unbiased trace into the population's own."""
    norm, t = parts.squared_norm(), student_t(len(parts.gram) - 1)
    half = t * math.sqrt(spread(parts)[0](max(norm, 0.0)))
    wide = t * math.sqrt(parts.trace_variance)
    return (
        Interval(float(norm), float(norm - half), float(norm + half)),
        Interval(float(parts.trace), float(parts.trace - wide), float(parts.trace + wide)).times(size),
        ratio(parts).times(size),
    )


def spread(parts):
    """Two functions of |G|^2: the variance of its estimate, and its third cumulant.

    With z ~ N(0, Sigma / n) the estimate is |G|^2 + 2 G'z + |z|^2 - E|z|^2: its variance is 4 G'Sigma G / n +
    2 tr Sigma^2 / n^2 and its third cumulant 24 G'Sigma^2 G / n^2 + 8 tr Sigma^3 / n^3. The variance along G is taken
    along its estimate.
    """
    n, f, d = parts.n, parts.left, len(parts.gram) - 1
    pairs = parts.gram[1:, 1:] * (1 - np.eye(d))
    square = (pairs**2).sum() / (d * (d - 1))
    cube = max(np.einsum("ij,ji->", pairs @ pairs, pairs) / (d * (d - 1) * (d - 2)), 0.0)
    along = np.mean(parts.gram[0, 1:] ** 2) / parts.gram[0, 0] if parts.gram[0, 0] > 0 else 0.0

    def variance(norm):
        return parts.norm_variance + f * 4 * norm * along / n + f**2 * 2 * square / n**2

    def third(norm):
        return f**2 * 24 * norm * along**2 / n**2 + f**3 * 8 * cube / n**3

    return variance, third


def ratio(parts):
    """The ``Interval`` of trace / |G|^2: the ratios 1 / share at which norm - share * trace is not far from 0."""
    norm, trace = parts.squared_norm(), parts.trace
    variance, third = spread(parts)
    tail = special.ndtr(-student_t(len(parts.gram) - 1))

    def below(share):
        """The probability of a smaller value of norm - share * trace, where |G|^2 is share * trace."""
        v = variance(share * trace)
        bound = math.sqrt(v * parts.trace_variance)
        covariance = min(max(parts.covariance, -bound), bound)
        v = v - 2 * share * covariance + share**2 * parts.trace_variance
        gap = norm - share * trace
        return float(gap >= 0) if v <= 0 else skewed_cdf(gap / math.sqrt(v), third(share * trace) / v**1.5)

    estimate = float(trace / norm) if norm > 0 else math.nan
    if parts.trace_variance <= 0 and (parts.left == 0 or trace <= 0):  # all there is was measured, or all are alike
        return Interval(estimate, estimate, estimate) if norm > 0 else Interval(math.nan, 0.0, math.inf)
    at_infinity = below(0.0)
    if at_infinity < tail:  # further below zero than any |G|^2 explains: the data say nothing
        return Interval(estimate, 0.0, math.inf)
    high = math.inf if at_infinity < 1 - tail else 1 / falls_to(below, 1 - tail, norm / trace)
    return Interval(estimate, 1 / falls_to(below, tail, abs(norm) / trace), high)


def falls_to(function, level, start):
    """The argument at which a falling function of a positive number is ``level``, looked for around ``start``.

    Infinite where it does not fall that far, as where the trace itself cannot be told from 0.
    """
    low = high = start if start > 0 else 1.0
    least, most = low / 1e40, high * 1e40
    while function(low) < level and low > least:
        low /= 4
    while function(high) > level and high < most:
        high *= 4
    if function(low) <= level:
        return low
    if function(high) >= level:
        return high if high < most else math.inf
    return math.exp(brentq(lambda log: function(math.exp(log)) - level, math.log(low), math.log(high), xtol=1e-13))


def skewed_cdf(z, skewness):
    """P(Z <= z) of a gamma variable shifted and scaled to mean 0, variance 1 and this skewness >= 0 (Pearson III).

    scipy.stats.pearson3.cdf is the same number, a hundred times as slowly, and below a skewness of 1e-3 less exact.
    """
    if skewness < 1e-3:
        return float(special.ndtr(z))
    shape = 4 / skewness**2
    return float(special.gammainc(shape, max(shape + z * math.sqrt(shape), 0.0)))

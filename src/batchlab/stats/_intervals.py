"""The ``Interval``, and those that a formula gives: Student's, Wilson's, Fieller's, and two one-sided tests."""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import special, stats

from batchlab._check import array, count, fail, number, one_of
from batchlab.stats._clusters import unit_means


@dataclass(frozen=True)
class Interval:
    """An estimate, and the confidence interval [low, high] around it at ``level``.

    >>> estimate, (low, high) = Interval(0.5, 0.4, 0.7)
    >>> print(Interval(0.5, 0.4, 0.7))
    0.5 [0.4, 0.7]
    """

    estimate: float
    low: float
    high: float
    level: float = 0.95

    def __iter__(self):
        return iter((self.estimate, (self.low, self.high)))

    def __str__(self):
        return f"{self.estimate:.4g} [{self.low:.4g}, {self.high:.4g}]"

    def times(self, factor):
        """The interval of ``factor`` > 0 times the number, as in a change of units.

        >>> print(Interval(0.5, 0.4, 0.7).times(1000))
        500 [400, 700]
        """
        factor = number("factor", factor, above=0)
        return Interval(factor * self.estimate, factor * self.low, factor * self.high, self.level)


@dataclass(frozen=True)
class Equivalence:
    """A two one-sided test: the mean ``difference`` with its (1 - 2 alpha) interval, the margin, p and the verdict."""

    difference: Interval
    margin: float
    p: float
    equivalent: bool


@cache
def student_t(degrees, level=0.95):
    """The half-width of a two-sided interval in standard errors: the (1 + level) / 2 quantile of Student's t.

    >>> round(student_t(9), 3)
    2.262
    """
    degrees, level = count("degrees", degrees), number("level", level, above=0, below=1)
    return float(special.stdtrit(degrees, (1 + level) / 2))


def mean_interval(values, *, clusters=None, level=0.95):
    """The mean of ``values`` (n,), n >= 2, with Student's interval: exact for normal values, at any n.

    Ten seeds of anything near normal are covered as often as it says (95%; of exponential values, 91%); the
    bootstrap's interval is too narrow there.

    ``clusters``, one label a row, says what the seeds are nested in (a class, a data set): then it is the mean of the
    clusters' means, in which each counts once, whatever its size, and t has one degree of freedom fewer than there are
    clusters (Donner & Klar 2000). It holds with few clusters, where resampling them does not: of five classes of five
    seeds, correlated 0.5, it covered with 94%, and with 73% where it was not told of them (results/00-coverage.csv).

    >>> print(mean_interval([0.71, 0.68, 0.70, 0.73, 0.69, 0.72, 0.70, 0.71, 0.74, 0.67]))
    0.705 [0.6895, 0.7205]
    """
    values = unit_means(per_seed("values", values, ndim=1), clusters)
    reach = student_t(len(values) - 1, level) * float(values.std(ddof=1)) / math.sqrt(len(values))
    mean = float(values.mean())
    return Interval(mean, mean - reach, mean + reach, level)


def tost(differences, margin, *, alpha=0.05):
    """Two one-sided t-tests of equivalence (Schuirmann 1987): is the mean difference within (-margin, margin)?

    Equivalent where both one-sided hypotheses, mean <= -margin and mean >= margin, are rejected at ``alpha``: the same
    as the (1 - 2 alpha) t-interval lying inside the margin. State the margin before looking at the data. Not being
    equivalent is not being different: the seeds may be too few to tell.

    >>> tost([0.001, -0.002, 0.003, 0.0, -0.001], margin=0.01).equivalent
    True
    """
    differences = per_seed("differences", differences, ndim=1)
    margin = number("margin", margin, above=0)
    alpha = number("alpha", alpha, above=0, below=0.5)
    found = mean_interval(differences, level=1 - 2 * alpha)
    if found.low == found.high:  # no spread, no t
        p = float(abs(found.estimate) >= margin)
    else:
        above = stats.ttest_1samp(differences, -margin, alternative="greater")
        below = stats.ttest_1samp(differences, margin, alternative="less")
        p = float(max(above.pvalue, below.pvalue))
    return Equivalence(found, margin, p, p < alpha)


def proportion(successes, total, *, level=0.95):
    """A share, e.g. of runs that diverged, with Wilson's interval (1927), which is never empty or outside [0, 1].

    >>> print(proportion(0, 10))
    0 [0, 0.2775]
    """
    total = count("total", total)
    successes = count("successes", successes, at_least=0, at_most=total)
    level = number("level", level, above=0, below=1)
    found = stats.binomtest(successes, total).proportion_ci(level, method="wilson")
    return Interval(successes / total, float(found.low), float(found.high), level)


def fieller(top, bottom, covariance, degrees, *, level=0.95, positive=False):
    """The ratio top / bottom of two means with Fieller's interval (1954).

    It holds the ratios r that Student's t does not reject: (top - r bottom)^2 <= t^2 var(top - r bottom), with
    ``covariance`` (2, 2) that of (top, bottom) and t of so many ``degrees`` of freedom. Where ``bottom`` cannot be told
    from 0 these ratios have no bounds, and what is returned depends on what is known beforehand:

    - nothing: low and high are -inf and inf;
    - ``positive``, numerator and denominator are above 0 whatever their estimates: only ratios from 0 on count, so that
      low may be finite and tell something; and the estimate is NaN where that of the denominator is not above 0.

    Raises ValueError for numbers that are not finite, and where ``bottom`` is 0 and nothing is known.

    >>> print(fieller(2.0, 1.0, [[0.01, 0], [0, 0.01]], degrees=100))
    2 [1.622, 2.542]
    >>> print(fieller(2.0, 0.1, [[0.01, 0], [0, 0.01]], degrees=100, positive=True))
    20 [6.653, inf]
    """
    top, bottom = number("top", top), number("bottom", bottom)
    covariance = array("covariance", covariance, shape=(2, 2))
    one_of("positive", positive, (True, False))
    if bottom == 0 and not positive:
        fail("bottom", bottom, "a number that is not 0, or positive=True")
    t2 = student_t(degrees, level) ** 2
    # the ratios between the roots of a r^2 - 2 b r + c, or outside of them where a < 0
    a, b, c = bottom**2 - t2 * covariance[1, 1], top * bottom - t2 * covariance[0, 1], top**2 - t2 * covariance[0, 0]
    estimate = top / bottom if bottom > 0 or not positive else math.nan
    root = math.sqrt(max(b * b - a * c, 0.0))  # below 0 by rounding, or where a < 0 and nothing is rejected
    if a > 0 and not (positive and bottom < 0):
        low, high = (b - root) / a, (b + root) / a
    elif not positive:
        low, high = -math.inf, math.inf
    elif a > 0 or (a < 0 and c < 0):  # the denominator surely below 0, or neither can be told from 0
        low, high = 0.0, math.inf
    elif a < 0:
        low, high = max((b - root) / a, (b + root) / a), math.inf
    else:
        low, high = c / (2 * b) if b > 0 else 0.0, math.inf
    return Interval(estimate, float(low), float(high), level)


def ratio_of_means(numerators, denominators, *, level=0.95):
    """mean(numerators) / mean(denominators) with Fieller's interval; row i of both comes from the same seed.

    The mean of ratios is biased, and worthless where a denominator may come near 0. Where the mean denominator itself
    cannot be told from 0, no finite interval is right: low and high are then -inf and inf, see ``fieller``.

    >>> print(ratio_of_means([2.0, 2.2, 1.9, 2.1], [1.0, 1.1, 0.9, 1.0]))
    2.05 [1.962, 2.157]
    """
    a, b = paired(numerators=numerators, denominators=denominators)
    if b.mean() == 0:
        fail("denominators", denominators, "values whose mean is not 0")
    return fieller(a.mean(), b.mean(), np.cov(a, b) / len(a), len(a) - 1, level=level)


def per_seed(name, values, ndim=None):
    """``values`` as a float array with one row a seed, at least two of them."""
    values = array(name, values, ndim=ndim)
    if values.ndim == 0 or len(values) < 2:
        fail(f"{name}.shape", values.shape, "at least two seeds")
    return values


def paired(**arms):
    """Arrays of one value a seed, by their names, all of one length."""
    found = [per_seed(name, values, 1) for name, values in arms.items()]
    if len({len(values) for values in found}) > 1:
        fail("lengths", tuple(len(values) for values in found), "equal lengths: values paired by seed")
    return found

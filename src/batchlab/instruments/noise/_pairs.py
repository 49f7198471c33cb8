"""Noise scales from the squared norms of gradients at two batch sizes."""

import math

import numpy as np
import torch

from batchlab._check import array, count, fail, one_of
from batchlab._seeds import generator
from batchlab.instruments._flat import at_least_single
from batchlab.instruments._probe import check_batch, check_independent, check_model, gradient, pieces, trained
from batchlab.instruments.noise._scales import NoiseScale
from batchlab.stats import Interval, fieller, mean_interval


def norm_pair(model, loss, x, y, micro_batch):
    """Return (mean |g_small|^2, |g_big|^2) of one batch: its gradient's squared norm, and that of its micro-batches.

    The batch ``x``, ``y`` is cut into equal micro-batches, so ``micro_batch`` divides its size and is smaller. Costs
    about one gradient of the batch, or a step for each micro-batch where steps are too small to keep the machine busy:
    in halves, at every 25th step, it takes less than 10% of a run. Call it with the batch of the step, before the step,
    collect the pairs, and give them to ``two_batch``. To be cheap it does not check that the loss is a mean; try
    ``noise_scale`` once on the same model and loss. Where gradients are accumulated or sharded the pieces are there
    anyway, and their norms cost nothing.

    >>> model = torch.nn.Linear(2, 1)
    >>> small, big = norm_pair(model, torch.nn.functional.mse_loss, torch.randn(8, 2), torch.randn(8, 1), micro_batch=2)
    >>> small > big
    True
    """
    check_model(model, loss)
    examples, micro_batch = check_batch(x, y), count("micro_batch", micro_batch)
    if examples % micro_batch or micro_batch == examples:
        fail("micro_batch", micro_batch, f"a divisor of the batch's {examples} examples, smaller than it")
    check_independent(model)
    parameters, total, small = trained(model), 0.0, 0.0
    with torch.enable_grad():
        for _, xb, yb in pieces(x, y, micro_batch):
            # Plain autograd: for a few large pieces it is several times faster than vmap.
            found = gradient(loss(model(xb), yb), parameters)
            g = at_least_single(torch.cat([part.reshape(-1) for part in found]))
            total, small = total + g, small + g.dot(g)
    parts = examples // micro_batch
    small, big = float(small / parts), float(total.dot(total) / parts**2)
    if not math.isfinite(small):
        fail("the squared norm of a gradient", small, "a finite number")
    return small, big


def two_batch(small_squared, big_squared, micro_batch, batch_size, population=None, interval="fieller", seed=0):
    """Estimate |G|^2, tr Sigma and B_simple from squared norms of gradients at two batch sizes, one pair a step.

    ``small_squared`` and ``big_squared`` (steps,): |g|^2 of a batch of ``micro_batch`` (or the mean over several) and
    of ``batch_size``, at the same weights; the small one may be part of the big one. From E|g_B|^2 = |G|^2 + a_B tr
    Sigma with a_B = 1/B, every step gives unbiased estimates (McCandlish et al., 2018):

        tr Sigma = (small - big) / (a_small - a_big),  |G|^2 = (big a_small - small a_big) / (a_small - a_big).

    With ``population`` the batches are drawn without replacement from that many examples and
    a_B = (population - B) / (B (population - 1)); leaving that out biases |G|^2 by -tr Sigma / (population - 1).

    B_simple is the ratio of the means over the steps, never the mean of ratios, for the average |G|^2 and tr Sigma of
    the window: keep it short enough that they are of one order. Intervals: Student's, and for the ratio ``interval``:
    "fieller" (1954), or "bootstrap", the percentiles over 2,000 resamplings of the steps, drawn from ``seed``. Both
    count on steps being independent given the weights, which fresh draws are. With 60 steps both covered in 93 to 99%
    of 400 trials, as B_simple and the spectrum varied; with 10 steps Fieller's in 92 to 99%, the bootstrap in 85 to
    98% (benchmarks/instruments.py).

    Raises ValueError for arrays of unlike or too small size (2 steps), negative or non-finite norms, batch sizes not
    in order, and another ``interval``.

    >>> r = np.random.default_rng(0)
    >>> g = 1.0 + 3.0 * r.standard_normal((500, 8, 4))  # |G|^2 = 4, tr Sigma = 36: 8 micro-batches of 1 in a batch
    >>> found = two_batch((g**2).sum(2).mean(1), (g.mean(1) ** 2).sum(1), micro_batch=1, batch_size=8)
    >>> found.b_simple.low < 9.0 < found.b_simple.high
    True
    """
    small = array("small_squared", small_squared, ndim=1, at_least=0)
    big = array("big_squared", big_squared, shape=small.shape, at_least=0)
    if len(small) < 2:
        fail("len(small_squared)", len(small), "at least 2 steps")
    micro_batch = count("micro_batch", micro_batch)
    batch_size = count("batch_size", batch_size, at_least=micro_batch + 1)
    if population is not None:
        population = count("population", population, at_least=batch_size)
    one_of("interval", interval, ("fieller", "bootstrap"))

    def share(size):  # E|g_B|^2 = |G|^2 + share tr Sigma
        return 1 / size if population is None else (population - size) / (size * (population - 1))

    apart = share(micro_batch) - share(batch_size)
    trace = (small - big) / apart
    norm = (big * share(micro_batch) - small * share(batch_size)) / apart
    if interval == "fieller":
        covariance = np.cov(np.stack([trace, norm])) / len(small)
        scale = fieller(trace.mean(), norm.mean(), covariance, len(small) - 1, positive=True)
    else:
        scale = _bootstrapped(trace, norm, generator(seed, "steps"))
    return NoiseScale(mean_interval(norm), mean_interval(trace), scale)


def _bootstrapped(top, bottom, rng, resamples=2000):
    """The ``Interval`` of mean(top) / mean(bottom) by the percentile bootstrap over rows, after Efron (1979).

    Percentiles are taken of bottom / top, which passes smoothly through 0 where the ratio jumps from infinity to minus
    infinity. As in ``fieller``, an end is infinite where mean(bottom) cannot be told from 0.
    """
    rows = rng.integers(len(top), size=(resamples, len(top)))
    tops, bottoms = top[rows].mean(1), bottom[rows].mean(1)
    inverse = np.where(tops > 0, bottoms / np.where(tops > 0, tops, 1.0), np.copysign(math.inf, bottoms))
    least, most = np.quantile(inverse, [0.025, 0.975], method="inverted_cdf")
    estimate = float(top.mean() / bottom.mean()) if bottom.mean() > 0 else math.nan
    if most <= 0:
        return Interval(estimate, 0.0, math.inf)
    return Interval(estimate, float(1 / most), float(1 / least) if least > 0 else math.inf)

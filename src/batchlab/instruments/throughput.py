"""How fast a training step is at each batch size, and from which size on a larger batch stops paying.

The time of a step is modelled as t(B) = t_0 + tau B: t_0 seconds whatever the batch (launching kernels, updating the
weights), tau seconds for each further example. The rate B / t(B) then rises towards 1 / tau, and reaches the fraction f
of it at the *knee* B = f / (1 - f) * t_0 / tau; with f = 1/2 that is B = t_0 / tau, what Hockney and Jesshope call the
half-performance length of a vector computer.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from batchlab._check import array, count, fail, number
from batchlab._seeds import generator
from batchlab.instruments._probe import (
    check_model,
    check_optimizer,
    device_of,
    gradient,
    made,
    preserved,
    synchronise,
    trained,
)
from batchlab.stats import Interval

SMALLEST = 6  # fewer samples than this give no 95% interval for a median without assuming a distribution


@dataclass(frozen=True)
class Timing:
    """The ``seconds`` of one step at one batch size: the median over ``samples`` with its interval.

    Each sample is the mean of a block of steps; ``tight`` says whether the interval met the precision asked for.
    """

    batch_size: int
    seconds: Interval
    samples: tuple
    tight: bool


@dataclass(frozen=True)
class StepLaw:
    """The fit t(B) = t_0 + tau B, every number an ``Interval``.

    ``fixed`` is t_0 in seconds, ``per_example`` is tau in seconds an example, ``knee`` is in examples: there
    ``fraction`` of the peak rate 1 / tau is reached. ``misfit`` is the largest relative distance
    |t(B) - (t_0 + tau B)| / t(B): where it exceeds a few percent the law is not affine over these sizes, and the
    intervals, which know the timing noise only, say too little.
    """

    fixed: Interval
    per_example: Interval
    knee: Interval
    fraction: float
    misfit: float


@dataclass(frozen=True)
class Throughput:
    """One ``Timing`` a batch size, in ascending order, and the ``StepLaw`` fitted to them."""

    timings: tuple
    law: StepLaw

    def table(self):
        """A pandas table: batch_size, seconds, low, high, examples_per_second, samples, tight."""
        return pd.DataFrame(
            {
                "batch_size": t.batch_size,
                "seconds": t.seconds.estimate,
                "low": t.seconds.low,
                "high": t.seconds.high,
                "examples_per_second": t.batch_size / t.seconds.estimate,
                "samples": len(t.samples),
                "tight": t.tight,
            }
            for t in self.timings
        )


def median_interval(values):
    """The median of ``values`` (n,), n >= 6, with a 95% ``Interval`` that assumes no distribution.

    It runs between two order statistics chosen by the binomial law of how many values fall below the true median; it
    covers at least 95%.

    >>> print(median_interval([3, 1, 2, 5, 4, 6]))
    3.5 [1, 6]
    """
    values = np.sort(array("values", values, ndim=1))
    n = len(values)
    if n < SMALLEST:
        fail("len(values)", n, f"at least {SMALLEST}")
    # The two that scipy.stats.quantile_test finds, but that takes fifteen times as long, between any two samples.
    rank = int(stats.binom.ppf(0.025, n, 0.5))  # P(fewer than `rank` values lie below the median) < 2.5%
    return Interval(float(np.median(values)), float(values[rank - 1]), float(values[n - rank]))


def fit_step_law(batch_sizes, samples, *, fraction=0.5, resamples=1000, seed=0):
    """Fit t(B) = t_0 + tau B to ``samples``, one sequence of seconds a batch size, and return the ``StepLaw``.

    Least squares on the medians with weights 1 / t(B)^2, so that every size counts by its relative error; 95% intervals
    by the bootstrap over the samples of each size. Nothing is clamped: a step that costs nothing at B = 0 gives a near
    zero of either sign, hence a knee near zero; tau <= 0 says that the rate still grows at the largest size, and the
    knee is infinite.

    Raises ValueError for fewer than two different sizes, for times that are not positive and finite, and for
    ``fraction`` outside (0, 1).

    >>> law = fit_step_law([1, 2, 4], [[1.5], [2.0], [3.0]])
    >>> print(law.fixed, law.per_example, law.knee, sep=", ")
    1 [1, 1], 0.5 [0.5, 0.5], 2 [2, 2]
    """
    sizes = array("batch_sizes", batch_sizes, ndim=1)
    number("fraction", fraction, above=0, below=1)
    count("resamples", resamples)
    if len(samples) != len(sizes):
        fail("len(samples)", len(samples), f"one sequence a batch size, {len(sizes)}")
    if len(np.unique(sizes)) < 2 or sizes.min() <= 0:
        fail("batch_sizes", batch_sizes, "at least two different positive sizes")
    samples = [array("samples", s, ndim=1) for s in samples]
    if min(s.min() for s in samples) <= 0:
        fail("samples", min(s.min() for s in samples), "seconds above 0")

    def solve(times):
        # Each column of `times` (sizes, draws) is one fit: t/t = t_0/t + tau B/t, two unknowns.
        rows = np.stack([1 / times, sizes[:, None] / times])  # (2, sizes, draws)
        gram = np.einsum("isd,jsd->dij", rows, rows)
        fixed, each = np.linalg.solve(gram, rows.sum(axis=1).T[..., None])[..., 0].T
        with np.errstate(divide="ignore", invalid="ignore"):
            return fixed, each, np.where(each > 0, fraction / (1 - fraction) * fixed / each, np.inf)

    rng = generator(seed, "timings")
    medians = np.array([np.median(s) for s in samples])
    draws = [np.median(rng.choice(s, size=(len(s), resamples)), axis=0) for s in samples]
    fitted = [float(v[0]) for v in solve(medians[:, None])]  # t_0, tau, knee
    # Order statistics, not interpolated ones: a knee may be infinite in some draws.
    ends = [np.quantile(v, [0.025, 0.975], method="nearest") for v in solve(np.stack(draws))]
    law = [Interval(v, float(low), float(high)) for v, (low, high) in zip(fitted, ends, strict=True)]
    fixed, each, _ = fitted
    misfit = float(np.max(np.abs(medians - fixed - each * sizes) / medians))
    return StepLaw(*law, fraction, misfit)


def training_step(model, loss, optimizer, make_batch):
    """A step for ``measure_throughput`` from a model, a mean loss, its optimiser and a data maker.

    ``make_batch(batch_size)`` returns ``(x, y)``, tensors on the model's device with ``batch_size`` examples. What
    comes back is called with a batch size, makes the data once, tries the loss, and returns the step to be timed:
    gradients to None, forward, backward, update. The steps do train the model: wrap the measurement in
    ``measure_training``, which puts everything back, unless that is wanted.

    Raises ValueError for a model, batch or loss that no step can be made of.

    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> prepare = training_step(
    ...     model, torch.nn.functional.mse_loss, sgd, lambda b: (torch.ones(b, 2), torch.ones(b, 1)))
    >>> step = prepare(8)
    >>> step()
    """
    check_model(model, loss)
    check_optimizer(optimizer)

    def prepare(batch_size):
        x, y = made(make_batch, batch_size)
        gradient(loss(model(x), y), trained(model))  # for its checks, outside the timing

        def step():
            optimizer.zero_grad(set_to_none=True)
            loss(model(x), y).backward()
            optimizer.step()

        return step

    return prepare


def measure_throughput(
    prepare: Callable,
    batch_sizes,
    *,
    device="cpu",
    precision=0.02,
    seconds=10.0,
    warmup=5,
    block=0.01,
    fraction=0.5,
    seed=0,
    clock=time.perf_counter,
):
    """Time a training step at each of ``batch_sizes`` and fit t(B) = t_0 + tau B; returns ``Throughput``.

    ``prepare(batch_size)`` makes what the step needs, outside the timing, and returns the step: a function of no
    argument. ``warmup`` calls of every size run before anything is timed, so that code loaded, memory reserved or
    kernels chosen on the first calls are never in a sample. The sizes then take turns, so that a slow minute of the
    machine falls on all of them. A sample is the mean over a block of steps lasting about ``block`` seconds; the clock
    is read only when ``device`` (cpu, cuda, mps) has finished. Sampling goes on until the half-width of each median's
    95% interval is below ``precision`` times the median, or ``seconds`` have passed; six samples a size are taken in
    any case. ``Timing.tight`` says which of the two happened (stopping when an interval happens to be narrow makes it a
    little too narrow).

    Raises ValueError for fewer than two different batch sizes or one below 1, and whatever the step raises.

    >>> now = [0.0]                     # a clock and a step of known cost: 3 ms + 0.5 ms an example
    >>> def prepare(batch_size):
    ...     def step():
    ...         now[0] += 0.003 + 0.0005 * batch_size
    ...     return step
    >>> found = measure_throughput(prepare, [1, 8, 64], clock=lambda: now[0])
    >>> print(found.law.fixed, found.law.per_example, found.law.knee, sep=", ")
    0.003 [0.003, 0.003], 0.0005 [0.0005, 0.0005], 6 [6, 6]
    """
    if not callable(prepare):
        fail("prepare", prepare, "a callable: prepare(batch_size) -> step")
    sizes = sorted({count("batch_sizes", b) for b in batch_sizes})
    if len(sizes) < 2:
        fail("batch_sizes", batch_sizes, "at least two different sizes")
    number("precision", precision, above=0)
    number("seconds", seconds, above=0)
    number("block", block, above=0)
    number("fraction", fraction, above=0, below=1)
    count("warmup", warmup)

    def timed(step, repeats):
        synchronise(device)
        start = clock()
        for _ in range(repeats):
            step()
        synchronise(device)
        return (clock() - start) / repeats

    steps = [prepare(b) for b in sizes]
    # A second pass over all sizes: what one size loads may be needed by another, and the last time sets the block.
    for step in steps:
        timed(step, warmup)
    once = [timed(step, 1) for step in steps]
    repeats = [max(1, int(np.ceil(block / t))) if t > 0 else 1 for t in once]
    samples, begin = [[] for _ in sizes], clock()

    def interval(values):
        found = median_interval(values)
        reach = max(found.high - found.estimate, found.estimate - found.low)
        return found, reach <= precision * found.estimate

    while True:
        loose = [i for i, s in enumerate(samples) if len(s) < SMALLEST or not interval(s)[1]]
        late = clock() - begin >= seconds and all(len(s) >= SMALLEST for s in samples)
        if not loose or late:
            break
        for i in loose:
            samples[i].append(timed(steps[i], repeats[i]))
    timings = []
    for size, s in zip(sizes, samples, strict=True):
        if min(s) <= 0:
            fail("clock", min(s), f"a clock that advances during {repeats} steps")
        found, tight = interval(s)
        timings.append(Timing(size, found, tuple(s), tight))
    return Throughput(tuple(timings), fit_step_law(sizes, samples, fraction=fraction, seed=seed))


def measure_training(model, loss, optimizer, make_batch, batch_sizes, **settings):
    """``measure_throughput`` of ``training_step(model, loss, optimizer, make_batch)``, on the model's device.

    ``settings`` are those of ``measure_throughput``. The model, its gradients, the optimiser and torch's random
    generators are afterwards what they were, bit for bit. Raises as those two do.

    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> found = measure_training(
    ...     model, torch.nn.functional.mse_loss, torch.optim.SGD(model.parameters(), lr=0.1),
    ...     lambda b: (torch.ones(b, 2), torch.ones(b, 1)), [1, 64], seconds=0.01, block=0.0001)
    >>> list(found.table()["batch_size"])
    [1, 64]
    """
    check_model(model, loss)
    check_optimizer(optimizer)
    with preserved(model, optimizer):
        prepare = training_step(model, loss, optimizer, make_batch)
        return measure_throughput(prepare, batch_sizes, device=device_of(model), **settings)

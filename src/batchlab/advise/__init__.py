"""Which batch size for *your* model: measured on it, in the time you give, with what it rests on and how sure it is."""

import sys
import time

from batchlab._check import count, fail, number, one_of
from batchlab.advise._decide import OBJECTIVES, Advice, decide
from batchlab.advise._measure import measure
from batchlab.advise._measured import Measured
from batchlab.advise._regret import Cell, cells, chance, choices, regrets, stored
from batchlab.advise._report import Report
from batchlab.problem import Problem

__all__ = [
    "Advice", "Cell", "Measured", "Report", "advise", "cells", "chance", "choices", "decide", "measure",
    "regrets", "stored",
]  # fmt: skip


def advise(
    model,
    loss=None,
    data=None,
    optimizer=None,
    *,
    batch_size=None,
    takes="auto",
    objective="time",
    deadline=None,
    examples=None,
    seconds=120.0,
    memory=None,
    most=None,
    steps=None,
    branch=False,
    devices=(),
    device_seconds=None,
    seed=0,
    progress=True,
    name=None,
    clock=time.perf_counter,
):
    """Measure a problem and say which batch size to train it with: a ``Report``, which prints as text.

    Measured, in this order: the largest batch that fits, on the longest examples too; seconds a step, and to load an
    example; the noise scale, now and along a short run; two short rate ranges, and whether the advised rate holds;
    where ``examples`` are given and the time lasts for it, whole runs at several sizes and rates, which then decide;
    with ``branch`` the branch test. What the time does not last for is named in the report, and the advice rests on the
    rest. Nothing is changed: model, gradients, mode, optimizer and random generators are afterwards what they were, bit
    for bit, whatever happens.

    model, loss, data, optimizer, batch_size, takes : as ``Problem`` takes them; or a ``Problem`` alone
    objective : "time", the least time to a loss on this machine; "compute", at most 20 % more examples than the fewest;
        "deadline", the fewest examples with which the run ends within ``deadline`` seconds
    examples : how many the run is planned for at ``batch_size``: then the whole run's seconds are told, and a run that
        is short enough is tried
    seconds : for all measurements, by ``clock``. The part that is under way when they end goes on to its next step
    clock : what times the steps and counts the seconds; ``time.process_time`` on a CPU where other programs run as well
    memory : bytes that a step may take. None: a GPU's own limit; on a CPU half of what is free
    most : the largest batch to try or to advise (None: the training set, at most 65,536)
    steps : of the short run. None: 200, or the first half of the run whose ``examples`` are given, with no more passes
        over the examples in hand (8,192 at most) than that makes over all, as far as the time lasts
    devices, device_seconds : (2, 8), say, and a function (compute, devices) -> seconds a step where each device
        computes for ``compute`` seconds, for what they would buy; ``lambda compute, n: compute``: a link that costs
        nothing
    seed : of every random choice. The same seed gives the same advice as far as the timings are the same: batches,
        noise scales and rate ranges repeat, seconds do not, and where time runs out they decide what was measured
    progress : whether to write a line a part to stderr

    Raises ValueError for a problem that no step can be made of, by name: a loss that is a sum, or no mean (contrastive,
    ranking), no data, NaN, out of memory at one example, settings that don't fit together.

    >>> import torch
    >>> model, sample = torch.nn.Linear(8, 1), torch.Generator().manual_seed(0)
    >>> data = torch.randn(512, 8, generator=sample), torch.randn(512, 1, generator=sample)
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    >>> mse = torch.nn.functional.mse_loss
    >>> report = advise(model, mse, data, sgd, batch_size=16, seconds=2, most=128, progress=False)
    >>> 1 <= report.batch_size <= 512
    True
    """
    begin = time.perf_counter()
    if isinstance(model, Problem):
        given = {"loss": loss, "data": data, "optimizer": optimizer, "batch_size": batch_size}
        for argument, value in given.items():
            if value is not None:
                fail(argument, value, "None beside a Problem, which has its own")
        problem = model
    else:
        problem = Problem(model, loss, data, optimizer, batch_size, takes)
    one_of("objective", objective, OBJECTIVES)
    if (objective == "deadline") != (deadline is not None):
        fail("deadline", deadline, "seconds with objective='deadline', and None with any other")
    if deadline is not None:
        number("deadline", deadline, above=0)
        number("examples", examples, above=0)
    if examples is not None:
        number("examples", examples, above=0)
    number("seconds", seconds, above=0)
    if memory is not None:
        number("memory", memory, above=0)
    if most is not None:
        count("most", most, at_least=2)
    if steps is not None:
        count("steps", steps, at_least=8)
    one_of("branch", branch, (True, False))
    one_of("progress", progress, (True, False))
    devices = tuple(count("devices", n) for n in devices)
    if devices and not callable(device_seconds):
        fail("device_seconds", device_seconds, "a function (compute, devices) -> seconds a step, beside devices")
    count("seed", seed, at_least=0)

    def say(part, share):
        if progress:
            took = time.perf_counter() - begin
            print(f"{share:4.0%}  {took:5.1f} s  {part}", file=sys.stderr, flush=True)

    measured = measure(
        problem,
        seconds=seconds,
        memory=memory,
        most=most,
        examples=examples,
        steps=steps,
        branch=branch,
        seed=seed,
        clock=clock,
        say=say,
    )
    advice = decide(
        measured,
        objective,
        deadline=deadline,
        examples=examples,
        devices=devices,
        device_seconds=device_seconds,
    )
    name = type(getattr(problem.model, "_orig_mod", problem.model)).__name__ if name is None else name
    return Report(advice, measured, name, time.perf_counter() - begin)

"""What the machine can do: the largest batch that fits, seconds a step, seconds to load an example."""

import itertools
import math
import os
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader

from batchlab._check import fail
from batchlab.advise._steps import batch_norms, take
from batchlab.instruments._probe import preserved, synchronise
from batchlab.instruments.memory import largest_batch, out_of_memory, timeline
from batchlab.instruments.memory._account import _bytes
from batchlab.instruments.throughput import measure_throughput
from batchlab.problem._trees import leaves

ROUNDS = 9  # of steps that timing one size takes: warming up, and six samples


def half_of_memory():
    """Half of the memory that is free now, in bytes, or None where the system does not tell."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return None


def step_bytes(problem, batch):
    """The most bytes that a step on ``batch`` holds at a moment, as a CPU's or CUDA's allocator has it, else None."""
    device = problem.device
    take(problem, batch)
    problem.optimizer.zero_grad(set_to_none=True)
    state = [v for s in problem.optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    there = _bytes([*problem.model.parameters(), *problem.model.buffers(), *state, *(t for _, t in leaves(batch))])
    if device.type == "cpu":
        return there + int(timeline(lambda: take(problem, batch)).max())
    synchronise(device)
    if device.type != "cuda":
        take(problem, batch)
        synchronise(device)
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    take(problem, batch)
    synchronise(device)
    return there + torch.cuda.max_memory_allocated(device) - before


@dataclass(frozen=True)
class Fit:
    """``largest``: the largest batch that ran under the cap; ``safe``: up to where a line through the bytes of the last
    two says that they stay under it; ``ended``: "memory", "most" or "time", what ended the search; ``seconds`` of a
    step at each size that ran."""

    largest: int
    safe: int
    ended: str
    seconds: dict


def largest_that_fits(problem, pool, memory, most, left, dear=math.inf, start=1, longest=False):
    """A ``Fit`` under ``memory`` bytes (None: until the device says no), up to ``most`` examples.

    Where the allocator tells its bytes, the size grows fourfold as long as a line through the last two stays under the
    cap, and then goes where the line meets it: no size is tried that the line says is too large, for a CPU that
    overcommits is killed before it can say no. A step that would take more than ``dear`` seconds is not tried either.
    ``start``: a size that is known to fit. Elsewhere ``bl.memory.largest_batch`` tries until the device refuses.
    """
    smallest = max(start, 2 if batch_norms(problem.model) else 1)
    model, seconds = problem.model, {}
    held = {
        0: 2 * _bytes(model.parameters()) + _bytes(model.buffers())
    }  # at least that, so that the first line is steep enough

    def runs(size):
        """Whether a step of this size ran under the cap."""
        ran, found = True, None
        with preserved(problem.model, problem.optimizer):
            try:
                batch = problem.sent(pool.batch(size, longest=longest))
                found = step_bytes(problem, batch)
                start = left()
                take(problem, batch)
                synchronise(problem.device)
                seconds[size] = start - left()
            except Exception as error:
                if not out_of_memory(error):
                    raise
                ran = False
            if not ran:
                problem.optimizer.zero_grad(set_to_none=True)
        if found is not None:
            held[size] = found
        return ran and (memory is None or found is None or found <= memory)

    def affordable(size):
        """Whether the time lasts for a step of this size, and two more."""
        last = max(seconds)
        step = seconds[last] * max(size / last, 1)
        return size <= last or (step <= dear and 4 * step <= left())

    if not runs(smallest):
        fail("memory", memory, f"more: a step with {smallest} example{'s' * (smallest > 1)} does not fit")
    if memory is None or smallest not in held:
        late = False

        def fits(size):
            nonlocal late
            late = late or not affordable(size)
            return size <= smallest or (affordable(size) and runs(size))

        found = largest_batch(fits, max(most, smallest))
        ended = "most" if found.capped else "time" if late else "memory"
        return Fit(found.batch_size, found.batch_size, ended, seconds)
    good, bad, ended = smallest, most + 1, "most"
    while good < most and bad - good > max(1, good // 16):
        reach = _reach(held, memory)
        size = min(4 * good, most, bad - 1, max(reach, good))
        if size < min(most, good + max(1, good // 16)):
            ended = "memory"
            break
        if not affordable(size):
            return Fit(good, min(_reach(held, memory), most), "time", seconds)
        if runs(size):
            good = size
        else:
            bad, ended = size, "memory"
            if size <= good + 1:
                break
            held = {b: m for b, m in held.items() if b <= good} | {size: held.get(size, 2 * memory)}
    return Fit(good, good, ended, seconds)


def _reach(held, memory):
    """The size at which a line through the bytes of the two largest sizes meets ``memory``."""
    (a, low), (b, high) = sorted(held.items())[-2:]
    each = (high - low) / (b - a)
    return int(b + (memory - high) / each) if each > 0 else 4 * b


def time_steps(problem, pool, largest, once, left, seed, clock):
    """``Throughput`` of steps at sizes a factor two or more apart up to ``largest``, as many as the time allows."""
    smallest = 2 if batch_norms(problem.model) else 1
    sizes = [2**k for k in range(17) if smallest <= 2**k <= largest]
    if largest not in sizes:
        sizes.append(largest)
    most = left()

    def cost(size):
        near = min(once, key=lambda b: abs(b - size))
        return ROUNDS * max(once[near] * max(size / near, 1), 1e-4)

    while len(sizes) > 2 and sum(map(cost, sizes)) > most:
        sizes.pop()  # the largest cost most
    if len(sizes) < 2:
        sizes = [smallest, 2 * smallest]

    def prepare(size):
        batch = problem.sent(pool.batch(size))
        return lambda: take(problem, batch)

    with preserved(problem.model, problem.optimizer):
        return measure_throughput(
            prepare,
            sizes,
            device=problem.device,
            precision=0.03,
            seconds=max(0.01, most / 2),
            warmup=2,
            seed=seed,
            clock=clock,
        )


def loading(problem, pool, left):
    """(seconds a batch, seconds an example) to load and send to the device, and whether a step runs meanwhile.

    A loader is timed as it is, at its own batch size, and taken to cost in proportion. What is no loader is timed as
    plain indexing, at two sizes.
    """
    if isinstance(problem.data, DataLoader):
        return _of_loader(problem, left)
    sizes = (min(16, pool.size), min(256, pool.size))
    times = [[], []]
    for _ in range(8):
        for size, found in zip(sizes, times, strict=True):
            start = time.perf_counter()
            problem.sent(pool.batch(size))
            synchronise(problem.device)
            found.append(time.perf_counter() - start)
    small, large = (float(np.median(found[1:])) for found in times)
    each = max((large - small) / (sizes[1] - sizes[0]), 0.0) if sizes[1] > sizes[0] else 0.0
    return max(small - each * sizes[0], 0.0), each + pool.seconds, False


def _of_loader(problem, left):
    data, sizes, times = problem.data, [], []
    skip = data.num_workers * (data.prefetch_factor or 0)  # what the workers prepared before they were asked
    loader, start = iter(data), time.perf_counter()
    for batch in itertools.islice(loader, skip + 20):
        batch = problem.sent(batch)
        now = time.perf_counter()
        times.append(now - start)
        sizes.append(len(next(t for _, t in leaves(batch))))
        start = now
        if left() <= 0 and len(times) > 1:
            break
    del loader  # its workers end
    if len(times) > skip + 2:
        times, sizes = times[skip:], sizes[skip:]
    return 0.0, float(np.median(np.array(times) / np.array(sizes))), data.num_workers > 0

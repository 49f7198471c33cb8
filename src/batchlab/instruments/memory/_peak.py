"""What the allocator holds in the course of a step, and the most at one moment."""

import gc
import os
from contextlib import contextmanager

import numpy as np
import torch

from batchlab._check import count, fail
from batchlab.instruments._probe import check_batch, device_of, preserved, synchronise
from batchlab.instruments.memory._account import _bytes
from batchlab.instruments.memory._step import check_step, take_step

LOG = "KINETO_LOG_LEVEL"


def timeline(function):
    """Bytes held beyond those held at the start, after each allocation and each release while ``function()`` runs.

    Returns an ndarray of integers that begins with 0. It is torch's own allocator on the CPU, read by its profiler:
    what operations make for themselves and drop again is in it, while NumPy's memory, a GPU's, and what a kernel of a
    library takes from elsewhere are not. A tensor made before and freed inside counts below 0.

    Raises ValueError for what cannot be called, and passes on what ``function`` raises.

    >>> held = timeline(lambda: torch.ones(1000).exp())     # two tensors of 4,000 bytes, then none
    >>> held.tolist()
    [0, 4000, 8000, 4000, 0]
    """
    if not callable(function):
        fail("function", function, "a function without arguments: one training step, say")
    gc.collect()  # or a cycle that the collector finds inside would be counted as freed by the step
    with _silent(), torch.autograd.profiler.profile(profile_memory=True) as profiler:
        function()
    moves = [e for e in profiler.kineto_results.events() if e.name() == "[memory]" and e.device_type().name == "CPU"]
    return np.cumsum([0, *(e.nbytes() for e in sorted(moves, key=lambda e: e.start_ns()))])


@contextmanager
def _silent():
    """Keep the profiler from writing two lines a call to stderr; it reads this variable when it is first started."""
    said = os.environ.get(LOG)
    os.environ.setdefault(LOG, "99")
    try:
        yield
    finally:
        if said is None:
            del os.environ[LOG]


def step_peak(model, loss, optimizer, x, y, *, micro_batch=None, autocast=None):
    """The most bytes that a training step on x (B, ...), y (B, ...) holds at one moment, as the allocator has it.

    In them: parameters, buffers, the optimiser's state, the batch, and what the step makes on top, temporary tensors
    included. Two steps are run and undone, as in ``step_memory``, and the second is watched, in which the optimiser's
    state is there from the start: on a CPU by ``timeline``, on a GPU by ``torch.cuda.max_memory_allocated``. The
    arguments are those of ``step_memory``; its ``total`` counts what is kept for the backward pass, and may be above
    the peak (not all of it is held at once) or below (temporary tensors are not in it).

    Raises as ``step_memory`` does, and ValueError for a device that is neither a CPU nor CUDA.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> mse = torch.nn.functional.mse_loss
    >>> small, large = (step_peak(model, mse, sgd, torch.ones(b, 4), torch.ones(b, 1)) for b in (1000, 2000))
    >>> 4 * (4 + 1 + 8 + 1) * 1000 < large - small       # more than the batch, the ReLU's output and the model's
    True
    """
    check_step(model, loss, optimizer, autocast)
    examples = check_batch(x, y)
    micro_batch = examples if micro_batch is None else count("micro_batch", micro_batch)
    device = device_of(model)
    if device.type not in ("cpu", "cuda"):
        fail("model's device", str(device), "a CPU or CUDA: what else has an allocator that reports its peak?")

    def step():
        take_step(model, loss, optimizer, x, y, micro_batch, autocast)

    with preserved(model, optimizer):
        step()
        optimizer.zero_grad(set_to_none=True)
        state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
        there = _bytes([*model.parameters(), *model.buffers(), *state])
        there += sum(t.numel() * t.element_size() for t in (x, y))
        if device.type == "cpu":
            return there + int(timeline(step).max())
        synchronise(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        synchronise(device)
        return there + torch.cuda.max_memory_allocated(device) - before

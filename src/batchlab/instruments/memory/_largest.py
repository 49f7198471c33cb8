"""The largest batch that fits, found by trying."""

import gc
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from batchlab._check import count, fail
from batchlab.instruments._probe import device_of, made, preserved, synchronise
from batchlab.instruments.memory._step import check_step, take_step


@dataclass(frozen=True)
class LargestBatch:
    """``batch_size``, the largest that ran, or None if none did; ``tried``, every (size, ran) in order; ``capped``,
    whether the cap itself ran, so that a larger batch might fit too."""

    batch_size: int | None
    tried: tuple
    capped: bool


def out_of_memory(error):
    """Whether ``error`` says that memory ran out.

    CUDA's and Python's own errors do, and the RuntimeErrors by which torch's CPU and MPS allocators and cuBLAS say it.

    >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("shape mismatch"))
    (True, False)
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = "DefaultCPUAllocator:|MPS backend out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED"
    return isinstance(error, RuntimeError) and re.search(words, str(error)) is not None


def largest_batch(fits: Callable, cap):
    """The largest batch size up to ``cap`` for which ``fits(batch_size)`` returns True, as a ``LargestBatch``.

    Doubling from 1 until a size fails or the cap has run, then bisection between the last that ran and the first that
    failed. Only a size that ran, and ran again after the failures, is returned. ``fits`` fails by returning False or by
    running out of memory (see ``out_of_memory``); any other exception is passed on. If ``fits`` is not monotone the
    answer is a size that ran, though not the largest possible. The cap is compulsory: a CPU that overcommits memory is
    killed before it can say no. The largest batch that fits is an upper limit, not advice.

    Raises ValueError for ``cap`` below 1 and for a ``fits`` that returns no bool.

    >>> largest_batch(lambda b: b <= 100, cap=4096).batch_size
    100
    >>> largest_batch(lambda b: True, cap=1000)
    LargestBatch(batch_size=1000, tried=((1, True), (2, True), (4, True), (8, True), (16, True), (32, True), \
(64, True), (128, True), (256, True), (512, True), (1000, True)), capped=True)
    """
    if not callable(fits):
        fail("fits", fits, "a callable: fits(batch_size) -> bool")
    cap, tried = count("cap", cap), []

    def runs(batch_size):
        ran, failed = None, False
        try:
            ran = fits(batch_size)
        except Exception as error:
            if not out_of_memory(error):
                raise
            failed = True
        if failed:
            # Out here, because inside `except` the traceback still holds the tensors that filled the memory.
            _release()
            ran = False
        if not isinstance(ran, bool):
            fail("fits", ran, "a function that returns True or False")
        tried.append((batch_size, ran))
        return ran

    good, bad, size = 0, cap + 1, 1
    while bad == cap + 1 and good < cap:
        if runs(size):
            good, size = size, min(2 * size, cap)
        else:
            bad = size
    while bad - good > 1:
        middle = (good + bad) // 2
        if runs(middle):
            good = middle
        else:
            bad = middle
    if good and tried[-1] != (good, True):
        # Near the limit fragments decide: the answer has to run again after the failures, or a smaller one does.
        candidates = sorted({b for b, ran in tried if ran}, reverse=True)
        good = next((b for b in candidates if runs(b)), 0)
    return LargestBatch(good or None, tuple(tried), good == cap)


def step_fits(model, loss, optimizer, make_batch, *, micro_batch=None, autocast=None):
    """A ``fits`` for ``largest_batch``: can this model take two real training steps at this batch size?

    Two, because the second holds what the first created: the optimiser's state. ``make_batch(batch_size)`` returns
    ``(x, y)`` on the model's device. After each try, whether it ran or not, the model, its gradients, the optimiser and
    torch's random generators are what they were, bit for bit; copies of them wait in the CPU's memory meanwhile.

    >>> model = torch.nn.Linear(2, 1)
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> fits = step_fits(
    ...     model, torch.nn.functional.mse_loss, sgd, lambda b: (torch.ones(b, 2), torch.ones(b, 1)))
    >>> largest_batch(fits, cap=64).batch_size
    64
    """
    check_step(model, loss, optimizer, autocast)
    if micro_batch is not None:
        count("micro_batch", micro_batch)

    def train(batch_size):
        x, y = made(make_batch, batch_size)
        for _ in range(2):
            take_step(model, loss, optimizer, x, y, micro_batch or batch_size, autocast)
        synchronise(device_of(model))

    def fits(batch_size):
        ran = True
        with preserved(model, optimizer):
            try:
                train(batch_size)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                ran = False
            if not ran:
                optimizer.zero_grad(set_to_none=True)
                _release()
        return ran

    return fits


def _release():
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()

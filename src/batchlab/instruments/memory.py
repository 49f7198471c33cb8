"""Where the bytes of a training step go, how they grow with the batch, and the largest batch that fits.

A step needs parameters, buffers, gradients and the optimiser's state, which do not depend on the batch; and
the batch itself and the activations kept for the backward pass, which grow with it. So bytes(B) = a + b B.
It is an account by kind, not a moment: the backward pass makes the gradients while it frees the activations
(under accumulation both are held at once). Temporary tensors, a large part in a shallow network, and what an
allocator rounds up come on top: on a GPU compare with ``torch.cuda.max_memory_allocated``.
"""

import contextlib
import gc
import re
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch

from batchlab._check import count, fail, number, one_of
from batchlab.instruments._probe import check_batch, check_model, device_of, preserved


@dataclass(frozen=True)
class Memory:
    """Bytes that one training step with ``batch_size`` examples needs, by kind; not all are held at one moment.

    ``parameters``, ``buffers``, ``gradients`` (as large as the trained parameters), ``optimiser`` (its
    state after a step), ``activations`` (saved for the backward pass; neither parameters nor the batch),
    ``batch`` (x and y).
    """

    batch_size: int
    parameters: int
    buffers: int
    gradients: int
    optimiser: int
    activations: int
    batch: int

    @property
    def total(self):
        """The sum of all six kinds, in bytes."""
        return sum(getattr(self, f.name) for f in fields(self)) - self.batch_size


@dataclass(frozen=True)
class MemoryLaw:
    """bytes(B) = ``fixed`` + ``per_example`` * B, for the total, and the two ``Memory`` counts it came
    from."""

    fixed: float
    per_example: float
    counts: tuple

    def bytes(self, batch_size):
        """The predicted total in bytes at ``batch_size``."""
        return self.fixed + self.per_example * count("batch_size", batch_size)

    def largest(self, limit):
        """The largest batch size predicted to hold at most ``limit`` bytes; 0 if not even one example does.

        A prediction that nothing has run: temporary tensors are not in it. ``largest_batch`` tries.
        """
        number("limit", limit, above=0)
        if self.per_example <= 0:
            fail("per_example", self.per_example, "a law whose bytes grow with the batch")
        return max(0, int((limit - self.fixed) // self.per_example))


@dataclass(frozen=True)
class LargestBatch:
    """``batch_size``, the largest that ran, or None if none did; ``tried``, every (size, ran) in order;
    ``capped``,
    whether the cap itself ran, so that a larger batch might fit too."""

    batch_size: int | None
    tried: tuple
    capped: bool


def _bytes(tensors):
    """Bytes of the distinct storages behind ``tensors``: views share one, and a view keeps the whole of it
    alive."""
    return sum({s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors)}.values())


@contextlib.contextmanager
def _saved(known):
    """Collect {address: storage} of what autograd saves inside the block, except storages of ``known``."""
    skip = {t.untyped_storage().data_ptr() for t in known}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in skip:
            # Holding the storage keeps its address from being handed out again while we count.
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def _step(model, loss, optimiser, x, y, micro_batch, autocast, counted=False):
    """One training step on the mean loss over x; the most bytes a micro-batch saved, 0 unless ``counted``."""
    optimiser.zero_grad(set_to_none=True)
    most = 0
    for xb, yb in zip(x.split(micro_batch), y.split(micro_batch), strict=True):
        # No hooks in an ordinary step: they would hold tensors longer than training does.
        watch = _saved([*model.parameters(), *model.buffers(), x, y]) if counted else contextlib.nullcontext({})
        cast = torch.autocast(x.device.type, dtype=autocast) if autocast else contextlib.nullcontext()
        with watch as saved, cast:
            value = loss(model(xb), yb)
        most = max(most, sum(storage.nbytes() for storage in saved.values()))
        # By examples, not by number of micro-batches: the last one may be smaller.
        (value * (len(xb) / len(x))).backward()
    optimiser.step()
    return most


def _check_step(model, loss, optimiser, autocast):
    check_model(model, loss)
    if not isinstance(optimiser, torch.optim.Optimizer):
        fail("optimiser", type(optimiser).__name__, "a torch.optim.Optimizer")
    one_of("autocast", autocast, [None, torch.bfloat16, torch.float16])


def step_memory(model, loss, optimiser, x, y, *, micro_batch=None, autocast=None):
    """Count the bytes of one training step on x (B, ...), y (B, ...) with the mean loss ``loss(model(x),
    y)``.

    The step is run once and undone: model, gradients, optimiser and torch's random generators are
    afterwards what they were. Activations are counted where autograd saves them (``saved_tensors_hooks``),
    each storage once, however many views of it were saved. With ``micro_batch`` gradients are accumulated
    and the activations are those of the largest micro-batch, while x and y stay whole. ``autocast``
    (torch.bfloat16 or torch.float16) runs the forward pass in mixed precision; its low-precision copies of
    the weights count as activations. Under ``torch.utils.checkpoint`` the count is what the forward pass
    keeps; in the backward pass one segment at a time is recomputed on top.

    Raises ValueError for empty data, a module without trainable parameters, or another ``autocast``.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> found = step_memory(model, torch.nn.functional.mse_loss, sgd, torch.ones(16, 4), torch.ones(16, 1))
    >>> found.parameters == found.gradients == found.optimiser == 4 * (4 * 8 + 8 + 8 + 1)
    True
    >>> found.activations == 16 * 4 * (8 + 1)           # the ReLU's output and the model's, for 16 examples
    True
    """
    _check_step(model, loss, optimiser, autocast)
    examples = check_batch(x, y)
    micro_batch = examples if micro_batch is None else count("micro_batch", micro_batch)
    with preserved(model, optimiser):
        activations = _step(model, loss, optimiser, x, y, micro_batch, autocast, counted=True)
        state = [v for s in optimiser.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
        return Memory(
            examples,
            _bytes(model.parameters()),
            _bytes(model.buffers()),
            _bytes(p.grad for p in model.parameters() if p.grad is not None),
            _bytes(state),
            activations,
            sum(t.numel() * t.element_size() for t in (x, y)),
        )


def memory_law(model, loss, optimiser, make_batch, *, at=(8, 16), micro_batch=None, autocast=None):
    """The law bytes(B) = a + b B through the counted totals at the two batch sizes ``at``, as a
    ``MemoryLaw``.

    ``make_batch(batch_size)`` returns ``(x, y)`` on the model's device. Exact for models whose saved
    tensors grow in proportion to the batch; with ``micro_batch`` it holds from B = micro_batch upwards, and
    ``at`` must lie there. Raises as ``step_memory`` does.

    >>> model = torch.nn.Linear(4, 1)
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> def make_batch(b): return torch.ones(b, 4), torch.ones(b, 1)
    >>> law = memory_law(model, torch.nn.functional.mse_loss, sgd, make_batch)
    >>> law.fixed, law.per_example                      # 2 x 5 parameters; 4 in, 1 out, 1 target: floats
    (40.0, 24.0)
    >>> law.bytes(1000), law.largest(24_040)
    (24040.0, 1000)
    """
    _check_step(model, loss, optimiser, autocast)
    small, large = (count("at", b, at_least=micro_batch or 1) for b in at)
    if small == large:
        fail("at", at, "two different batch sizes")
    counts = []
    for batch_size in (small, large):
        x, y = make_batch(batch_size)
        if check_batch(x, y) != batch_size:
            fail("make_batch", len(x), f"a batch of {batch_size} examples")
        counts.append(step_memory(model, loss, optimiser, x, y, micro_batch=micro_batch, autocast=autocast))
    slope = (counts[1].total - counts[0].total) / (large - small)
    return MemoryLaw(counts[0].total - slope * small, slope, tuple(counts))


def out_of_memory(error):
    """Whether ``error`` says that memory ran out: CUDA's and Python's own errors, and the RuntimeErrors by
    which torch's CPU and MPS allocators and cuBLAS say it.

    >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("shape mismatch"))
    (True, False)
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = "DefaultCPUAllocator:|MPS backend out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED"
    return isinstance(error, RuntimeError) and re.search(words, str(error)) is not None


def largest_batch(fits: Callable, cap):
    """The largest batch size up to ``cap`` for which ``fits(batch_size)`` returns True, as a
    ``LargestBatch``.

    Doubling from 1 until a size fails or the cap has run, then bisection between the last that ran and the
    first that failed. Only a size that ran, and ran again after the failures, is
    returned. ``fits`` fails by returning False or by
    running out of memory (see ``out_of_memory``); any other exception is passed on. If ``fits`` is not
    monotone the answer is a size that ran, though not the largest possible. The cap is compulsory: a CPU
    that overcommits memory is killed before it can say no. The largest batch that fits is an upper limit,
    not advice.

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
        # Near the limit fragments decide: the answer has to run again after the failures, or a smaller one
        # does.
        candidates = sorted({b for b, ran in tried if ran}, reverse=True)
        good = next((b for b in candidates if runs(b)), 0)
    return LargestBatch(good or None, tuple(tried), good == cap)


def _release():
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def step_fits(model, loss, optimiser, make_batch, *, micro_batch=None, autocast=None):
    """A ``fits`` for ``largest_batch``: can this model take two real training steps at this batch size?

    Two, because the second holds what the first created: the optimiser's state. ``make_batch(batch_size)``
    returns ``(x, y)`` on the model's device. After each try, whether it ran or not, the model, its
    gradients, the optimiser and torch's random generators are what they were, bit for bit; copies of them
    wait in the CPU's memory meanwhile.

    >>> model = torch.nn.Linear(2, 1)
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> fits = step_fits(
    ...     model, torch.nn.functional.mse_loss, sgd, lambda b: (torch.ones(b, 2), torch.ones(b, 1)))
    >>> largest_batch(fits, cap=64).batch_size
    64
    """
    _check_step(model, loss, optimiser, autocast)
    if micro_batch is not None:
        count("micro_batch", micro_batch)
    device = device_of(model)

    def train(batch_size):
        x, y = make_batch(batch_size)
        if check_batch(x, y) != batch_size:
            fail("make_batch", len(x), f"a batch of {batch_size} examples")
        for _ in range(2):
            _step(model, loss, optimiser, x, y, micro_batch or batch_size, autocast)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def fits(batch_size):
        ran = True
        with preserved(model, optimiser):
            try:
                train(batch_size)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                ran = False
            if not ran:
                optimiser.zero_grad(set_to_none=True)
                _release()
        return ran

    return fits

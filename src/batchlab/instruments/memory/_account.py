"""The account of a step: its bytes by kind, and the line on which they grow with the batch."""

from dataclasses import dataclass, fields

import torch

from batchlab._check import count, fail, number
from batchlab.instruments._probe import check_batch, made, preserved
from batchlab.instruments.memory._step import check_step, take_step


@dataclass(frozen=True)
class Memory:
    """Bytes that one training step with ``batch_size`` examples needs, by kind; not all are held at one moment.

    ``parameters``, ``buffers``, ``gradients`` (as large as the trained parameters), ``optimizer`` (its state after a
    step), ``activations`` (saved for the backward pass; neither parameters nor the batch), ``batch`` (x and y).
    """

    batch_size: int
    parameters: int
    buffers: int
    gradients: int
    optimizer: int
    activations: int
    batch: int

    @property
    def total(self):
        """The sum of all six kinds, in bytes."""
        return sum(getattr(self, f.name) for f in fields(self)) - self.batch_size


@dataclass(frozen=True)
class MemoryLaw:
    """m(B) = ``fixed`` + ``per_example`` * B bytes, for the total, and the two ``Memory`` counts it came from."""

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


def step_memory(model, loss, optimizer, x, y, *, micro_batch=None, autocast=None):
    """Count the bytes of one training step on x (B, ...), y (B, ...) with the mean loss ``loss(model(x), y)``.

    The step is run once and undone: model, gradients, optimiser and torch's random generators are afterwards what they
    were. Activations are counted where autograd saves them (``saved_tensors_hooks``), each storage once, however many
    views of it were saved. With ``micro_batch`` gradients are accumulated and the activations are those of the largest
    micro-batch, while x and y stay whole. ``autocast`` (torch.bfloat16 or torch.float16) runs the forward pass in mixed
    precision; its low-precision copies of the weights count as activations. Under ``torch.utils.checkpoint`` the count
    is what the forward pass keeps; in the backward pass one segment at a time is recomputed on top. What the loss holds
    is not counted: with ``mse_loss`` it is as much as the outputs, whose differences it was made from.

    Raises ValueError for empty data, a module without trainable parameters, a loss that is no number or does not depend
    on them, or another ``autocast``.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> found = step_memory(model, torch.nn.functional.mse_loss, sgd, torch.ones(16, 4), torch.ones(16, 1))
    >>> found.parameters == found.gradients == found.optimizer == 4 * (4 * 8 + 8 + 8 + 1)
    True
    >>> found.activations == 16 * 4 * (8 + 1)           # the ReLU's output and the model's, for 16 examples
    True
    """
    check_step(model, loss, optimizer, autocast)
    examples = check_batch(x, y)
    micro_batch = examples if micro_batch is None else count("micro_batch", micro_batch)
    with preserved(model, optimizer):
        activations = take_step(model, loss, optimizer, x, y, micro_batch, autocast, counted=True)
        state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
        return Memory(
            examples,
            _bytes(model.parameters()),
            _bytes(model.buffers()),
            _bytes(p.grad for p in model.parameters() if p.grad is not None),
            _bytes(state),
            activations,
            sum(t.numel() * t.element_size() for t in (x, y)),
        )


def memory_law(model, loss, optimizer, make_batch, *, at=(8, 16), micro_batch=None, autocast=None):
    """The law m(B) = m_0 + m_1 B through the counted totals at the two batch sizes ``at``, as a ``MemoryLaw``.

    ``make_batch(batch_size)`` returns ``(x, y)`` on the model's device. Exact for models whose saved tensors grow in
    proportion to the batch; with ``micro_batch`` it holds from B = micro_batch upwards, and ``at`` must lie there.
    Raises as ``step_memory`` does.

    >>> model = torch.nn.Linear(4, 1)
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> def make_batch(b): return torch.ones(b, 4), torch.ones(b, 1)
    >>> law = memory_law(model, torch.nn.functional.mse_loss, sgd, make_batch)
    >>> law.fixed, law.per_example                      # 2 x 5 parameters; 4 in, 1 out, 1 target: floats
    (40.0, 24.0)
    >>> law.bytes(1000), law.largest(24_040)
    (24040.0, 1000)
    """
    check_step(model, loss, optimizer, autocast)
    small, large = (count("at", b, at_least=micro_batch or 1) for b in at)
    if small == large:
        fail("at", at, "two different batch sizes")
    counts = tuple(
        step_memory(model, loss, optimizer, *made(make_batch, b), micro_batch=micro_batch, autocast=autocast)
        for b in (small, large)
    )
    slope = (counts[1].total - counts[0].total) / (large - small)
    return MemoryLaw(counts[0].total - slope * small, slope, counts)


def _bytes(tensors):
    """Bytes of the distinct storages behind ``tensors``: views share one, and a view keeps the whole of it alive."""
    dense = [part for t in tensors for part in ((t._indices(), t._values()) if t.is_sparse else (t,))]
    return sum({s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in dense)}.values())

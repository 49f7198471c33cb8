"""The noise scale of a training loop that accumulates gradients, from what it computes anyway."""

import math

import torch

from batchlab._check import count, fail, number
from batchlab.instruments._flat import at_least_single
from batchlab.instruments._probe import trained
from batchlab.instruments.noise._pairs import two_batch


class Accumulation:
    """Two lines in your own loop: the norms of micro-batches' gradients and of their mean, a pair a step.

    ``model`` is what the loop trains, ``micro_batch`` the examples in each backward pass, ``pieces`` the backward
    passes in a step, at least 2. The loop adds ``loss(...) / pieces`` of each piece to the gradients, as usual:

        watch = bl.noise.Accumulation(model, micro_batch=8, pieces=4)
        for step in ...:
            optimizer.zero_grad()
            for x, y in pieces_of_the_batch:
                (loss(model(x), y) / 4).backward()
                watch.add()                      # after each backward pass
            watch.step()                         # before clipping, weight decay and the update
            optimizer.step()
        watch.noise_scale(last=100)

    ``step(scale)`` divides by the factor by which mixed precision scaled the loss, ``scaler.get_scale()``: call it
    whether or not the scaler will skip the update; a step whose gradients overflowed is left out and counted in
    ``skipped``. It costs no pass, only a copy of the gradients.

    Raises ValueError where the gradients were changed between ``add`` and ``step`` (clipped, or unscaled),
    where pieces are missing or too many, and where the gradients were not zero before the first piece.

    >>> model = torch.nn.Linear(3, 1)
    >>> watch = Accumulation(model, micro_batch=2, pieces=2)
    >>> for _ in range(5):
    ...     model.zero_grad()
    ...     for x in (torch.randn(2, 3), torch.randn(2, 3)):
    ...         (model(x).square().mean() / 2).backward()
    ...         watch.add()
    ...     watch.step()
    >>> len(watch.small), watch.noise_scale().trace.estimate == two_batch(watch.small, watch.big, 2, 4).trace.estimate
    (5, True)
    """

    def __init__(self, model, micro_batch, pieces):
        if not isinstance(model, torch.nn.Module) or not trained(model):
            fail(
                "model", type(model).__name__, "a torch.nn.Module with at least one parameter that requires a gradient"
            )
        self.model = model
        self.micro_batch = count("micro_batch", micro_batch)
        self.pieces = count("pieces", pieces, at_least=2)
        self.small, self.big, self.skipped = [], [], 0  # squared norms, a pair a step
        self._norms, self._before = [], None

    def add(self):
        """Call after the backward pass of each micro-batch."""
        now = self._gradients()
        if len(self._norms) == self.pieces:
            fail("pieces", len(self._norms) + 1, f"{self.pieces} backward passes a step; call step() after them")
        piece = now if self._before is None else now - self._before
        self._norms.append(float(piece.dot(piece)))
        self._before = now

    def step(self, scale=1.0):
        """Call after the last micro-batch, before the gradients are unscaled, clipped or used."""
        scale = number("scale", scale, above=0)
        if len(self._norms) != self.pieces:
            fail("pieces", len(self._norms), f"{self.pieces} backward passes, each followed by add()")
        now = self._gradients()
        if not torch.equal(now.nan_to_num(), self._before.nan_to_num()):
            fail("the gradients", "changed since add()", "those of the loss alone: call step() before clipping them")
        small = sum(self._norms) * self.pieces / scale**2  # each piece was divided by their number
        big = float(now.dot(now)) / scale**2
        self._norms, self._before = [], None
        if math.isfinite(small) and math.isfinite(big):
            self.small.append(small)
            self.big.append(big)
        else:
            self.skipped += 1

    def noise_scale(self, last=None, **options):
        """The ``NoiseScale`` of the ``last`` steps (None: of all), from ``two_batch``, which takes ``options``."""
        last = len(self.small) if last is None else count("last", last, at_least=2, at_most=len(self.small))
        small, big = self.small[-last:], self.big[-last:]
        return two_batch(small, big, self.micro_batch, self.micro_batch * self.pieces, **options)

    def _gradients(self):
        parameters = trained(self.model)
        if all(p.grad is None for p in parameters):
            fail("the gradients", None, "some: call add() after backward()")
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        return torch.cat([at_least_single(g.detach().reshape(-1)) for g in grads])

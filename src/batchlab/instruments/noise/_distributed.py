"""The noise scale of a data-parallel loop, from the gradients that its workers have before they are averaged."""

import math

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from batchlab._check import count, fail, number
from batchlab.instruments.noise._pairs import two_batch


class Distributed:
    """One line in your own loop: the norms of the workers' gradients and of their mean, a pair a step.

    ``model`` is what DistributedDataParallel wraps, with no communication hook of its own, ``each`` the examples of a
    worker's share of a batch, the same for all. At least two workers.

        watch = bl.noise.Distributed(model, each=32)
        for step in ...:
            optimizer.zero_grad()
            loss(model(x), y).backward()
            watch.step()                      # after the backward pass, before clipping and the update
            optimizer.step()
        watch.noise_scale(last=100)

    Every bucket of gradients is squared before it is averaged and after: no pass over the network, one number more is
    sent a step. With accumulation under ``no_sync``, ``each`` counts all that a worker has accumulated. ``step(scale)``
    divides by the factor by which mixed precision scaled the loss; steps that overflowed are left out and counted in
    ``skipped``. All workers hold the same pairs.

    Raises ValueError for another model, a group of one, and a ``step()`` without a backward pass that synchronised.
    """

    def __init__(self, model, each):
        if not isinstance(model, DistributedDataParallel):
            fail("model", type(model).__name__, "a model in torch.nn.parallel.DistributedDataParallel")
        self.workers = distributed.get_world_size(model.process_group)
        if self.workers < 2:
            fail("workers", self.workers, "at least 2, to tell their gradients from the mean")
        self.each = count("each", each)
        self.small, self.big, self.skipped = [], [], 0  # squared norms, a pair a step
        self._group, self._own, self._mean = model.process_group, [], []
        model.register_comm_hook(None, self._watched)

    def _watched(self, _, bucket):
        gradient = bucket.buffer()
        self._own.append(_square(gradient))
        sent = distributed.all_reduce(gradient.div_(self.workers), group=self._group, async_op=True).get_future()

        def keep(done):
            mean = done.value()[0]
            self._mean.append(_square(mean))
            return mean

        return sent.then(keep)

    def step(self, scale=1.0):
        """Call after the backward pass that averages, before the gradients are unscaled, clipped or used."""
        scale = number("scale", scale, above=0)
        if not self._own or len(self._own) != len(self._mean):
            fail("backward passes", len(self._own), "one that was not under no_sync() before each step()")
        own, big = torch.stack(self._own).sum(), float(torch.stack(self._mean).sum()) / scale**2
        self._own, self._mean = [], []
        distributed.all_reduce(own, group=self._group)
        small = float(own) / self.workers / scale**2
        if math.isfinite(small) and math.isfinite(big):
            self.small.append(small)
            self.big.append(big)
        else:
            self.skipped += 1

    def noise_scale(self, last=None, **options):
        """The ``NoiseScale`` of the ``last`` steps (None: of all), from ``two_batch``, which takes ``options``."""
        last = len(self.small) if last is None else count("last", last, at_least=2, at_most=len(self.small))
        return two_batch(self.small[-last:], self.big[-last:], self.each, self.each * self.workers, **options)


def _square(gradient):
    gradient = gradient.float() if gradient.dtype in (torch.float16, torch.bfloat16) else gradient
    return gradient.dot(gradient)

"""A model, its loss, its data and its optimiser, in whatever shapes they come: the door of ``advise``.

Any ``torch.nn.Module``, also under ``torch.compile``; batches that are tensors, or tuples, lists and mappings of them
in any nesting (those of Hugging Face, ragged text with its padding mask); a ``Dataset``, a ``DataLoader`` or any
iterable of batches; a loss of (outputs, targets) or of (model, batch).
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from batchlab._check import count, fail, one_of
from batchlab.problem._generators import generators_kept
from batchlab.problem._pool import Pool, kind_of, pooled
from batchlab.problem._trees import leaves, mapped, rows

__all__ = ["Pool", "Problem"]

TARGETS = ("labels", "label", "targets", "target", "y")
TAKES = ("auto", "outputs", "model")


@dataclass(frozen=True, eq=False)
class Problem:
    """What is trained, on what, and how. Nothing of it is ever changed by what measures it.

    model : any ``torch.nn.Module``
    loss : the mean over the examples of a batch, in one of two forms. ``loss(outputs, targets)``: the batch is
        (inputs..., targets), or a mapping with "labels" or "targets"; the model is called with the inputs, a mapping by
        its keys. ``loss(model, batch)``: whatever you write, ``lambda model, batch: model(**batch).loss`` say.
    data : a tensor, tuple or mapping of tensors with one row an example; a ``Dataset``; a ``DataLoader``; or an
        iterable of batches (a list is one). An iterator loses what is taken from it.
    optimizer : a ``torch.optim.Optimizer`` of the model's parameters, with the settings you train with
    batch_size : the batch size that those settings are meant for. None: that of the loader, or of the first batch
    takes : which form the loss has, "outputs" or "model". "auto": "model" if the loss's first argument is named model

    Raises ValueError for what is none of these. Attributes of a model that are no tensors (a counter in its forward
    pass) are not put back after measuring.

    >>> model = torch.nn.Linear(2, 1)
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> data = torch.randn(100, 2), torch.randn(100, 1)
    >>> problem = Problem(model, torch.nn.functional.mse_loss, data, sgd, batch_size=16)
    >>> problem.value(problem.pool().batch(8)).shape
    torch.Size([])
    """

    model: torch.nn.Module
    loss: Callable
    data: Any
    optimizer: torch.optim.Optimizer
    batch_size: int | None = None
    takes: str = "auto"

    def __post_init__(self):
        if not isinstance(self.model, torch.nn.Module):
            fail("model", type(self.model).__name__, "a torch.nn.Module")
        if not callable(self.loss):
            fail("loss", self.loss, "a callable: loss(outputs, targets) or loss(model, batch) -> mean over examples")
        _check_optimizer(self.optimizer, self.model)
        one_of("takes", self.takes, TAKES)
        if self.takes == "auto":
            object.__setattr__(self, "takes", _form(self.loss))
        kind_of(self.data)
        if self.batch_size is None:
            object.__setattr__(self, "batch_size", _own_batch_size(self.data))
        count("batch_size", self.batch_size)

    @property
    def device(self):
        """The device of the model's first parameter, where batches are sent."""
        return next(self.model.parameters()).device

    def value(self, batch, model=None):
        """The loss of ``batch`` on the model (or on another one in its place), with its graph."""
        model = self.model if model is None else model
        if self.takes == "model":
            return self.loss(model, batch)
        inputs, targets = _parted(batch)
        if isinstance(inputs, Mapping):
            return self.loss(model(**inputs), targets)
        return self.loss(model(*inputs), targets)

    def sent(self, batch):
        """``batch`` on the model's device."""
        return mapped(lambda tensor: tensor.to(self.device), batch)

    def pool(self, most=1024, seed=0, left=lambda: math.inf):
        """A ``Pool`` of at most ``most`` examples, drawn from ``seed``; random generators stay where they were.

        Reading ends, after four examples at least, where ``left()``, the seconds left, is not above 0.
        """
        with generators_kept(self.data, seed):
            return pooled(self.data, count("most", most), seed, left)

    def arguments(self, examples=256, seed=0):
        """(module, loss, x, y) for any instrument of this package, whatever the shape of the batches.

        x and y are the places of ``examples`` examples in a batch that the module holds; it has the model's own
        parameters and returns the loss itself. In the mode the model is in; without its compiled form.

        >>> from batchlab import noise
        >>> model = torch.nn.Linear(2, 1)
        >>> problem = Problem(
        ...     model, lambda model, batch: model(batch["x"]).square().mean(), {"x": torch.randn(100, 2)},
        ...     torch.optim.SGD(model.parameters(), lr=0.1), batch_size=16)
        >>> noise.noise_scale(*problem.arguments(100), population=100).trace.estimate > 0
        True
        """
        pool = self.pool(count("examples", examples), seed)
        return rowwise(self, self.sent(pool.batch(pool.size)))


class _Rowwise(torch.nn.Module):
    """A module of the places of examples in a batch that it holds: their loss."""

    def __init__(self, problem, batch):
        super().__init__()
        self.model = getattr(problem.model, "_orig_mod", problem.model)
        self._value, self._batch = problem.value, batch
        object.__setattr__(self, "training", problem.model.training)

    def forward(self, index):
        return self._value(mapped(lambda tensor: tensor[index], self._batch), self.model)


def rowwise(problem, batch):
    """(module, loss, x, y) of a batch, see ``Problem.arguments``."""
    index = torch.arange(rows(batch), device=next(t for _, t in leaves(batch)).device)
    return _Rowwise(problem, batch), lambda value, _: value, index, index


def _form(loss):
    try:
        names = list(inspect.signature(loss).parameters)
    except (TypeError, ValueError):  # written in C
        return "outputs"
    return "model" if names and names[0] in ("model", "net", "network", "module") else "outputs"


def _parted(batch):
    """(inputs, targets) of a batch; inputs are a tuple or a mapping."""
    if isinstance(batch, Mapping):
        for name in TARGETS:
            if name in batch:
                return {key: batch[key] for key in batch if key != name}, batch[name]
        fail("data", f"a mapping with {', '.join(map(str, batch))}", f"one of {', '.join(TARGETS)} among the keys, "
             "or a loss of (model, batch)")  # fmt: skip
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        fail("data", f"batches of one {type(batch).__name__}", "(inputs, targets), or a loss of (model, batch)")
    *inputs, targets = batch
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        return inputs[0], targets
    if len(inputs) == 1 and isinstance(inputs[0], (tuple, list)):
        return inputs[0], targets
    return inputs, targets


def _check_optimizer(optimizer, model):
    if not isinstance(optimizer, torch.optim.Optimizer):
        fail("optimizer", type(optimizer).__name__, "a torch.optim.Optimizer")
    if isinstance(optimizer, torch.optim.LBFGS):
        fail("optimizer", "LBFGS", "a rule that takes one step a batch: LBFGS calls its loss many times")
    own = {id(p) for p in model.parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if not any(id(p) in own for p in held):
        fail("optimizer", "parameters that are not the model's", "an optimizer of model.parameters()")
    if any(id(p) not in own for p in held):
        fail("optimizer", "parameters beside the model's", "parameters of the model only: put them all into one module")


def _own_batch_size(data):
    if isinstance(data, DataLoader) and data.batch_size is not None:
        return data.batch_size
    if isinstance(data, DataLoader) and getattr(data.batch_sampler, "batch_size", None) is not None:
        return data.batch_sampler.batch_size
    if isinstance(data, list) and data:
        return rows(data[0], "batch 0 of data")
    return fail("batch_size", None, "the batch size that the optimizer's settings are meant for; only a DataLoader or "
                "a list of batches tells it")  # fmt: skip

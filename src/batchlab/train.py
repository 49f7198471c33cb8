"""One training run, and the visible loop that carries it out. The pieces of a step are in ``batchlab.step``."""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

import pandas as pd
import torch
from torch import nn

from batchlab import models, schedules
from batchlab._check import count, fail, number, one_of
from batchlab.dataset import ORDERS, Dataset
from batchlab.optim import Optimizer
from batchlab.step import (
    FIRST_SCALE,
    SMALLEST_SCALE,
    average,
    batches,
    dtype_of,
    due,
    gradient,
    has_diverged,
    learning_rate,
    measure_all,
    meets,
    metrics,
    prepare,
    rescale,
    scalar,
    size_at,
)

PRECISIONS = ("float32", "float64", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "mps")
LOSSES = ("cross_entropy", "mse")
PARTS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that decides the outcome of one training; nothing else does.

    data, model, optimizer : a ``Dataset``, a factory ``seed -> nn.Module``, an ``Optimizer``
    lr : base learning rate, above 0; ``lr_schedule(examples_seen, batch_size)`` multiplies it
    batch_size : examples an update; ``batch_schedule(examples_seen)`` multiplies it (rounded to a whole number)
    epochs, steps, examples : how long, exactly one of them; ``examples`` ends with the batch that reaches it
    seed : decides the initial weights, the order of the data and the dropout masks
    loss : "cross_entropy", "mse", or a function (outputs, targets) -> mean loss over examples, a 0-dim tensor
    order, drop_last : how epochs are cut into batches, see ``data.index_stream``
    micro_batch : accumulate the gradient over pieces of this size, which divides ``batch_size``
    checkpoint_segments : keep activations only at the borders of this many segments of an ``nn.Sequential``
    precision : "float32", "float64", or autocast to "bfloat16" or "float16" (with loss scaling)
    l1 : adds l1 * sum|w| over all parameters to the objective (not to the reported loss)
    ema : in (0, 1): average the weights, a <- ema * a + (1 - ema) * w after each update, and evaluate those
    evaluate_every : in examples seen, by default one row an epoch; the first and last states are always evaluated
    evaluate : the parts to evaluate, from "train", "val" and "test"
    target : (metric, value) to stop at, e.g. ("val_accuracy", 0.9) or ("train_loss", 0.1); tried at evaluations
    loss_bound : a batch loss above it, or not finite, ends the run as diverged
    progress : show a tqdm bar

    Raises ValueError at once on an argument outside these, and TypeError on an unknown one.
    """

    data: Dataset
    model: Callable
    optimizer: Optimizer
    lr: float
    batch_size: int
    epochs: int | None = None
    steps: int | None = None
    examples: int | None = None
    seed: int = 0
    loss: str | Callable = "cross_entropy"
    order: str = "reshuffle"
    drop_last: bool = False
    lr_schedule: Callable = schedules.constant()
    batch_schedule: Callable = schedules.constant()
    micro_batch: int | None = None
    checkpoint_segments: int = 1
    precision: str = "float32"
    l1: float = 0.0
    ema: float | None = None
    device: str = "auto"
    evaluate_every: int | None = None
    evaluate: tuple = PARTS
    target: tuple | None = None
    loss_bound: float = 1e4
    progress: bool = False

    def __post_init__(self):
        def keep(name, value):  # as a plain Python number, so that equal runs print alike
            object.__setattr__(self, name, value)

        if not isinstance(self.data, Dataset):
            fail("data", type(self.data).__name__, "a batchlab.data.Dataset")
        if isinstance(self.model, nn.Module) or not callable(self.model):
            fail("model", type(self.model).__name__, "a factory: a function of a seed that returns an nn.Module")
        if not isinstance(self.optimizer, Optimizer):
            fail("optimizer", self.optimizer, "a batchlab.optim.Optimizer, such as optim.sgd()")
        keep("lr", number("lr", self.lr, above=0))
        keep("batch_size", count("batch_size", self.batch_size, at_most=len(self.data.train[0])))
        length = {k: getattr(self, k) for k in ("epochs", "steps", "examples") if getattr(self, k) is not None}
        if len(length) != 1:
            fail("epochs, steps, examples", length, "exactly one of the three")
        for name, value in length.items():
            keep(name, count(name, value))
        keep("seed", count("seed", self.seed, at_least=0))
        if not callable(self.loss):
            one_of("loss", self.loss, LOSSES)
        if (self.loss, self.data.classes is None) in (("mse", False), ("cross_entropy", True)):
            fail("loss", self.loss, "'cross_entropy' for labels, 'mse' for float targets, or your own function")
        one_of("order", self.order, ORDERS)
        for name in ("lr_schedule", "batch_schedule"):
            if not callable(getattr(self, name)):
                fail(name, getattr(self, name), "a function of the examples seen, see batchlab.schedules")
        if self.micro_batch is not None:
            keep("micro_batch", count("micro_batch", self.micro_batch, at_most=self.batch_size))
            if self.batch_size % self.micro_batch:
                fail("micro_batch", self.micro_batch, f"a divisor of batch_size = {self.batch_size}")
        keep("checkpoint_segments", count("checkpoint_segments", self.checkpoint_segments))
        one_of("precision", self.precision, PRECISIONS)
        keep("l1", number("l1", self.l1, at_least=0))
        if self.ema is not None:
            keep("ema", number("ema", self.ema, above=0, below=1))
        one_of("device", self.device, DEVICES)
        if self.evaluate_every is not None:
            keep("evaluate_every", count("evaluate_every", self.evaluate_every))
        if not isinstance(self.evaluate, tuple) or not set(self.evaluate) <= set(PARTS):
            fail("evaluate", self.evaluate, f"a tuple of parts from {PARTS}")
        if self.target is not None:
            if not (isinstance(self.target, tuple) and len(self.target) == 2):
                fail("target", self.target, "a pair (metric, value)")
            metric = one_of("target metric", self.target[0], metrics(self))
            keep("target", (metric, number("target value", self.target[1])))
        keep("loss_bound", number("loss_bound", self.loss_bound, above=0))
        for name in ("drop_last", "progress"):
            one_of(name, getattr(self, name), (True, False))


@dataclass(frozen=True, eq=False)
class History:
    """What a run came to.

    ``table``: a tidy DataFrame with one row an evaluation, the first before any step: step, examples (seen),
    epoch (examples / N), seconds (of training, without evaluations), lr and batch_size (of the last step),
    batch_loss (mean over the examples since the row before), and loss and accuracy of each part evaluated.
    ``parameters``, ``buffers``: the final ones, on the CPU; ``averaged``: the averaged weights, with ``ema``.
    ``diverged``: a batch loss was not finite or above ``run.loss_bound``; no update was made from it.
    ``reached``: the target was met at an evaluation; the table's last row says when.
    """

    run: Run
    table: object
    parameters: dict = field(repr=False)
    buffers: dict = field(repr=False)
    averaged: dict | None = field(repr=False)
    diverged: bool
    reached: bool

    def model(self):
        """The trained model, in evaluation mode, on the CPU (with the averaged weights, if ``ema``)."""
        model = models.build(self.run.model, self.run.seed).to(dtype_of(self.run)).eval()
        trained = {**self.parameters, **(self.averaged or {}), **self.buffers}
        with torch.no_grad():
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                tensor.copy_(trained[name])
        return model


def fit(run):
    """Train once, as ``run`` says, and return its ``History``.

    The loss of a batch is the mean over its examples. Divergence ends the run and is recorded, not raised.
    Raises ValueError where model, data, batch size and device do not fit together, see ``prepare``.

    >>> from batchlab import data, models, optim
    >>> run = Run(data=data.digits(), model=models.mlp((64, 32, 10)), optimizer=optim.momentum(0.9), lr=0.1,
    ...           batch_size=32, epochs=3, device="cpu")
    >>> bool(fit(run).table.test_accuracy.iloc[-1] > 0.9)
    True
    """
    model, params, buffers, parts = prepare(run)
    x, y = parts["train"]  # (N, ...), and (N,) or (N, outputs)
    state, averaged, scale = run.optimizer.init(params), params, FIRST_SCALE
    step = examples = 0
    size, lr, seconds, losses, rows = run.batch_size, run.lr, 0.0, [], []

    def record():
        found = measure_all(run, model, averaged, buffers, parts)
        rows.append(_row(run, step, examples, seconds, lr, size, losses, found))
        losses.clear()
        return meets(run.target, found)

    reached, diverged = record(), False
    with models.seeded(run.seed, "dropout", x.device), _progress(run) as bar:
        for index in batches(run):
            if reached:
                break
            start = perf_counter()
            size, lr = size_at(run, examples), learning_rate(run, examples)
            batch = torch.from_numpy(index).to(x.device)
            loss, grads, buffers = gradient(run, model, params, buffers, x[batch], y[batch], scale[0])
            losses.append((loss, len(index)))
            diverged = has_diverged(loss, run.loss_bound) or scale[0] < SMALLEST_SCALE
            if diverged:
                break
            scale, usable = rescale(run, scale, grads)
            if usable:
                params, state = run.optimizer.update(grads, state, params, scalar(lr, params))
                averaged = average(run, averaged, params)
            before, step, examples = examples, step + 1, examples + len(index)
            seconds += perf_counter() - start
            bar.update(len(index))
            if due(run, before, examples):
                reached = record()
    if losses:  # steps since the last row, or the batch that diverged
        reached = record() and not diverged
    return _history(run, rows, params, buffers, averaged, diverged, reached)


def _row(run, step, examples, seconds, lr, size, losses, found):
    seen = sum(n for _, n in losses)
    return {
        "step": step,
        "examples": examples,
        "epoch": examples / len(run.data.train[0]),
        "seconds": seconds,
        "lr": lr,
        "batch_size": size,
        "batch_loss": sum(loss * n for loss, n in losses) / seen if seen else float("nan"),
        **found,
    }


def _progress(run):
    if run.progress:
        from tqdm.auto import tqdm  # in a notebook without ipywidgets this import warns: only on request
    else:
        from tqdm import tqdm
    total = run.examples or (run.steps or 0) * run.batch_size or run.epochs * len(run.data.train[0])
    return tqdm(total=total, unit=" examples", disable=not run.progress)


def _history(run, rows, params, buffers, averaged, diverged, reached):
    params, buffers, averaged = ({k: v.cpu() for k, v in d.items()} for d in (params, buffers, averaged))
    return History(run, pd.DataFrame(rows), params, buffers, averaged if run.ema else None, diverged, reached)

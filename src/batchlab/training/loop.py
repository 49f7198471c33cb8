"""The visible loop that carries out a run. The pieces of one of its steps are in ``training.step``."""

from dataclasses import dataclass, field
from time import perf_counter

import pandas as pd
import torch

from batchlab.training import models
from batchlab.training.check import check
from batchlab.training.run import Run
from batchlab.training.step import (
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
    prepare,
    rescale,
    row,
    scalar,
    size_at,
)


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
    table: pd.DataFrame
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
    Raises ValueError where model, data, batch size and device do not fit together, see ``training.check``.

    >>> from batchlab import data, models, optim
    >>> run = Run(data=data.digits(), model=models.mlp((64, 32, 10)), optimizer=optim.momentum(0.9), lr=0.1,
    ...           batch_size=32, epochs=3, device="cpu")
    >>> bool(fit(run).table.test_accuracy.iloc[-1] > 0.9)
    True
    """
    model, params, buffers, parts = prepare(run, check(run))
    x, y = parts["train"]  # (N, ...), and (N,) or (N, outputs)
    state, averaged, scale = run.optimizer.init(params), params, FIRST_SCALE
    step = examples = 0
    size, lr, seconds, losses, rows = run.batch_size, run.lr, 0.0, [], []

    def record():
        found = measure_all(run, model, averaged, buffers, parts)
        seen = sum(n for _, n in losses)
        mean = sum(loss * n for loss, n in losses) / seen if seen else float("nan")
        rows.append(row(run, step, examples, seconds, lr, size, mean, found))
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

"""How far does a run overfit, at a small and at a large batch: by equal epochs, and by equal steps?

Two data sets, 1,000 signals of MNIST-1D (synthetic) and 600 of scikit-learn's digits (real images), a fifth of the
training labels wrong, validation and test labels true; an MLP on both, and a small convolutional network on the images.
Adam at a constant rate, batches of 16 and 128. ``small`` and ``epochs``: as many examples at both sizes (40 passes, the
convolutional network 20); ``steps``: the batch of 128 takes as many steps as the batch of 16, so eight times the
passes. The whole grid of rates, a factor of two apart, placed by trial runs on seeds 0 to 3. Every seed has a training
set of its own (signals: of a pool of 8,000; digits: a split of all images). Seeds 1000 to 1011, the convolutional
network 1000 to 1009. Some one and a half minutes on two idle cores.
"""

from dataclasses import replace
from functools import lru_cache, partial

import numpy as np
import pandas as pd
from torch import nn

import batchlab as bl

SEEDS = range(1000, 1012)
SMALL, LARGE = 16, 128
NOISE = 0.2
ADAM = bl.optim.adam()
Dropout = bl.models.Dropout  # by itself: processes of a sweep get functions by value
TRAIN = {"signals": 1000, "images": 600}
TASKS = {  # passes of the small batch, seeds, powers of two of the rates
    "mlp-signals": (40, 12, range(-11, -5)),
    "mlp-images": (40, 12, range(-12, -6)),
    "cnn-images": (20, 10, range(-9, -6)),
}
LOOKS = {"small": (20, 10), "epochs": (10, 5), "steps": (10, 8)}  # at a run, of an MLP and of another network


@lru_cache(maxsize=1)
def _pool(signals):
    return bl.data.mnist1d(8000, val=1000, test=2000, signals=signals)


def problem(task, seed, size=None, noise=NOISE):
    """The ``Dataset`` of a task and a seed, ``size`` training examples or as many as ``TRAIN`` says."""
    name, kind = task.split("-")[:2]
    size = size or TRAIN[kind]
    if kind == "signals":
        whole = _pool(name == "cnn")
        rows = bl.data.epoch_order(8000, seed, 0)[:size]
    else:
        whole = bl.data.digits(seed, val=300, test=297, images=name == "cnn")
        rows = range(size)
    data = replace(whole, train=(whole.train[0][rows], whole.train[1][rows]))
    return bl.data.with_label_noise(data, noise, seed)


def network(task, share=1, dropout=0.0):
    """A factory of the task's network, ``share`` of its units wide, with or without dropout after hidden layers."""
    name, kind = task.split("-")[:2]
    wide = round(100 * share)
    if name == "mlp":
        return bl.models.mlp(({"signals": 40, "images": 64}[kind], wide, wide, 10), dropout=dropout)
    return partial(convolutional, kind, share, dropout)


def convolutional(kind, share, dropout, seed):
    """Two convolutions, then two linear layers: 12,000 to 19,000 weights at ``share`` 1."""
    conv, kernel, stride, places = (nn.Conv1d, 5, 2, 10) if kind == "signals" else (nn.Conv2d, 3, 1, 16)
    few, many, units = round(8 * share), round(16 * share), round(64 * share)
    return nn.Sequential(
        conv(1, few, kernel, stride=2, padding=kernel // 2),
        nn.ReLU(),
        conv(few, many, kernel, stride=stride, padding=kernel // 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(many * places, units),
        nn.ReLU(),
        *([Dropout(dropout, seed, 0)] if dropout else []),
        nn.Linear(units, 10),
    )


def run(task, data, batch_size, **given):
    """A ``Run`` of the task on ``data`` with Adam, unless ``given`` says otherwise."""
    return bl.Run(
        **{
            "data": data,
            "model": network(task),
            "optimizer": ADAM,
            "lr": 1.0,
            "batch_size": batch_size,
            "device": "cpu",
            **given,
        }
    )


def rows(seeds=None, tasks=tuple(TASKS), powers=None, cache=None):
    """One row a task, run ("small", "epochs", "steps"), power of two of the rate, seed and step looked at."""
    tables = []
    for task in tasks:
        (name, kind), (passes, count, tried) = task.split("-"), TASKS[task]
        steps = passes * -(-TRAIN[kind] // SMALL)
        for seed in SEEDS[:count] if seeds is None else seeds:
            data = problem(task, seed)
            for which, size, length in (
                ("small", SMALL, {"steps": steps}),
                ("epochs", LARGE, {"epochs": passes}),
                ("steps", LARGE, {"steps": steps}),
            ):
                whole = passes * TRAIN[kind] * (LARGE // SMALL if which == "steps" else 1)
                made = run(task, data, size, evaluate_every=whole // LOOKS[which][name == "cnn"], **length)
                lrs = [2.0**k for k in powers or tried]
                table = bl.sweep(made, lr=lrs, seed=[seed], n_jobs=None if name == "mlp" else 2, cache=cache)
                tables.append(table.assign(task=task, run=which, power=np.log2(table.lr).astype(int)))
    table = pd.concat(tables, ignore_index=True)
    keys = ["task", "run", "power", "seed", "step"]
    values = ["train_loss", "val_loss", "val_accuracy", "test_loss", "test_accuracy"]
    return table[keys + values].round(dict.fromkeys(values, 4))

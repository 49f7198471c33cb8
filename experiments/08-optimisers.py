"""Steps to a target for nine optimisers, at batch sizes from 8 up: how far does each one scale?

Signals: an MLP on MNIST-1D (4,000 examples) to a training loss of 1.0, up to B = 2,048. Text: the next letter of
Python's manual from the three before (20,000 tokens, one-hot, 32 hidden units) to a training loss of 2.3, up to 512;
the losses are taken on 1,000 and 500 of the training examples. At every size five rates a factor of two apart (on
signals seven at 512), nothing else tuned (LARS: two trust coefficients); steps are infinite where the target is not
reached within 2.5 times (text: 6 times) what was expected. Rates and expected steps were placed by trial runs.
``rare_loss``: on reaching the target on text, the loss on the rarest tokens, a tenth of all. Muon is not in the C
kernel: large batches only, six seeds. Seeds 1300 to 1309. Some three minutes on two idle cores.
"""

import functools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

import batchlab as bl

SEEDS = range(1300, 1310)
SIZES = {"signals": (8, 64, 512, 2048), "text": (8, 64, 512)}
TARGETS = {"signals": 1.0, "text": 2.3}
WIDE = 512  # where the grid reaches further, to see how wide the good region is
OPTIMIZERS = {
    "sgd": bl.optim.sgd(),
    "momentum": bl.optim.momentum(),
    "nesterov": bl.optim.nesterov(),
    "adagrad": bl.optim.adagrad(),
    "rmsprop": bl.optim.rmsprop(),
    "adam": bl.optim.adam(),
    "lars 0.1": bl.optim.lars(trust=0.1),
    "lars 0.01": bl.optim.lars(trust=0.01),
    "lamb": bl.optim.lamb(),
}
CELLS = tuple((task, name) for task in TARGETS for name in (*OPTIMIZERS, "muon"))
MIDDLE = {  # the power of two in the middle of the grid at each size; the steps expected, few (1 + crit / B)
    ("signals", "sgd"): ((-3, 0, 0, 0), 120, 130),
    ("signals", "momentum"): ((-6, -3, -1, 0), 48, 380),
    ("signals", "nesterov"): ((-6, -3, -1, -1), 46, 330),
    ("signals", "adagrad"): ((-4, -4, -4, -4), 85, 150),
    ("signals", "rmsprop"): ((-8, -7, -7, -8), 70, 220),
    ("signals", "adam"): ((-8, -7, -6, -6), 48, 280),
    ("signals", "lars 0.1"): ((-5, -3, -2, -1), 45, 350),
    ("signals", "lars 0.01"): ((-3, 0, 1, 2), 50, 350),
    ("signals", "lamb"): ((-7, -6, -4, -4), 50, 270),
    ("signals", "muon"): ((-8, -6, -3, -3), 20, 300),
    ("text", "sgd"): ((0, 2, 2, 2), 100, 85),
    ("text", "momentum"): ((-4, -1, 1, 1), 45, 200),
    ("text", "nesterov"): ((-4, -1, 1, 1), 38, 240),
    ("text", "adagrad"): ((-3, -2, -2, -2), 11, 450),
    ("text", "rmsprop"): ((-7, -6, -5, -6), 11, 350),
    ("text", "adam"): ((-7, -5, -3, -3), 14, 350),
    ("text", "lars 0.1"): ((-5, -3, -2, -2), 45, 220),
    ("text", "lars 0.01"): ((-3, 0, 2, 2), 45, 220),
    ("text", "lamb"): ((-6, -4, -3, -2), 25, 260),
    ("text", "muon"): ((-7, -5, -3, -3), 40, 300),
}
MUON_SIZES, MUON_SEEDS = (512, 2048), 6


def rows(seeds=SEEDS, cells=CELLS, sizes=None, cache=None):
    """One row a task, optimizer, batch size, rate and seed."""
    tables = []
    for task, name in cells:
        for batch_size in sizes or SIZES[task]:
            if name == "muon":
                if batch_size in MUON_SIZES:
                    tables.append(counted(task, name, batch_size, list(seeds)[:MUON_SEEDS], cache))
            else:
                tables.append(counted(task, name, batch_size, seeds, cache))
    return pd.concat(tables, ignore_index=True)


def counted(task, name, batch_size, seeds, cache):
    middles, few, crit = MIDDLE[task, name]
    expected = few * (1 + crit / batch_size)
    middle = middles[SIZES[task].index(batch_size)]
    hidden = {"signals": ("4",), "text": ("2",)}[task]  # the output layer, which Muon leaves to AdamW
    muon = bl.optim.muon(adjust_lr_fn="match_rms_adamw", weight_decay=0.0, adamw=hidden)
    run = bl.Run(
        data=signals() if task == "signals" else text(),
        model=bl.models.mlp((40, 100, 100, 10) if task == "signals" else (288, 32, 96)),
        optimizer=muon if name == "muon" else OPTIMIZERS[name],
        lr=1.0,
        batch_size=batch_size,
        device="cpu",
        target=("val_loss", TARGETS[task]),
        evaluate=("val",) if task == "signals" else ("val", "test"),
        examples=math.ceil((2.5 if task == "signals" else 6) * expected) * batch_size,
        evaluate_every=max(1, round((0.02 if task == "signals" else 0.03) * expected)) * batch_size,
    )
    reach = 3 if (task, batch_size) == ("signals", WIDE) and name != "muon" else 2
    lrs = [2.0**k for k in range(middle - reach, middle + reach + 1)]
    table = bl.sweep(run, lr=lrs, seed=seeds, cache=cache)
    found = bl.outcomes.to_target(table, *run.target).rename(columns={"step": "steps"})
    rare = table[table.val_loss <= TARGETS[task]].groupby(bl.outcomes.LANE).nth(0)
    if task == "text":
        found = found.merge(rare[[*bl.outcomes.LANE, "test_loss"]], how="left").rename(
            columns={"test_loss": "rare_loss"}
        )
    else:
        found["rare_loss"] = 0.0
    found = found.assign(task=task, optimizer=name).fillna({"rare_loss": np.inf})
    keys = ["task", "optimizer", "batch_size", "lr", "seed", "steps", "rare_loss"]
    return found[keys].round({"rare_loss": 4})


@functools.cache
def signals():
    data = bl.data.mnist1d(4000)
    return replace(data, val=tuple(part[:1000] for part in data.train))


@functools.cache
def text():
    """Three letters to the next, as in 07-critical-batch; for "test" stand examples whose label is rare."""
    data = bl.results.script("07-critical-batch").three_letters()
    x, y = data.train
    counts = torch.bincount(y, minlength=data.classes)
    order = counts.argsort()
    rare = order[counts[order].cumsum(0) <= 0.1 * len(y)]
    those = torch.isin(y, rare)
    return replace(data, val=(x[:500], y[:500]), test=(x[those][:500], y[those][:500]))

"""What moves the critical batch size? Steps to a training loss with one thing changed at a time.

MNIST-1D and the digits (their first 40 principal components), an MLP with SGD: the loss to reach, the width, the data.
Updates at each size, the rate tuned there as in 07-critical-batch, on seeds 5100 and 5101; the steps counted on seeds
5000 to 5011. No second occurs here. Some three minutes on two idle cores.
"""

import math
from dataclasses import replace

import pandas as pd
import torch

import batchlab as bl
from batchlab.outcomes import to_target

CHOOSE, COUNT = range(5100, 5102), range(5000, 5012)
SIZES = (4, 16, 64, 256, 1024)
MANY = (8, 16, 32, 64, 128, 256, 1024, 4000)

# Of each problem: data, layers, training loss to reach, sizes; the guessed rate top (1 - exp(-B / bend)), where tuning
# begins, and the steps expected, few (1 + crit / B), which decide only how often to look and when to give up.
PROBLEMS = {
    "signals to 1.5": ("signals", (40, 100, 100, 10), 1.5, SIZES, 1.5, 75, 52, 75),
    "signals to 1.0": ("signals", (40, 100, 100, 10), 1.0, MANY, 1.8, 90, 120, 130),
    "signals to 0.5": ("signals", (40, 100, 100, 10), 0.5, SIZES, 1.9, 117, 230, 190),
    "images to 0.5": ("images", (40, 100, 100, 10), 0.5, SIZES, 0.8, 40, 20, 40),
    "signals to 1.0, width 25": ("signals", (40, 25, 25, 10), 1.0, SIZES, 1.8, 90, 150, 200),
    "signals to 1.0, width 200": ("signals", (40, 200, 200, 10), 1.0, SIZES, 1.8, 90, 110, 120),
}


def rows(seeds=COUNT, problems=tuple(PROBLEMS), sizes=None, cache=None):
    """One row a problem, batch size and seed: "lr", chosen on ``CHOOSE``, and "steps" to the loss."""
    first = bl.results.script("07-critical-batch")  # a module of our own, which nobody else sees
    first.CHOOSE = CHOOSE
    tables = []
    for name in problems:
        data, layers, target, own, top, bend, few, crit = PROBLEMS[name]
        for batch_size in own if sizes is None else sizes:
            expected = few * (1 + crit / batch_size)
            run = bl.Run(
                data=images() if data == "images" else bl.data.mnist1d(4000),
                model=bl.models.mlp(layers),
                optimizer=bl.optim.sgd(),
                lr=1.0,
                batch_size=batch_size,
                device="cpu",
                target=("train_loss", target),
                evaluate=("train",),
                examples=math.ceil(3 * expected) * batch_size,
                evaluate_every=max(1, round(0.02 * expected)) * batch_size,
            )
            lr = first.tuned(run, top * (1 - math.exp(-batch_size / bend)), cache)
            table = to_target(bl.sweep(run, lr=[lr], seed=seeds, cache=cache), *run.target)
            tables.append(table.rename(columns={"step": "steps"}).assign(problem=name))
    return pd.concat(tables, ignore_index=True)[["problem", "batch_size", "lr", "seed", "steps"]]


def images(components=40):
    """The digits as their first principal components, of a mean square of 1: as many inputs as a signal has."""
    digits = bl.data.digits()
    x = digits.train[0].double()
    mean = x.mean(0)
    axes = torch.linalg.svd(x - mean, full_matrices=False).Vh[:components]
    axes *= axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()  # an axis has no sign of its own
    scale = ((x - mean) @ axes.T).square().mean().sqrt()

    def seen(part):
        return ((part[0].double() - mean) @ axes.T / scale).float(), part[1]

    return replace(
        digits, name="digits, 40 components", **{p: seen(getattr(digits, p)) for p in ("train", "val", "test")}
    )

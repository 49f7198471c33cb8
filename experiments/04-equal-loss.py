"""Validation accuracy of a batch of 32 and of the full batch on MNIST-1D, around the moment the training loss is 1.0.

Each run stops at the first look (about every 3 % of the way) that finds the loss at or below 1.0; its row holds that
look and the one before, so that the accuracy can be read off at a loss of exactly 1.0. ``CHOOSE`` picks the rate, by
the steps, and ``COUNT`` is compared. A minute on two idle cores.
"""

import math

import pandas as pd

import batchlab as bl
from batchlab.outcomes import LANE

CHOOSE, COUNT = range(1000, 1004), range(1004, 1064)
SIZES = (32, 4000)
FACTORS = (0.55, 0.75, 1, 1.35, 1.8)


def rows(seeds=(*CHOOSE, *COUNT), sizes=SIZES, cache=None):
    """One row a batch size, rate and seed: "steps", infinite where the target was not met, and the last two looks."""
    data = bl.data.mnist1d(4000, val=10_000, test=1000)
    tables = []
    for batch_size in sizes:
        expected = 120 * (1 + 130 / batch_size)
        run = bl.Run(
            data=data,
            model=bl.models.mlp((40, 100, 100, 10)),
            optimizer=bl.optim.sgd(),
            lr=1.0,
            batch_size=batch_size,
            device="cpu",
            target=("train_loss", 1.0),
            evaluate=("train", "val"),
            examples=math.ceil(2 * expected) * batch_size,
            evaluate_every=max(1, round(0.03 * expected)) * batch_size,
        )
        guess = 1.8 * (1 - math.exp(-batch_size / 90))
        lrs = [float(f"{guess * factor:.3g}") for factor in FACTORS]
        table = bl.sweep(run, lr=lrs, seed=seeds, cache=cache)
        looks = table.groupby(LANE, sort=False)
        last, before = (looks.nth(n).set_index(LANE) for n in (-1, -2))
        met = last.train_loss <= 1.0
        tables.append(
            pd.DataFrame(
                {
                    "steps": last.step.where(met, math.inf),
                    "loss_before": before.train_loss,
                    "loss": last.train_loss,
                    "accuracy_before": before.val_accuracy,
                    "accuracy": last.val_accuracy,
                }
            ).reset_index()
        )
    return pd.concat(tables, ignore_index=True).fillna(math.inf)

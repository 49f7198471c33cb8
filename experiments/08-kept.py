"""Does a rate tuned at a batch of 64 still serve at 512? Momentum, Adagrad and RMSProp, asked again on fresh seeds.

The tasks, targets and expected steps of 08-optimisers, on grids as wide as the ranges are: there momentum's on text was
cut off by its grid, and so its range was put too low. A run that is not there after 2.5 times the steps expected counts
as that many. Seeds 1740 to 1749. A minute on two idle cores.
"""

import math

import pandas as pd

import batchlab as bl

SEEDS = range(1740, 1750)
SIZES = (64, 512)
POWERS = {  # of two, at both sizes
    ("signals", "momentum"): range(-5, 2),
    ("signals", "adagrad"): range(-7, -1),
    ("signals", "rmsprop"): range(-10, -3),
    ("text", "momentum"): range(-3, 3),
    ("text", "adagrad"): range(-5, 1),
    ("text", "rmsprop"): range(-8, -2),
}


def rows(seeds=SEEDS, cells=tuple(POWERS), sizes=SIZES, cache=None):
    """One row a task, optimizer, batch size, rate and seed: the steps."""
    tables = []
    for task, name in cells:
        first = bl.results.script("08-optimisers")
        _, few, crit = first.MIDDLE[task, name]
        for batch_size in sizes:
            expected = few * (1 + crit / batch_size)
            most = math.ceil(2.5 * expected)
            run = bl.Run(
                data=first.signals() if task == "signals" else first.text(),
                model=bl.models.mlp((40, 100, 100, 10) if task == "signals" else (288, 32, 96)),
                optimizer=first.OPTIMIZERS[name],
                lr=1.0,
                batch_size=batch_size,
                device="cpu",
                target=("val_loss", first.TARGETS[task]),
                evaluate=("val",),
                examples=most * batch_size,
                evaluate_every=max(1, round(0.03 * expected)) * batch_size,
            )
            table = bl.sweep(run, lr=[2.0**k for k in POWERS[task, name]], seed=seeds, cache=cache)
            found = bl.outcomes.to_target(table, *run.target)
            tables.append(found.assign(task=task, optimizer=name, steps=found.step.clip(upper=most)))
    return pd.concat(tables, ignore_index=True)[["task", "optimizer", "batch_size", "lr", "seed", "steps"]]

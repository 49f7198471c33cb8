"""Batches of 8 and of 128, equal examples and equal steps: two networks, two data sets, training and test loss.

An MLP with momentum and a CNN with AdamW, each on MNIST-1D (1,024 training signals) and on scikit-learn's digits (512
real images). Numbers of steps four times as many each time, so that 128 in 64 steps sees as many examples as 8 in 1,024
(TE; at one rate for both, FE), and every number of steps compares at equal steps (TS). A whole grid of rates, a factor
of two apart, at each; the rate falls along half a cosine. Weight decay is a second grid. Rates and decays were placed
by trial runs on seeds 0 and 1, by their validation parts. Seeds 1500 to 1511 (MLP), to 1509 (CNN). Some five minutes on
two idle cores.
"""

import pandas as pd

import batchlab as bl

SMALL, LARGE = 8, 128
SEEDS = {"MLP": range(1500, 1512), "CNN": range(1500, 1510)}
STEPS = {"MLP": (64, 256, 1024, 4096), "CNN": (64, 1024)}
DECAYED = {"MLP": (0.01, (1024, 4096)), "CNN": (0.1, (1024,))}  # weight decay, and in which numbers of steps
TASKS = ("MLP, MNIST-1D", "MLP, digits", "CNN, MNIST-1D", "CNN, digits")
GRIDS = {  # powers of two, from and to: of each task and size, for the numbers of steps, and then with weight decay
    "MLP, MNIST-1D": {
        8: ((-5, -1), (-6, -2), (-8, -3), (-7, -3), (-7, -2), (-8, -3)),
        128: ((-7, 1), (-6, 0), (-7, 0), (-5, -1), (-6, 0), (-7, 0)),
    },
    "MLP, digits": {
        8: ((-6, -2), (-8, -3), (-9, -3), (-11, -3), (-9, -3), (-10, -3)),
        128: ((-8, 1), (-8, 1), (-9, 0), (-10, 0), (-9, 0), (-10, 0)),
    },
    "CNN, MNIST-1D": {8: ((-7, -2), (-6, -2), (-6, -2)), 128: ((-7, -2), (-6, -3), (-6, -3))},
    "CNN, digits": {8: ((-8, -4), (-9, -3), (-9, -3)), 128: ((-9, -3), (-7, -4), (-7, -4))},
}
KEYS = ["task", "decay", "steps", "batch_size", "lr", "seed"]
VALUES = ["train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy"]


def dataset(task):
    """MNIST-1D as rows or as signals, digits as rows or as images."""
    cnn = task.startswith("CNN")
    if task.endswith("digits"):
        return bl.data.digits(val=385, test=900, images=cnn)
    return bl.data.mnist1d(1024, val=1000, test=4000, signals=cnn)


def model(task):
    if task.startswith("MLP"):
        return bl.models.mlp((64, 64, 10) if task.endswith("digits") else (40, 100, 100, 10))
    shape = (1, 8, 8) if task.endswith("digits") else (1, 40)
    return bl.models.cnn(shape, 10, channels=(8, 16), kernel=3 if task.endswith("digits") else 5)


def optimizer(task, decay):
    if task.startswith("MLP"):
        return bl.optim.momentum(0.9, weight_decay=decay)
    return bl.optim.adamw(weight_decay=decay)


def rows(seeds=None, tasks=TASKS, steps=None, decays=(False, True), sizes=(SMALL, LARGE), grids=GRIDS, cache=None):
    """One row a task, decay, number of steps, batch size, rate and seed: how the run ended; infinite if it diverged."""
    tables = []
    for task in tasks:
        kind = task[:3]
        data = dataset(task)
        for batch_size in sizes:
            decay, decayed = DECAYED[kind]
            cells = [*((0.0, number) for number in STEPS[kind]), *((decay, number) for number in decayed)]
            for (decay, number), (low, high) in zip(cells, grids[task][batch_size], strict=True):
                if (decay > 0) not in decays or (steps and number not in steps):
                    continue
                run = bl.Run(
                    data=data,
                    model=model(task),
                    optimizer=optimizer(task, decay),
                    lr=1.0,
                    batch_size=batch_size,
                    steps=number,
                    lr_schedule=bl.schedules.cosine(number * batch_size),
                    evaluate_every=number * batch_size,
                    device="cpu",
                )
                lrs = [2.0**k for k in range(low, high + 1)]
                table = bl.sweep(run, lr=lrs, seed=SEEDS[kind] if seeds is None else seeds, cache=cache)
                tables.append(bl.outcomes.ends(table).assign(task=task, decay=decay, steps=number))
    table = pd.concat(tables, ignore_index=True)
    return table[KEYS + VALUES].round(dict.fromkeys(VALUES, 5))

"""What is a worker worth? Steps to a loss at four batch sizes, each pair of which is four times as many workers.

MNIST-1D (layers 40-100-100-10) to a training loss of 1.0 and digits (64-64-10) to 0.1, plain SGD: the rate tuned at
each size on ``CHOOSE``, the steps counted on ``COUNT``. No second occurs
here. Under a minute on two idle cores.
"""

import math

import pandas as pd

import batchlab as bl
from batchlab.outcomes import best_lr, to_target

CHOOSE, COUNT = range(1200, 1204), range(1204, 1214)
TASKS = {  # sizes, layers, target; the guessed rate top (1 - exp(-B / bend)), and the steps expected few (1 + crit / B)
    "MNIST-1D": ((8, 32, 1000, 4000), (40, 100, 100, 10), 1.0, 1.8, 90, 120, 130),
    "digits": ((4, 16, 256, 1024), (64, 64, 10), 0.1, 0.95, 45, 40, 70),
}


def rows(seeds=COUNT, tasks=tuple(TASKS), cache=None):
    """One row a task, batch size and seed: "lr", chosen on ``CHOOSE``, and "steps" to the target."""
    return pd.concat([counted(task, size, seeds, cache) for task in tasks for size in TASKS[task][0]])


def counted(task, batch_size, seeds, cache=None):
    _, layers, target, top, bend, few, crit = TASKS[task]
    expected = few * (1 + crit / batch_size)
    run = bl.Run(
        data=bl.data.mnist1d(4000) if task == "MNIST-1D" else bl.data.digits(),
        model=bl.models.mlp(layers),
        optimizer=bl.optim.sgd(),
        lr=1.0,
        batch_size=batch_size,
        device="cpu",
        target=("train_loss", target),
        evaluate=("train",),
        examples=math.ceil(3 * expected) * batch_size,
        evaluate_every=max(1, round(0.01 * expected)) * batch_size,
    )
    lr = tuned(run, top * (1 - math.exp(-batch_size / bend)), cache)
    table = to_target(bl.sweep(run, lr=[lr], seed=seeds, cache=cache), *run.target)
    return table.rename(columns={"step": "steps"}).assign(task=task, lr=lr)[
        ["task", "batch_size", "lr", "seed", "steps"]
    ]


def tuned(run, guess, cache=None):
    """The rate that reaches the target in the fewest steps, of rates a factor 1.3 apart that go on past it."""
    powers = list(range(-3, 4))
    while len(powers) < 20:
        lrs = [float(f"{guess * 1.3**k:.3g}") for k in powers]
        best = best_lr(to_target(bl.sweep(run, lr=lrs, seed=CHOOSE, cache=cache), *run.target), "step", edge="flag")
        if not best.at_edge[0]:
            return float(best.lr[0])
        powers = [powers[0] - 1, *powers] if best.lr[0] == lrs[0] else [*powers, powers[-1] + 1]
    raise ValueError(f"no best rate for {run.data.name} at {run.batch_size} in {lrs}")

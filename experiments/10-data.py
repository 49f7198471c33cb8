"""Does test error fall with every doubling of the training data, at equal steps?

Tasks, networks and data of 10-curves with true labels: signals 500 to 4,000, images 150 to 1,200. Adam at a constant
rate, batches of 16, and of 128 for the MLPs; as many steps at every size of the data as 40 passes (convolutional
network 10) over the 1,000 signals or 600 images of 10-curves take. The whole grid of rates. Seeds 1200 to 1211,
convolutional network 1200 to 1209. Some forty seconds on two idle cores.
"""

import numpy as np
import pandas as pd

import batchlab as bl

SEEDS = range(1200, 1212)
CELLS = {  # (task, batch size) -> powers of two of the rates, seeds
    ("mlp-signals", 16): (range(-12, -6), 12),
    ("mlp-signals", 128): (range(-11, -5), 12),
    ("mlp-images", 16): (range(-12, -6), 12),
    ("mlp-images", 128): (range(-11, -5), 12),
    ("cnn-images", 16): (range(-9, -7), 10),
}
SIZES = {"signals": (500, 1000, 2000, 4000), "images": (150, 300, 600, 1200)}

curves = bl.results.script("10-curves")


def rows(seeds=None, cells=tuple(CELLS), powers=None, cache=None):
    """One row a task, batch size, size of the training data, power of two of the rate, and seed."""
    made = []
    for task, batch_size in cells:
        kind, (tried, count) = task.split("-")[1], CELLS[task, batch_size]
        passes = 40 if task.startswith("mlp") else 10
        steps = -(-passes * curves.TRAIN[kind] // batch_size)
        for seed in SEEDS[:count] if seeds is None else seeds:
            for size in SIZES[kind]:
                data = curves.problem(task, seed, size, noise=0)
                run = curves.run(task, data, batch_size, steps=steps, evaluate_every=steps * batch_size // 8)
                lrs = [2.0**k for k in powers or tried]
                table = bl.sweep(run, lr=lrs, seed=[seed], n_jobs=None if "mlp" in task else 2, cache=cache)
                early = table.groupby("lr", sort=False).train_loss.nth(1).to_numpy()
                ends = bl.outcomes.ends(table).assign(early_loss=early, task=task, size=size)
                made.append(ends.assign(power=np.log2(ends.lr).astype(int)))
    table = pd.concat(made, ignore_index=True)
    keys = ["task", "batch_size", "size", "power", "seed"]
    values = ["early_loss", "train_loss", "val_loss", "val_accuracy", "test_loss", "test_accuracy"]
    return table[keys + values].round(dict.fromkeys(values, 4))

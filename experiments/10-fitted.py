"""At the rate that fits the training data best, which batch goes further past its best: where tuned rates did not say.

By validation accuracy the MLP on images has rates so low that it hardly overfits, and equal passes told nothing of the
convolutional network on signals: three tests of 10-curves and 10-cnn failed. Here each size also has the rate whose
training loss ends lowest ("carried to the end" in 10-remedies), on seeds of their own, and a third data set joins:
"mlp-mnist", an MLP on 1,000 images of MNIST, each 2 x 2 pixels averaged. Otherwise the protocols, networks and data of
10-curves: a fifth of the training labels wrong, Adam at a constant rate, batches of 16 and 128, as many passes, then as
many steps (the convolutional network: as many passes only). The grids were placed by trial runs on seeds 0 and 1, by
their training and validation parts. Seeds 1400 to 1411, MNIST and the convolutional network 1400 to 1409. Some four
minutes on two idle cores.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
from torch.nn.functional import avg_pool2d

import batchlab as bl

SEEDS = range(1400, 1412)
TASKS = {  # passes of the small batch, seeds, powers of two of the rates, runs
    "mlp-images": (40, 12, range(-11, -3), ("small", "epochs", "steps")),
    "mlp-mnist": (40, 10, range(-13, -4), ("small", "epochs", "steps")),
    "cnn-signals": (20, 10, range(-9, -5), ("small", "epochs")),
}
PARTS = ("train", "val", "test")

curves = bl.results.script("10-curves")


def problem(task, seed):
    """The ``Dataset`` of a task and a seed."""
    if task != "mlp-mnist":
        return curves.problem(task, seed)
    whole = bl.data.mnist5k(seed, val=1000, test=2000, images=True)
    parts = {name: (avg_pool2d(getattr(whole, name)[0], 2).flatten(1), getattr(whole, name)[1]) for name in PARTS}
    parts["train"] = tuple(values[:1000] for values in parts["train"])
    return bl.data.with_label_noise(replace(whole, **parts), curves.NOISE, seed)


def network(task):
    return bl.models.mlp((196, 100, 100, 10)) if task == "mlp-mnist" else curves.network(task)


def rows(seeds=None, tasks=tuple(TASKS), powers=None, cache=None):
    """One row a task, run ("small", "epochs", "steps"), power of two of the rate, seed and step looked at."""
    tables = []
    for task in tasks:
        passes, count, tried, runs = TASKS[task]
        for seed in SEEDS[:count] if seeds is None else seeds:
            data, cnn = problem(task, seed), task.startswith("cnn")
            examples = passes * len(data.train[1])
            steps = -(-examples // curves.SMALL)
            for which in runs:
                made = bl.Run(
                    data=data,
                    model=network(task),
                    optimizer=curves.ADAM,
                    lr=1.0,
                    batch_size=curves.SMALL if which == "small" else curves.LARGE,
                    device="cpu",
                    evaluate_every=(steps * curves.LARGE if which == "steps" else examples) // curves.LOOKS[which][cnn],
                    **({"epochs": passes} if which == "epochs" else {"steps": steps}),
                )
                lrs = [2.0**k for k in powers or tried]
                table = bl.sweep(made, lr=lrs, seed=[seed], n_jobs=2 if cnn else None, cache=cache)
                tables.append(table.assign(task=task, run=which, power=np.log2(table.lr).astype(int)))
    table = pd.concat(tables, ignore_index=True)
    keys = ["task", "run", "power", "seed", "step"]
    places = {"train_loss": 7, "val_loss": 4, "val_accuracy": 4, "test_loss": 4, "test_accuracy": 4}
    return table[[*keys, *places]].round(places)

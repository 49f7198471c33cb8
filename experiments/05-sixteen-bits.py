"""Networks trained in bfloat16 (autocast) and in float32, from the same weights on the same batches: do they end alike?

Two networks on MNIST-1D: an MLP by SGD, a CNN by Adam, each at the learning rate that its validation loss in float32
chose on other seeds from a grid of factors of two. Evaluated in float32, on the test set. Seeds 1000 to 1039 for the
MLP, to 1019 for the CNN; about four minutes.
"""

from dataclasses import replace

import pandas as pd

import batchlab as bl

TASKS = {
    "MLP, SGD": (False, bl.models.mlp((40, 100, 100, 10)), bl.optim.sgd(), 0.2),
    "CNN, Adam": (True, bl.models.cnn((1, 40), 10), bl.optim.adam(), 0.032),
}
PRECISIONS = ("float32", "bfloat16")
EPOCHS, BATCH = 20, 64
COLUMNS = ["task", "precision", "seed", "early_loss", "test_loss", "test_accuracy"]
SEEDS = {"MLP, SGD": range(1000, 1040), "CNN, Adam": range(1000, 1020)}


def rows(seeds=None, tasks=tuple(TASKS), cache=None):
    """One row a task, precision, seed: "early_loss" (nats, batch 32), and at the end "test_loss", "test_accuracy"."""
    found = []
    for task in tasks:
        signals, model, optimizer, lr = TASKS[task]
        data = bl.data.mnist1d(test=1000, signals=signals)
        for seed in SEEDS[task] if seeds is None else seeds:
            for precision in PRECISIONS:
                run = bl.Run(
                    data=data, model=model, optimizer=optimizer, lr=lr, batch_size=BATCH, epochs=EPOCHS, seed=int(seed),
                    precision=precision, evaluate=("test",), evaluate_every=EPOCHS * len(data.train[0]), device="cpu",
                )  # fmt: skip
                early = bl.fit(replace(run, epochs=None, steps=32, evaluate=())).table.batch_loss.iloc[-1]
                end = bl.fit(run).table.iloc[-1]
                found.append((task, precision, seed, early, end.test_loss, end.test_accuracy))
    return pd.DataFrame(found, columns=COLUMNS)

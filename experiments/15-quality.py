"""How good is the model at a small, a moderate and a large batch: through equal examples, and in equal steps?

An MLP with SGD on 4,000 signals of MNIST-1D and on the digits; the rate falls along half a cosine. TE: 30 epochs at
every size. TS: 400 steps at every size. A grid of rates a factor of two apart, placed by trial runs on seeds 0 and 1 by
their validation accuracy. Seeds 5000 to 5019. Some two minutes on two idle cores.
"""

import pandas as pd

import batchlab as bl

SEEDS = range(5000, 5020)
EPOCHS, STEPS = 30, 400
GRIDS = {  # rates are powers of two, from and to
    ("signals", "TE"): {4: (-5, -1), 16: (-3, 1), 64: (-1, 2), 256: (-1, 3), 1024: (-1, 3)},
    ("digits", "TE"): {4: (-5, -1), 16: (-3, 1), 64: (-3, 1), 256: (-2, 2), 1024: (-2, 2)},
    ("signals", "TS"): {64: (-1, 2), 256: (-1, 2), 1024: (-1, 3)},
    ("digits", "TS"): {64: (-3, 1), 256: (-2, 2), 1024: (-2, 2)},
}
KEYS = ["task", "protocol", "batch_size", "lr", "seed"]
VALUES = ["val_loss", "val_accuracy", "test_accuracy"]


def rows(seeds=SEEDS, grids=GRIDS, cache=None):
    """One row a task, protocol, batch size, rate and seed: how the run ended; infinite where it diverged."""
    tables = []
    for (task, protocol), sizes in grids.items():
        data = bl.data.digits() if task == "digits" else bl.data.mnist1d(4000)
        for batch_size, (low, high) in sizes.items():
            examples = EPOCHS * len(data.train[0]) if protocol == "TE" else STEPS * batch_size
            run = bl.Run(
                data=data,
                model=bl.models.mlp((64, 64, 10) if task == "digits" else (40, 100, 100, 10)),
                optimizer=bl.optim.sgd(),
                lr=1.0,
                batch_size=batch_size,
                examples=examples,
                lr_schedule=bl.schedules.cosine(examples),
                evaluate=("val", "test"),
                evaluate_every=examples,
                device="cpu",
            )
            rates = [2.0**k for k in range(low, high + 1)]
            ends = bl.outcomes.ends(bl.sweep(run, lr=rates, seed=seeds, cache=cache))
            tables.append(ends.assign(task=task, protocol=protocol))
    return pd.concat(tables, ignore_index=True)[KEYS + VALUES].round(dict.fromkeys(VALUES, 5))

"""How often does training fail when the batch changes and the rate does not, or does?

MNIST-1D as in 06-ridge.py (equal examples), SGD. A rate tuned at one size, by trial runs on seeds 0 to 3 (1.0 at
B = 32, 2.0 at B = 128), is kept at another, or scaled in proportion. A run fails that diverges or ends with a test
accuracy below 0.2. Seeds 2000 to 2099. Less than a minute on two idle cores.
"""

import pandas as pd

import batchlab as bl

SEEDS = range(2000, 2100)
TUNED = {32: 1.0, 128: 2.0}
CELLS = (  # batch size, tuned at, how the rate was carried over
    (32, 32, "kept"),
    (128, 128, "kept"),
    (8, 128, "kept"),
    (8, 128, "linear"),
    (512, 32, "kept"),
    (2048, 32, "kept"),
    (64, 32, "linear"),
    (2048, 32, "linear"),
)


def rows(seeds=SEEDS, cells=CELLS, cache=None):
    """One row a cell and seed: the rate, the test accuracy (0 where it diverged) and whether the run failed (0, 1)."""
    tables = []
    for batch_size, tuned_at, rule in cells:
        lr = TUNED[tuned_at] * (batch_size / tuned_at if rule == "linear" else 1)
        run = bl.Run(
            data=bl.data.mnist1d(16_000),
            model=bl.models.mlp((40, 100, 100, 10)),
            optimizer=bl.optim.sgd(),
            lr=lr,
            batch_size=batch_size,
            examples=128_000,
            lr_schedule=bl.schedules.cosine(128_000),
            evaluate=("test",),
            evaluate_every=128_000,
            device="cpu",
        )
        ends = bl.outcomes.ends(bl.sweep(run, seed=seeds, cache=cache))
        failed = (ends.diverged | (ends.test_accuracy < 0.2)).astype(int)
        tables.append(ends.assign(tuned_at=tuned_at, rule=rule, failed=failed))
    keys = ["batch_size", "tuned_at", "rule", "lr", "seed", "test_accuracy", "failed"]
    return pd.concat(tables, ignore_index=True)[keys].round({"test_accuracy": 5})

"""Fresh data: batches of 8 and of 128 in the same 1,024 steps, no example seen twice. Noise, or repetition?

The MLP (momentum) and the CNN (AdamW) of 11-protocols on MNIST-1D, which makes any number of signals: 131,072 here, one
pass for the larger batch. Everything else is as there, where 1,024 signals come again and again; so are the seeds, 1500
to 1509, which share their initial weights. Rates were placed by those of 11-protocols. Some two minutes on two idle
cores, of which 40 seconds to make the signals.
"""

import pandas as pd

import batchlab as bl

SEEDS = range(1500, 1510)
STEPS, SMALL, LARGE = 1024, 8, 128
GRIDS = {"MLP": {8: (-8, -2), 128: (-7, 0)}, "CNN": {8: (-6, -2), 128: (-6, -2)}}
KEYS = ["network", "batch_size", "lr", "seed"]
VALUES = ["val_loss", "val_accuracy", "test_loss", "test_accuracy"]


def rows(seeds=SEEDS, networks=tuple(GRIDS), sizes=(SMALL, LARGE), signals=STEPS * LARGE, cache=None):
    """One row a network, batch size, rate and seed: how the run ended; infinite if it diverged."""
    tables = []
    for network in networks:
        cnn = network == "CNN"
        for batch_size in sizes:
            run = bl.Run(
                data=bl.data.mnist1d(signals, val=1000, test=4000, signals=cnn),
                model=bl.models.cnn((1, 40), 10, channels=(8, 16), kernel=5)
                if cnn
                else bl.models.mlp((40, 100, 100, 10)),
                optimizer=bl.optim.adamw(weight_decay=0.0) if cnn else bl.optim.momentum(0.9),
                lr=1.0,
                batch_size=batch_size,
                steps=STEPS,
                lr_schedule=bl.schedules.cosine(STEPS * batch_size),
                evaluate=("val", "test"),
                evaluate_every=STEPS * batch_size,
                device="cpu",
            )
            low, high = GRIDS[network][batch_size]
            table = bl.sweep(run, lr=[2.0**k for k in range(low, high + 1)], seed=seeds, cache=cache)
            tables.append(bl.outcomes.ends(table).assign(network=network))
    return pd.concat(tables, ignore_index=True)[KEYS + VALUES].round(dict.fromkeys(VALUES, 5))

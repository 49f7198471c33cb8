"""The best learning rate at every batch size: equal examples, and equal steps, under three optimisers.

An MLP on MNIST-1D, 16,000 training examples so that little is learnt by heart; the rate falls along half a cosine.
TE: 128,000 examples (8 epochs) at every size. TS: 1,000 steps at every size. The whole grid of rates, a factor of two
apart, at every size: read at one rate for all sizes, it is the protocol FE. Rates were placed by trial runs on seeds 0
and 1. Seeds 1000 to 1009. Some five minutes on two idle cores.
"""

import pandas as pd

import batchlab as bl

SEEDS = range(1000, 1010)
SIZES = tuple(2**k for k in range(2, 13))
EXAMPLES, STEPS = 128_000, 1000
RATES = {  # powers of two
    "sgd": tuple(2.0**k for k in range(-6, 4)),
    "momentum": tuple(2.0**k for k in range(-8, 2)),
    "adam": tuple(2.0**k for k in range(-11, -3)),
}
TS_SIZES = tuple(2**k for k in range(2, 11))
CELLS = (("sgd", "TE"), ("momentum", "TE"), ("adam", "TE"), ("sgd", "TS"), ("adam", "TS"))


def rows(seeds=SEEDS, cells=CELLS, sizes=SIZES, rates=RATES, cache=None):
    """One row an optimizer, protocol, batch size, rate and seed: how the run ended; infinite where it diverged."""
    tables = []
    for optimizer, protocol in cells:
        for batch_size in sizes:
            if protocol == "TS" and batch_size not in TS_SIZES:
                continue
            examples = EXAMPLES if protocol == "TE" else STEPS * batch_size
            run = bl.Run(
                data=bl.data.mnist1d(16_000),
                model=bl.models.mlp((40, 100, 100, 10)),
                optimizer=getattr(bl.optim, optimizer)(),
                lr=1.0,
                batch_size=batch_size,
                examples=examples,
                lr_schedule=bl.schedules.cosine(examples),
                evaluate=("val", "test"),
                evaluate_every=examples,
                device="cpu",
            )
            ends = bl.outcomes.ends(bl.sweep(run, lr=rates[optimizer], seed=seeds, cache=cache))
            tables.append(ends.assign(optimizer=optimizer, protocol=protocol))
    table = pd.concat(tables, ignore_index=True)
    keys = ["optimizer", "protocol", "batch_size", "lr", "seed"]
    values = ["val_loss", "val_accuracy", "test_accuracy"]
    return table[keys + values].round(dict.fromkeys(values, 5))

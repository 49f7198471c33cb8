"""Small batches under Adam: beta2 left alone, and beta2 moved so that its half-life in examples stays.

Text, the next letter from three, layers 288-64-96, 16,000 examples seen once, the rate falling along a cosine, beta1
0.9. Reference: beta2 = 0.95 at 128 examples. Rates were placed blind, wide. Seeds 1000 to 1009. Half a
minute on two idle cores.
"""

import pandas as pd

import batchlab as bl
from batchlab.schedules import cosine

SEEDS = range(1000, 1010)
EXAMPLES, REFERENCE, BETA2 = 16_000, 128, 0.95
SIZES = (2, 8, 32, 128)
RATES = tuple(2.0**k for k in range(-13, -2))


def rows(seeds=SEEDS, sizes=SIZES, rates=RATES, cache=None):
    """One row a rule ("kept", "half-life"), batch size, rate and seed: the losses; infinite where it diverged."""
    tables = []
    for rule in ("kept", "half-life"):
        for size in sizes:
            run = bl.Run(
                data=bl.results.script("09-decay-or-grow").text(3, EXAMPLES),
                model=bl.models.mlp((288, 64, 96)),
                optimizer=bl.optim.adam((0.9, BETA2 if rule == "kept" else BETA2 ** (size / REFERENCE))),
                lr=1.0,
                batch_size=size,
                examples=EXAMPLES,
                lr_schedule=cosine(EXAMPLES),
                evaluate=("val", "test"),
                evaluate_every=EXAMPLES,
                device="cpu",
            )
            found = bl.outcomes.ends(bl.sweep(run, lr=rates, seed=seeds, cache=cache))
            tables.append(found.assign(rule=rule))
    keys, values = ["rule", "batch_size", "lr", "seed"], ["val_loss", "test_loss"]
    return pd.concat(tables, ignore_index=True)[keys + values].round(dict.fromkeys(values, 5))

"""Is a warmup worth anything once its length is tuned, together with the rate, and does a larger batch gain more by it?

The protocol of 08-recipe, part "warmup": MNIST-1D, 4,000 examples, 30 epochs, cosine decay; momentum 0.9 and Adam at a
batch below the critical size, about at it, and of four times as much. No warmup, or one over 1, 5 or 10 epochs; rates a
factor of two apart, on grids that trial runs on seeds 0 and 1 put so that the best is not at an end. Whoever reads the
rows chooses length and rate on the first ten seeds, 1840 to 1849, and judges on the others. Some three minutes on two
idle cores.
"""

import pandas as pd

import batchlab as bl

SEEDS = range(1840, 1860)
CHOOSE = range(1840, 1850)  # the others judge
EPOCHS = (0, 1, 5, 10)  # of warmup
POWERS = {  # of two: the rates
    ("momentum", 128): range(-3, 1),
    ("momentum", 512): range(-2, 2),
    ("momentum", 2048): range(-2, 2),
    ("adam", 128): range(-7, -3),
    ("adam", 512): range(-6, -2),
    ("adam", 2048): range(-6, -2),
}


def rows(seeds=SEEDS, cells=tuple(POWERS), epochs=EPOCHS, cache=None):
    """One row an optimizer, batch size, length of the warmup (epochs), rate and seed: how the run ended."""
    first, S, tables = bl.results.script("08-recipe"), bl.schedules, []
    cosine = S.cosine(first.TOTAL)
    for optimizer, batch_size in cells:
        lrs = [2.0**k for k in POWERS[optimizer, batch_size]]
        for warm in epochs:
            schedule = S.product(S.warmup(warm * first.EXAMPLES), cosine) if warm else cosine
            found = first.ends("warmup", warm, optimizer, batch_size, lrs, seeds, cache, lr_schedule=schedule)
            tables.append(found.rename(columns={"arm": "warmup_epochs"}))
    keys = ["optimizer", "batch_size", "warmup_epochs", "lr", "seed"]
    return pd.concat(tables, ignore_index=True)[[*keys, "val_accuracy", "test_accuracy"]]

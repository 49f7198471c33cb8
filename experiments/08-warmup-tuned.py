"""Is a warmup worth anything once its length is tuned, together with the rate, and does a larger batch gain more by it?

The protocol of 08-recipe, part "warmup": MNIST-1D, 4,000 examples, 30 epochs, cosine decay; momentum 0.9 and Adam at a
batch below the critical size, about at it, and of four times as much. No warmup, or one over 2, 5, 10 or 15 epochs,
each at four rates a factor of two apart, about the best of trial runs on seeds 0 and 1. Whoever reads the rows chooses
length and rate on the first ten seeds, 1840 to 1849, and judges on the others. Three tests were first registered for
lengths up to 10, and replaced unmeasured: in the trials 10 was Adam's best. The fourth rate came when the seeds that
choose had chosen the third, and before the others were looked at. Some three minutes on two idle cores.
"""

import pandas as pd

import batchlab as bl

SEEDS = range(1840, 1860)
CHOOSE = range(1840, 1850)  # the others judge
EPOCHS = (0, 2, 5, 10, 15)  # of warmup
POWERS = {  # of two: the second rate for each of these lengths
    ("momentum", 128): (-1, -1, -1, -1, -1),
    ("momentum", 512): (0, 0, 0, 1, 1),
    ("momentum", 2048): (0, 0, 0, 0, 0),
    ("adam", 128): (-6, -6, -6, -5, -5),
    ("adam", 512): (-5, -5, -4, -4, -4),
    ("adam", 2048): (-6, -6, -5, -4, -4),
}


def rows(seeds=SEEDS, cells=tuple(POWERS), epochs=EPOCHS, cache=None):
    """One row an optimizer, batch size, length of the warmup (epochs), rate and seed: how the run ended."""
    first, S, tables = bl.results.script("08-recipe"), bl.schedules, []
    cosine = S.cosine(first.TOTAL)
    for optimizer, batch_size in cells:
        for warm in epochs:
            second = POWERS[optimizer, batch_size][EPOCHS.index(warm)]
            lrs = [2.0 ** (second + k) for k in (-1, 0, 1, 2)]
            schedule = S.product(S.warmup(warm * first.EXAMPLES), cosine) if warm else cosine
            found = first.ends("warmup", warm, optimizer, batch_size, lrs, seeds, cache, lr_schedule=schedule)
            tables.append(found.rename(columns={"arm": "warmup_epochs"}))
    keys = ["optimizer", "batch_size", "warmup_epochs", "lr", "seed"]
    return pd.concat(tables, ignore_index=True)[[*keys, "val_accuracy", "test_accuracy"]]

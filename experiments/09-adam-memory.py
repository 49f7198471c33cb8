"""Decay the rate or grow the batch under Adam, asked again with a short memory: beta2 = 0.95 in place of 0.999.

The arms "decay" and "grow" of 09-decay-or-grow's part "adam", otherwise the same, on other seeds. That part, with
beta2 = 0.999, raised the question: a batch that grows sixteenfold makes a memory of 1,000 steps sixteen times as long
in examples. Seeds 1100 to 1119. A minute on two idle cores.
"""

import pandas as pd

import batchlab as bl
from batchlab.schedules import constant, cosine, follow, inverse, product

SEEDS, BETAS = range(1100, 1120), (0.9, 0.95)


def rows(seeds=SEEDS, cache=None):
    """One row an arm, rate and seed, as 09-decay-or-grow has them."""
    first = bl.results.script("09-decay-or-grow")
    falling, tables = cosine(first.EXAMPLES), []
    for arm, batch in (("decay", constant()), ("grow", inverse(falling, first.MOST))):
        rate = product(falling, follow(0.5, base=first.BATCH))
        run = first.run("signals", first.BATCH, first.EXAMPLES, batch, rate, bl.optim.adam(BETAS))
        tables.append(first.ends("adam, signals", arm, run, first.ADAM_RATES, seeds, cache))
    keys, values = ["part", "arm", "batch_size", "lr", "seed"], ["early_loss", "val_loss", "test_loss", "test_accuracy"]
    return pd.concat(tables, ignore_index=True)[[*keys, "updates", *values]].round(dict.fromkeys(values, 5))

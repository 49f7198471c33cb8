"""Warmup again, on fresh seeds: near the edge, far below it, and where the rate is best.

The functions and protocol are those of 08-recipe, part "warmup", whose rows raised the questions: MNIST-1D, B = 512, 30
epochs, cosine decay, a warmup over five epochs and without. Momentum 0.9 at the rate 1.68 and at an eighth of it; Adam
at its best rates with (1/16) and without (1/32), at four times the latter and at an eighth of that. Seeds 1440 to 1459.
Some half a minute on two idle cores.
"""

import pandas as pd

import batchlab as bl

SEEDS = range(1440, 1460)
RATES = {"momentum": (2.0**0.75, 2.0**-2.25), "adam": (2.0**-6, 2.0**-5, 2.0**-4, 2.0**-3)}


def rows(seeds=SEEDS, rates=RATES, cache=None):
    """One row an optimizer, arm, rate and seed: how the run ended."""
    first, S, tables = bl.results.script("08-recipe"), bl.schedules, []
    cosine = S.cosine(first.TOTAL)
    for optimizer, lrs in rates.items():
        for arm, schedule in (("none", cosine), ("warmup", S.product(S.warmup(first.WARM), cosine))):
            tables.append(first.ends("warmup", arm, optimizer, 512, list(lrs), seeds, cache, lr_schedule=schedule))
    return pd.concat(tables, ignore_index=True)

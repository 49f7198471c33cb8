"""The rules of 06-rules.py that were not tried there with the rest: momentum, or beta1, beta2, eps and weight decay.

Moves, settings, seeds and protocol are those of 06-rules, whose rows have momentum's linear rule and gain and AdamW's
square root with the rest, and all rules without. Seeds 1100 to 1119. Some two minutes on two idle cores.
"""

import pandas as pd

import batchlab as bl

SEEDS = range(1100, 1120)
CELLS = (("momentum", "none"), ("momentum", "sqrt"), ("adamw", "none"), ("adamw", "linear"), ("adamw", "gain"))


def rows(seeds=SEEDS, cells=CELLS, cache=None):
    """One row an optimizer, move, rule and seed, with the columns of 06-rules; ``rest`` is 1."""
    first, tables = bl.results.script("06-rules"), []
    for optimizer, rule in cells:
        for start, lr in first.STARTS[optimizer].items():
            for batch_size in first.SIZES:
                if batch_size == start:
                    continue
                new = bl.rescale(
                    first.settings_of(optimizer, lr),
                    start,
                    batch_size,
                    optimizer="adamw" if optimizer == "adamw" else "sgd",
                    rule=rule,
                    noise_scale=first.NOISE_SCALE if rule == "gain" else None,
                    keep=(),
                ).settings
                ends = first.trained(new, batch_size, [new["lr"]], seeds, cache)
                tables.append(ends.assign(optimizer=optimizer, start=start, rule=rule, rest=1))
    keys = ["optimizer", "start", "batch_size", "rule", "rest", "lr", "seed"]
    values = ["val_loss", "test_loss", "test_accuracy"]
    return pd.concat(tables, ignore_index=True)[keys + values].round(dict.fromkeys(values, 5))

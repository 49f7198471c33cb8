"""Normalisation at small and at large batches.

"small": an MLP on MNIST-1D, one epoch over 4,000 examples, at B = 2, 8, 32 and 128 without a norm, with BatchNorm,
GroupNorm (four groups) and LayerNorm. "images": a convolutional network on scikit-learn's digits, three epochs over
1,200 images, B = 2 and 32, BatchNorm and GroupNorm. "large": 15 epochs over MNIST-1D at B = 32 and 512, without a norm
and with LayerNorm. "ghost": the same 15 epochs at B = 512, BatchNorm over the whole batch and over virtual batches of
32. Momentum 0.9, cosine decay, the last ragged batch of an epoch dropped; at every size and norm the rate is chosen on
``CHOOSE`` by validation loss among rates a factor of two apart, which go on until the best is not at an end. Seeds 1500
to 1519. Some two minutes on two idle cores.
"""

import functools
import math

import pandas as pd

import batchlab as bl

CHOOSE, SEEDS = range(1490, 1492), range(1500, 1520)
PARTS = {  # how many seeds, sizes, norms, examples; power of two near the best rate at B = 32
    "small": (20, (2, 8, 32, 128), ("none", "batch", "group", "layer"), 4000),
    "images": (10, (2, 32), ("batch", "group"), 3600),
    "large": (20, (32, 512), ("none", "layer"), 60_000),
    "ghost": (10, (512,), ("batch", "ghost"), 60_000),
}
GUESS = {"small": -4, "images": -4, "large": -4, "ghost": -1}


def rows(seeds=SEEDS, parts=tuple(PARTS), sizes=None, norms=None, cache=None):
    """One row a part, norm, batch size and seed at the chosen rate: how the run ended."""
    tables = []
    for part in parts:
        n, all_sizes, all_norms, examples = PARTS[part]
        for norm in norms or all_norms:
            for batch_size in sizes or all_sizes:
                run = one(part, norm, batch_size, examples)
                lr = chosen(run, GUESS[part], cache)
                found = bl.outcomes.ends(bl.sweep(run, lr=[lr], seed=list(seeds)[:n], n_jobs=2, cache=cache))
                tables.append(found.assign(part=part, norm=norm))
    keys = ["part", "norm", "batch_size", "lr", "seed", "val_loss", "test_accuracy"]
    return pd.concat(tables, ignore_index=True)[keys].round({"val_loss": 5, "test_accuracy": 5})


def one(part, norm, batch_size, examples):
    if part == "images":
        data, model = bl.data.digits(images=True, val=400, test=197), bl.models.cnn((1, 8, 8), 10, norm=norm)
    else:
        data, model = signals(), bl.models.mlp((40, 100, 100, 10), norm=norm)
    return bl.Run(
        data=data,
        model=model,
        optimizer=bl.optim.momentum(),
        lr=1.0,
        batch_size=batch_size,
        examples=examples,
        drop_last=True,
        lr_schedule=bl.schedules.cosine(examples),
        evaluate=("val", "test"),
        evaluate_every=examples,
        device="cpu",
    )


@functools.cache
def signals():
    return bl.data.mnist1d(4000)


def chosen(run, guess, cache=None):
    """The rate with the lowest mean validation loss on ``CHOOSE``, of rates that go on past it."""
    middle = guess + round(0.75 * math.log2(min(run.batch_size, 128) / 32))
    powers = [middle - 1, middle, middle + 1]
    while len(powers) < 12:
        lrs = [2.0**k for k in powers]
        best = bl.outcomes.best_lr(bl.sweep(run, lr=lrs, seed=CHOOSE, n_jobs=2, cache=cache), edge="flag")
        if not best.at_edge[0]:
            return float(best.lr[0])
        powers = [powers[0] - 1, *powers] if best.lr[0] == lrs[0] else [*powers, powers[-1] + 1]
    raise ValueError(f"no best rate at {run.batch_size} in {lrs}")

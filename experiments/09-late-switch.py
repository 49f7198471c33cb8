"""When should a batch grow, on hard tasks and on easy ones? One switch from 8 to 128 examples, at six points.

32,000 examples, plain SGD, a constant rate. Hard: MNIST-1D signals, and text from three letters. Easy: labels of a
linear teacher (40 normal inputs, the largest of ten scores), 30 % of them drawn at random, in all parts; and text from
one letter, by a linear layer. All but the signals (16,000, twice) are seen once. Seeds 1000 to 1009. Some two
minutes on two idle cores.
"""

import numpy as np
import pandas as pd
import torch

import batchlab as bl
from batchlab.schedules import constant, stages

SEEDS = range(1000, 1010)
EXAMPLES, SMALL, LARGE = 32_000, 8, 128
SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)  # of the examples, at the small batch
RATES = {  # powers of two
    "signals": tuple(2.0**k for k in range(-7, 2)),
    "text, three letters": tuple(2.0**k for k in range(-5, 4)),
    "teacher": tuple(2.0**k for k in range(-9, 1)),
    "text, one letter": tuple(2.0**k for k in range(-4, 6)),
}
LAYERS = {"text, three letters": (288, 64, 96), "text, one letter": (96, 96)}  # others: (40, 100, 100, 10)


def rows(seeds=SEEDS, tasks=tuple(RATES), shares=SHARES, cache=None):
    """One row a task, share of the examples at the small batch, rate and seed: losses, infinite where it diverged."""
    tables = []
    for task in tasks:
        for share in shares:
            growing = stages((1, LARGE // SMALL), (round(share * EXAMPLES),)) if 0 < share < 1 else constant()
            one = bl.Run(
                data=dataset(task),
                model=bl.models.mlp(LAYERS.get(task, (40, 100, 100, 10))),
                optimizer=bl.optim.sgd(),
                lr=1.0,
                batch_size=LARGE if share == 0 else SMALL,
                examples=EXAMPLES,
                batch_schedule=growing,
                evaluate=("val", "test"),
                evaluate_every=EXAMPLES,
                device="cpu",
            )
            found = bl.outcomes.ends(bl.sweep(one, lr=RATES[task], seed=seeds, cache=cache))
            tables.append(found.assign(task=task, share=share))
    keys, values = ["task", "share", "lr", "seed"], ["val_loss", "test_loss"]
    return pd.concat(tables, ignore_index=True)[keys + values].round(dict.fromkeys(values, 5))


def dataset(task):
    if task == "signals":
        return bl.data.mnist1d(16_000)
    if task == "teacher":
        return teacher()
    return bl.results.script("09-decay-or-grow").text(3 if "three" in task else 1, EXAMPLES)


def teacher(wrong=0.3):
    rng = np.random.default_rng(np.random.SeedSequence(9))
    weights, parts = rng.standard_normal((40, 10)), []
    for n in (EXAMPLES, 4000, 8000):
        x = rng.standard_normal((n, 40)).astype(np.float32)
        y = np.where(rng.random(n) < wrong, rng.integers(10, size=n), (x @ weights).argmax(1))
        parts.append((torch.from_numpy(x), torch.from_numpy(y)))
    return bl.data.Dataset("linear teacher, noisy labels", False, *parts, classes=10)

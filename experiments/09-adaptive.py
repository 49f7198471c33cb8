"""Does a batch that adapts itself beat fixed ones? Accuracy against updates, at equal examples, each at its best rate.

MNIST-1D, 16,000 training examples, 64,000 seen, plain SGD, everything along a cosine. "fixed": six sizes. "schedule":
the batch grows up to sixteenfold along the inverse of the cosine, in place of the rate, from four sizes, written down
beforehand. "noise": after each step the batch is set to a multiple (1, or a quarter) of the noise scale, measured in
the run from the two halves of each batch. "norm": the norm test with threshold 1 (or 2): the batch is raised to that
multiple and never lowered. The rate of those two follows the ridge of chapter 6, in proportion to the batch up to 2,
times "lr"; or "noise, rate kept": it is "lr" whatever the batch. Seeds 1100 to 1119: on 1000 to 1019 the rate was
always kept, and the tests failed. Some two minutes on two idle cores.
"""

import math

import joblib
import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

import batchlab as bl
from batchlab import data, models  # what `adaptive` takes to other processes; bl itself can't be pickled
from batchlab.schedules import constant, cosine, follow, inverse, product

SEEDS = range(1100, 1120)
EXAMPLES, LAYERS = 64_000, (40, 100, 100, 10)
FIXED, SCHEDULED = (16, 32, 64, 128, 256, 512), (32, 64, 128, 256)
ADAPTIVE = {"noise": (0.25, 1.0), "norm": (0.25, 1.0), "noise, rate kept": (1.0,)}
FACTORS = (0.25, 0.5, 1.0, 2.0)  # of the ridge's rate
FIRST, LEAST, MOST, MEMORY = 16, 8, 1024, 2000  # batch sizes, and the examples that the averages remember


def rows(seeds=SEEDS, arms=("fixed", "schedule", *ADAPTIVE), factors=FACTORS, cache=None):
    """One row an arm, setting (a batch size or a multiple), rate and seed: updates, how it ended; inf: diverged."""
    tables = []
    for arm in arms:
        if arm in ADAPTIVE:
            todo = [(multiple, lr, seed) for multiple in ADAPTIVE[arm] for lr in factors for seed in seeds]
            how = dict(never_lower=arm == "norm", keep_rate="kept" in arm)
            ended = joblib.Parallel(n_jobs=-1)(joblib.delayed(adaptive)(*each, **how) for each in todo)
            tables.append(pd.DataFrame([ends for ends, _ in ended]).assign(arm=arm))
            continue
        for size in FIXED if arm == "fixed" else SCHEDULED:
            run = bl.Run(
                data=bl.data.mnist1d(16_000),
                model=bl.models.mlp(LAYERS),
                optimizer=bl.optim.sgd(),
                lr=1.0,
                batch_size=size,
                examples=EXAMPLES,
                batch_schedule=constant() if arm == "fixed" else inverse(cosine(EXAMPLES), 16),
                lr_schedule=product(cosine(EXAMPLES), follow(1, base=size)),
                evaluate=("val", "test"),
                evaluate_every=EXAMPLES,
                device="cpu",
            )
            table = bl.sweep(run, lr=[ridge(size) * factor for factor in factors], seed=seeds, cache=cache)
            found = bl.outcomes.ends(table).rename(columns={"batch_size": "setting", "step": "updates"})
            tables.append(found.assign(arm=arm))
    keys, values = ["arm", "setting", "lr", "seed"], ["val_loss", "val_accuracy", "test_accuracy"]
    return pd.concat(tables, ignore_index=True)[[*keys, "updates", *values]].round(dict.fromkeys(values, 5))


def ridge(size):
    """The best rate of a fixed batch, as chapter 6 found it."""
    return min(size / 32, 2.0)


def adaptive(multiple, lr, seed, never_lower=False, keep_rate=False):
    """SGD whose batch follows its own noise: how it ended, and the batch sizes that it took, (examples seen, size)."""
    torch.set_num_threads(1)
    signals = data.mnist1d(16_000)
    x, y = signals.train
    model = models.build(models.mlp(LAYERS), seed)
    weights, falling = list(model.parameters()), cosine(EXAMPLES)
    order = torch.from_numpy(np.concatenate([data.epoch_order(len(x), seed, epoch) for epoch in range(4)]))
    seen, size, noise, signal, took = 0, FIRST, 0.0, 0.0, []
    while seen < EXAMPLES:
        rows, rate = order[seen : seen + size], lr * falling(seen) * (1 if keep_rate else ridge(size))
        halves = []
        for half in rows.tensor_split(2):
            loss = cross_entropy(model(x[half]), y[half])
            if not loss < 1e4:
                lost = {"val_loss": np.inf, "val_accuracy": 0.0, "test_accuracy": 0.0}
                return {"setting": multiple, "lr": lr, "seed": seed, "updates": len(took), **lost}, took
            halves.append(parameters_to_vector(torch.autograd.grad(loss, weights)))
        one, two = halves
        step = rate * (one + two) / 2
        with torch.no_grad():
            for weight, change in zip(weights, step.split([w.numel() for w in weights]), strict=True):
                weight -= change.view_as(weight)
        took.append((seen, len(rows)))
        seen += len(rows)
        new = -math.expm1(-len(rows) / MEMORY)
        noise += new * (float((one - two) @ (one - two)) * len(rows) / 4 - noise)  # tr Sigma
        signal += new * (float(one @ two) - signal)  # |g|^2, without bias
        if seen >= MEMORY / 2 and signal > 0:
            wanted = multiple * noise / signal
            size = round(min(max(wanted, size if never_lower else LEAST), MOST) / 2) * 2
    with torch.no_grad():
        val, test = ((model(x), y) for x, y in (signals.val, signals.test))
    accuracy = {
        f"{part}_accuracy": float((z.argmax(1) == y).float().mean())
        for part, (z, y) in zip(("val", "test"), (val, test), strict=True)
    }
    ended = {"setting": multiple, "lr": lr, "seed": seed, "updates": len(took), "val_loss": float(cross_entropy(*val))}
    return ended | accuracy, took

"""Following the noise scale, or the norm test, against fixed batches of as many updates: 09-adaptive on a second task.

Images: MNIST, 4,000 of them, 32,000 seen, layers 784-32-10, plain SGD, everything along a cosine. The arms and their
meaning are those of 09-adaptive; the rate goes in proportion to the batch up to a quarter, times a factor. Where that
line lies was seen in trial runs of fixed batches on seeds 0 and 1; no adaptive run was. Seeds 1300 to 1319. A minute
and a half on two idle cores.
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

SEEDS = range(1300, 1320)
EXAMPLES, LAYERS = 32_000, (784, 32, 10)
FIXED, SCHEDULED = (16, 32, 64, 128, 256, 512), (32, 64, 128)
ADAPTIVE = ("noise", "norm")
FACTORS = (0.5, 1.0, 2.0, 4.0)  # of the ridge's rate
FIRST, LEAST, MOST, MEMORY = 16, 8, 1024, 2000  # batch sizes, and the examples that the averages remember


def rows(seeds=SEEDS, arms=("fixed", "schedule", *ADAPTIVE), factors=FACTORS, cache=None):
    """One row an arm, setting (a batch size; 1, the multiple), rate and seed: updates, how it ended."""
    tables = []
    for arm in arms:
        if arm in ADAPTIVE:
            todo = [(lr, seed, arm == "norm") for lr in factors for seed in seeds]
            ended = joblib.Parallel(n_jobs=-1)(joblib.delayed(adaptive)(*each) for each in todo)
            tables.append(pd.DataFrame(ended).assign(arm=arm))
            continue
        for size in FIXED if arm == "fixed" else SCHEDULED:
            run = bl.Run(
                data=bl.data.mnist5k(),
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
    """About the best rate of a fixed batch."""
    return min(size / 256, 0.25)


def adaptive(lr, seed, never_lower):
    """SGD whose batch follows its own noise, as in 09-adaptive: how it ended."""
    torch.set_num_threads(1)
    images = data.mnist5k()
    x, y = images.train
    model = models.build(models.mlp(LAYERS), seed)
    weights, falling, epochs = list(model.parameters()), cosine(EXAMPLES), range(EXAMPLES // len(x))
    order = torch.from_numpy(np.concatenate([data.epoch_order(len(x), seed, epoch) for epoch in epochs]))
    seen, size, noise, signal, updates = 0, FIRST, 0.0, 0.0, 0
    lost = {"val_loss": np.inf, "val_accuracy": 0.0, "test_accuracy": 0.0}
    while seen < EXAMPLES:
        rows, rate, halves = order[seen : seen + size], lr * falling(seen) * ridge(size), []
        for half in rows.tensor_split(2):
            loss = cross_entropy(model(x[half]), y[half])
            if not loss < 1e4:
                return {"setting": 1.0, "lr": lr, "seed": seed, "updates": updates, **lost}
            halves.append(parameters_to_vector(torch.autograd.grad(loss, weights)))
        one, two = halves
        step = rate * (one + two) / 2
        with torch.no_grad():
            for weight, change in zip(weights, step.split([w.numel() for w in weights]), strict=True):
                weight -= change.view_as(weight)
        updates, seen = updates + 1, seen + len(rows)
        new = -math.expm1(-len(rows) / MEMORY)
        noise += new * (float((one - two) @ (one - two)) * len(rows) / 4 - noise)  # tr Sigma
        signal += new * (float(one @ two) - signal)  # |g|^2, without bias
        if seen >= MEMORY / 2 and signal > 0:
            wanted = noise / signal
            size = round(min(max(wanted, size if never_lower else LEAST), MOST) / 2) * 2
    with torch.no_grad():
        val, test = ((model(x), y) for x, y in (images.val, images.test))
    ended = {"setting": 1.0, "lr": lr, "seed": seed, "updates": updates, "val_loss": float(cross_entropy(*val))}
    for part, (z, y) in (("val", val), ("test", test)):
        ended[f"{part}_accuracy"] = float((z.argmax(1) == y).float().mean())
    return ended

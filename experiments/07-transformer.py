"""Does the noise scale of a small transformer predict its critical batch size: of all parameters, of the norms alone?

A causal transformer of one block (20,032 parameters) on Python's manual, in windows of 32 tokens of one byte, trained
by Adam at a constant rate. "steps": updates to a loss of ``TARGET`` on windows that are not trained on; the rate is
tuned at each batch size on the seeds of 07-critical-batch that choose, the steps are counted on ``COUNT``. "noise k/4":
the noise scale of all 4,096 training windows after k quarters of the mean steps of batches of ``AT`` windows, on
``WATCH``; "norms k/4" that of the parameters of LayerNorm alone (there are 192), and so for the embeddings and for what
is linear. A batch counts windows. Some two minutes on two idle cores.
"""

import math

import pandas as pd
import torch
from torch.nn.functional import cross_entropy

import batchlab as bl
from batchlab.outcomes import to_target

COUNT, WATCH = range(1120, 1132), range(1140, 1144)
SIZES, AT, QUARTERS, CHUNK = (2, 8, 32, 128), 32, 4, 256
TARGET = 2.7
# From trial runs on seed 0: the guessed rate top (1 - exp(-B / bend)), where tuning begins, and the steps expected,
# few (1 + crit / B), which decide only how often to look (every 3 %) and when to give up (at three times).
TOP, BEND, FEW, CRIT = 0.008, 5, 45, 11
MODEL = bl.models.transformer(96, 32, width=32, depth=1)
KINDS = {"LayerNorm": "norms", "Embedding": "embeddings", "Linear": "linear"}


def rows(seeds=COUNT, watch=WATCH, sizes=SIZES, cache=None):
    """One row a quantity, batch size and seed; "lr" is the rate, "value" what was found."""
    data = bl.data.documentation_text(32, tokens=131_072, val=8192, test=8192)
    found = []
    for batch_size in sizes:
        found += steps(data, batch_size, seeds, cache)
    at = [row for row in found if row["batch_size"] == AT]
    last = round(sum(row["value"] for row in at) / len(at))
    found += [row for seed in watch for row in noise(data, at[0]["lr"], last, seed)]
    return pd.DataFrame(found)[["quantity", "batch_size", "lr", "seed", "value"]]


def steps(data, batch_size, seeds, cache=None):
    expected = FEW * (1 + CRIT / batch_size)
    run = bl.Run(
        data=data,
        model=MODEL,
        optimizer=bl.optim.adam(),
        lr=1.0,
        batch_size=batch_size,
        device="cpu",
        target=("val_loss", TARGET),
        evaluate=("val",),
        examples=math.ceil(3 * expected) * batch_size,
        evaluate_every=max(1, round(0.03 * expected)) * batch_size,
    )
    guess = TOP * (1 - math.exp(-batch_size / BEND))
    lr = bl.results.script("07-critical-batch").tuned(run, guess, cache)
    table = to_target(bl.sweep(run, lr=[lr], seed=seeds, cache=cache), *run.target)
    return [
        dict(quantity="steps", batch_size=batch_size, lr=lr, seed=seed, value=value)
        for seed, value in zip(table.seed, table.step, strict=True)
    ]


def noise(data, lr, last, seed):
    """B_simple of the whole model and of each kind of layer, after k quarters of ``last`` steps of batches of 32."""
    x, y = data.train
    model = bl.models.build(MODEL, seed)
    rule = torch.optim.Adam(model.parameters(), lr=lr)
    looks, found = {round(k * last / QUARTERS): k for k in range(QUARTERS + 1)}, []
    for step, index in enumerate(bl.data.index_stream(len(x), AT, seed=seed)):
        if step in looks:
            for kind, value in scales(model, x, y).items():
                quantity = f"{kind} {looks[step]}/{QUARTERS}"
                found.append(dict(quantity=quantity, batch_size=AT, lr=lr, seed=seed, value=value))
        if step == last:
            return found
        rule.zero_grad()
        loss(model(x[index]), y[index]).backward()
        rule.step()
    raise ValueError("the stream of batches has ended")


def loss(scores, y):
    return cross_entropy(scores.flatten(0, -2), y.flatten())


def scales(model, x, y):
    """tr Sigma / |G|^2 exactly for training on these windows: "noise" of all parameters, then of each kind of layer."""
    total = squares = 0.0
    for start in range(0, len(x), CHUNK):
        g = bl.noise.per_example_gradients(model, loss, x[start : start + CHUNK], y[start : start + CHUNK])
        total, squares = total + g.sum(0).double(), squares + g.square().sum(0).double()
    mean = total / len(x)
    variance = squares / len(x) - mean**2
    kind_of = {id(p): KINDS[type(m).__name__] for m in model.modules() for p in m.parameters(recurse=False)}
    kinds = [kind for p in model.parameters() for kind in [kind_of[id(p)]] * p.numel()]
    masks = {"noise": torch.ones(len(kinds), dtype=torch.bool)}
    masks |= {kind: torch.tensor([k == kind for k in kinds]) for kind in KINDS.values()}
    return {name: float(variance[mask].sum() / (mean[mask] @ mean[mask])) for name, mask in masks.items()}

"""Networks trained with accumulated gradients, beside the large batch that they stand for: does the end differ?

Two trainings, each in several ways from the same initial weights and the same draws. *Documents*: an update is made of
8 documents, all of one class each; those of five classes have 14 examples, those of the other five have 2, as a short
text has fewer tokens. A document is a micro-batch. *Batch norm*: an update is made of 32 random examples, the network
normalises by the batch. Test loss and accuracy weigh classes as the training draws them. Seeds 1000 to 1019, minutes.
"""

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

import batchlab as bl

SIZES, STEPS, LR = (40, 100, 100, 10), 1000, 0.2
LENGTHS = np.array([14, 2] * 5)  # examples in a document, by its class
DOCUMENTS, BATCH, PIECE = 8, 32, 4
SEEDS = range(1000, 1020)
COLUMNS = ["way", "seed", "early_loss", "test_loss", "test_accuracy"]


def rows(seeds=SEEDS, steps=STEPS, cache=None):
    """One row a seed and way: "early_loss" (nats, of update 32), "test_loss" and "test_accuracy" after ``steps``."""
    found = [(way, seed, *end) for seed in seeds for way, *end in [*_documents(seed, steps), *_batch_norm(seed, steps)]]
    return pd.DataFrame(found, columns=COLUMNS)


def train(model, batches, shares):
    """SGD: each step takes the pieces of a batch one by one, piece j with weight ``shares(sizes)[j]``; the losses."""
    sgd, losses = torch.optim.SGD(model.parameters(), lr=LR), []
    for pieces in batches:
        sgd.zero_grad()
        losses.append(0.0)
        for (x, y), share in zip(pieces, shares([len(y) for _, y in pieces]), strict=True):
            loss = share * F.cross_entropy(model(x), y)
            loss.backward()
            losses[-1] += loss.item()
        sgd.step()
    return losses


def by_examples(sizes):
    return [n / sum(sizes) for n in sizes]


def plain_mean(sizes):
    return [1 / len(sizes)] * len(sizes)


def whole(batches):
    for pieces in batches:
        yield [tuple(map(torch.cat, zip(*pieces, strict=True)))]


def _documents(seed, steps):
    data = bl.data.mnist1d(test=1000)
    x, y = data.train
    of_class = [torch.nonzero(y == c).flatten() for c in range(10)]

    def drawn():
        rng = np.random.default_rng(np.random.SeedSequence([5, seed]))
        for _ in range(steps):
            classes = rng.integers(10, size=DOCUMENTS)
            rows = [of_class[c][rng.integers(len(of_class[c]), size=LENGTHS[c])] for c in classes]
            yield [(x[r], y[r]) for r in rows]

    for way, batches, shares in [
        ("documents, one batch", whole(drawn()), by_examples),
        ("documents, by examples", drawn(), by_examples),
        ("documents, plain mean", drawn(), plain_mean),
    ]:
        model = bl.models.mlp(SIZES)(seed)
        losses = train(model, batches, shares)
        yield way, losses[31], *_tested(model, data, torch.tensor(LENGTHS / LENGTHS.sum(), dtype=torch.float32))


def _batch_norm(seed, steps):
    data = bl.data.mnist1d(test=1000)
    x, y = data.train

    def drawn(size):
        rng = np.random.default_rng(np.random.SeedSequence([6, seed]))
        for _ in range(steps):
            rows = torch.from_numpy(rng.integers(len(x), size=BATCH))
            yield [(x[r], y[r]) for r in rows.split(size)]

    for way, size in [("batch norm, one batch", BATCH), (f"batch norm, pieces of {PIECE}", PIECE)]:
        model = bl.models.mlp(SIZES, norm="batch")(seed)
        losses = train(model, drawn(size), by_examples)
        yield way, losses[31], *_tested(model, data, torch.full((10,), 0.1))


@torch.no_grad()
def _tested(model, data, share):
    """Loss and accuracy on the test set, classes weighted by their ``share`` (10,) of the training examples."""
    x, y = data.test
    weight = share[y] / torch.bincount(y, minlength=10)[y]
    scores = model.eval()(x)
    loss = (weight * F.cross_entropy(scores, y, reduction="none")).sum()
    return float(loss), float((weight * (scores.argmax(1) == y)).sum())

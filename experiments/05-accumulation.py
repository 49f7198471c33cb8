"""Networks trained with accumulated gradients, beside the large batch that they stand for: does the end differ?

Two trainings, each in several ways from the same initial weights and the same draws. *Documents*: an update is made of
8 documents, all of one class each; those of five classes have 14 examples, those of the other five have 2, as a short
text has fewer tokens. A document is a micro-batch. *Batch norm*: an update is made of 32 random examples, the network
normalises by the batch. The test loss and accuracy weigh classes as the training draws them.
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


def rows(seeds=SEEDS, cache=None):
    """One row a seed and way: "test_loss" (nats) and "test_accuracy", classes weighted as in training."""
    found = []
    for seed in map(int, seeds):
        for way, loss, accuracy in [*_documents(seed), *_batch_norm(seed)]:
            found.append({"way": way, "seed": seed, "test_loss": loss, "test_accuracy": accuracy})
    return pd.DataFrame(found)


def train(model, batches, shares):
    """SGD: each step takes the pieces of one batch one by one, piece j with weight ``shares(sizes)[j]``."""
    sgd = torch.optim.SGD(model.parameters(), lr=LR)
    for pieces in batches:
        sgd.zero_grad()
        for (x, y), share in zip(pieces, shares([len(y) for _, y in pieces]), strict=True):
            (share * F.cross_entropy(model(x), y)).backward()
        sgd.step()
    return model.eval()


def by_examples(sizes):
    return [n / sum(sizes) for n in sizes]


def plain_mean(sizes):
    return [1 / len(sizes)] * len(sizes)


def whole(batches):
    for pieces in batches:
        yield [tuple(map(torch.cat, zip(*pieces, strict=True)))]


def _documents(seed):
    data = bl.data.mnist1d(test=1000)
    x, y = data.train
    of_class = [torch.nonzero(y == c).flatten() for c in range(10)]

    def drawn():
        rng = np.random.default_rng(np.random.SeedSequence([5, seed]))
        for _ in range(STEPS):
            classes = rng.integers(10, size=DOCUMENTS)
            rows = [of_class[c][rng.integers(len(of_class[c]), size=LENGTHS[c])] for c in classes]
            yield [(x[r], y[r]) for r in rows]

    for way, batches, shares in [
        ("documents, one batch", whole(drawn()), by_examples),
        ("documents, by examples", drawn(), by_examples),
        ("documents, plain mean", drawn(), plain_mean),
    ]:
        model = train(bl.models.mlp(SIZES)(seed), batches, shares)
        yield way, *_tested(model, data, torch.tensor(LENGTHS / LENGTHS.sum(), dtype=torch.float32))


def _batch_norm(seed):
    data = bl.data.mnist1d(test=1000)
    x, y = data.train

    def drawn(size):
        rng = np.random.default_rng(np.random.SeedSequence([6, seed]))
        for _ in range(STEPS):
            rows = torch.from_numpy(rng.integers(len(x), size=BATCH))
            yield [(x[r], y[r]) for r in rows.split(size)]

    for way, size in [("batch norm, one batch", BATCH), (f"batch norm, pieces of {PIECE}", PIECE)]:
        model = train(bl.models.mlp(SIZES, norm="batch")(seed), drawn(size), by_examples)
        yield way, *_tested(model, data, torch.full((10,), 0.1))


@torch.no_grad()
def _tested(model, data, share):
    """Loss and accuracy on the test set, classes weighted by their ``share`` (10,) of the training examples."""
    x, y = data.test
    weight = share[y] / torch.bincount(y, minlength=10)[y]
    scores = model(x)
    loss = (weight * F.cross_entropy(scores, y, reduction="none")).sum()
    return float(loss), float((weight * (scores.argmax(1) == y)).sum())

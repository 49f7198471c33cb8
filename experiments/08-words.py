"""Adam against SGD as the batch grows, on words: what is lost on the rare ones, and on the common?

The next word from the one before, in Python's manual: pairs of its 500 commonest words (letters only, small ones), the
first 20,000, seen four times; one-hot, 32 hidden units. "common_loss" and "rare_loss": after those examples, over the
commonest words that make up half of the text, and over the rarest that make up a tenth of it; "loss": over all. All are
training examples. The rate is constant, on a grid of factors of two placed by trial runs on seeds 0 and 1. Seeds 1600
to 1609. Some two minutes on two idle cores.
"""

import functools
import re
from collections import Counter
from itertools import pairwise

import pandas as pd
import torch
from torch.nn.functional import one_hot

import batchlab as bl

SEEDS = range(1600, 1610)
WORDS, PAIRS, EPOCHS = 500, 20_000, 4
SIZES = (16, 64, 256, 1024)
LOWEST = {"sgd": (-2, -1, 0, 0), "nesterov": (-5, -4, -3, -2), "adam": (-9, -8, -7, -6)}  # of five powers of two


def rows(seeds=SEEDS, optimizers=tuple(LOWEST), sizes=SIZES, cache=None):
    """One row an optimizer, batch size, rate and seed: the losses at the end, infinite where it diverged."""
    tables = []
    for name in optimizers:
        for batch_size in sizes:
            run = bl.Run(
                data=data(),
                model=bl.models.mlp((WORDS, 32, WORDS)),
                optimizer=getattr(bl.optim, name)(),
                lr=1.0,
                batch_size=batch_size,
                examples=EPOCHS * PAIRS,
                evaluate=("train", "val", "test"),
                evaluate_every=EPOCHS * PAIRS,
                device="cpu",
            )
            lowest = LOWEST[name][SIZES.index(batch_size)]
            lrs = [2.0**k for k in range(lowest, lowest + 5)]
            tables.append(bl.outcomes.ends(bl.sweep(run, lr=lrs, seed=seeds, cache=cache)).assign(optimizer=name))
    table = pd.concat(tables, ignore_index=True).rename(
        columns={"train_loss": "loss", "val_loss": "common_loss", "test_loss": "rare_loss"}
    )
    values = ["loss", "common_loss", "rare_loss"]
    return table[["optimizer", "batch_size", "lr", "seed", *values]].round(dict.fromkeys(values, 4))


@functools.cache
def data():
    """x a word, one-hot, y the next; for "val" stand the examples whose label is common, for "test" those of rare."""
    x, y = pairs()
    counts = torch.bincount(y, minlength=WORDS)
    order = counts.argsort()
    below = counts[order].cumsum(0)
    rare, common = (torch.isin(y, order[of]) for of in (below <= 0.1 * PAIRS, below > 0.5 * PAIRS))
    x = one_hot(x, WORDS).float()
    parts = {name: (x[those], y[those]) for name, those in (("val", common), ("test", rare))}
    return bl.data.Dataset("words", True, (x, y), **parts, classes=WORDS)


def pairs():
    """A word and the next (PAIRS,), as ranks in the order of frequency, where both are among the WORDS commonest."""
    letters = bl.data.documentation_text(1, tokens=262_144, val=1, test=1).train[0].flatten().tolist()
    text = "".join(chr(letter + 32) for letter in letters)  # 95, the line end, is no letter
    words = re.findall("[a-z]+", text.lower())
    rank = {word: k for k, (word, _) in enumerate(Counter(words).most_common(WORDS))}
    both = [(rank[a], rank[b]) for a, b in pairwise(words) if a in rank and b in rank]
    return torch.tensor(both[:PAIRS]).T

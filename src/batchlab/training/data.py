"""Datasets as in-memory tensors, available without a network but for ``openml`` and ``movielens``.

Real: ``digits``, ``mnist5k``, ``documentation_text``, ``documentation_topics``, ``japanese_vowels``; with a network
``openml``, ``movielens``.
Synthetic: ``mnist1d``, ``gaussian_regression``, ``line``, ``two_spirals``. Wrappers spoil the training part only:
``with_label_noise``, ``with_class_imbalance``.
"""

from dataclasses import replace

import numpy as np
import torch

from batchlab._check import count, fail, number
from batchlab._seeds import generator
from batchlab.training.dataset import ORDERS, Dataset, epoch_order, fingerprint, index_stream
from batchlab.training.fetched import movielens, openml
from batchlab.training.real import (
    digits,
    documentation_text,
    documentation_topics,
    japanese_vowels,
    mnist5k,
)
from batchlab.training.synthetic import gaussian_regression, line, mnist1d, two_spirals

__all__ = [
    "ORDERS",
    "Dataset",
    "digits",
    "documentation_text",
    "documentation_topics",
    "epoch_order",
    "fingerprint",
    "gaussian_regression",
    "index_stream",
    "japanese_vowels",
    "line",
    "mnist1d",
    "mnist5k",
    "movielens",
    "openml",
    "two_spirals",
    "with_class_imbalance",
    "with_label_noise",
]


def with_label_noise(data, fraction, seed=0):
    """Give a fraction of the training examples a wrong label, drawn evenly from the other classes.

    Exactly round(fraction * N) labels change; validation and test labels stay true.

    >>> clean = digits()
    >>> int((with_label_noise(clean, 0.2).train[1] != clean.train[1]).sum()), round(0.2 * 1437)
    (287, 287)
    """
    _check_labels(data)
    fraction = number("fraction", fraction, at_least=0, at_most=1)
    rng = generator(seed, "noise")
    x, y = data.train
    hit = torch.from_numpy(rng.permutation(len(y))[: round(fraction * len(y))])
    y = y.clone()
    y[hit] = (y[hit] + torch.from_numpy(rng.integers(1, data.classes, size=len(hit)))) % data.classes
    return replace(data, name=f"{data.name} + {fraction:g} label noise", train=(x, y))


def with_class_imbalance(data, keep, seed=0):
    """Keep only a share of the training examples of some classes: ``keep={7: 0.02}`` makes sevens rare.

    Of each class named, round(share * its examples), at least one, stay, drawn at random; their order does not
    change. Validation and test parts stay whole, so that the rare class can be measured there.

    >>> rare = with_class_imbalance(digits(), {7: 0.02})
    >>> int((rare.train[1] == 7).sum())
    3
    """
    _check_labels(data)
    if not isinstance(keep, dict) or not keep:
        fail("keep", keep, "a dict class -> share kept, such as {7: 0.02}")
    rng = generator(seed, "noise")
    x, y = data.train
    stays = np.ones(len(y), dtype=bool)
    for label, share in keep.items():
        count("keep class", label, at_least=0, at_most=data.classes - 1)
        number("keep share", share, above=0, at_most=1)
        members = rng.permutation(np.flatnonzero(y.numpy() == label))
        stays[members[max(1, round(share * len(members))) :]] = False
    stays = torch.from_numpy(stays)
    return replace(data, name=f"{data.name} keeping {keep}", train=(x[stays], y[stays]))


def _check_labels(data):
    if not isinstance(data, Dataset) or data.classes is None or data.train[1].ndim != 1:
        fail("data", data, "a Dataset with one label an example")

"""From arrays to the three parts of a dataset: cut, standardise, make tensors."""

import random
from contextlib import contextmanager

import numpy as np
import torch

from batchlab._seeds import generator


def split(seed, x, y, val, test):
    """Shuffle the examples and cut them into train, val and test."""
    order = generator(seed, "data").permutation(len(x))
    cuts = [len(x) - val - test, len(x) - test]
    return [(x[i], y[i]) for i in np.split(order, cuts)]


def standardised(parts, each_feature=False):
    """Subtract the training mean and divide by the training standard deviation.

    One mean and deviation for all inputs, so that an image stays an image; ``each_feature`` gives each column
    its own (a constant column is only centred).
    """
    x = parts[0][0].astype(np.float64)
    mean, sd = x.mean(axis=0 if each_feature else None), x.std(axis=0 if each_feature else None)
    sd = np.where(sd > 0, sd, 1.0)
    return [((x - mean) / sd, y) for x, y in parts]


def tensors(parts, labels):
    """The parts as ``Dataset`` takes them: x float32, y int64 where they are ``labels``, else float32."""

    def pair(x, y):
        x = torch.tensor(np.asarray(x), dtype=torch.float32)
        return x, torch.tensor(np.asarray(y), dtype=torch.int64 if labels else torch.float32)

    train, val, test = (pair(x, y) for x, y in parts)
    return {"train": train, "val": val, "test": test}


@contextmanager
def global_generators_kept():
    """Whatever moves the global generators of Python and NumPy inside, they are put back as they were."""
    kept = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002

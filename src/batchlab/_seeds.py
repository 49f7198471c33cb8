"""Every random choice starts from an explicit seed and a purpose, through numpy's SeedSequence.

Streams for different purposes (data, order, initialisation, dropout) are independent although they share one
seed, and nothing here reads or moves the global generators of NumPy and PyTorch.
"""

import numpy as np

from batchlab._check import count

PURPOSES = {
    "data": 0,
    "order": 1,
    "init": 2,
    "dropout": 3,
    "noise": 4,  # of synthetic labels; which seeds a bootstrap draws
    # what the instruments draw, each from a stream of its own
    "batches": 5,
    "mixing": 6,
    "pieces": 7,
    "steps": 8,
    "start": 9,
    "signs": 10,
    "box": 11,
    "timings": 12,
}


def sequence(seed, purpose, *key):
    """The SeedSequence of ``(seed, purpose, *key)``; ``key`` holds whole numbers such as the epoch.

    >>> sequence(0, "order", 3).spawn_key
    (1, 3)
    """
    count("seed", seed, at_least=0)
    return np.random.SeedSequence(entropy=int(seed), spawn_key=(PURPOSES[purpose], *key))


def generator(seed, purpose, *key):
    """A fresh ``numpy.random.Generator`` for ``(seed, purpose, *key)``.

    >>> bool(generator(0, "data").random() == generator(0, "data").random())
    True
    >>> bool(generator(0, "data").random() == generator(0, "order").random())
    False
    """
    return np.random.Generator(np.random.PCG64(sequence(seed, purpose, *key)))


def whole(seed, purpose, *key):
    """One number below 2**63 drawn for ``(seed, purpose, *key)``, for libraries that take a single seed.

    >>> whole(0, "init") == whole(0, "init") != whole(1, "init")
    True
    """
    return int(sequence(seed, purpose, *key).generate_state(1, np.uint64)[0] >> np.uint64(1))

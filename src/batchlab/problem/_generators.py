"""Random generators put back: Python's, NumPy's and torch's own, and those that the data carry."""

import random
from contextlib import contextmanager

import numpy as np
import torch


def _owners(data):
    """What may hold a generator: a loader, its data set, its samplers."""
    found = [data]
    for name in ("dataset", "sampler", "batch_sampler"):
        if getattr(data, name, None) is not None:
            found.append(getattr(data, name))
    inner = getattr(getattr(data, "batch_sampler", None), "sampler", None)
    return [*found, inner] if inner is not None else found


def _carried(data):
    for owner in _owners(data):
        for value in getattr(owner, "__dict__", {}).values():
            if isinstance(value, (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)):
                yield value


def _state(generator):
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state() if isinstance(generator, np.random.RandomState) else generator.getstate()


def _put_back(generator, state):
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


@contextmanager
def generators_kept(data, seed=None):
    """Run a block that may draw; afterwards every generator is where it was. With ``seed`` the global ones start there.

    The global generators of Python, NumPy and torch (the CPU's, and every CUDA device's), and those
    held by a loader, its data set and its samplers.
    """
    carried = {id(g): g for g in _carried(data)}.values()
    states = [(g, _state(g)) for g in carried]
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    try:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            torch.manual_seed(seed)
            for place, (generator, _) in enumerate(states):
                if isinstance(generator, torch.Generator):
                    generator.manual_seed(seed + place + 1)
        yield
    finally:
        for generator, state in states:
            _put_back(generator, state)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)

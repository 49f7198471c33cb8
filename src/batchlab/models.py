"""Model factories: functions of a seed that return a freshly initialised ``nn.Module``."""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from batchlab._check import count, fail, number, one_of
from batchlab._random import whole

NORMS = ("none", "layer", "group", "batch")


@dataclass(frozen=True, repr=False)
class Factory:
    """What to build, and how: calling it with a seed builds the model. Hashable, with a stable repr.

    The initial weights depend on the seed only, and PyTorch's global generator is left as it was.

    >>> mlp((2, 3, 1))
    mlp(sizes=(2, 3, 1), norm='none', dropout=0.0, groups=1)
    """

    kind: str
    settings: tuple

    def __call__(self, seed):
        with seeded(seed, "init"):
            return BUILDERS[self.kind](seed=seed, **dict(self.settings))

    def __repr__(self):
        return f"{self.kind}({', '.join(f'{k}={v!r}' for k, v in self.settings)})"


def mlp(sizes, *, norm="none", dropout=0.0, groups=1):
    """Fully connected layers of the given sizes with ReLU between them.

    >>> mlp((64, 32, 10))(seed=0)(torch.zeros(5, 64)).shape
    torch.Size([5, 10])
    """
    sizes = tuple(count("sizes", s) for s in sizes)
    return Factory("mlp", (("sizes", sizes), ("norm", norm), ("dropout", dropout), ("groups", groups)))


def _mlp(seed, sizes, norm, dropout, groups):
    layers = []
    for a, b in zip(sizes[:-2], sizes[1:-1]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


BUILDERS = {"mlp": _mlp}


@contextmanager
def seeded(seed, purpose, device=None):
    """Inside, PyTorch's global generators start from (seed, purpose); on leaving they are as they were before."""
    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(whole(seed, purpose))
        if cuda:
            torch.cuda.manual_seed(whole(seed, purpose))
        yield


def build(factory, seed):
    """``factory(seed)`` as an ``nn.Module``; a factory that ignores its seed is seeded all the same.

    Raises ValueError if the factory returns something else.

    >>> build(lambda seed: nn.Linear(2, 1), 0).weight.equal(build(lambda seed: nn.Linear(2, 1), 0).weight)
    True
    """
    with seeded(seed, "init"):
        model = factory(seed)
    if not isinstance(model, nn.Module):
        fail("model(seed)", type(model).__name__, "an nn.Module")
    return model


def next_draw(buffers):
    """Buffers for the next forward pass: every dropout counter is one further, all else as it was."""
    return {name: b + 1 if name.endswith("dropout_draw") else b for name, b in buffers.items()}

"""Model factories: functions of a seed that return a freshly initialised ``nn.Sequential``.

Every model is a plain sequence of layers, so that its activations can be checkpointed, and every operation in it can
be stacked by ``torch.func.vmap``.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from threading import RLock

import torch
from torch import nn

from batchlab._check import count, fail, number, one_of
from batchlab._seeds import whole
from batchlab.training.layers import (
    NORMS,
    Block,
    Dropout,
    Embedding,
    GhostBatchNorm,
    MeanOverPositions,
    Residual,
    he_normal,
    next_draw,
    norms,
)

__all__ = [
    "ACTIVATIONS", "NORMS", "Dropout", "Factory", "GhostBatchNorm", "build", "cnn", "linear", "mlp", "next_draw",
    "resnet", "seeded", "transformer",
]  # fmt: skip
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


@dataclass(frozen=True, repr=False)
class Factory:
    """What to build, and how: calling it with a seed builds the model. Hashable, with a stable repr.

    The initial weights depend on the seed only, and PyTorch's global generator is left as it was.

    >>> linear(3, 1)
    linear(inputs=3, outputs=1, bias=True)
    >>> linear(3, 1)(seed=0).get_submodule("0").weight.equal(linear(3, 1)(seed=0).get_submodule("0").weight)
    True
    """

    kind: str
    settings: tuple

    def __call__(self, seed):
        with seeded(seed, "init"):
            return BUILDERS[self.kind](seed=seed, **dict(self.settings))

    def __repr__(self):
        return f"{self.kind}({', '.join(f'{k}={v!r}' for k, v in self.settings)})"


_one_at_a_time = RLock()


@contextmanager
def seeded(seed, purpose, device=None):
    """Inside, PyTorch's global generators start from (seed, purpose); on leaving they are as they were before.

    They are one for all threads of a process, so threads take turns.
    """
    cuda = [device] if device is not None and device.type == "cuda" else []
    with _one_at_a_time, torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(whole(seed, purpose))
        if cuda:
            torch.cuda.manual_seed(whole(seed, purpose))
        yield


def build(factory, seed):
    """Return ``factory(seed)`` as an ``nn.Module``; a factory that ignores its seed is seeded all the same.

    Raises ValueError if the factory returns something else.

    >>> build(lambda seed: nn.Linear(2, 1), 0).weight.equal(build(lambda seed: nn.Linear(2, 1), 0).weight)
    True
    """
    with seeded(seed, "init"):
        model = factory(seed)
    if not isinstance(model, nn.Module):
        fail("model(seed)", type(model).__name__, "an nn.Module")
    return model


# --- The factories -----------------------------------------------------------------------------------------------


def linear(inputs, outputs, *, bias=True):
    """One affine map: (N, inputs) -> (N, outputs).

    >>> linear(2, 1)(seed=0)(torch.zeros(5, 2)).shape
    torch.Size([5, 1])
    """
    one_of("bias", bias, (True, False))
    return _factory("linear", inputs=count("inputs", inputs), outputs=count("outputs", outputs), bias=bias)


def mlp(sizes, *, activation="relu", norm="none", dropout=0.0, groups=4, ghost=32):
    """Fully connected layers of the given sizes, (N, sizes[0]) -> (N, sizes[-1]).

    After each layer but the last: ``norm`` ("none", "layer", "group" in ``groups`` groups, "batch", or "ghost", a batch
    norm over virtual batches of ``ghost`` examples, see ``GhostBatchNorm``), ``activation`` ("relu" or "tanh"), and
    dropout with probability ``dropout``.

    >>> mlp((64, 32, 10), norm="layer")(seed=0)(torch.zeros(5, 64)).shape
    torch.Size([5, 10])
    """
    if not isinstance(sizes, (tuple, list)) or len(sizes) < 2:
        fail("sizes", sizes, "at least two sizes, inputs first and outputs last")
    sizes = tuple(count("sizes", s) for s in sizes)
    one_of("activation", activation, tuple(ACTIVATIONS))
    _check_norm(norm, groups, ghost, sizes[1:-1])
    given = dict(activation=activation, norm=norm, dropout=_rate(dropout), groups=groups, ghost=ghost)
    return _factory("mlp", sizes=sizes, **given)


def cnn(inputs, classes, *, channels=(16, 32), kernel=3, norm="none", dropout=0.0, groups=4, ghost=32):
    """Convolutions, their mean over all positions, and a linear layer: (N, *inputs) -> (N, classes).

    ``inputs`` is (channels, length) for signals or (channels, height, width) for images. Each convolution has an odd
    ``kernel`` and is followed by norm and ReLU; all but the first halve the length (stride 2). Dropout comes before
    the linear layer. "layer" normalises one example over channels and positions together (a single group).

    The mean forgets where things are, so the last convolution has to see enough of the input: 5 positions across with
    the default channels, 17 with ``channels=(8, 16, 32, 64)``, which suits 28 x 28 images.

    >>> cnn((1, 8, 8), 10)(seed=0)(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """
    inputs = _positions(inputs)
    if not isinstance(channels, (tuple, list)) or not channels:
        fail("channels", channels, "at least one number of channels")
    channels = tuple(count("channels", c) for c in channels)
    if count("kernel", kernel) % 2 == 0:
        fail("kernel", kernel, "an odd number")
    _check_norm(norm, groups, ghost, channels)
    return _factory(
        "cnn",
        inputs=inputs,
        classes=count("classes", classes, at_least=2),
        channels=channels,
        kernel=kernel,
        norm=norm,
        dropout=_rate(dropout),
        groups=groups,
        ghost=ghost,
    )


def resnet(inputs, classes, *, width=16, depth=1, norm="none", groups=4, ghost=32):
    """A small residual network (He et al. 2016, pre-activation): (N, *inputs) -> (N, classes).

    ``inputs`` as for ``cnn``. A convolution that halves the length; ``depth`` blocks of ``width`` channels; ``depth``
    blocks of twice the width, the first of which halves the length again; a last norm and ReLU, the mean over all
    positions, and a linear layer: 4 depth + 2 layers of weights. Every block is one layer of the ``nn.Sequential``.
    ``norm``, ``groups`` and ``ghost`` as for ``mlp``.

    Convolutions start as He et al. (2015) have it, the last of each block 1 / sqrt(blocks) times that, so that the
    mean square of a signal grows at most e-fold on its way even without a norm (Hanin & Rolnick 2018).

    >>> resnet((1, 28, 28), 10, norm="batch")(seed=0)(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 10])
    """
    inputs = _positions(inputs)
    _check_norm(norm, groups, ghost, (count("width", width), 2 * width))
    return _factory(
        "resnet",
        inputs=inputs,
        classes=count("classes", classes, at_least=2),
        width=width,
        depth=count("depth", depth),
        norm=norm,
        groups=groups,
        ghost=ghost,
    )


def transformer(vocabulary, context, *, width=32, depth=2, heads=2, norm="layer", dropout=0.0):
    """A small causal language model: tokens (N, T), T <= context -> scores of the next token (N, T, vocabulary).

    Token and position embeddings, ``depth`` pre-norm blocks of causal self-attention and a two-layer perceptron of
    four times the width (Vaswani et al. 2017, decoder only), a last norm and a linear layer. ``norm`` is "layer" or
    "none"; dropout acts on the output of each half of a block.

    >>> transformer(96, 16)(seed=0)(torch.zeros(5, 16, dtype=torch.int64)).shape
    torch.Size([5, 16, 96])
    """
    one_of("norm", norm, ("none", "layer"))
    count("heads", heads)
    if count("width", width) % heads:
        fail("width", width, f"a multiple of heads = {heads}")
    return _factory(
        "transformer",
        vocabulary=count("vocabulary", vocabulary, at_least=2),
        context=count("context", context),
        width=width,
        depth=count("depth", depth),
        heads=heads,
        norm=norm,
        dropout=_rate(dropout),
    )


def _factory(kind, **settings):
    return Factory(kind, tuple(settings.items()))


def _positions(inputs):
    if not isinstance(inputs, (tuple, list)) or len(inputs) not in (2, 3):
        fail("inputs", inputs, "(channels, length) or (channels, height, width)")
    return tuple(count("inputs", s) for s in inputs)


def _rate(dropout):
    return number("dropout", dropout, at_least=0, below=1)


def _check_norm(norm, groups, ghost, widths):
    one_of("norm", norm, NORMS)
    count("groups", groups)
    count("ghost", ghost, at_least=2)
    if norm == "group" and any(width % groups for width in widths):
        fail("groups", groups, f"a divisor of every width in {tuple(widths)}")


# --- What they build ---------------------------------------------------------------------------------------------


def _linear(seed, inputs, outputs, bias):
    return nn.Sequential(nn.Linear(inputs, outputs, bias=bias))


def _mlp(seed, sizes, activation, norm, dropout, groups, ghost):
    layers = []
    for i, (width_in, width) in enumerate(zip(sizes[:-2], sizes[1:-1], strict=True)):
        normed = norms(norm, width, groups=groups, ghost=ghost, dims=0)
        layers += [nn.Linear(width_in, width), *normed, ACTIVATIONS[activation]()]
        layers += [Dropout(dropout, seed, i)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def _cnn(seed, inputs, classes, channels, kernel, norm, dropout, groups, ghost):
    dims = len(inputs) - 1
    conv = nn.Conv2d if dims == 2 else nn.Conv1d
    layers = []
    for i, (before, after) in enumerate(zip((inputs[0], *channels[:-1]), channels, strict=True)):
        layers += [conv(before, after, kernel, stride=2 if i else 1, padding=kernel // 2)]
        layers += [*norms(norm, after, groups=groups, ghost=ghost, dims=dims), nn.ReLU()]
    layers += [MeanOverPositions(), *([Dropout(dropout, seed, 0)] if dropout else [])]
    return nn.Sequential(*layers, nn.Linear(channels[-1], classes))


def _resnet(seed, inputs, classes, width, depth, norm, groups, ghost):
    dims = len(inputs) - 1
    conv = nn.Conv2d if dims == 2 else nn.Conv1d
    normalised = partial(norms, norm, groups=groups, ghost=ghost, dims=dims)
    widths = (width,) * (depth + 1) + (2 * width,) * depth
    layers = [he_normal(conv(inputs[0], width, 3, stride=2, padding=1))]
    for before, after in pairwise(widths):
        stride = 1 if before == after else 2
        layers.append(Residual(conv, before, after, stride, normalised, scale=math.sqrt(2 * depth)))
    return nn.Sequential(*layers, *normalised(2 * width), nn.ReLU(), MeanOverPositions(), nn.Linear(2 * width, classes))


def _transformer(seed, vocabulary, context, width, depth, heads, norm, dropout):
    blocks = [Block(seed, i, width, heads, norm, dropout) for i in range(depth)]
    last = nn.LayerNorm(width) if norm == "layer" else nn.Identity()
    return nn.Sequential(Embedding(vocabulary, context, width), *blocks, last, nn.Linear(width, vocabulary))


BUILDERS = {"linear": _linear, "mlp": _mlp, "cnn": _cnn, "resnet": _resnet, "transformer": _transformer}

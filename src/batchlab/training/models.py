"""Model factories: functions of a seed that return a freshly initialised ``nn.Sequential``.

Every model is a plain sequence of layers, so that its activations can be checkpointed, and every operation in it can
be stacked by ``torch.func.vmap``.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from batchlab._check import count, fail, number, one_of
from batchlab._seeds import whole

NORMS = ("none", "layer", "group", "batch")
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


def mlp(sizes, *, activation="relu", norm="none", dropout=0.0, groups=4):
    """Fully connected layers of the given sizes, (N, sizes[0]) -> (N, sizes[-1]).

    After each layer but the last: ``norm`` ("none", "layer", "group" in ``groups`` groups, or "batch"), ``activation``
    ("relu" or "tanh"), and dropout with probability ``dropout``.

    >>> mlp((64, 32, 10), norm="layer")(seed=0)(torch.zeros(5, 64)).shape
    torch.Size([5, 10])
    """
    if not isinstance(sizes, (tuple, list)) or len(sizes) < 2:
        fail("sizes", sizes, "at least two sizes, inputs first and outputs last")
    sizes = tuple(count("sizes", s) for s in sizes)
    one_of("activation", activation, tuple(ACTIVATIONS))
    _check_norm(norm, groups, sizes[1:-1])
    return _factory("mlp", sizes=sizes, activation=activation, norm=norm, dropout=_rate(dropout), groups=groups)


def cnn(inputs, classes, *, channels=(16, 32), kernel=3, norm="none", dropout=0.0, groups=4):
    """Convolutions, their mean over all positions, and a linear layer: (N, *inputs) -> (N, classes).

    ``inputs`` is (channels, length) for signals or (channels, height, width) for images. Each convolution has an odd
    ``kernel`` and is followed by norm and ReLU; all but the first halve the length (stride 2). Dropout comes before
    the linear layer. "layer" normalises one example over channels and positions together (a single group).

    >>> cnn((1, 8, 8), 10)(seed=0)(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """
    if not isinstance(inputs, (tuple, list)) or len(inputs) not in (2, 3):
        fail("inputs", inputs, "(channels, length) or (channels, height, width)")
    inputs = tuple(count("inputs", s) for s in inputs)
    if not isinstance(channels, (tuple, list)) or not channels:
        fail("channels", channels, "at least one number of channels")
    channels = tuple(count("channels", c) for c in channels)
    if count("kernel", kernel) % 2 == 0:
        fail("kernel", kernel, "an odd number")
    _check_norm(norm, groups, channels)
    return _factory(
        "cnn",
        inputs=inputs,
        classes=count("classes", classes, at_least=2),
        channels=channels,
        kernel=kernel,
        norm=norm,
        dropout=_rate(dropout),
        groups=groups,
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


def _rate(dropout):
    return number("dropout", dropout, at_least=0, below=1)


def _check_norm(norm, groups, widths):
    one_of("norm", norm, NORMS)
    count("groups", groups)
    if norm == "group" and any(width % groups for width in widths):
        fail("groups", groups, f"a divisor of every width in {tuple(widths)}")


# --- Dropout whose masks are a function of seed and step ---------------------------------------------------------


class Dropout(nn.Module):
    """Zero each entry with probability ``rate`` and divide the rest by 1 - rate (Srivastava et al. 2014).

    The mask is a hash of the buffer ``dropout_draw`` and the entry's position: no generator is read or moved. So a
    model trained alone and the same model in a stack of lanes drop the same entries, and a checkpointed layer drops
    them again when it is recomputed. The buffer starts from the seed, and the training loop adds 1 to it at each
    forward pass (``next_draw``); called outside that loop, the layer drops the same entries every time.
    """

    def __init__(self, rate, seed, layer):
        super().__init__()
        self.rate = rate
        self.register_buffer("dropout_draw", torch.tensor(whole(seed, "dropout", layer), dtype=torch.int64))

    def forward(self, x):
        if not self.training or self.rate == 0:
            return x
        position = torch.arange(x.numel(), device=x.device).reshape(x.shape)
        bits = _mix(_mix(self.dropout_draw) + position)
        keep = _shifted(bits, 11) >= int(self.rate * 2**53)  # the 53 high bits are a uniform number in [0, 1)
        return torch.where(keep, x / (1 - self.rate), 0.0)

    def extra_repr(self):
        return f"rate={self.rate}"


def _shifted(z, by):
    """Shift int64 right without copying the sign bit."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _mix(z):
    """Scramble int64 so that neighbours look independent: the finaliser of SplitMix64 (Steele, Lea & Flood 2014)."""
    z = z + (0x9E3779B97F4A7C15 - 2**64)
    z = (z ^ _shifted(z, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    z = (z ^ _shifted(z, 27)) * (0x94D049BB133111EB - 2**64)
    return z ^ _shifted(z, 31)


def next_draw(buffers):
    """Buffers for the next forward pass: every dropout counter is one further, all else as it was."""
    return {name: b + 1 if name.endswith("dropout_draw") else b for name, b in buffers.items()}


# --- The layers --------------------------------------------------------------------------------------------------


def _norm(norm, width, groups, dims):
    """The norm layer, if any, for (N, width) with dims = 0, or for (N, width, *positions) with 1 or 2 positions."""
    if norm == "none":
        return []
    if norm == "batch":
        return [(nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d)(width)]
    return [nn.GroupNorm(1 if norm == "layer" else groups, width)]


def _linear(seed, inputs, outputs, bias):
    return nn.Sequential(nn.Linear(inputs, outputs, bias=bias))


def _mlp(seed, sizes, activation, norm, dropout, groups):
    layers = []
    for i, (width_in, width) in enumerate(zip(sizes[:-2], sizes[1:-1], strict=True)):
        layers += [nn.Linear(width_in, width), *_norm(norm, width, groups, 0), ACTIVATIONS[activation]()]
        layers += [Dropout(dropout, seed, i)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


class _MeanOverPositions(nn.Module):
    def forward(self, x):
        return x.flatten(2).mean(-1)  # (N, C, ...) -> (N, C)


def _cnn(seed, inputs, classes, channels, kernel, norm, dropout, groups):
    dims = len(inputs) - 1
    conv = nn.Conv2d if dims == 2 else nn.Conv1d
    layers = []
    for i, (before, after) in enumerate(zip((inputs[0], *channels[:-1]), channels, strict=True)):
        layers += [conv(before, after, kernel, stride=2 if i else 1, padding=kernel // 2)]
        layers += [*_norm(norm, after, groups, dims), nn.ReLU()]
    layers += [_MeanOverPositions(), *([Dropout(dropout, seed, 0)] if dropout else [])]
    return nn.Sequential(*layers, nn.Linear(channels[-1], classes))


class _Embedding(nn.Module):
    def __init__(self, vocabulary, context, width):
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        for table in (self.token, self.position):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens):  # (N, T) -> (N, T, width)
        return self.token(tokens) + self.position.weight[: tokens.shape[-1]]


class _Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.joint, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):  # (N, T, width)
        # written out, because the fused kernel cannot be stacked by vmap
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for t in self.joint(x).chunk(3, -1))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (N, heads, T, T)
        future = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        return self.out((weights @ v).transpose(-3, -2).flatten(-2))


class _Block(nn.Module):
    def __init__(self, seed, layer, width, heads, norm, dropout):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width) if norm == "layer" else nn.Identity() for _ in range(2))
        self.attention = _Attention(width, heads)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop1, self.drop2 = Dropout(dropout, seed, 2 * layer), Dropout(dropout, seed, 2 * layer + 1)

    def forward(self, x):  # (N, T, width)
        x = x + self.drop1(self.attention(self.norm1(x)))
        return x + self.drop2(self.narrow(F.gelu(self.widen(self.norm2(x)))))


def _transformer(seed, vocabulary, context, width, depth, heads, norm, dropout):
    blocks = [_Block(seed, i, width, heads, norm, dropout) for i in range(depth)]
    last = nn.LayerNorm(width) if norm == "layer" else nn.Identity()
    return nn.Sequential(_Embedding(vocabulary, context, width), *blocks, last, nn.Linear(width, vocabulary))


BUILDERS = {"linear": _linear, "mlp": _mlp, "cnn": _cnn, "transformer": _transformer}

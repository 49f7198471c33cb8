"""The layers that the models are made of, each of which ``torch.func.vmap`` can stack."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from batchlab._seeds import whole

NORMS = ("none", "layer", "group", "batch", "ghost")

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


# --- Norms -------------------------------------------------------------------------------------------------------


class GhostBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over virtual batches of at most ``size`` examples (Hoffer, Hubara & Soudry 2017, algorithm 1).

    Takes (N, width) or (N, width, *positions). In training mode the N examples are cut, in their order, into
    ceil(N / size) virtual batches whose sizes differ by at most one, and each is normalised as if ``nn.BatchNorm`` met
    them one after another: by its own mean and variance, and with one move of the running statistics each (the
    paper's sum of powers of 1 - momentum). In evaluation mode it is ``nn.BatchNorm``. So a large batch meets the noise
    of small batches' statistics; the gradient is still that of the whole batch.

    >>> x = torch.tensor([[1.0], [3.0], [10.0], [30.0]])
    >>> GhostBatchNorm(1, size=2)(x).flatten().round().tolist()  # 1 and 10 are the smaller of their pairs
    [-1.0, 1.0, -1.0, 1.0]
    """

    def __init__(self, width, size):
        super().__init__(width)
        self.size = size

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        normalised = super().forward
        return torch.cat([normalised(part) for part in x.tensor_split(self.virtual_batches(len(x)))])

    def virtual_batches(self, examples):
        return -(-examples // self.size)

    def _check_input_dim(self, x):
        """Any number of positions will do."""

    def extra_repr(self):
        return f"{super().extra_repr()}, size={self.size}"


def norms(norm, width, *, groups, ghost, dims):
    """The norm layer, if any, for (N, width) with dims = 0, or for (N, width, *positions) with 1 or 2 positions."""
    if norm == "none":
        return []
    if norm == "batch":
        return [(nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d)(width)]
    return [GhostBatchNorm(width, ghost) if norm == "ghost" else nn.GroupNorm(1 if norm == "layer" else groups, width)]


def fewest_normalised(model, examples):
    """How many examples the smallest batch has that a batch norm of ``model`` sees, among ``examples``.

    >>> fewest_normalised(nn.Sequential(GhostBatchNorm(3, size=2)), 5)  # 2 + 2 + 1
    1
    """
    ghosts = [layer.virtual_batches(examples) for layer in model.modules() if isinstance(layer, GhostBatchNorm)]
    return examples // max(ghosts, default=1)


# --- Parts of the convolutional networks -------------------------------------------------------------------------


class MeanOverPositions(nn.Module):
    def forward(self, x):
        return x.flatten(2).mean(-1)  # (N, C, ...) -> (N, C)


class Residual(nn.Module):
    """x + f(x), where f is twice norm, ReLU and convolution (He et al. 2016, "Identity mappings ...").

    Where f changes the shape, a convolution of kernel 1 after the first ReLU stands in for x. Weights are drawn as He
    et al. (2015) have it, those of the second convolution ``scale`` times smaller. ``norm`` is a function of a width.
    """

    def __init__(self, conv, before, after, stride, norm, scale):
        super().__init__()
        self.norm1, self.norm2 = nn.Sequential(*norm(before)), nn.Sequential(*norm(after))
        self.conv1, self.conv2 = conv(before, after, 3, stride=stride, padding=1), conv(after, after, 3, padding=1)
        self.around = conv(before, after, 1, stride=stride) if before != after else None
        for layer in filter(None, (self.conv1, self.conv2, self.around)):
            he_normal(layer)
        with torch.no_grad():
            self.conv2.weight /= scale

    def forward(self, x):  # (N, before, ...) -> (N, after, ...)
        inner = F.relu(self.norm1(x))
        outer = x if self.around is None else self.around(inner)
        return outer + self.conv2(F.relu(self.norm2(self.conv1(inner))))


def he_normal(layer):
    """Weights from N(0, 2 / inputs of a unit), so that ReLU keeps the mean square (He et al. 2015); biases of 0."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


# --- Parts of the transformer ------------------------------------------------------------------------------------


class Embedding(nn.Module):
    def __init__(self, vocabulary, context, width):
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        for table in (self.token, self.position):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens):  # (N, T) -> (N, T, width)
        return self.token(tokens) + self.position.weight[: tokens.shape[-1]]


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.joint, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):  # (N, T, width)
        # Written out, because the fused kernel has no second derivatives on a CPU, and vmap takes its lanes one by one.
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2).flatten(0, 1) for t in self.joint(x).chunk(3, -1))
        future = torch.full((x.shape[1], x.shape[1]), -math.inf, dtype=q.dtype, device=x.device).triu(1)
        weights = torch.baddbmm(future, q, k.mT, alpha=q.shape[-1] ** -0.5).softmax(-1)  # (N heads, T, T)
        return self.out((weights @ v).unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, seed, layer, width, heads, norm, dropout):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width) if norm == "layer" else nn.Identity() for _ in range(2))
        self.attention = Attention(width, heads)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop1, self.drop2 = Dropout(dropout, seed, 2 * layer), Dropout(dropout, seed, 2 * layer + 1)

    def forward(self, x):  # (N, T, width)
        x = x + self.drop1(self.attention(self.norm1(x)))
        return x + self.drop2(self.narrow(F.gelu(self.widen(self.norm2(x)))))

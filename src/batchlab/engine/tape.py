"""Networks that are more than a chain of linear layers, as the C kernel takes them: a list of operations on tensors.

``lane/tape.c`` says what a tape is. Here a model is read into one: convolutions, linear layers, batch, group and
layer normalization, ReLU, GELU and tanh, the mean over positions, residual blocks, and a causal transformer.
"""

import ctypes

import numpy as np
import torch
from torch import nn

from batchlab.engine import structures
from batchlab.engine.structures import Unreadable
from batchlab.training import layers, models, optim

# As tape.c counts them.
CONVOLVE, BATCH_NORM, LAYER_NORM, ACTIVATE, ADD, MEAN, EMBED, ATTEND, DROP, GROUP_NORM = range(10)
CHOICES = {nn.ReLU: 0, nn.Tanh: 1, nn.GELU: 2}
ROWS = 64  # rows of every tensor for a piece of examples, about: what they need should fit in a cache
PIECE = 16  # examples of a piece where they have many more rows inside than at the end


class Reading:
    """A model, read. ``ops``, ``shapes``: as tape.c has them. ``weights``: 2-D arrays, not padded yet, each with its
    ``Matrix`` but for its shape. ``running``: the pairs of statistics of the batch norms, in their order. ``draws``:
    where the dropouts begin to count.

    ``flat``: whether positions are a dimension of their own that a linear layer leaves alone (a text's tokens), or
    there are none; a convolution's are not.

    >>> ops = Reading(models.cnn((1, 28, 28), 10)(seed=0), (1, 28, 28), tokens=False, vector=16).ops
    >>> [op["kind"] for op in ops] == [CONVOLVE, CONVOLVE, MEAN, CONVOLVE]
    True
    """

    def __init__(self, model, shape, tokens, vector):
        if structures.altered(model):
            raise Unreadable("a hook, or a method of its own")
        self.ops, self.weights, self.running, self.draws, self.vector = [], [], [], [], vector
        shape = tuple(shape)
        if tokens and len(shape) == 1:
            self.shapes, self.flat = [(0, 1, *shape)], True
        elif not tokens and 1 <= len(shape) <= 3:
            self.shapes, self.flat = [(shape[0], *(1, 1, *shape[1:])[-2:])], len(shape) == 1
        else:
            raise Unreadable(f"examples of shape {shape}")
        self.used, self.forked, self.statistics, self.tokens = [], set(), set(), tokens
        end = self.read(model, 0)
        if end != len(self.shapes) - 1 or end == 0 or sorted(self.used) != sorted(map(id, model.parameters())):
            raise Unreadable("a weight shared or not used")  # parameters() names each once

    def read(self, module, at):
        """Append what ``module`` does to the tensor ``at``, and return the number of the tensor that it makes."""
        reader = READERS.get(type(module))
        if reader is None:
            raise Unreadable(type(module).__name__)
        if at == 0 and reader not in (chain, convolution, linear, embedding):
            raise Unreadable(f"{type(module).__name__} of the data")
        return reader(self, module, at)

    def put(self, kind, at, shape=None, **given):
        self.shapes.append(self.shapes[at] if shape is None else shape)
        self.ops.append(dict(kind=kind, source=at, to=len(self.shapes) - 1, **given))
        return len(self.shapes) - 1

    def weigh(self, matrix, *parameters, bias=-1, norm=0):
        """Keep a matrix of weights, made of these parameters, and return its number."""
        self.used += map(id, parameters)
        self.weights.append((matrix, bias, norm))
        return len(self.weights) - 1

    def length(self, at):
        """How many numbers a position of the tensor ``at`` takes: the data's channels lie close, others in vectors."""
        channels = self.shapes[at][0]
        return structures.in_vectors(channels, self.vector) if at else channels


# --- What each layer does: functions (reading, module, at) -> the tensor that it makes -----------------------------


def chain(reading, module, at):
    for part in module:
        at = reading.read(part, at)
    return at


def nothing(reading, module, at):
    return at


def dropout(reading, module, at):
    if not 0 <= module.rate < 1:
        raise Unreadable("a dropout of everything")
    if not reading.flat:  # the entries of a mask are counted channel by channel there
        raise Unreadable("a dropout of positions")
    if not module.rate:
        return at
    reading.draws.append(module.dropout_draw.item())
    return reading.put(DROP, at, choice=len(reading.draws) - 1, rate=module.rate)


def convolution(reading, module, at):
    dims = 2 if type(module) is nn.Conv2d else 1
    if module.bias is None or module.groups != 1 or module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise Unreadable("a convolution without bias, in groups, or padded otherwise")
    given = (module.kernel_size, module.stride, module.padding, module.dilation)
    filled = zip((1, 1, 0, 1), given, strict=True)  # down, where there is only across
    kernel, stride, padding, dilation = ((down, *rest)[-2:] for down, rest in filled)
    channels, height, width = reading.shapes[at]
    if reading.flat or dilation != (1, 1) or channels != module.in_channels:
        raise Unreadable("a convolution of something else than positions")
    if dims == 1 and height > 1 or any(p >= k for p, k in zip(padding, kernel, strict=True)):
        raise Unreadable("a convolution padded by more than it sees")
    made = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip((height, width), padding, kernel, stride, strict=True)]
    if min(made) < 1:
        raise Unreadable("a convolution wider than its input")
    return affine(reading, module, at, (module.out_channels, *made), kernel, stride, padding)


def linear(reading, module, at):
    channels, *positions = reading.shapes[at]
    if module.bias is None or channels != module.in_features or not reading.flat:
        raise Unreadable("a linear layer without bias, or of something else than channels")
    return affine(reading, module, at, (module.out_features, *positions))


def affine(reading, module, at, shape, kernel=(1, 1), stride=(1, 1), padding=(0, 0)):
    made, channels = module.weight.shape[:2]
    w = module.weight.detach().numpy().reshape(made, channels, *kernel)
    rows = np.zeros((*kernel, reading.length(at), made), np.float32)
    rows[:, :, :channels] = w.transpose(2, 3, 1, 0)
    matrix = np.vstack([rows.reshape(-1, made), module.bias.detach().numpy()[None]])
    weight = reading.weigh(matrix, module.weight, module.bias, bias=len(matrix) - 1)
    return reading.put(CONVOLVE, at, shape, weight=weight, kernel=kernel, stride=stride, padding=padding)


def batch_norm(reading, module, at):
    if not module.affine or module.running_mean is None or module.running_var is None or module.momentum is None:
        raise Unreadable("a batch norm without weights or running statistics")
    if id(module.running_mean) in reading.statistics:
        raise Unreadable("running statistics shared")
    reading.statistics.add(id(module.running_mean))
    if module.num_features != reading.shapes[at][0] or reading.tokens:
        raise Unreadable("a batch norm of something else than channels")
    reading.running.append(torch.stack([module.running_mean, module.running_var]).numpy())
    size = module.size if type(module) is layers.GhostBatchNorm else 0
    return norm(reading, BATCH_NORM, module, at, momentum=module.momentum, choice=size)


def group_norm(reading, module, at):
    if module.num_channels != reading.shapes[at][0] or reading.tokens:
        raise Unreadable("a group norm of something else than channels")
    return norm(reading, GROUP_NORM, module, at, choice=module.num_groups)


def layer_norm(reading, module, at):
    if module.normalized_shape != reading.shapes[at][:1] or not reading.flat:
        raise Unreadable("a layer norm of something else than channels")
    return norm(reading, LAYER_NORM, module, at)


def norm(reading, kind, module, at, **given):
    if module.weight is None or module.bias is None or not module.eps >= structures.SMALLEST:
        raise Unreadable("a norm without gain, shift or eps")
    matrix = torch.stack([module.weight, module.bias]).detach().numpy()
    weight = reading.weigh(matrix, module.weight, module.bias, bias=1, norm=1)
    return reading.put(kind, at, weight=weight, eps=module.eps, **given)


def activation(reading, module, at):
    if type(module) is nn.GELU and module.approximate != "none":
        raise Unreadable("an approximate GELU")
    last, follows = reading.ops[-1], type(module) is nn.ReLU and at not in reading.forked
    if follows and last["to"] == at and last["kind"] in (CONVOLVE, BATCH_NORM, GROUP_NORM):
        last["relu"] = 1  # part of the operation before it, since nobody else reads that
        return at
    return reading.put(ACTIVATE, at, choice=CHOICES[type(module)])


def mean(reading, module, at):
    if reading.flat:
        raise Unreadable("a mean over positions where there are none, or of a text")
    reading.flat = True
    return reading.put(MEAN, at, (reading.shapes[at][0], 1, 1))


def add(reading, at, other):
    return reading.put(ADD, at, other=other)


def residual(reading, module, at):
    reading.forked.add(at)
    inner = activation(reading, nn.ReLU(), reading.read(module.norm1, at))
    outer = at if module.around is None else reading.read(module.around, inner)
    made = reading.read(module.conv1, inner)
    made = activation(reading, nn.ReLU(), reading.read(module.norm2, made))
    return add(reading, outer, reading.read(module.conv2, made))


def embedding(reading, module, at):
    if at or not reading.tokens or {type(module.token), type(module.position)} != {nn.Embedding}:
        raise Unreadable("an embedding of something else than tokens")
    token, position = (t.weight.detach().numpy() for t in (module.token, module.position))
    places = reading.shapes[at][2]
    if places > len(position) or any(
        t.padding_idx is not None or t.max_norm or t.scale_grad_by_freq for t in (module.token, module.position)
    ):
        raise Unreadable("an embedding with rules of its own")
    weight = reading.weigh(token, module.token.weight)
    reading.weigh(position, module.position.weight)
    return reading.put(EMBED, at, (token.shape[1], 1, places), weight=weight)


def block(reading, module, at):
    attention = module.attention
    if type(attention) is not layers.Attention:
        raise Unreadable(type(attention).__name__)
    reading.forked.add(at)
    joint = reading.read(attention.joint, reading.read(module.norm1, at))
    width, *positions = reading.shapes[at]
    made = reading.put(ATTEND, joint, (width, *positions), choice=attention.heads)
    made = reading.read(module.drop1, reading.read(attention.out, made))
    at = add(reading, at, made)
    made = reading.read(module.widen, reading.read(module.norm2, at))
    made = activation(reading, nn.GELU(), made)
    return add(reading, at, reading.read(module.drop2, reading.read(module.narrow, made)))


READERS = {
    nn.Sequential: chain, nn.Identity: nothing, nn.Conv1d: convolution, nn.Conv2d: convolution, nn.Linear: linear,
    nn.BatchNorm1d: batch_norm, nn.BatchNorm2d: batch_norm, layers.GhostBatchNorm: batch_norm,
    nn.GroupNorm: group_norm, nn.LayerNorm: layer_norm, nn.ReLU: activation,
    nn.Tanh: activation, nn.GELU: activation, layers.MeanOverPositions: mean, layers.Residual: residual,
    layers.Embedding: embedding, layers.Block: block, models.Dropout: dropout,
}  # fmt: skip


# --- As the kernel wants it ----------------------------------------------------------------------------------------


def read(run, model, vector=16):
    """The ``Reading`` of a model that suits its run; ``Unreadable``, with the reason, where there is none."""
    x, y = run.data.train
    reading = Reading(model, x.shape[1:], not x.is_floating_point(), vector)
    channels, _, places = reading.shapes[-1]
    labels = (places,) if reading.tokens else () if run.data.classes else (channels,)
    if not reading.flat or tuple(y.shape[1:]) != labels:
        raise Unreadable("outputs of another shape than the labels")
    if (reading.running or reading.draws) and run.micro_batch:
        raise Unreadable("a micro_batch with batch norm or dropout, of which each piece has its own")
    if reading.tokens:
        words, parts = len(reading.weights[0][0]), (run.data.train, run.data.val, run.data.test)
        if any(len(t) and (t.min() < 0 or t.max() >= words) for t, _ in parts):
            raise Unreadable("a token outside of the vocabulary")
    return reading


def network(run, reading, lib, largest):
    """A run's weights as the kernel wants them; ``largest``: examples of its largest batch. No scratch yet."""
    vector = lib.vector_length()
    weights = [structures.padded(matrix, vector) for matrix, _, _ in reading.weights]
    running = [structures.padded(pair, vector) for pair in reading.running]
    left = iter(running)
    places, arrays = structures.kept(run, weights, optim.STATES[run.optimizer.name][0])
    matrices = [structures.Matrix(*w.shape, *rest) for w, (_, *rest) in zip(weights, reading.weights, strict=True)]
    ops = [
        structures.Op(**op, running=structures.address(next(left)) if op["kind"] == BATCH_NORM else None)
        for op in reading.ops
    ]
    draw = np.array(reading.draws, np.int64)
    tables = [
        (type(row[0]) * len(row))(*row) for row in (ops, [structures.Shape(*s) for s in reading.shapes], matrices)
    ]
    most, last = max(height * width for _, height, width in reading.shapes), reading.shapes[-1][2]
    judged = max(1, ROWS // last) if most == last else PIECE
    made = structures.Tape(
        *(len(table) for table in tables), max(judged, largest) if running else judged, judged,
        *map(ctypes.addressof, tables),
        **places, draw=structures.address(draw),
    )  # fmt: skip
    return structures.holding(made, *arrays, running, tables, draw)

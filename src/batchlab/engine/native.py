"""Lanes trained by a small C kernel (``lane/lane.c``): networks of linear layers, on the CPU.

What a lane computes is defined by ``fit``; the kernel only does it sooner, and tests hold the two together.
It is compiled when first needed, in a few seconds, for the processor at hand.
"""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Lock
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from batchlab.engine.kernel import library
from batchlab.engine.plan import Lane, row
from batchlab.training import models, optim, step
from batchlab.training.dataset import epoch_order

RULES = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "lars", "lamb")  # as rules.c counts them
MAX_LAYERS = 16


def suits(run):
    """Whether the kernel computes what ``run`` asks for. A missing compiler is another matter: see ``library``.

    It trains float32 networks of linear layers, with ReLU or tanh between each two, layer normalization before that or
    not, dropout after every ReLU or none, on flat float32 inputs, under cross-entropy or the squared error; with every
    optimizer of ``optim``, schedule, order, ``l1`` and ``ema``.

    >>> from batchlab import Run, data, models, optim
    >>> run = dict(data=data.digits(), lr=0.1, batch_size=8, epochs=1, device="cpu", optimizer=optim.adam())
    >>> [suits(Run(model=models.mlp((64, 32, 10), norm=norm), **run)) for norm in ("layer", "batch")]
    [True, False]
    """
    x, y = run.data.train
    layers = _layers(models.build(run.model, run.seed))
    return (
        step.device_of(run).type == "cpu"
        and run.precision == "float32"
        and run.optimizer.name in RULES
        and run.loss in ("cross_entropy", "mse")
        and x.ndim == 2
        and x.dtype == torch.float32
        and y.ndim == (1 if run.data.classes else 2)
        and layers is not None
        and (run.micro_batch is None or not layers.dropouts)  # each piece has a mask of its own
    )


class _Layers(NamedTuple):
    """Linear layers; layer norms after all but the last, or none; whether tanh follows; dropouts, or none."""

    linear: list
    norms: list
    is_tanh: bool
    dropouts: list


def _layers(model):
    """The ``_Layers`` of a model that suits, else None."""
    if type(model) is not nn.Sequential or any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()):
        return None
    linear = [m for m in model if type(m) is nn.Linear and m.bias is not None]
    norms = [m for m in model if _is_layer_norm(m)]
    activations = [m for m in model if type(m) in (nn.ReLU, nn.Tanh)]
    dropouts = [m for m in model if type(m) is models.Dropout]
    hidden = zip(linear, *([norms] if norms else []), activations, *([dropouts] if dropouts else []), strict=False)
    if [*(m for each in hidden for m in each), *linear[-1:]] != list(model) or not 0 < len(linear) <= MAX_LAYERS:
        return None
    if len({type(m) for m in activations}) > 1 or len({m.eps for m in norms}) > 1:
        return None
    if len(list(model.parameters())) < 2 * (len(linear) + len(norms)):  # a weight shared between layers
        return None
    is_tanh = nn.Tanh in map(type, activations)
    if len({m.rate for m in dropouts}) > 1 or (dropouts and is_tanh):  # whose slope is not that of what is left
        return None
    return _Layers(linear, norms, is_tanh, dropouts)


def _is_layer_norm(m):
    """Over all features, with a gain and a shift for each and eps > 0; a ``GroupNorm`` of one group is one."""
    if type(m) is nn.GroupNorm:
        return m.num_groups == 1 and m.affine and m.eps > 0
    shaped = type(m) is nn.LayerNorm and len(m.normalized_shape) == 1 and m.eps > 0
    return shaped and m.weight is not None and m.bias is not None


def train(plan, runs, threads):
    """Train the runs, which differ in lr and seed only; return one ``Lane`` each, in their order.

    They must suit, and fit together (``step.prepare``): nothing is checked here.
    """
    return advance(plan, runs, networks(runs), threads)


def networks(runs):
    """The network that each run starts from, as ``advance`` takes it."""
    built = {run.seed: models.build(run.model, run.seed) for run in runs}  # not in threads: torch's seed is global
    return [_network(run, built[run.seed]) for run in runs]


def advance(plan, runs, networks, threads):
    """Train networks, in place, from wherever they stand; return what ``train`` does.

    A lane's learning rate and orders are those of a run that begins; what the optimizer remembers goes on.
    """
    parts = {part: _data(*getattr(runs[0].data, part)) for part in ("train", *runs[0].evaluate)}
    orders, places = _orders(runs[0], plan), _by_seed(runs, threads)
    with ThreadPoolExecutor(threads) as pool:  # the kernel runs outside the interpreter's lock, so threads will do
        made = pool.map(lambda i: _advance(runs[i], plan, parts, networks[i], orders), places)
        trained = dict(zip(places, made, strict=True))
    return [trained[i] for i in range(len(runs))]


def _by_seed(runs, threads):
    """In which order to train: as many seeds at a time as threads, since the rates of a seed share its orders."""
    seeds = list(dict.fromkeys(run.seed for run in runs))
    return sorted(range(len(runs)), key=lambda i: seeds.index(runs[i].seed) // threads)


# ---------------------------------------------------------------- what the kernel reads and writes

_pointer, _pointers = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)


class _Settings(ctypes.Structure):  # rules.c
    _fields_ = [("kind", ctypes.c_int)] + [
        (name, ctypes.c_double) for name in ("momentum", "b1", "b2", "eps", "trust", "weight_decay", "l1", "ema")
    ]


class _Data(ctypes.Structure):  # network.c
    _fields_ = [("x", _pointer), ("label", _pointer), ("target", _pointer), ("examples", ctypes.c_int64)]


class _Network(ctypes.Structure):  # Lane, in network.c
    _fields_ = [
        ("layers", ctypes.c_int), ("is_tanh", ctypes.c_int), ("norm_eps", ctypes.c_float),
        ("sizes", ctypes.POINTER(ctypes.c_int)), ("w", _pointers), ("m", _pointers), ("v", _pointers),
        ("average", _pointers), ("scratch", _pointer), ("step", ctypes.c_int64), ("draw", _pointer),
        ("rate", ctypes.c_double),
    ]  # fmt: skip


def _settings(run):
    given = dict(run.optimizer.settings)
    b1, b2 = given.pop("betas", (0.0, given.pop("alpha", 0.0)))
    return _Settings(RULES.index(run.optimizer.name), b1=b1, b2=b2, l1=run.l1, ema=run.ema or 0.0, **given)


def _data(x, y):
    """Inputs with a last column of ones, for the bias; labels or targets, and NULL for the other."""
    x = np.hstack([x.numpy(), np.ones((len(x), 1), np.float32)])
    y = np.ascontiguousarray(y.numpy(), np.int32 if y.ndim == 1 else np.float32)
    label, target = (_address(y), None) if y.ndim == 1 else (None, _address(y))
    return _holding(_Data(_address(x), label, target, len(x)), x, y)


def _network(run, model):
    """A run's weights as the kernel wants them: per layer (inputs + 1, outputs rounded up to whole vectors), of the
    last layer the other way round; then per norm (2, outputs rounded up), gains and shifts. What its optimizer
    remembers starts from zero, the average from the weights."""
    lib, (layers, norms, is_tanh, dropouts) = library(), _layers(model)
    sizes = (layers[0].in_features, *(layer.out_features for layer in layers))
    sizes, vector, matrices, weights = (ctypes.c_int * len(sizes))(*sizes), lib.vector_length(), [], []
    for layer in layers:
        w = np.hstack([layer.weight.detach().numpy(), layer.bias.detach().numpy()[:, None]])  # (outputs, inputs + 1)
        matrices.append(w if layer is layers[-1] else w.T)
    for w in [*matrices, *(torch.stack([norm.weight, norm.bias]).detach().numpy() for norm in norms)]:
        weights.append(_aligned(len(w), -(-w.shape[1] // vector) * vector))
        weights[-1][:, : w.shape[1]] = w
    kept = {name: [_aligned(*w.shape) for w in weights] for name in optim.STATES[run.optimizer.name][0]}
    if run.ema is not None:
        kept["average"] = [_aligned(*w.shape) for w in weights]
        for average, w in zip(kept["average"], weights, strict=True):
            average[:] = w
    scratch = _aligned(lib.scratch_floats(len(layers), bool(norms), sizes))
    places = {name: _addresses(kept.get(name, weights)) for name in ("w", "m", "v", "average")}
    draw = np.array([m.dropout_draw.item() for m in dropouts], np.int64)
    if dropouts:
        places |= {"draw": _address(draw), "rate": dropouts[0].rate}
    network = _Network(len(layers), is_tanh, norms[0].eps if norms else 0.0, sizes, scratch=_address(scratch), **places)
    return _holding(network, weights, kept, scratch, draw)


def _holding(structure, *arrays):
    """The structure, with the arrays that it points at kept alive."""
    structure.arrays = arrays
    return structure


def _address(array):
    return array.ctypes.data


def _addresses(arrays):
    return (ctypes.c_void_p * len(arrays))(*map(_address, arrays))


def _aligned(*shape):
    """Zeros that start where a cache line starts: a vector that spans two lines costs two loads."""
    size = int(np.prod(shape))
    raw = np.zeros(size + 16, np.float32)
    start = -_address(raw) % 64 // 4
    return raw[start : start + size].reshape(shape)


# ---------------------------------------------------------------- one lane


def _advance(run, plan, parts, network, orders):
    """Train a network, in place, from wherever it stands, and record it as a lane."""
    lib, settings, lr = library(), _settings(run), (run.lr * plan.factors).astype(np.float32)
    at, seconds, diverged = 0, 0.0, False
    rows = [row(run, plan, 0, None, seconds, float("nan"), _measure(lib, run, network, parts))]
    reached = step.meets(run.target, rows[-1])
    for stop in plan.stops:
        if reached or diverged:
            break
        began = perf_counter()
        start = plan.examples[at : stop + 1] - plan.examples[at]
        order = orders(run.seed, int(plan.examples[at]), int(plan.examples[stop]))
        losses = ctypes.c_double()
        made = lib.train(
            ctypes.byref(network), ctypes.byref(parts["train"]), ctypes.byref(settings), _address(order),
            _address(start), stop - at, _address(lr) + at * lr.itemsize, run.loss_bound, ctypes.byref(losses),
        )  # fmt: skip
        diverged = made < stop - at
        tried = made + diverged  # the batch that diverged counts in the mean loss, but not as a step
        at += made
        seconds += perf_counter() - began
        found = _measure(lib, run, network, parts)
        mean = losses.value / int(start[tried])
        rows.append(row(run, plan, at, at - 1 + diverged, seconds, mean, found))
        reached = not diverged and step.meets(run.target, found)
    return Lane(rows, diverged, reached)


def _orders(run, plan):
    """A function of (seed, start, stop): the numbers of the examples a lane meets from the start-th to the stop-th.

    Drawing an epoch's order costs as much as a few steps: lanes that differ in their learning rate only share it, and
    threads take turns, since two that draw at once fight over the interpreter's lock and take three times as long.
    """
    ends, drawing = np.cumsum(plan.used), Lock()

    @lru_cache(maxsize=16)
    def epoch(seed, number):
        return epoch_order(len(run.data.train[0]), seed, number, run.order)[: plan.used[number]].astype(np.int32)

    @lru_cache(maxsize=64)
    def stretch(seed, start, stop):
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        skipped = start - (ends[first] - plan.used[first])
        with drawing:
            drawn = [epoch(seed, number) for number in range(first, last + 1)]
        return np.concatenate(drawn)[skipped:][: stop - start]

    return stretch


def _measure(lib, run, network, parts):
    found, right = {}, ctypes.c_int64()
    for part in run.evaluate:
        loss = lib.evaluate(ctypes.byref(network), ctypes.byref(parts[part]), ctypes.byref(right))
        found[f"{part}_loss"] = loss / parts[part].examples
        if run.data.classes is not None:
            found[f"{part}_accuracy"] = right.value / parts[part].examples
    return found

"""Lanes trained by a small C kernel (``_lane.c``): ReLU networks of linear layers under SGD, on the CPU.

What a lane computes is defined by ``fit``; the kernel only does it sooner, and tests hold the two together.
It is compiled when first needed, in about two seconds, for the processor at hand.
"""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from time import perf_counter

import numpy as np
import torch
from torch import nn

from batchlab.engine.kernel import library
from batchlab.engine.plan import Lane, row
from batchlab.training import models, step
from batchlab.training.dataset import epoch_order

OPTIMIZERS = ("sgd", "momentum", "nesterov")
MAX_LAYERS = 16


def linear_layers(model):
    """The linear layers of a Sequential of biased linear layers with a ReLU between each two; else None."""
    if type(model) is not nn.Sequential or len(model) % 2 == 0 or len(model) > 2 * MAX_LAYERS - 1:
        return None
    linear, between = list(model)[::2], list(model)[1::2]
    if any(type(m) is not nn.Linear or m.bias is None for m in linear) or any(type(m) is not nn.ReLU for m in between):
        return None
    return linear


def suits(run):
    """Whether the kernel computes what ``run`` asks for. A missing compiler is another matter: see ``library``.

    >>> from batchlab import Run, data, models, optim
    >>> run = dict(data=data.digits(), lr=0.1, batch_size=8, epochs=1, device="cpu", model=models.mlp((64, 32, 10)))
    >>> suits(Run(optimizer=optim.momentum(), **run)), suits(Run(optimizer=optim.adam(), **run))
    (True, False)
    """
    x, y = run.data.train
    return (
        step.device_of(run).type == "cpu"
        and run.precision == "float32"
        and run.optimizer.name in OPTIMIZERS
        and run.loss in ("cross_entropy", "mse")
        and not run.l1
        and run.ema is None
        and x.ndim == 2
        and x.dtype == torch.float32
        and y.ndim == (1 if run.data.classes else 2)
        and linear_layers(models.build(run.model, run.seed)) is not None
    )


def train(plan, runs, threads):
    """Train the runs, which differ in lr and seed only; return one ``Lane`` each, in their order."""
    lib = library()
    step.prepare(runs[0])  # for its checks
    parts = {part: _laid_out(*getattr(runs[0].data, part)) for part in ("train", *runs[0].evaluate)}
    built = {run.seed: models.build(run.model, run.seed) for run in runs}  # not in threads: torch's seed is global
    orders = _orders(runs[0], plan)

    def one(i):
        return _advance(lib, runs[i], plan, parts, _network(lib, built[runs[i].seed]), orders)

    order = _by_seed(runs, threads)
    with ThreadPoolExecutor(threads) as pool:  # the kernel runs outside the interpreter's lock, so threads will do
        trained = dict(zip(order, pool.map(one, order), strict=True))
    return [trained[i] for i in range(len(runs))]


def _by_seed(runs, threads):
    """In which order to train: as many seeds at a time as threads, since the rates of a seed share its orders."""
    seeds = list(dict.fromkeys(run.seed for run in runs))
    return sorted(range(len(runs)), key=lambda i: seeds.index(runs[i].seed) // threads)


def _laid_out(x, y):
    """Inputs with a last column of ones, for the bias; labels or targets; as the kernel reads them."""
    ones = np.ones((len(x), 1), np.float32)
    return np.hstack([x.numpy(), ones]), np.ascontiguousarray(y.numpy(), np.int32 if y.ndim == 1 else np.float32)


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


@dataclass(frozen=True)
class _Network:
    """A lane's weights as the kernel wants them: per layer (inputs + 1, outputs rounded up to whole vectors), of the
    last layer the other way round."""

    sizes: tuple
    weights: list
    velocities: list
    scratch: np.ndarray

    def arguments(self):
        return len(self.weights), (ctypes.c_int * len(self.sizes))(*self.sizes), _addresses(self.weights)

    def moving(self):
        return _addresses(self.velocities)


def _network(lib, model):
    layers, vector = linear_layers(model), lib.vector_length()
    sizes = (layers[0].in_features, *(layer.out_features for layer in layers))
    weights = []
    for layer in layers:
        w = np.hstack([layer.weight.detach().numpy(), layer.bias.detach().numpy()[:, None]])  # (outputs, inputs + 1)
        w = w if layer is layers[-1] else w.T
        weights.append(_aligned(len(w), -(-w.shape[1] // vector) * vector))
        weights[-1][:, : w.shape[1]] = w
    scratch = _aligned(lib.scratch_floats(len(layers), (ctypes.c_int * len(sizes))(*sizes)))
    return _Network(sizes, weights, [_aligned(*w.shape) for w in weights], scratch)


def _advance(lib, run, plan, parts, net, orders):
    """Train a network, in place, from wherever it stands, and record it as a lane."""
    x, y = parts["train"]
    lr = (run.lr * plan.factors).astype(np.float32)
    momentum, weight_decay = (dict(run.optimizer.settings).get(k, 0.0) for k in ("momentum", "weight_decay"))
    at, seconds, diverged = 0, 0.0, False
    rows = [row(run, plan, 0, None, seconds, float("nan"), _measure(lib, run, net, parts))]
    reached = step.meets(run.target, rows[-1])
    for stop in plan.stops:
        if reached or diverged:
            break
        began = perf_counter()
        start = plan.examples[at : stop + 1] - plan.examples[at]
        order = orders(run.seed, int(plan.examples[at]), int(plan.examples[stop]))
        losses = ctypes.c_double()
        made = lib.train(
            *net.arguments(), net.moving(), _address(x), *_answers(y), _address(order), _address(start), stop - at,
            _address(lr) + at * lr.itemsize, momentum, weight_decay, run.optimizer.name == "nesterov",
            run.loss_bound, ctypes.byref(losses), _address(net.scratch),
        )  # fmt: skip
        diverged = made < stop - at
        tried = made + diverged  # the batch that diverged counts in the mean loss, but not as a step
        at += made
        seconds += perf_counter() - began
        found = _measure(lib, run, net, parts)
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


def _answers(y):
    """The kernel takes labels or targets, and NULL for the other."""
    return (_address(y), None) if y.ndim == 1 else (None, _address(y))


def _measure(lib, run, net, parts):
    found = {}
    for part in run.evaluate:
        x, y = parts[part]
        right = ctypes.c_int64()
        loss = lib.evaluate(
            *net.arguments(), _address(x), *_answers(y), len(x), ctypes.byref(right), _address(net.scratch)
        )
        found[f"{part}_loss"] = loss / len(x)
        if y.ndim == 1:
            found[f"{part}_accuracy"] = right.value / len(x)
    return found

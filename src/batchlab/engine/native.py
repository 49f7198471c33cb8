"""Lanes trained by a small C kernel (``lane/lane.c``), on the CPU.

What a lane computes is defined by ``fit``; the kernel only does it sooner, and tests hold the two together.
It is compiled when first needed, in a few seconds, for the processor at hand.
"""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Lock, local
from time import perf_counter

import numpy as np
import torch

from batchlab.engine import chain, tape
from batchlab.engine.kernel import library
from batchlab.engine.plan import Lane, row
from batchlab.engine.structures import RULES, SMALLEST, Chain, Data, Unreadable, address, holding, settings
from batchlab.training import step
from batchlab.training.dataset import epoch_order


def suits(run):
    """Whether the kernel computes what ``run`` asks for. A missing compiler is another matter: see ``library``.

    It trains float32 networks under cross-entropy or the squared error, with every optimizer of ``optim`` but Muon,
    every schedule, order, ``l1`` and ``ema``. What they may be made of: linear layers, convolutions, norms, ReLU, tanh
    and GELU, the mean over positions, dropout, and the blocks of ``models.resnet`` and ``models.transformer``; see
    ``engine.chain`` and ``engine.tape``.

    >>> from batchlab import Run, data, models, optim
    >>> run = dict(data=data.digits(), lr=0.1, batch_size=8, epochs=1, device="cpu", model=models.mlp((64, 32, 10)))
    >>> [suits(Run(optimizer=optimizer, **run)) for optimizer in (optim.adam(), optim.muon())]
    [True, False]
    """
    try:
        kind(run)
    except Unreadable:
        return False
    return True


def kind(run):
    """What the kernel takes the network of ``run`` for: "chain" or "tape". ``Unreadable`` where it does not suit."""
    (x, y), eps = run.data.train, dict(run.optimizer.settings).get("eps", 1)
    for what, there in {
        "a device other than a CPU": step.device_of(run).type != "cpu",
        f"precision = {run.precision!r}": run.precision != "float32",
        run.optimizer.name: run.optimizer.name not in RULES,
        "a loss of your own": run.loss not in ("cross_entropy", "mse"),
        f"inputs of type {x.dtype}": x.dtype not in (torch.float32, torch.int64),
        f"an optimizer's eps = {eps}": eps < SMALLEST,
    }.items():
        if there:
            raise Unreadable(what)
    model = step.built(run)
    found = chain.layers(model) if _is_flat(x) else None
    if found and found.dropouts and run.micro_batch is not None:
        raise Unreadable("a micro_batch with dropout, of which each piece has its own")
    if found and y.ndim == (1 if run.data.classes else 2):
        return "chain"
    tape.read(run, model)
    return "tape"


def _is_flat(x):
    return x.is_floating_point() and x.ndim == 2


def train(plan, runs, threads):
    """Train the runs, which differ in lr and seed only; return one ``Lane`` each, in their order.

    They must suit, and fit together (``step.prepare``): nothing is checked here.
    """
    return advance(plan, runs, networks(plan, runs), threads)


def networks(plan, runs):
    """The network that each run starts from, as ``advance`` takes it."""
    built = {run.seed: step.built(run) for run in runs}  # not in threads: torch's seed is global
    return [_network(run, built[run.seed], int(max(plan.sizes))) for run in runs]


def advance(plan, runs, networks, threads):
    """Train networks, in place, from wherever they stand; return what ``train`` does.

    A lane's learning rate and orders are those of a run that begins; what the optimizer remembers goes on.
    """
    is_chain = type(networks[0]) is Chain
    parts = {part: _data(is_chain, *getattr(runs[0].data, part)) for part in ("train", *runs[0].evaluate)}
    orders, places = _orders(runs[0], plan), _by_seed(runs, threads)
    of_thread = local()

    def one(i):
        if not is_chain:
            networks[i].scratch = _scratch(networks[i], of_thread)
        return _advance(runs[i], plan, parts, networks[i], orders)

    with ThreadPoolExecutor(threads) as pool:  # the kernel runs outside the interpreter's lock, so threads will do
        made = pool.map(one, places)
        trained = dict(zip(places, made, strict=True))
    return [trained[i] for i in range(len(runs))]


def _by_seed(runs, threads):
    """In which order to train: as many seeds at a time as threads, since the rates of a seed share its orders."""
    seeds = list(dict.fromkeys(run.seed for run in runs))
    return sorted(range(len(runs)), key=lambda i: seeds.index(runs[i].seed) // threads)


# ---------------------------------------------------------------- what the kernel reads and writes


def _network(run, model, largest):
    """A run's network, where it begins: a ``structures.Chain`` or ``Tape``. ``largest``: examples of a batch."""
    lib, found = library(), chain.layers(model) if _is_flat(run.data.train[0]) else None
    if found:
        return chain.network(run, found, lib)
    return tape.network(run, tape.read(run, model, lib.vector_length()), lib, largest)


def _scratch(network, of_thread):
    """Where the scratch of a tape begins. Lanes that a thread trains one after another, all alike, share it."""
    if not hasattr(of_thread, "scratch"):
        of_thread.scratch = np.zeros(library().scratch_of_tape(ctypes.byref(network)) + 64, np.uint8)
    return -(-address(of_thread.scratch) // 64) * 64


def _data(is_chain, x, y):
    """Inputs, with a last column of ones for the biases of a chain, channels last for a tape, which reads some floats
    past the end; or tokens. Labels or targets. NULL stands for what there is not."""
    if not x.is_floating_point():
        inputs = np.ascontiguousarray(x.numpy(), np.int32)
    elif is_chain:
        inputs = np.ones((len(x), x.shape[1] + 1), np.float32)
        inputs[:, :-1] = x.numpy()
    else:
        inputs = np.append(x.movedim(1, -1).numpy(), np.zeros(64, np.float32))
    y = np.ascontiguousarray(y.numpy(), np.float32 if y.is_floating_point() else np.int32)
    names = "token" if inputs.dtype == np.int32 else "x", "label" if y.dtype == np.int32 else "target"
    given = {name: address(array) for name, array in zip(names, (inputs, y), strict=True)}
    return holding(Data(examples=len(x), **given), inputs, y)


# ---------------------------------------------------------------- one lane


def _functions(network):
    lib = library()
    return (lib.train, lib.evaluate) if type(network) is Chain else (lib.train_tape, lib.evaluate_tape)


def _advance(run, plan, parts, network, orders):
    """Train a network, in place, from wherever it stands, and record it as a lane."""
    (train, _), given, lr = _functions(network), settings(run), (run.lr * plan.factors).astype(np.float32)
    at, seconds, diverged = 0, 0.0, False
    rows = [row(run, plan, 0, None, seconds, float("nan"), _measure(run, network, parts))]
    reached = step.meets(run.target, rows[-1])
    for stop in plan.stops:
        if reached or diverged:
            break
        began = perf_counter()
        start = plan.examples[at : stop + 1] - plan.examples[at]
        order = orders(run.seed, int(plan.examples[at]), int(plan.examples[stop]))
        losses = ctypes.c_double()
        made = train(
            ctypes.byref(network), ctypes.byref(parts["train"]), ctypes.byref(given), address(order),
            address(start), stop - at, address(lr) + at * lr.itemsize, run.loss_bound, ctypes.byref(losses),
        )  # fmt: skip
        diverged = made < stop - at
        tried = made + diverged  # the batch that diverged counts in the mean loss, but not as a step
        at += made
        seconds += perf_counter() - began
        found = _measure(run, network, parts)
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


def _measure(run, network, parts):
    found, right, (_, evaluate) = {}, ctypes.c_int64(), _functions(network)
    for part in run.evaluate:
        loss = evaluate(ctypes.byref(network), ctypes.byref(parts[part]), ctypes.byref(right))
        judged = len(getattr(run.data, part)[1]) if run.data.classes is None else getattr(run.data, part)[1].numel()
        found[f"{part}_loss"] = loss / judged
        if run.data.classes is not None:
            found[f"{part}_accuracy"] = right.value / judged
    return found

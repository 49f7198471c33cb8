"""How fast a sweep trains, beside the ways it is usually done: python benchmarks/sweep.py [--quick] [--save FOLDER]

Each workload (``WORKLOADS``) is trained by its rivals over some batch sizes, float32, two threads, 64 networks (8
learning rates x 8 seeds; a seed's shuffled orders are drawn once a call, for JAX and for us). "Member-steps a second":
updates of one network, summed over networks. The usual ways train one network at a time, so their figure is the speed
of one. All rivals are warmed up, then timed in turns, several rounds; medians are shown, and ratios are medians of the
rounds' ratios. Where a workload says how many times as fast as a rival the package must at least be, the last table
says whether it is; and never may it be slower than 0.95 times a plain loop over tensors on the same threads.
Rivals that are not installed are left out (pip install "batchlab[bench]").

What was tried for the kernel (``engine/lane``), on two cores with AVX-512: stacked ``vmap`` steps, eagerly and
compiled, spend small batches on dispatch and barriers and large ones on passes over memory. One core taking one network
through its steps keeps weights and moments in its own cache, needs no barrier, and is no slower when the machine is
busy. Compiling with -O2 was two to five times slower. What had cost was the narrow last layer (ten classes in a vector
of sixteen), a softmax that worked across a vector, chunks of 128 examples (64 fit in the first cache), drawing orders
anew for every learning rate, in two threads that fought over the interpreter's lock, and, in batches of 8, the update
(tiles held every rule's constants; now one loop a rule, but for plain momentum, gets them through the first cache),
accumulators that gcc cleared and left in memory until it was told to unroll, and a last layer with half a vector of
examples.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

THREADS = 2
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")  # else only the first run would compile
os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("XLA_FLAGS", f"--xla_cpu_multi_thread_eigen=true intra_op_parallelism_threads={THREADS}")
sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from _rivals import RIVALS, installed, sizes_of  # noqa: E402

from batchlab import Run, data, models, optim, sweep  # noqa: E402
from batchlab.engine import kernel, stacked  # noqa: E402
from batchlab.engine.plan import plan  # noqa: E402

RATES, SEEDS = np.geomspace(1e-4, 1e-2, 8).tolist(), range(8)
LOOP, TENSORS, JAX, ONE = "DataLoader loop", "tensor loop", "JAX jit(vmap(scan))", "JAX jit(step)"
OURS = "batchlab"
LONG = "batchlab, long sweep"
NEVER_SLOWER = 0.95  # times the tensor loop


@dataclass(frozen=True)
class Workload:
    """What is trained. ``bars``: for each batch size, at least how many times as fast as ``against`` (None: no bar)."""

    name: str
    data: Callable
    model: Callable
    optimizer: optim.Optimizer
    bars: dict
    against: str = JAX
    rivals: tuple = (LOOP, TENSORS, JAX, OURS)
    ours: str = OURS  # which of the rivals is the package


def digits():
    """All examples as the training part: a batch of 1,536 fits in."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    pair = torch.tensor((x - x.mean()) / x.std(), dtype=torch.float32), torch.tensor(y)
    few = pair[0][:10], pair[1][:10]
    return data.Dataset("digits", True, pair, few, few, classes=10)


def signals(as_signals=False):
    return data.mnist1d(4000, val=1000, test=1000, signals=as_signals)


def waves():
    return signals(as_signals=True)


def images():
    return data.mnist5k(images=True)


def text():
    return data.documentation_text(32)


def pooled(seed):
    """A network that the kernel does not know: what other people's models get."""
    nn = torch.nn
    block = nn.Conv1d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(16, 32, 3, padding=1), nn.ReLU()
    return nn.Sequential(*block, nn.MaxPool1d(2), nn.Flatten(), nn.Linear(320, 10))


BY_LOOP = dict(against=LOOP, rivals=(LOOP, TENSORS, JAX, ONE, OURS))
ON_IMAGES = dict(against=LOOP, rivals=(LOOP, TENSORS, ONE, OURS))  # stacked by JAX: 2 to 4 steps a second
MLP = models.mlp((40, 100, 100, 10))
WORKLOADS = (
    Workload(
        "digits, 64-64-10, momentum", digits, models.mlp((64, 64, 10)), optim.momentum(),
        dict.fromkeys((1, 8, 32, 128, 512, 1536)), rivals=(*(name for name in RIVALS if name != LONG),),
    ),
    Workload("MNIST-1D, 40-100-100-10, momentum", signals, MLP, optim.momentum(), {8: 5, 128: 3, 1024: 1.5}),
    Workload("MNIST-1D, 40-100-100-10, Adam", signals, MLP, optim.adam(), {8: 3, 128: 2, 1024: 1.3}),
    Workload("MNIST-1D, CNN, momentum", waves, models.cnn((1, 40), 10), optim.momentum(), {32: 5, 256: 3}, **BY_LOOP),
    Workload("text, transformer of width 32, AdamW", text, models.transformer(96, 32), optim.adamw(), {16: 3, 128: 1.2},
             **BY_LOOP),
    Workload("MNIST-1D, layer norm, Adam", signals, models.mlp((40, 100, 100, 10), norm="layer"), optim.adam(),
             {32: 5, 512: 1.5}, **BY_LOOP),
    Workload("MNIST-5k, residual, batch norm, momentum", images, models.resnet((1, 28, 28), 10, norm="batch"),
             optim.momentum(), {32: 1.2, 256: 1.2}, **ON_IMAGES),
    Workload("MNIST-5k, CNN, momentum", images, models.cnn((1, 28, 28), 10), optim.momentum(), {32: 1.2, 256: 1.2},
             **ON_IMAGES),
    Workload("MNIST-1D, CNN with max pooling, momentum", waves, pooled, optim.momentum(), dict.fromkeys((32, 256)),
             rivals=(LOOP, TENSORS, LONG), ours=LONG),
)  # fmt: skip


def run_of(workload, batch_size):
    return Run(
        data=workload.data(), model=workload.model, optimizer=workload.optimizer, lr=1e-3, batch_size=batch_size,
        steps=1, device="cpu", drop_last=True, evaluate=(), evaluate_every=10**12,
    )  # fmt: skip


# ---------------------------------------------------------------- timing


def peak(size=2048, rounds=4):
    """The machine's own float32 matrix product at its fastest, in floating-point operations a second."""
    a, b, found = torch.randn(size, size), torch.randn(size, size), []
    for _ in range(rounds):
        began = time.perf_counter()
        torch.mm(a, b)
        found.append(2 * size**3 / (time.perf_counter() - began))
    return max(found)


def operations(run):
    """Floating-point operations of a step of an MLP: a product forward, two backward (no signal to the inputs)."""
    sizes = sizes_of(run)
    if sizes is None:
        return float("nan")
    products = [a * b for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
    return 2 * run.batch_size * (3 * sum(products) - products[0])


def measured(advance, networks, steps):
    began = time.perf_counter()
    advance(steps)
    return networks * steps / (time.perf_counter() - began)


def steps_for(advance, networks, seconds):
    """How many steps take about ``seconds``; also the cold start: the time of the first call."""
    began = time.perf_counter()
    advance(1)
    cold, steps = time.perf_counter() - began, 1
    while True:
        advance(steps)  # a rival that compiles for each number of steps does so here
        took = min(networks * steps / measured(advance, networks, steps) for _ in range(2))  # one may be a slow one
        if took > seconds / 4:
            return max(1, int(steps * seconds / took)), cold
        steps *= 4


def speeds(workload, batch_size, seconds, rounds, only=None):
    """One row a rival."""
    run, rivals, peaks = run_of(workload, batch_size), {}, []
    for name, make in installed(
        n for n in workload.rivals if only is None or n in (LOOP, workload.ours, *only)
    ).items():
        advance, networks = make(run, RATES, SEEDS)
        long = 20 if name == LONG else 1  # its calls begin lanes, which takes up to two seconds
        steps, cold = steps_for(advance, networks, seconds * long)
        advance(steps)
        rivals[name] = (advance, networks, steps, cold, [])
    for _ in range(rounds):
        peaks.append(peak())
        for advance, networks, steps, _, found in rivals.values():
            found.append(measured(advance, networks, steps))

    def times(what, other):
        return statistics.median(a / b for a, b in zip(what, other, strict=True))

    rows = []
    for name, (_, _, steps, cold, found) in rivals.items():
        rows.append({
            "workload": workload.name, "batch_size": batch_size, "what": name,
            "steps_a_second": statistics.median(found), "times_the_loop": times(found, rivals[LOOP][-1]),
            "ours_is_faster": times(rivals[workload.ours][-1], found),
            "share_of_peak": operations(run) * times(found, peaks), "cold_start_seconds": cold, "steps_a_call": steps,
        })  # fmt: skip
        print("{batch_size:>6}  {what:<20} {steps_a_second:>12,.0f} {times_the_loop:>8.1f}x {ours_is_faster:>8.2f}x"
              " {share_of_peak:>7.1%} {cold_start_seconds:>8.2f} s".format(**rows[-1]), flush=True)  # fmt: skip
    return rows


def judged(rows):
    """Whether the package is as many times as fast as a rival as its workload demands: one row a bar."""
    bars = []
    for workload in WORKLOADS:
        for row in rows:
            asked = {workload.against: workload.bars.get(row["batch_size"]), TENSORS: NEVER_SLOWER}
            if row["workload"] == workload.name and (at_least := asked.get(row["what"])):
                holds = row["ours_is_faster"] >= at_least
                kept = {name: row[name] for name in ("workload", "batch_size", "what", "ours_is_faster")}
                bars.append(kept | {"at_least": at_least, "holds": holds})
                print("{workload:<40} B = {batch_size:>4}: {ours_is_faster:>7.2f} times the {what:<20} at least"
                      " {at_least:.2f}: {holds}".format(**bars[-1]))  # fmt: skip
    return bars


def whole_sweep(optimizer, quick):
    """13 learning rates x 10 seeds x 8 batch sizes, 60,000 examples each, from a cold start; against the loop.

    The loop is timed on a sample of its steps at each batch size and multiplied up: all of it would take hours.
    """
    batches, dataset = (4, 8, 16, 32, 64, 128, 256, 512), signals()
    rates, seeds = np.geomspace(1e-3, 1.0, 3 if quick else 13).tolist(), range(2 if quick else 10)
    run = Run(
        data=dataset, model=MLP, optimizer=optimizer, lr=0.01, batch_size=4, examples=60_000, device="cpu",
        evaluate=("val",), evaluate_every=60_000,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as empty, mock.patch.dict(os.environ, XDG_CACHE_HOME=empty):
        kernel.library.cache_clear()  # the compilation of the kernel is part of the cold start
        began = time.perf_counter()
        table = sweep(run, batch_size=batches, lr=rates, seed=seeds)
        took, loop = time.perf_counter() - began, 0.0
    for batch_size in batches:
        advance, _ = RIVALS[LOOP][0](replace(run, batch_size=batch_size), None, None)
        steps, _ = steps_for(advance, 1, 0.5 if quick else 2.0)
        loop += 60_000 / batch_size * len(rates) * len(seeds) / measured(advance, 1, steps)
    lanes = len(table.drop_duplicates(["batch_size", "lr", "seed"]))
    print(f"MNIST-1D, 40-100-100-10, {optimizer.name}, {lanes} lanes of 60,000 examples, cold start included:"
          f" {took:.1f} s; the DataLoader loop {loop:,.0f} s: {loop / took:.0f} times", flush=True)  # fmt: skip
    return {"optimizer": optimizer.name, "lanes": lanes, "seconds": took, "loop_seconds": loop, "times": loop / took}


def payback(networks=16, batch_size=32):
    """After how many steps ``torch.compile`` has paid for itself on stacks that the kernel does not train."""
    images = data.digits(images=True)
    cases = {
        "MLP with GroupNorm, momentum": (data.digits(), models.mlp((64, 64, 10), norm="group"), optim.momentum()),
        "CNN, momentum": (images, models.cnn((1, 8, 8), 10), optim.momentum()),
    }
    rows = []
    for name, (dataset, model, optimizer) in cases.items():
        run = Run(
            data=dataset, model=model, optimizer=optimizer, lr=1e-3, batch_size=batch_size, steps=120, device="cpu",
            drop_last=True, evaluate=(), evaluate_every=40 * batch_size,
        )  # fmt: skip
        took = {}
        for compiled in (False, True):
            found = stacked.train(plan(run), [replace(run, seed=seed) for seed in range(networks)], compiled)
            _, first, _, last = (networks * row["seconds"] for row in found[0].rows)  # after 0, 40, 80, 120 steps
            took[compiled] = (last - first) / 80, first - (last - first) / 2
        (eager, _), (fast, compiling) = took[False], took[True]
        steps = compiling / (eager - fast) if eager > fast else float("inf")
        rows.append({
            "what": name, "eager_ms": 1e3 * eager, "compiled_ms": 1e3 * fast, "compiling_s": compiling,
            "steps_to_pay": steps,
        })  # fmt: skip
        print("{what:<30} {eager_ms:>8.2f} ms a step, compiled {compiled_ms:>8.2f} ms; compiling {compiling_s:>6.1f} s,"
              " paid back after {steps_to_pay:,.0f} steps".format(**rows[-1]), flush=True)  # fmt: skip
    return rows


def environment():
    processor = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        processor = lines[0].split(":")[1].strip() if lines else processor
    versions = {"python": platform.python_version()} | {
        name: importlib.metadata.version(name)
        for name in ("torch", "numpy", "jax", "lightning", "skorch", "keras")
        if importlib.util.find_spec(name)
    }
    vector = kernel.library().vector_length() if kernel.library() else None
    return {"processor": processor, "cores": os.cpu_count(), "threads": THREADS, "vector": vector, "versions": versions}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a rough figure in a few minutes")
    parser.add_argument("--workload", nargs="*", default=[""], help="only those with one of these words in their name")
    parser.add_argument("--batch-size", type=int, nargs="*", help="only these")
    parser.add_argument("--only", nargs="*", help="rivals to time beside the DataLoader loop, by name")
    parser.add_argument("--no-sweep", action="store_true", help="leave out the whole sweeps and the price of compiling")
    parser.add_argument("--save", type=Path, help="a folder for sweep.json")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(THREADS)
    result = {"environment": environment()}
    if not asked.no_sweep:
        result["whole_sweeps"] = [whole_sweep(optimizer, asked.quick) for optimizer in (optim.momentum(), optim.adam())]
        result["payback"] = payback()
    rows = result["speeds"] = []
    for workload in WORKLOADS:
        if any(word in workload.name for word in asked.workload):
            print(f"\n{workload.name}")
            print(f"{'B':>6}  {'':<20} {'steps/s':>12} {'to loop':>9} {'ours':>9} {'of peak':>7} {'cold':>10}")
            for batch_size in asked.batch_size or workload.bars:
                rows += speeds(workload, batch_size, *((0.2, 3) if asked.quick else (1.0, 7)), asked.only)
    print()
    result["bars"] = judged(rows)
    if asked.save:
        asked.save.mkdir(parents=True, exist_ok=True)
        (asked.save / "sweep.json").write_text(json.dumps(result, indent=1) + "\n")

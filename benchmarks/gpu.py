"""What a GPU makes of it: python benchmarks/gpu.py --save results/gpu  (about six minutes; --quick for one)

Three tables. *Sweeps*: updates of one network a second, summed over 64 and over 1,024 networks, our stack (its step
replayed as a CUDA graph, and launched kernel by kernel) beside a plain loop that trains one network at a time and
JAX's jit(vmap(scan)). *Steps*: the time of one step over batch sizes, with the law t = a + bB and its knee. *Memory*:
the allocator's peak over batch sizes, beside what ``memory.step_memory`` counts. Networks: those of the chapters, and a
language model of 25 million parameters in float32 and bfloat16. Without a GPU everything runs at toy size on the CPU,
which shows that it runs and nothing else.
"""

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else JAX takes the memory that torch is to have
sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import numpy as np
import torch
from torch.nn import functional as F

from batchlab import Run, data, memory, models, optim, throughput
from batchlab.engine import stacked
from batchlab.engine.plan import plan

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
SIZES = (40, 100, 100, 10)


def wait():
    if GPU:
        torch.cuda.synchronize()


# ---------------------------------------------------------------- sweeps


def workloads():
    flat = data.mnist1d(4000, val=1000, test=1000)
    signals = data.mnist1d(4000, val=1000, test=1000, signals=True)
    text = data.documentation_text(32)
    return {
        "MLP 40-100-100-10, momentum": (flat, models.mlp(SIZES), optim.momentum(), (8, 128, 1024)),
        "MLP 40-100-100-10, Adam": (flat, models.mlp(SIZES), optim.adam(), (8, 128, 1024)),
        "CNN (1, 40), momentum": (signals, models.cnn((1, 40), 10), optim.momentum(), (32, 256)),
        "transformer of width 32, AdamW": (text, models.transformer(text.classes, 32), optim.adamw(), (16, 128)),
    }


def one_at_a_time(run, seconds):
    """The loop that everybody writes: one network, its data on the device, torch.optim."""
    model = run.model(0).to(DEVICE)
    x, y = (t.to(DEVICE) for t in run.data.train)
    settings = dict(run.optimizer.settings)
    kind = {"momentum": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[run.optimizer.name]
    optimizer = kind(model.parameters(), lr=run.lr, **settings)

    def advance(steps):
        for _ in range(steps):
            index = torch.randint(len(x), (run.batch_size,), device=DEVICE)
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]).flatten(0, -2), y[index].flatten()).backward()
            optimizer.step()
        wait()

    return timed(advance, 1, seconds)


def timed(advance, networks, seconds):
    """Updates of one network a second: the median of three calls, after one whose length is found by doubling."""
    steps, took = 1, 0.0
    while took < seconds / 4:
        steps *= 2
        began = time.perf_counter()
        advance(steps)
        took = time.perf_counter() - began
    steps, found = max(1, int(steps * seconds / took / 2)), []
    for _ in range(3):
        began = time.perf_counter()
        advance(steps)
        found.append(networks * steps / (time.perf_counter() - began))
    return statistics.median(found)


def stack_of(run, lanes, seconds, how):
    """Our stack as ``stacked.train`` runs it; its own account of time leaves building and evaluating out."""
    runs = [replace(run, seed=seed) for seed in range(lanes)]
    kept = stacked.Graphs
    if how == "kernel by kernel":
        stacked.Graphs = lambda advance: advance

    def a_rate(steps):
        """From the rows of a lane: the first fifth warms up, and the rest counts."""
        every = max(1, steps // 10) * run.batch_size
        long = [replace(r, steps=steps, evaluate_every=every) for r in runs]
        rows = stacked.train(plan(long[0]), long, how == "compiled")[0].rows
        return (rows[-1]["step"] - rows[2]["step"]) / (rows[-1]["seconds"] - rows[2]["seconds"])  # of a lane's share

    try:
        rate = a_rate(40)
        return a_rate(max(40, min(4000, int(seconds * rate / lanes))))
    finally:
        stacked.Graphs = kept


def jax_scan(run, lanes, seconds):
    """jit(vmap(scan)) of the MLP, each network its own order."""
    import jax
    import jax.numpy as jnp

    x, y = (jnp.asarray(t.numpy()) for t in run.data.train)
    adam = run.optimizer.name == "adam"

    def start(key):
        keys = jax.random.split(key, 3)
        sizes = zip(SIZES[:-1], SIZES[1:], strict=True)
        return [(jax.random.normal(k, s) / s[0] ** 0.5, jnp.zeros(s[1])) for k, s in zip(keys, sizes, strict=True)]

    def loss(params, xs, ys):
        for w, b in params[:-1]:
            xs = jax.nn.relu(xs @ w + b)
        logits = xs @ params[-1][0] + params[-1][1]
        return (jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, ys[:, None], -1)[:, 0]).mean()

    def one(params, m, v, t, order):
        def body(carry, index):
            params, m, v, t = carry
            g = jax.grad(loss)(params, x[index], y[index])
            if not adam:
                m = jax.tree.map(lambda m, g: 0.9 * m + g, m, g)
                return (jax.tree.map(lambda p, m: p - 1e-3 * m, params, m), m, v, t), None
            t = t + 1
            m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
            v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
            c1, c2 = 1 - 0.9**t, 1 - 0.999**t
            new = jax.tree.map(lambda p, m, v: p - 1e-3 * (m / c1) / (jnp.sqrt(v / c2) + 1e-8), params, m, v)
            return (new, m, v, t), None

        return jax.lax.scan(body, (params, m, v, t), order)[0]

    train = jax.jit(jax.vmap(one))
    params = jax.vmap(start)(jax.random.split(jax.random.key(0), lanes))
    zeros = jax.tree.map(jnp.zeros_like, params)
    state = [params, zeros, zeros, jnp.zeros(lanes)]
    rng, steps = np.random.default_rng(0), max(4, min(200, 2**24 // (lanes * run.batch_size)))
    order = jnp.asarray(rng.integers(len(x), size=(lanes, steps, run.batch_size)))

    def advance(calls):
        for _ in range(calls):
            state[:] = train(*state, order)
        jax.block_until_ready(state)

    return steps * timed(advance, lanes, seconds)


def sweeps(seconds, many):
    for name, (dataset, model, optimizer, batches) in workloads().items():
        for batch_size in batches:
            run = Run(
                data=dataset, model=model, optimizer=optimizer, lr=1e-3, batch_size=batch_size, steps=1, device=DEVICE,
                drop_last=True, evaluate=(),
            )  # fmt: skip
            row = {"what": name, "batch_size": batch_size, "one at a time": one_at_a_time(run, seconds)}
            for lanes in many:
                if lanes * batch_size > 2**18:
                    continue
                if lanes == many[0]:  # what launching costs does not depend on how many there are
                    row[f"stack of {lanes}, kernel by kernel"] = stack_of(run, lanes, seconds, "kernel by kernel")
                row[f"stack of {lanes}, replayed"] = stack_of(run, lanes, seconds, "replayed")
                if lanes == many[-1] and batch_size == batches[0]:
                    row[f"stack of {lanes}, compiled and replayed"] = stack_of(run, lanes, seconds, "compiled")
                if name.startswith("MLP") and importlib.util.find_spec("jax"):
                    row[f"JAX, {lanes}"] = jax_scan(run, lanes, seconds)
            print("  ".join(f"{k} {v:,.0f}" if isinstance(v, float) else f"{v}" for k, v in row.items()), flush=True)
            yield row


# ---------------------------------------------------------------- steps and memory


def networks(quick):
    """name -> (model, batch size -> (x, y), loss, optimizer, autocast, batch sizes)"""
    digits, text = data.digits(), data.documentation_text(32)
    large = dict(width=64, depth=2, heads=2) if quick else dict(width=512, depth=8, heads=8)
    context = 32 if quick else 256

    def drawn(pair):
        x, y = (t.to(DEVICE) for t in pair)
        return lambda b: tuple(t[torch.arange(b, device=DEVICE) % len(x)] for t in (x, y))

    def tokens(b):
        both = torch.randint(256, (b, context + 1), device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(0))
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()

    def a_token(outputs, targets):
        return F.cross_entropy(outputs.flatten(0, -2).float(), targets.flatten())

    def sgd(p):
        return torch.optim.SGD(p, lr=1e-4, momentum=0.9)

    def adamw(p):
        return torch.optim.AdamW(p, lr=1e-5)

    many, few = [2**k for k in range(0, 17, 2)], [2**k for k in range(0, 9)]
    if quick:
        many, few = [8, 64], [2, 8]
    one_d = data.mnist1d(4000, val=100, test=100)
    waves = data.mnist1d(4000, val=100, test=100, signals=True)
    lm = models.transformer(256, context, **large)
    return {
        "MLP 64-64-10, momentum": (models.mlp((64, 64, 10)), drawn(digits.train), F.cross_entropy, sgd, None, many),
        "MLP 40-100-100-10, momentum": (models.mlp(SIZES), drawn(one_d.train), F.cross_entropy, sgd, None, many),
        "CNN (1, 40), momentum": (models.cnn((1, 40), 10), drawn(waves.train), F.cross_entropy, sgd, None, many),
        "transformer of width 32, AdamW": (
            models.transformer(text.classes, 32), drawn(text.train), a_token, adamw, None, many[:6],
        ),
        "language model of 25 M, float32": (lm, tokens, a_token, adamw, None, few),
        "language model of 25 M, bfloat16": (lm, tokens, a_token, adamw, torch.bfloat16, few),
    }  # fmt: skip


def steps_and_memory(quick, seconds):
    rows, first = [], torch.nn.Linear(256, 256, device=DEVICE)
    first(torch.ones(256, 256, device=DEVICE)).sum().backward()  # libraries take their workspaces on the first calls
    del first
    for name, (build, make_batch, loss, optimizer, autocast, batches) in networks(quick).items():
        x = y = None  # of the network before
        gc.collect()
        before = torch.cuda.memory_allocated() if GPU else 0  # workspaces that libraries keep
        model = build(0).to(DEVICE)
        optimizer = optimizer(model.parameters())

        def cast_loss(outputs, targets, loss=loss):
            return loss(outputs, targets)

        class Cast(torch.nn.Module):  # autocast belongs round the forward pass only
            def __init__(self, inside):
                super().__init__()
                self.inside = inside

            def forward(self, x, autocast=autocast):
                with torch.autocast(DEVICE, autocast or torch.bfloat16, enabled=autocast is not None):
                    return self.inside(x)

        wrapped = Cast(model)
        speed = throughput.measure_training(
            wrapped, cast_loss, optimizer, make_batch, batches, seconds=seconds, block=0.02
        )
        table = speed.table().to_dict("records")
        for found, batch_size in zip(table, batches, strict=True):
            x, y = make_batch(batch_size)
            counted = memory.step_memory(model, loss, optimizer, x, y, autocast=autocast)
            found |= {"what": name, "parameters": sum(p.numel() for p in model.parameters())}
            found |= {"counted_bytes": counted.total, "counted": asdict(counted), "peak_bytes": peak(
                wrapped, loss, optimizer, x, y) - before}  # fmt: skip
            rows.append(found)
            times = f"{name:<34} B = {batch_size:>6}  {1e3 * found['seconds']:>9.3f} ms a step"
            megabytes = f"counted {counted.total / 1e6:>10,.1f} MB  peak {found['peak_bytes'] / 1e6:>10,.1f} MB"
            print(times, megabytes, sep="  ", flush=True)
        law = speed.law
        print(f"{name:<34} knee {law.knee}, misfit {law.misfit:.2f}", flush=True)
        rows[-1]["knee"] = str(law.knee)
        del model, optimizer, wrapped, speed
    return rows


def peak(model, loss, optimizer, x, y):
    """The allocator's peak in the second of two steps, the batch included: the first makes the optimiser's state."""
    if not GPU:
        return 0
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        optimizer.zero_grad(set_to_none=True)
        loss(model(x), y).backward()
        optimizer.step()
        wait()
    return torch.cuda.max_memory_allocated()


def environment():
    names = ("torch", "numpy", "jax")
    found = {name: importlib.metadata.version(name) for name in names if importlib.util.find_spec(name)}
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    commit = os.environ.get("COMMIT", asked)  # where the code was copied without its history
    return {
        "device": torch.cuda.get_device_name() if GPU else "none: toy sizes on the CPU",
        "cuda": torch.version.cuda, "python": platform.python_version(), "versions": found, "commit": commit,
        "cores": os.cpu_count(),
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that it runs")
    parser.add_argument("--only", choices=("steps", "sweeps"), help="one part; the other stays as the file has it")
    parser.add_argument("--save", type=Path, help="a folder for gpu.json")
    asked = parser.parse_args()
    quick = asked.quick or not GPU
    torch.backends.cuda.matmul.allow_tf32 = False  # float32 means float32
    file = asked.save / "gpu.json" if asked.save else None
    result = json.loads(file.read_text()) if file and file.exists() else {}

    def keep(part, rows):
        result[part] = {"environment": environment(), "rows": rows}
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(result, indent=1) + "\n")

    if asked.only != "sweeps":
        keep("steps", steps_and_memory(quick, 0.5 if quick else 4.0))
    if asked.only != "steps":
        rows = []
        for row in sweeps(0.1 if quick else 0.6, (8,) if quick else (64, 1024)):
            rows.append(row)
            keep("sweeps", rows)

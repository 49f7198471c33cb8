"""How fast a sweep trains, beside the ways it is usually done: python benchmarks/sweep.py [--quick] [--save FOLDER]

Digits (1,797 examples), a 64-64-10 ReLU network, momentum SGD, cross-entropy, float32, 64 networks (8 learning rates x
8 seeds; a seed's shuffled orders are drawn once a call, for JAX and for us), two threads. "Member-steps a second":
updates of one network, summed over networks. The usual ways train one network at a time, so their figure is the speed
of one. All rivals are warmed up, then timed in turns, several rounds; medians are shown.
Rivals that are not installed are left out (pip install "batchlab[bench]").

What was tried for ``_lane.c``, on two cores with AVX-512 (member-steps a second as a multiple of the DataLoader loop):
stacked ``vmap`` steps, eagerly and compiled, spend small batches on dispatch and barriers and large ones on passes
over memory. One core taking one network through its steps keeps weights and velocity in its own cache, needs no
barrier, and is no slower when the machine is busy. Wider tiles and other ways to mask made no difference beyond noise;
compiling with -O2 was two to five times slower, and clang 14 is half as fast as gcc 12. At B = 128 the first layer's
products run at the speed of the machine's own. What had cost was the narrow last layer (ten classes in a vector of
sixteen), a softmax that worked across a vector, chunks of 128 examples (64 fit in the first cache), and drawing orders
anew for every learning rate, in two threads that fought over the interpreter's lock.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
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
from torch import nn  # noqa: E402

from batchlab import (  # noqa: E402
    Run,
    data,
    models,
    optim,
    sweep,
)
from batchlab.engine import kernel, native, stacked  # noqa: E402
from batchlab.engine.plan import plan as planned  # noqa: E402

SIZES, SEEDS, RATES, LR, MOMENTUM = (64, 64, 10), 8, np.geomspace(1e-4, 1e-2, 8), 1e-3, 0.9
LANES = SEEDS * len(RATES)
BATCHES = (1, 8, 32, 128, 512, 1536)
EXAMPLES = 1797


def digits():
    """All examples as the training part: a batch of 1,536 fits in."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    pair = torch.tensor((x - x.mean()) / x.std(), dtype=torch.float32), torch.tensor(y)
    few = pair[0][:10], pair[1][:10]
    return data.Dataset("digits", True, pair, few, few, classes=10)


def network():
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def forever(make):
    while True:
        yield from make()


# ---------------------------------------------------------------- rivals: batch_size -> (advance(steps), networks)


def dataloader_loop(batch_size):
    x, y = digits().train
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch_size=batch_size, shuffle=True, drop_last=True
    )
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    batches = forever(lambda: loader)

    def advance(steps):
        for _ in range(steps):
            xs, ys = next(batches)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(xs), ys).backward()
            optimizer.step()

    return advance, 1


def tensor_loop(batch_size):
    x, y = digits().train
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)

    def epoch():
        order = torch.randperm(len(x))
        return order[: len(x) // batch_size * batch_size].split(batch_size)

    batches = forever(epoch)

    def advance(steps):
        for _ in range(steps):
            index = next(batches)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()

    return advance, 1


def lightning(batch_size):
    import lightning

    __import__("logging").getLogger("lightning.pytorch").setLevel("ERROR")  # its import sets it to INFO

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = network()

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=LR, momentum=MOMENTUM)

    x, y = digits().train
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch_size=batch_size, shuffle=True, drop_last=True
    )
    module = Module()

    def advance(steps):
        lightning.Trainer(
            max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        ).fit(module, loader)  # fmt: skip

    return advance, 1


def skorch(batch_size):
    import skorch

    x, y = (t.numpy() for t in digits().train)
    net = skorch.NeuralNetClassifier(
        network, criterion=nn.CrossEntropyLoss, optimizer=torch.optim.SGD, optimizer__momentum=MOMENTUM, lr=LR,
        batch_size=batch_size, iterator_train__shuffle=True, iterator_train__drop_last=True, train_split=None,
        verbose=0, warm_start=True,
    ).initialize()  # fmt: skip

    def advance(steps):
        a_part, whole = steps * batch_size, EXAMPLES // batch_size * batch_size
        for _ in range(a_part // whole):
            net.partial_fit(x, y, epochs=1)
        if rest := a_part % whole:
            net.partial_fit(x[:rest], y[:rest], epochs=1)

    return advance, 1


def keras_on_torch(batch_size):
    import keras

    x, y = (t.numpy() for t in digits().train)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(LR, momentum=MOMENTUM), loss)

    def advance(steps):
        a_part, whole = steps * batch_size, EXAMPLES // batch_size * batch_size
        for _ in range(a_part // whole):
            model.fit(x[:whole], y[:whole], batch_size=batch_size, epochs=1, verbose=0)
        if rest := a_part % whole:
            model.fit(x[:rest], y[:rest], batch_size=batch_size, epochs=1, verbose=0)

    return advance, 1


def jax_scan(batch_size):
    """jit(vmap(scan)): each network has its own order, and a call makes a fixed number of steps."""
    import jax
    import jax.numpy as jnp

    x, y = (jnp.asarray(t.numpy()) for t in digits().train)
    keys = jax.random.split(jax.random.key(0), LANES)

    def start(key):
        a, b = jax.random.split(key)
        return [jax.random.normal(a, (64, 64)) / 8, jnp.zeros(64), jax.random.normal(b, (64, 10)) / 8, jnp.zeros(10)]

    def loss(params, xs, ys):
        w1, b1, w2, b2 = params
        logits = jax.nn.relu(xs @ w1 + b1) @ w2 + b2
        return (jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, ys[:, None], -1)[:, 0]).mean()

    def one(params, velocity, lr, order):
        def body(carry, index):
            params, velocity = carry
            grads = jax.grad(loss)(params, x[index], y[index])
            velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, grads)
            return (jax.tree.map(lambda p, v: p - lr * v, params, velocity), velocity), None

        return jax.lax.scan(body, (params, velocity), order)[0]

    train = jax.jit(jax.vmap(one))
    params = jax.vmap(start)(keys)
    state = [params, jax.tree.map(jnp.zeros_like, params)]
    lr, rng = jnp.asarray(np.repeat(RATES, SEEDS), jnp.float32), np.random.default_rng(0)

    def advance(steps):
        an_epoch = EXAMPLES // batch_size
        epochs = -(-steps // an_epoch)
        orders = [rng.permuted(np.tile(np.arange(EXAMPLES), (SEEDS, 1)), axis=1) for _ in range(epochs)]
        order = np.concatenate([o[:, : an_epoch * batch_size] for o in orders], axis=1)
        order = np.tile(order.reshape(SEEDS, -1, batch_size)[:, :steps], (len(RATES), 1, 1))
        state[:] = jax.block_until_ready(train(*state, lr, jnp.asarray(order)))

    return advance, LANES


def a_run(batch_size):
    return Run(
        data=digits(), model=models.mlp(SIZES), optimizer=optim.momentum(MOMENTUM), lr=LR, batch_size=batch_size,
        steps=1, device="cpu", drop_last=True, evaluate=(), evaluate_every=10**12,
    )  # fmt: skip


def ours(batch_size):
    """What ``native.train`` does, on networks that already stand, as the rivals' do."""
    run, lib = a_run(batch_size), kernel.library()
    parts = {"train": native._laid_out(*run.data.train)}
    runs = [replace(run, lr=lr, seed=seed) for lr in RATES for seed in range(SEEDS)]
    runs = [runs[i] for i in native._by_seed(runs, THREADS)]
    nets = [native._network(lib, models.build(run.model, r.seed)) for r in runs]
    pool = ThreadPoolExecutor(THREADS)

    def advance(steps):
        plan = planned(replace(run, steps=steps))
        orders = native._orders(run, plan)
        list(pool.map(lambda r, net: native._advance(lib, r, plan, parts, net, orders), runs, nets))

    return advance, LANES


def our_stack(batch_size, compiled=False):
    """``stacked.train`` as it is, with building the networks."""
    runs = [replace(a_run(batch_size), lr=lr, seed=seed) for seed in range(SEEDS) for lr in RATES]

    def advance(steps):
        long = [replace(run, steps=steps) for run in runs]
        stacked.train(planned(long[0]), long, compiled)

    return advance, LANES


RIVALS = {
    "DataLoader loop": (dataloader_loop, None),
    "tensor loop": (tensor_loop, None),
    "Lightning": (lightning, "lightning"),
    "skorch": (skorch, "skorch"),
    "Keras on torch": (keras_on_torch, "keras"),
    "JAX jit(vmap(scan))": (jax_scan, "jax"),
    "batchlab, stacked": (our_stack, None),
    "batchlab": (ours, None),
}


def peak(size=2048, rounds=4):
    """The machine's own float32 matrix product at its fastest, in floating-point operations a second."""
    a, b, found = torch.randn(size, size), torch.randn(size, size), []
    for _ in range(rounds):
        began = time.perf_counter()
        torch.mm(a, b)
        found.append(2 * size**3 / (time.perf_counter() - began))
    return max(found)


def operations(batch_size):
    """Floating-point operations of one step: two products forward, three backward (no signal to the inputs)."""
    return 2 * batch_size * (2 * (64 * 64 + 64 * 10) + 64 * 10)


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
        began = time.perf_counter()
        advance(steps)
        took = time.perf_counter() - began
        if took > seconds / 4:
            return max(1, int(steps * seconds / took)), cold
        steps *= 4


def speeds(batches, seconds, rounds):
    rows = []
    for batch_size in batches:
        rivals, peaks = {}, []
        for name, (make, needs) in RIVALS.items():
            if needs and importlib.util.find_spec(needs) is None:
                continue
            advance, networks = make(batch_size)
            steps, cold = steps_for(advance, networks, seconds)
            advance(steps)
            rivals[name] = (advance, networks, steps, cold, [])
        for _ in range(rounds):
            peaks.append(peak())
            for advance, networks, steps, _, found in rivals.values():
                found.append(measured(advance, networks, steps))
        base = rivals["DataLoader loop"][-1]
        for name, (_, _, steps, cold, found) in rivals.items():
            rows.append({
                "batch_size": batch_size, "what": name, "steps_a_second": statistics.median(found),
                "times_the_loop": statistics.median(f / b for f, b in zip(found, base, strict=True)),
                "share_of_peak": operations(batch_size)
                * statistics.median(f / p for f, p in zip(found, peaks, strict=True)),
                "cold_start_seconds": cold, "steps_a_call": steps,
            })  # fmt: skip
            print("{batch_size:>6}  {what:<20} {steps_a_second:>12,.0f} {times_the_loop:>8.1f}x {share_of_peak:>7.1%}"
                  " {cold_start_seconds:>8.2f} s".format(**rows[-1]), flush=True)  # fmt: skip
    return rows


def whole_sweep(quick):
    """13 learning rates x 10 seeds x 8 batch sizes, 60,000 examples each, from a cold start; against the loop.

    The loop is timed on a sample of its steps at each batch size and multiplied up: all of it would take hours.
    """
    dataset = data.mnist1d(4000, val=1000, test=1000)
    batches = (4, 8, 16, 32, 64, 128, 256, 512)
    rates, seeds = np.geomspace(1e-3, 1.0, 3 if quick else 13).tolist(), range(2 if quick else 10)
    run = Run(
        data=dataset, model=models.mlp((40, 100, 100, 10)), optimizer=optim.momentum(MOMENTUM), lr=0.1, batch_size=4,
        examples=60_000, device="cpu", evaluate=("val",), evaluate_every=60_000,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as empty, mock.patch.dict(os.environ, XDG_CACHE_HOME=empty):
        kernel.library.cache_clear()  # the compilation of the kernel is part of the cold start
        began = time.perf_counter()
        table = sweep(run, batch_size=batches, lr=rates, seed=seeds)
        took = time.perf_counter() - began
    x, y = dataset.train
    loop = 0.0
    for batch_size in batches:
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=batch_size, shuffle=True)
        model = run.model(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=MOMENTUM)
        steps, stop = 0, time.perf_counter() + (0.5 if quick else 2.0)
        start = time.perf_counter()
        for xs, ys in forever(lambda loader=loader: loader):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(xs), ys).backward()
            optimizer.step()
            steps += 1
            if time.perf_counter() > stop:
                break
        a_step = (time.perf_counter() - start) / steps
        loop += a_step * 60_000 / batch_size * len(rates) * len(seeds)
    lanes_trained = len(table.drop_duplicates(["batch_size", "lr", "seed"]))
    print(f"\nMNIST-1D, 40-100-100-10, {lanes_trained} lanes of 60,000 examples, cold start included: {took:.1f} s; "
          f"the DataLoader loop {loop:,.0f} s: {loop / took:.0f} times", flush=True)  # fmt: skip
    return {"lanes": lanes_trained, "seconds": took, "loop_seconds": loop, "times": loop / took}


def payback(networks=16, batch_size=32):
    """After how many steps ``torch.compile`` has paid for itself on stacks that the kernel does not train."""
    images = data.digits(images=True)
    cases = {
        "MLP, Adam": (data.digits(), models.mlp(SIZES), optim.adam()),
        "MLP with LayerNorm, momentum": (data.digits(), models.mlp(SIZES, norm="layer"), optim.momentum()),
        "CNN, momentum": (images, models.cnn((1, 8, 8), 10), optim.momentum()),
    }
    rows = []
    for name, (dataset, model, optimizer) in cases.items():
        run = Run(
            data=dataset, model=model, optimizer=optimizer, lr=LR, batch_size=batch_size, steps=120, device="cpu",
            drop_last=True, evaluate=(), evaluate_every=40 * batch_size,
        )  # fmt: skip
        took = {}
        for compiled in (False, True):
            found = stacked.train(planned(run), [replace(run, seed=seed) for seed in range(networks)], compiled)
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
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    for name in ("jax", "lightning", "skorch", "keras"):
        if importlib.util.find_spec(name):
            versions[name] = importlib.import_module("importlib.metadata").version(name)
    return {"processor": processor, "cores": os.cpu_count(), "threads": THREADS, "versions": versions}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a rough figure in a minute or two")
    parser.add_argument("--batch-size", type=int, nargs="*", default=BATCHES)
    parser.add_argument("--only", nargs="*", help="rivals to time beside the DataLoader loop, by name")
    parser.add_argument("--save", type=Path, help="a folder for sweep.json")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(THREADS)
    if asked.only is not None:
        RIVALS = {k: v for k, v in RIVALS.items() if k in ("DataLoader loop", "batchlab", *asked.only)}
    print(f"{'B':>6}  {'':<20} {'steps/s':>12} {'to loop':>9} {'of peak':>7} {'cold':>10}")
    result = {"environment": environment(), "whole_sweep": whole_sweep(asked.quick)}
    result["payback"] = payback()
    result["speeds"] = speeds(asked.batch_size, *((0.2, 3) if asked.quick else (1.0, 7)))
    if asked.save:
        asked.save.mkdir(parents=True, exist_ok=True)
        (asked.save / "sweep.json").write_text(json.dumps(result, indent=1) + "\n")

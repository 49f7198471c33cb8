"""The instruments against exact values and beside public packages: python benchmarks/instruments.py [TABLE ...]

Tables in Markdown, all of them unless some are named (a wrong name lists them). Peers are optional, and without one its
rows are left out: ``pip install lightning gns-pytorch`` and, since their dependencies would replace a CPU build of
torch, ``pip install --no-deps curvlinops-for-pytorch backpack-for-pytorch unfoldNd einops einconv``. Times are the best
of several runs taking turns. The tables on noise are in _noise.py.
"""

import argparse
import importlib.util
import itertools
import logging
import time
import warnings

import _noise
import numpy as np
import scipy.sparse.linalg
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from batchlab import curvature, memory, throughput

HAVE = {name: importlib.util.find_spec(name) is not None for name in ("curvlinops", "lightning")}


def show(title, rows):
    print(f"\n{title}")
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    for i, row in enumerate(rows):
        print("| " + " | ".join(str(cell).ljust(w) for cell, w in zip(row, widths, strict=True)) + " |")
        if i == 0:
            print("|" + "|".join("-" * (w + 2) for w in widths) + "|")


def race(*runs, repeats=3):
    """The result and the best seconds of each run; they take turns, so that a busy machine slows all."""
    results, best = [None] * len(runs), [np.inf] * len(runs)
    for _ in range(repeats):
        for i, run in enumerate(runs):
            start = time.perf_counter()
            results[i] = run()
            best[i] = min(best[i], time.perf_counter() - start)
    return list(zip(results, best, strict=True))


def network(sizes):
    torch.manual_seed(0)
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def data(examples, inputs, classes):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(examples, inputs, generator=generator)
    return x, torch.randint(0, classes, (examples,), generator=generator)


def curvlinops_operator(model, x, y):
    import curvlinops

    model = model.double()
    return curvlinops.HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), [(x.double(), y)], check_deterministic=False
    )


def curvature_exactness():
    model, (x, y) = network([6, 12, 3]), data(200, 6, 3)
    wide = network([6, 12, 3]).double()
    names = [n for n, _ in wide.named_parameters()]
    shapes = [p.shape for p in wide.parameters()]

    def flat_loss(w):
        parts = w.split([s.numel() for s in shapes])
        values = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return cross_entropy(torch.func.functional_call(wide, values, (x.double(),)), y)

    w = torch.cat([p.detach().reshape(-1) for p in wide.parameters()])
    exact = torch.autograd.functional.hessian(flat_loss, w).numpy()
    values = np.linalg.eigvalsh(exact)[::-1]
    found = curvature.top_eigenvalues(model, cross_entropy, x, y, k=3, tolerance=1e-12)
    rows = [("quantity", "exact", "batchlab", "relative error", "curvlinops 3", "relative error")]
    peer = {}
    if HAVE["curvlinops"]:
        operator = curvlinops_operator(network([6, 12, 3]), x, y)
        matrix = operator.to_scipy(dtype=np.float64)
        peer["H v"] = matrix @ np.ones(len(w))
        peer["eigenvalue"] = scipy.sparse.linalg.eigsh(matrix, k=3, which="LA", tol=1e-12)[0][::-1]
        import curvlinops

        torch.manual_seed(0)
        peer["trace"] = float(curvlinops.hutchinson_trace(operator, 120))
        peer["trace++"] = float(curvlinops.hutchpp_trace(operator, 120))

    def row(name, truth, ours, theirs=None):
        cells = [name, f"{truth:.10g}", f"{ours:.10g}", f"{abs(ours / truth - 1):.0e}"]
        rows.append(
            (
                *cells,
                *(("-", "-") if theirs is None else (f"{theirs:.10g}", f"{abs(theirs / truth - 1):.0e}")),
            )
        )

    product = curvature.hessian_vector(model, cross_entropy, x, y, np.ones(len(w)))
    norm = np.linalg.norm
    row("|H 1|", norm(exact.sum(1)), norm(product), norm(peer["H v"]) if peer else None)
    for i in range(3):
        row(f"eigenvalue {i + 1}", values[i], found.values[i], peer["eigenvalue"][i] if peer else None)
    row(
        "trace, 120 products",
        np.trace(exact),
        curvature.trace(model, cross_entropy, x, y, 120).estimate,
        peer.get("trace"),
    )
    deflated = curvature.trace(model, cross_entropy, x, y, 40, deflate=40)
    row("trace deflated, 120 products", np.trace(exact), deflated.estimate, peer.get("trace++"))

    inputs, targets = torch.randn(30, 5).double(), torch.randn(30, 2).double()
    line = nn.Linear(5, 2, bias=False).double()
    line.weight.data = torch.linalg.lstsq(inputs, targets).solution.T.contiguous()
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=10))).double().view(-1, 2, 5)
    for kind, half in (("keskar", line.weight.data.abs() + 1), ("adaptive", line.weight.data.abs())):
        moved = torch.einsum("nd,ckd->cnk", inputs, line.weight.data + 1e-3 * half * corners)
        here = float(mse_loss(line(inputs), targets).detach())
        rise = float(((moved - targets) ** 2).mean(dim=(1, 2)).max()) - here
        truth = 100 * rise / (1 + here) if kind == "keskar" else rise
        for starts in (3, 100):
            sharp = curvature.sharpness(line, mse_loss, inputs, targets, kind=kind, starts=starts)
            row(f"sharpness, {kind}, {starts} starts", truth, sharp.value)
    show("Curvature against the exact Hessian (123 parameters, float64) and all corners of the box", rows)


def curvature_cost():
    model, (x, y) = network([40, 100, 130, 20]), data(4000, 40, 20)
    size = sum(p.numel() for p in model.parameters())
    v, start = np.ones(size), np.random.default_rng(0).standard_normal(size)
    tasks = {
        "|H 1|": [lambda: float(np.linalg.norm(curvature.hessian_vector(model, cross_entropy, x, y, v)))],
        "top eigenvalue": [lambda: curvature.top_eigenvalues(model, cross_entropy, x, y).values[0]],
        "trace, 32 products": [lambda: curvature.trace(model, cross_entropy, x, y, 32).estimate],
    }
    if HAVE["curvlinops"]:
        import curvlinops

        operator = curvlinops_operator(network([40, 100, 130, 20]), x, y)
        matrix = operator.to_scipy(dtype=np.float64)
        tasks["|H 1|"].append(lambda: float(np.linalg.norm(matrix @ v)))
        top = {"k": 1, "which": "LA", "tol": 1e-4, "v0": start}
        tasks["top eigenvalue"].append(lambda: scipy.sparse.linalg.eigsh(matrix, **top)[0][0])
        tasks["trace, 32 products"].append(lambda: float(curvlinops.hutchinson_trace(operator, 32)))
    rows = [("task", "batchlab", "seconds", "curvlinops 3 + SciPy", "seconds")]
    for task, runs in tasks.items():
        cells = [cell for value, seconds in race(*runs) for cell in (f"{value:.8g}", f"{seconds:.2f}")]
        rows.append((task, *cells, *["-"] * (4 - len(cells))))
    show(f"Curvature, cost: {size} parameters, 4000 examples, {torch.get_num_threads()} threads", rows)


def throughput_exactness():
    a, b = 4e-3, 1e-4

    def prepare(batch_size):
        def step():
            time.sleep(a + b * batch_size)

        return step

    from torch.utils.benchmark import Timer

    sizes = [1, 8, 32, 128]
    found = throughput.measure_throughput(prepare, sizes, seconds=8)
    rows = [("quantity", "exact", "batchlab [95%]", "torch.utils.benchmark")]
    for timing in found.timings:
        truth = a + b * timing.batch_size
        peer = Timer("step()", globals={"step": prepare(timing.batch_size)}).blocked_autorange(min_run_time=0.3).median
        ours = timing.seconds.times(1e3)
        rows.append((f"ms a step, B={timing.batch_size}", f"{truth * 1e3:.4f}", ours, f"{peer * 1e3:.4f}"))
    law = found.law
    for name, truth, fitted, unit in (
        ("a, ms", a, law.fixed, 1e3),
        ("b, ms", b, law.per_example, 1e3),
        ("knee a/b, examples", a / b, law.knee, 1),
    ):
        rows.append((name, f"{truth * unit:.4g}", fitted.times(unit), "no fit"))
    show("Throughput of a step that sleeps for 4 ms + 0.1 ms an example (waking takes some 0.1 ms more)", rows)


def memory_exactness():
    rows = [
        (
            "model",
            "B",
            "saved by hand",
            "batchlab",
            "torch.profiler",
            "total predicted from 8 and 16",
            "total counted",
        )
    ]
    model = network([40, 100, 100, 10])
    adam = torch.optim.Adam(model.parameters())
    law = memory.memory_law(model, cross_entropy, adam, lambda b: data(b, 40, 10))
    for batch_size in (1, 64, 1000):
        x, y = data(batch_size, 40, 10)
        found = memory.step_memory(model, cross_entropy, adam, x, y)
        by_hand = 4 * 210 * batch_size + 4
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            loss = cross_entropy(model(x), y)
        events = profiler.profiler.kineto_results.events()
        held = sum(e.nbytes() for e in events if e.name() == "[memory]") - loss.element_size()
        del loss  # or the next profile would see its graph go
        predicted = law.bytes(batch_size)
        rows.append(
            (
                "MLP 40-100-100-10",
                batch_size,
                by_hand,
                found.activations,
                held,
                f"{predicted:.0f}",
                found.total,
            )
        )
    show("Memory of an MLP 40-100-100-10 with Adam: bytes saved for the backward pass, and the total", rows)


def lightning_finder(limit, mode):
    """What Lightning's batch-size finder returns when sizes above ``limit`` do not fit, and what it tried."""
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.tuner import Tuner
    from torch.utils.data import DataLoader, TensorDataset

    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    tried = []

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.batch_size, self.layer = 1, nn.Linear(2, 1)

        def training_step(self, batch, _):
            size = len(batch[0])
            tried.append(size)
            if size > limit:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return mse_loss(self.layer(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def train_dataloader(self):
            return DataLoader(TensorDataset(torch.ones(4096, 2), torch.ones(4096, 1)), batch_size=self.batch_size)

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet)
    module = Module()
    before = module.layer.weight.detach().clone()
    found = Tuner(trainer).scale_batch_size(module, mode=mode, init_val=1, steps_per_trial=2, max_trials=25)
    return found, tried, torch.equal(before, module.layer.weight)


def largest_exactness():
    rows = [("true limit", "finder", "returned", "largest that ran", "distinct sizes tried", "weights untouched")]
    for limit in (0, 1, 37, 1000, 10**9):
        model = nn.Linear(2, 1)

        def loss(output, target, limit=limit):
            if len(output) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return mse_loss(output, target)

        before = model.weight.detach().clone()
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        fits = memory.step_fits(model, loss, sgd, lambda b: (torch.ones(b, 2), torch.ones(b, 1)))
        found = memory.largest_batch(fits, cap=4096)
        ran = max((size for size, ran in found.tried if ran), default=None)
        label = "none (cap 4096)" if limit > 4096 else limit
        sizes = len({size for size, _ in found.tried})
        rows.append((label, "batchlab", found.batch_size, ran, sizes, torch.equal(before, model.weight)))
        for mode in ("power", "binsearch") if HAVE["lightning"] else ():
            try:
                value, tried, same = lightning_finder(limit, mode)
            except Exception as error:
                rows.append((label, f"Lightning, {mode}", f"{type(error).__name__}", "-", "-", "-"))
                continue
            ran = max((size for size in tried if size <= limit), default=None)
            rows.append((label, f"Lightning, {mode}", value, ran, len(set(tried)), same))
    show("Largest batch of 4096 examples or fewer when larger ones raise torch.OutOfMemoryError", rows)
    if HAVE["lightning"]:
        print("Lightning with its default margin: binsearch takes 5% off the largest size that ran.")
    else:
        print("Lightning is not installed: its rows are missing.")


TABLES = {
    "curvature": curvature_exactness, "cost": curvature_cost, "throughput": throughput_exactness,
    "memory": memory_exactness, "largest": largest_exactness, "noise": _noise.exact_least_squares,
    "coverage": _noise.coverage, "peers": _noise.beside_peers, "training": _noise.cost_in_training,
}  # fmt: skip

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    for name in asked.tables:
        if name not in TABLES:
            parser.error(f"TABLE = {name!r}: expected some of {', '.join(TABLES)}")
    torch.set_num_threads(asked.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in asked.tables or TABLES:
        TABLES[name]()

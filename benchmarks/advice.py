"""Is the advisor right? python benchmarks/advice.py [NAME ...] [--only-report] [--minutes M]

For each problem of advice_tasks.md (all, unless some are named) one table S(B, rate) x t(B): steps to a loss at powers
of two, the rate tuned at each by factors of two until the best is no end (two seeds choose, three others count), times
the seconds of a step (processor time, one thread). The loss to reach: the median over three seeds of what a batch of
32, its rate tuned, comes to after the problem's examples, on 1,024 fixed training examples. The advisor is given the
problem with that batch and rate, and a minute. All minutes are of processor time. What it measured is stored in
results/advice/NAME.json beside the table, so that a rule can be judged again without training: ``--only-report`` does.

Rivals are looked up in the same table, each with the best rate of its size: 32; the largest that fits under CAP bytes;
Lightning's finder (the largest power of two that does, at most the training set); B = the noise scale; AdaptDL's
goodput rule (Qiao et al. 2021), (B / t(B)) (noise + 32) / (noise + B). Sizes beyond the table take its last; "ours, its
rate" trains at the advised size and rate. Regret is time over the table's best, minus one.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from _advice_tasks import TASKS, TRIED

import batchlab as bl
from batchlab.advise import Measured, decide
from batchlab.advise._cost import step_seconds
from batchlab.problem._trees import mapped, rows
from batchlab.throughput import measure_throughput

OUT = Path(__file__).parents[1] / "results" / "advice"
OWN, CAP, HELD = 32, 256 * 2**20, 1024
CHOOSE, COUNT, REFER = (100, 101), (200, 201, 202), (300, 301, 302)
SIZES = tuple(2**k for k in range(2, 12))
LOOKS, PATIENCE = 40, 1.5  # looks at the loss in a run that takes as long as expected; times that, and it is given up


@dataclass(frozen=True)
class Cell:
    """Steps to the loss at one batch size and rate, a number a seed (None: not reached)."""

    batch_size: int
    lr: float
    steps: tuple
    seconds: float = math.nan


def started(task, lr, seed):
    """(model, optimizer) of a seed; a lazy layer has seen two examples."""
    torch.manual_seed(seed)
    model = task.model()
    with torch.no_grad():
        value(task, model, mapped(lambda t: t[:2], task_data(task)))
    return model, task.rule(model.parameters(), lr)


def task_data(task, kept={}):  # noqa: B006
    if task not in kept:
        kept[task] = task.data()
    return kept[task]


def value(task, model, batch):
    inputs, targets = batch
    return task.loss(model(*inputs) if isinstance(inputs, tuple) else model(inputs), targets)


def run(task, batch_size, lr, seed, steps, target=None):
    """(steps to ``target`` or None, the last loss looked at) of one run of at most ``steps`` steps."""
    data = task_data(task)
    n = rows(data)
    held = mapped(lambda t: t[torch.from_numpy(np.random.default_rng(0).permutation(n)[:HELD])], data)
    model, rule = started(task, lr, seed)
    order, every = np.random.default_rng(seed), max(1, round(steps / PATIENCE / LOOKS))
    places, last = np.empty(0, dtype=np.int64), math.inf
    for step in range(1, steps + 1):
        while len(places) < batch_size:
            places = np.concatenate([places, order.permutation(n)])
        chosen, places = torch.from_numpy(places[:batch_size]), places[batch_size:]
        rule.zero_grad()
        value(task, model, mapped(lambda t, chosen=chosen: t[chosen], data)).backward()
        rule.step()
        if step % every == 0 or step == steps:
            model.eval()
            with torch.no_grad():
                last = float(value(task, model, held))
            model.train()
            if not math.isfinite(last):
                return None, math.inf
            if target is not None and last <= target:
                return step, last
    return None, last


def tuned(score, start, reach=5):
    """The rate of least ``score``, from ``start`` by factors of two until the best is no end: (rate, its score)."""
    found = {}
    span = [-1, 0, 1]
    while True:
        for k in span:
            if k not in found:
                found[k] = score(start * 2.0**k)
        best = min(span, key=lambda k: (found[k], abs(k)))
        if span[0] < best < span[-1] or len(span) > 2 * reach:
            return start * 2.0**best, found[best]
        span = [span[0] - 1, *span] if best == span[0] else [*span, span[-1] + 1]


def table(task, until):
    """(target, rate at 32, [``Cell``]) of a task; sizes for which the time does not last are left out."""
    most = rows(task_data(task)) // 2
    reference = math.ceil(task.examples / OWN)
    own, _ = tuned(lambda lr: np.mean([run(task, OWN, lr, seed, reference)[1] for seed in CHOOSE]), task.lr)
    target = float(np.median([run(task, OWN, own, seed, reference)[1] for seed in REFER]))
    cells, rate = [], {OWN: own}
    for size in sorted((b for b in SIZES if b <= most), key=lambda b: abs(math.log(b / OWN))):
        if time.process_time() > until:
            print(f"  no time for a batch of {size}")
            continue
        steps = math.ceil(PATIENCE * max(reference, reference * OWN / size))
        near = min(rate, key=lambda b: abs(math.log(b / size)))

        def score(lr, size=size, steps=steps):
            return np.mean([run(task, size, lr, seed, steps, target)[0] or 2 * steps for seed in CHOOSE])

        rate[size], _ = tuned(score, rate[near] * (size / near) ** 0.5)
        counts = tuple(run(task, size, rate[size], seed, steps, target)[0] for seed in COUNT)
        cells.append(Cell(size, rate[size], counts))
        print(f"  {cells[-1]}", flush=True)
    return target, own, sorted(cells, key=lambda cell: cell.batch_size)


def timed(task, sizes):
    """Processor seconds of a step at each size."""
    data, (model, rule) = task_data(task), started(task, 1e-6, 0)

    def prepare(size):
        places = torch.arange(size) % rows(data)

        def step():
            rule.zero_grad()
            value(task, model, mapped(lambda t: t[places], data)).backward()
            rule.step()

        return step

    found = measure_throughput(prepare, sizes, seconds=20, clock=time.process_time)
    return {t.batch_size: t.seconds.estimate for t in found.timings}


def measure(name, minutes):
    """The table of a problem, what the advisor measured, and its advised cell trained: written to results/advice."""
    task, begin = (TASKS | TRIED)[name], time.process_time()
    target, own, cells = table(task, begin + 60 * 0.8 * minutes)
    seconds = timed(task, [cell.batch_size for cell in cells])
    cells = [Cell(c.batch_size, c.lr, c.steps, seconds[c.batch_size]) for c in cells]
    model, rule = started(task, own, 0)
    report = bl.advise(
        model, task.loss, task_data(task), rule, batch_size=OWN, memory=CAP, seconds=60, progress=False,
        clock=time.process_time, name=name,
    )  # fmt: skip
    a = report.advice
    lr = a.settings[0].settings["lr"] if a.settings else own
    reference = math.ceil(task.examples / OWN)
    steps = math.ceil(PATIENCE * max(reference, reference * OWN / a.batch_size))
    advised = Cell(a.batch_size, lr, tuple(run(task, a.batch_size, lr, seed, steps, target)[0] for seed in COUNT))
    if name in TRIED:
        print(f"  target {target:.4g} at {own:.4g}; advised {advised}\n  {regrets_of(cells, report.measured, advised)}")
        return
    OUT.mkdir(parents=True, exist_ok=True)
    kept = {
        "name": name, "target": target, "own_lr": own, "cells": [asdict(c) for c in cells], "advised": asdict(advised),
        "measured": json.loads(report.measured.json()), "torch": torch.__version__,
        "minutes": round((time.process_time() - begin) / 60, 1),
    }  # fmt: skip
    (OUT / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def choices(measured, largest):
    """{rule: the batch size it takes}; ``largest``: of the training set."""
    fits = measured.largest_longest or measured.largest
    seconds, noise = step_seconds(measured), decide(measured).noise
    sizes = np.unique(np.geomspace(1, fits, 200).round().astype(int))
    found = {
        "ours": decide(measured).batch_size,
        "32": OWN,
        "largest that fits": fits,
        "Lightning's finder": 2 ** int(math.log2(min(fits, largest))),
    }
    if noise is not None:
        goodput = [b / seconds(b) * (noise + OWN) / (noise + b) for b in sizes]
        found |= {
            "B = noise scale": min(max(round(noise), 1), fits),
            "AdaptDL's goodput": int(sizes[np.argmax(goodput)]),
        }
    return found


def regrets(kept):
    """``regrets_of`` a stored problem."""
    cells, advised = [Cell(**c) for c in kept["cells"]], Cell(**kept["advised"])
    return regrets_of(cells, Measured.read(json.dumps(kept["measured"])), advised)


def median_steps(cell):
    """The median over the seeds of the steps; inf where most did not reach the loss."""
    return float(np.median([math.inf if s is None else s for s in cell.steps]))


def regrets_of(cells, measured, advised):
    """{rule: (batch size, time over the table's best - 1)}; inf where the loss was not reached."""
    sizes, seconds = np.array([c.batch_size for c in cells]), np.array([c.seconds for c in cells])
    times = np.array([median_steps(c) for c in cells]) * seconds
    best = float(times.min())

    def at(size):
        inside = np.clip(np.log(size), np.log(sizes[0]), np.log(sizes[-1]))
        with np.errstate(invalid="ignore"):
            return float(np.exp(np.interp(inside, np.log(sizes), np.log(times))))

    found = {rule: (size, at(size) / best - 1) for rule, size in choices(measured, measured.population).items()}
    step = float(np.exp(np.interp(np.log(advised.batch_size), np.log(sizes), np.log(seconds))))
    return found | {"ours, its rate": (advised.batch_size, median_steps(advised) * step / best - 1)}


def report():
    """Print the table of regrets over all that is stored, and what is missing."""
    kept = {name: json.loads(p.read_text(encoding="utf-8")) for name in TASKS if (p := OUT / f"{name}.json").is_file()}
    if not kept:
        raise SystemExit(f"nothing in {OUT}: run python benchmarks/advice.py NAME first")
    found = {name: regrets(k) for name, k in kept.items()}
    rules = list(next(iter(found.values())))
    print("| problem | best size | " + " | ".join(rules) + " |\n|---|" + "---|" * (len(rules) + 1))
    for name, r in found.items():
        cells = [Cell(**c) for c in kept[name]["cells"]]
        times = [median_steps(c) * c.seconds for c in cells]
        shown = [f"{r[rule][0]}: {100 * r[rule][1]:.0f} %" if rule in r else "" for rule in rules]
        print(f"| {name} | {cells[int(np.argmin(times))].batch_size} | " + " | ".join(shown) + " |")
    for words, of in (("median", np.median), ("worst", np.max)):
        shown = [f"{100 * of([r[rule][1] for r in found.values() if rule in r]):.0f} %" for rule in rules]
        print(f"| **{words}** | | " + " | ".join(shown) + " |")
    print("\nnot measured yet:", ", ".join(name for name in TASKS if name not in kept) or "none")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The advisor's regret.")
    parser.add_argument("names", nargs="*", help=", ".join(TASKS))
    parser.add_argument("--only-report", action="store_true")
    parser.add_argument("--minutes", type=float, default=6, help="of processor time that a problem may take (6)")
    options = parser.parse_args()
    wrong = [name for name in options.names if name not in TASKS | TRIED]
    if wrong:
        parser.error(f"{', '.join(wrong)}: expected names among {', '.join(TASKS)}")
    torch.set_num_threads(1)
    for name in [] if options.only_report else options.names or TASKS:
        print(name, flush=True)
        measure(name, options.minutes)
    if options.only_report or not set(options.names) & set(TRIED):
        report()

"""Is the advisor right? python benchmarks/advice.py [NAME ...] [--only-report] [--minutes M]

For each problem of advice_tasks.md (all, unless some are named) one table S(B, rate) x t(B): steps to a loss at powers
of two, the rate tuned at each by factors of two until the best is no end (two seeds choose; three others count, and up
to twelve more while the minutes last), times the seconds of a step (processor time, one thread). The loss to reach: the
median over three seeds of what a batch of 32, its rate tuned, comes to after the problem's examples, on 512 fixed
training examples. The table grows from 32 both ways, on the side where the time is less, until it is twice the least on
either side, or the minutes are over. The advisor is given the problem with that batch and rate and the number of
examples, and a minute. All minutes are of processor time. What it measured is stored in results/advice/NAME.json beside
the table, so that a rule can be judged again without training: ``--only-report`` does.

Rivals are looked up in the same table, each with the best rate of its size: ``bl.advise`` 's ``choices`` and
``regrets`` say how; the largest that fits is under CAP bytes. Regret is time over the table's best, minus one.
"""

import argparse
import json
import math
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from _advice_tasks import FIRST_TASKS, TASKS, TRIED

import batchlab as bl
from batchlab.advise import Cell, cells, chance, regrets, stored
from batchlab.advise._regret import OWN, regrets_of
from batchlab.problem._trees import mapped, rows
from batchlab.throughput import measure_throughput

OUT = Path(__file__).parents[1] / "results" / "advice"
CAP, HELD = 256 * 2**20, 512
CHOOSE, COUNT, REFER = (100, 101), range(200, 215), (300, 301, 302)
FEWEST = 3  # seeds counted of COUNT, and more while the minutes last
SIZES = tuple(2**k for k in range(2, 12))
PATIENCE = 1.5  # times the steps that a run should take at most, and it is given up
APART, FIRST = 1.06, 0.001  # the loss is looked at from a thousandth of the steps on, each time 6 % later
ENOUGH = 2.0  # times the least time: there the table ends
MEDIAN, WORST = 0.15, 0.5  # the bars, set before anything was measured
HEAD = """# Is the advisor right?

Printed by `python benchmarks/advice.py --only-report` from `results/advice/`: for each problem of
[advice_tasks.md](../benchmarks/advice_tasks.md) the batch size that a rule chooses and how much more time it takes
to the loss than the best size of the problem's table. Every size has its own tuned rate; "ours, its rate" was
trained at the size and the rate that the advisor proposes, and can be better than the table. "chance" is the regret
that the seeds of the table alone explain. An asterisk: the advisor tried whole runs."""
TAIL = """The list, its tests and the rules were committed before any of these was run; no rule was changed since. All
of it was measured beside other programs, in processor time. `transformer-patches` was measured a second time, with nine
minutes: its four had ended at 64 while larger sizes were still faster (our regret was 0 % before). The tables of
`factors-clicks`, `softmax-signals` and `linear-diabetes` end where time still falls, at 2,048
or at half of the training set; whoever chose more is looked up at that end."""
FIRST_HEAD = """## The first list, and what it changed

Fifteen problems, listed before any rule was written, judged an advisor that tried no whole runs:"""
FIRST_TAIL = """No rule was changed while these were measured. The benchmark was, for all rules alike, after the
first problems: more seeds were counted for `autoencoder-digits`, and the table of `factors-ratings` was looked at
earlier. The six minutes of `gpt2-text` lasted for 32 and 64; 16 and 128 were added by hand from a longer run. All
of it was measured beside other programs.

Why it missed. `linear-synthetic`: its loss is near the floor that the label noise sets, where single looks at the
noise scale lie between 140 and 3,300 examples, while a batch above 128 hardly saves steps; and with the advised
rate, half of that at which a short range of rates left, training never got there. `mlp-friedman`: looks at the
noise scale lie between 5 and 480, lower than what the steps show, and steps of 128 and 256 examples were timed 25
and 70 % too long. On both a whole run takes a fraction of a second. So since then the advisor tries whole runs
where its time lasts for them, and lowers an advised rate with which a short run leaves."""


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
    """(steps to ``target`` or None, the last loss looked at) of one run of at most ``steps`` steps.

    Between the look before and the one that finds the target reached, the loss is taken to fall straight.
    """
    data = task_data(task)
    n = rows(data)
    held = mapped(lambda t: t[torch.from_numpy(np.random.default_rng(0).permutation(n)[:HELD])], data)
    model, rule = started(task, lr, seed)
    order, places = np.random.default_rng(seed), np.empty(0, dtype=np.int64)
    look, before, last = max(1, round(FIRST * steps)), 0, math.inf
    for step in range(1, steps + 1):
        while len(places) < batch_size:
            places = np.concatenate([places, order.permutation(n)])
        chosen, places = torch.from_numpy(places[:batch_size]), places[batch_size:]
        rule.zero_grad()
        value(task, model, mapped(lambda t, chosen=chosen: t[chosen], data)).backward()
        rule.step()
        if step == steps or (step == look and target is not None):
            model.eval()
            with torch.no_grad():
                now = float(value(task, model, held))
            model.train()
            if not math.isfinite(now):
                return None, math.inf
            if target is not None and now <= target:
                share = (last - target) / (last - now) if math.isfinite(last) else 1.0
                return round(before + share * (step - before), 1), now
            before, last, look = step, now, max(step + 1, round(APART * step))
    return None, last


def tuned(score, start, reach=5):
    """The rate of least ``score(rate, least so far)``, from ``start`` by factors of two until the best is no end."""
    found, span = {}, [-1, 0, 1]
    while True:
        for k in sorted(span, key=abs):
            if k not in found:
                found[k] = score(start * 2.0**k, min(found.values(), default=math.inf))
        best = min(span, key=lambda k: (found[k], abs(k)))
        if span[0] < best < span[-1] or len(span) > 2 * reach:
            return start * 2.0**best
        span = [span[0] - 1, *span] if best == span[0] else [*span, span[-1] + 1]


def most_steps(task, size):
    """Steps after which a run is given up: of as many examples as at a batch of 32, or of as many steps."""
    reference = math.ceil(task.examples / OWN)
    return math.ceil(PATIENCE * max(reference, reference * OWN / size))


def table(task, sizes, seconds, until):
    """(target, rate at 32, [``Cell``], sizes that the time did not last for) of a task."""
    reference = math.ceil(task.examples / OWN)
    own = tuned(lambda lr, _: np.mean([run(task, OWN, lr, seed, reference)[1] for seed in CHOOSE]), task.lr)
    target = float(np.median([run(task, OWN, own, seed, reference)[1] for seed in REFER]))
    found, late = {}, []

    def cell(size, near):
        most = most_steps(task, size)

        def score(lr, least):
            limit = math.ceil(min(most, PATIENCE * least))
            return np.mean([run(task, size, lr, seed, limit, target)[0] or 2 * most for seed in CHOOSE])

        lr = tuned(score, near.lr * (size / near.batch_size) ** 0.5)
        counts = tuple(run(task, size, lr, seed, most, target)[0] for seed in COUNT[:FEWEST])
        print(f"  {size:5}  lr {lr:.3g}  steps {counts}", flush=True)
        return Cell(size, lr, counts, seconds[size])

    found[OWN] = cell(OWN, Cell(OWN, own, ()))
    sides = {max: [b for b in sizes if b > OWN], min: [b for b in sizes if b < OWN][::-1]}
    while any(sides.values()):
        least = min(c.time for c in found.values())
        edges = {side: found[side(found)] for side, rest in sides.items() if rest}
        likely = {s: min(c.time, most_steps(task, c.batch_size) * c.seconds) for s, c in edges.items()}
        side = min(likely, key=likely.get)
        size, edge = sides[side].pop(0), edges[side]
        if math.isfinite(least) and edge.time > ENOUGH * least:
            sides[side] = []
        elif time.process_time() + 10 * likely[side] > until:
            late.append(size)
            sides[side] = []
        else:
            found[size] = cell(size, edge)
    return target, own, [found[size] for size in sorted(found)], late


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
    task, begin = (FIRST_TASKS | TASKS | TRIED)[name], time.process_time()
    sizes = [b for b in SIZES if b <= rows(task_data(task)) // 2]
    target, own, found, late = table(task, sizes, timed(task, sizes), begin + 60 * 0.8 * minutes)
    report = advised_on(task, own, name, seed=0)
    a = report.advice
    lr = a.settings[0].settings["lr"] if a.settings else own
    steps = most_steps(task, a.batch_size)
    advised = Cell(
        a.batch_size, lr, tuple(run(task, a.batch_size, lr, seed, steps, target)[0] for seed in COUNT[:FEWEST])
    )
    print(f"  advised {advised.batch_size}, lr {lr:.3g}, steps {advised.steps}", flush=True)
    if name not in TASKS:
        print(f"  {report}\n  {regrets_of(found, report.measured, advised)}")
        return
    OUT.mkdir(parents=True, exist_ok=True)
    kept = {
        "name": name, "target": target, "own_lr": own, "cells": [asdict(c) for c in found], "late": late,
        "advised": asdict(advised), "measured": json.loads(report.measured.json()), "torch": torch.__version__,
        "minutes": round((time.process_time() - begin) / 60, 1),
    }  # fmt: skip
    keep(kept)
    more_seeds(kept, minutes)


def advised_on(task, lr, name, seed):
    """The ``Report`` on a task given at a batch of 32 and the rate ``lr``."""
    model, rule = started(task, lr, seed)
    return bl.advise(
        model, task.loss, task_data(task), rule, batch_size=OWN, memory=CAP, seconds=60, progress=False,
        examples=task.examples, clock=time.process_time, name=name, seed=seed,
    )  # fmt: skip


def again(name):
    """Measure a stored problem once more, on a model of another seed, for what chance there is in the measuring."""
    measured = advised_on(TASKS[name], stored()[name]["own_lr"], name, seed=1).measured
    keep(stored()[name] | {"again": json.loads(measured.json())})


def keep(kept):
    (OUT / f"{kept['name']}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def more_seeds(kept, minutes):
    """Train every cell of a stored problem, and the advised one, with one seed more of COUNT after another, as long as
    a seed is likely to end within the problem's minutes; the rates stay."""
    task, spent = TASKS[kept["name"]], 60 * kept["minutes"]
    last = 0.0
    for seed in COUNT[len(kept["advised"]["steps"]) :]:
        if spent + last > 60 * minutes:
            break
        begin = time.process_time()
        for cell in (*kept["cells"], kept["advised"]):
            steps = most_steps(task, cell["batch_size"])
            found = run(task, cell["batch_size"], cell["lr"], seed, steps, kept["target"])[0]
            cell["steps"] = [*cell["steps"], found]
        last = time.process_time() - begin
        spent += last
        keep(kept | {"minutes": round(spent / 60, 1)})
    print(f"  {len(kept['advised']['steps'])} seeds", flush=True)


def report():
    """What is stored, judged: results/advice.md."""
    kept = {name: k for name, k in stored().items() if name in TASKS}
    if not kept:
        raise SystemExit(f"nothing in {OUT}: run python benchmarks/advice.py NAME first")
    lines, ours = judged(kept, TASKS)
    before, first = judged(stored(first=True), FIRST_TASKS)
    again = {name: regrets(k | {"measured": k["again"]})["ours"] for name, k in kept.items() if "again" in k}
    said = [*verdict(ours), "", *second_time(again)]
    said += [f"Not measured: {', '.join(f'`{n}`' for n in TASKS if n not in kept) or 'none'}.", "", TAIL, ""]
    return "\n".join([HEAD, "", *lines, "", *said, FIRST_HEAD, "", *before, "", *verdict(first), "", FIRST_TAIL])


def judged(kept, tasks):
    """(lines of a table of regrets, {problem: ours})."""
    found = {name: regrets(kept[name]) for name in tasks if name in kept}
    rules = list(next(iter(found.values())))
    lines = ["| problem | best size | " + " | ".join(rules) + " | chance |", "|---|" + "---|" * (len(rules) + 2)]
    for name, r in found.items():
        best = min(cells(kept[name]), key=lambda c: c.time).batch_size
        shown = [f"{r[rule][0]}: {percent(r[rule][1])}" if rule in r else "" for rule in rules]
        tried = "*" if kept[name]["measured"].get("runs") else ""
        lines.append(f"| `{name}`{tried} | {best} | " + " | ".join([*shown, percent(chance(kept[name]))]) + " |")
    for words, of in (("median", np.median), ("worst", np.max)):
        shown = [percent(of([r[rule][1] for r in found.values() if rule in r])) for rule in rules]
        lines.append(f"| **{words}** | | " + " | ".join([*shown, percent(of([chance(kept[n]) for n in found]))]) + " |")
    return lines, {name: r["ours"][1] for name, r in found.items()}


def verdict(ours):
    """Whether the bars are met, a sentence each."""
    median, misses = np.median(list(ours.values())), [name for name, r in ours.items() if not r < WORST]
    return [
        f"Median {percent(median)}: the bar of {percent(MEDIAN)} is {'met' if median < MEDIAN else 'missed'}. Worst "
        f"{percent(max(ours.values()))}: the bar of {percent(WORST)} is {'missed' if misses else 'met'}"
        + (f", on {', '.join(f'`{name}` ({percent(ours[name])})' for name in misses)}." if misses else "."),
    ]


def second_time(found):
    """What is said of measurements made once more; ``found``: {problem: (size, regret)}."""
    if not found:
        return []
    values = [regret for _, regret in found.values()]
    missed = [f"`{name}` ({size}: {percent(regret)})" for name, (size, regret) in found.items() if not regret < WORST]
    return [
        f"Measured once more, on models of another seed, and looked up in the same tables ({len(values)} problems): "
        f"median {percent(np.median(values))}, worst {percent(max(values))}"
        + (f"; above {percent(WORST)}: {', '.join(missed)}." if missed else "."),
        "",
    ]


def percent(share):
    return f"{100 * share:.0f} %" if math.isfinite(share) else "not reached"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The advisor's regret.")
    parser.add_argument("names", nargs="*", help=", ".join(TASKS))
    parser.add_argument("--only-report", action="store_true")
    parser.add_argument("--more", action="store_true", help="only count more seeds of what is stored")
    parser.add_argument("--again", action="store_true", help="only measure what is stored once more, as another seed")
    parser.add_argument("--minutes", type=float, default=4, help="of processor time that a problem may take (4)")
    options = parser.parse_args()
    wrong = [name for name in options.names if name not in FIRST_TASKS | TASKS | TRIED]
    if wrong:
        parser.error(f"{', '.join(wrong)}: expected names among {', '.join(FIRST_TASKS | TASKS | TRIED)}")
    torch.set_num_threads(1)
    for name in [] if options.only_report else options.names or TASKS:
        print(name, flush=True)
        if options.more:
            more_seeds(stored()[name], options.minutes)
        elif options.again:
            again(name)
        else:
            measure(name, options.minutes)
    if options.only_report or set(options.names) <= set(TASKS):
        print(report())

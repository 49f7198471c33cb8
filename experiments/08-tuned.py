"""Do LARS and LAMB save steps at a large batch once everything is tuned: momentum and betas as well as the rate?

The tasks and targets of 08-optimisers at their largest batches, 2,048 and 512. Nesterov and LARS: momentum 0.6, 0.8,
0.9 or 0.95 (LARS: and the trust coefficient, 0.1 or 0.01). Adam and LAMB: beta1 0.8, 0.9 or 0.95 and beta2 0.9, 0.99 or
0.999. For each of those the rate, of powers of two that go on until the best is not at an end, that takes the fewest
steps on ``CHOOSE``; then the best of them all is counted. A run that is not there after 2.5 times the steps expected
counts as that many. Seeds 1700 and 1701 choose, 1710 to 1729 count. A minute on two idle cores.
"""

import math
from itertools import product

import numpy as np
import pandas as pd

import batchlab as bl

CHOOSE, SEEDS = range(1700, 1702), range(1710, 1730)
LARGE = {"signals": 2048, "text": 512}
MOMENTA, TRUST = (0.6, 0.8, 0.9, 0.95), (0.1, 0.01)
BETAS = tuple(product((0.8, 0.9, 0.95), (0.9, 0.99, 0.999)))
SETTINGS = {
    "nesterov": [(m,) for m in MOMENTA],
    "lars": list(product(MOMENTA, TRUST)),
    "adam": [(b,) for b in BETAS],
    "lamb": [(b,) for b in BETAS],
}


def rows(seeds=SEEDS, optimizers=tuple(SETTINGS), tasks=tuple(LARGE), cache=None):
    """One row a task, optimizer and seed: the setting and rate chosen, and the steps."""
    tables = []
    for task, name in product(tasks, optimizers):
        found = {setting: tuned(task, name, setting, cache) for setting in SETTINGS[name]}
        setting = min(found, key=found.get)
        table = steps(task, name, setting, [found[setting][1]], seeds, cache)
        tables.append(table.assign(task=task, optimizer=name, setting=str(setting)))
    return pd.concat(tables, ignore_index=True)[["task", "optimizer", "setting", "lr", "seed", "steps"]]


def tuned(task, name, setting, cache=None):
    """The fewest mean steps on ``CHOOSE``, and their rate; infinite where none of eight rates gets there."""
    cell = f"{name} {setting[1]}" if name == "lars" else name
    middle = bl.results.script("08-optimisers").MIDDLE[task, cell][0][-1]
    if name in ("nesterov", "lars"):
        middle += round(math.log2((1 - setting[0]) / 0.1))
    powers = [middle - 1, middle, middle + 1]
    while len(powers) < 8:
        table = steps(task, name, setting, [2.0**k for k in powers], CHOOSE, cache)
        means = table.groupby("lr").steps.mean()
        best = int(np.log2(means.idxmin()))
        if best not in (powers[0], powers[-1]):
            return float(means.min()), 2.0**best
        powers = [powers[0] - 1, *powers] if best == powers[0] else [*powers, powers[-1] + 1]
    return math.inf, 0.0


def steps(task, name, setting, lrs, seeds, cache=None):
    first = bl.results.script("08-optimisers")
    _, few, crit = first.MIDDLE[task, "lars 0.1" if name == "lars" else name]
    batch_size = LARGE[task]
    expected = few * (1 + crit / batch_size)
    most = math.ceil(2.5 * expected)
    run = bl.Run(
        data=first.signals() if task == "signals" else first.text(),
        model=bl.models.mlp((40, 100, 100, 10) if task == "signals" else (288, 32, 96)),
        optimizer=optimizer(name, setting),
        lr=1.0,
        batch_size=batch_size,
        device="cpu",
        target=("val_loss", first.TARGETS[task]),
        evaluate=("val",),
        examples=most * batch_size,
        evaluate_every=batch_size,
    )
    found = bl.outcomes.to_target(bl.sweep(run, lr=lrs, seed=seeds, cache=cache), *run.target)
    return found.assign(steps=found.step.clip(upper=most))


def optimizer(name, setting):
    if name == "lars":
        return bl.optim.lars(setting[0], trust=setting[1])
    return getattr(bl.optim, name)(setting[0])

"""Does a convolutional network say of overfitting what the MLPs say? What 10-curves, 10-remedies and 10-data left out.

Protocols, networks and data are theirs; this adds the convolutional network on signals to all three, and to its
remedies on images the two that it lacked, so that each of the six meets it on both data sets. Adam, 20 passes; a fifth
of the training labels wrong, but for ``data``. "curves": batches of 16 and 128, as many passes, then as many steps.
"remedies": batches of 16; "end" at the rate where plain's training loss ends lowest; "tuned" at three rates, for plain,
a quarter of the width and twice the data on signals; "under" with batches of 512 at a rate so low that the training
data are not fitted. "data": true labels, as many steps at every size. Rates were placed by trial runs on seeds 0 to 2,
strengths chosen by ``tune`` on seeds 0 and 1, by validation accuracy. Seeds 1300 to 1309. Some five minutes on two idle
cores.
"""

import numpy as np
import pandas as pd

import batchlab as bl

SEEDS = range(1300, 1310)
TASKS, PASSES = ("cnn-signals", "cnn-images"), 20
CURVES, FITTED, TUNED, DATA = range(-9, -5), (-7,), range(-8, -5), range(-7, -5)  # powers of two of the rates
UNDER, LOW = 512, (-9,)
STRENGTHS = {
    "cnn-signals": {"l1": 3e-4, "coupled": 3e-3, "decoupled": 0.3, "dropout": 0.65},
    "cnn-images": {"l1": 1e-3, "coupled": 3e-2, "decoupled": 1, "dropout": 0.65},
}
SIX = ("smaller", "l1", "coupled", "decoupled", "dropout", "more data")
TUNE = {("cnn-signals", arm) for arm in ("plain", "smaller", "more data")}
KEYS = ["part", "task", "run", "arm", "setting", "batch_size", "size", "power", "seed", "step"]
VALUES = ["early_loss", "train_loss", "val_loss", "val_accuracy", "test_loss", "test_accuracy"]
LACKING = {"run": "", "arm": "", "setting": "", "size": 0, "early_loss": 0}  # what a part has no value for

curves = bl.results.script("10-curves")
remedies = bl.results.script("10-remedies")


def sweep(task, data, batch_size, powers, seed, cache, **given):
    run = curves.run(task, data, batch_size, **given)
    return bl.sweep(run, lr=[2.0**k for k in powers], seed=[seed], cache=cache)


def roads(seed, powers=CURVES, cache=None):
    """The curves of the network on signals."""
    task, examples = "cnn-signals", PASSES * curves.TRAIN["signals"]
    data, steps = curves.problem(task, seed), -(-examples // curves.SMALL)
    for which, size, length, whole in (
        ("small", curves.SMALL, {"steps": steps}, examples),
        ("epochs", curves.LARGE, {"epochs": PASSES}, examples),
        ("steps", curves.LARGE, {"steps": steps}, steps * curves.LARGE),
    ):
        table = sweep(task, data, size, powers, seed, cache, evaluate_every=whole // curves.LOOKS[which][1], **length)
        yield table.assign(task=task, run=which, power=np.log2(table.lr).astype(int))


def cure(task, arm, strength, batch_size, seed, powers, cache=None):
    """The ends of one arm."""
    size = curves.TRAIN[task.split("-")[1]]
    make = bl.optim.adamw if arm == "decoupled" else bl.optim.adam
    table = sweep(
        task,
        curves.problem(task, seed, 2 * size if arm == "more data" else None),
        batch_size,
        powers,
        seed,
        cache,
        model=curves.network(task, 0.25 if arm == "smaller" else 1, strength if arm == "dropout" else 0.0),
        optimizer=make(weight_decay=strength if arm in ("coupled", "decoupled") else 0),
        l1=strength if arm == "l1" else 0,
        examples=PASSES * size,
        evaluate_every=PASSES * size // 2,
    )
    return remedies.ends(table, task=task, arm=arm)


def cures(task, seed, arms, cache=None):
    """The ends of the arms on one task."""
    for arm in arms:
        strength, tuned = STRENGTHS[task].get(arm, 0), (task, arm) in TUNE
        table = cure(task, arm, strength, curves.SMALL, seed, TUNED if tuned else FITTED, cache)
        if tuned:
            yield table.assign(setting="tuned")
        yield table[table.power == FITTED[0]].assign(setting="end")
        if arm != "more data":
            yield cure(task, arm, strength, UNDER, seed, LOW, cache).assign(setting="under")


def doublings(seed, powers=DATA, cache=None):
    """The ends of the network on signals, for every size of the training data; half the passes."""
    task, steps = "cnn-signals", -(-PASSES * curves.TRAIN["signals"] // (2 * curves.SMALL))
    for size in (500, 1000, 2000, 4000):
        data = curves.problem(task, seed, size, noise=0)
        length = dict(steps=steps, evaluate_every=steps * curves.SMALL // 8)
        yield remedies.ends(sweep(task, data, curves.SMALL, powers, seed, cache, **length), task=task, size=size)


def rows(seeds=SEEDS, parts=("curves", "remedies", "data"), tasks=TASKS, arms=("plain", *SIX), cache=None):
    """One row a part, task, run or arm and setting, power of two of the rate, seed, and step or size looked at."""
    made = []
    for seed in seeds:
        if "curves" in parts:
            made += [t.assign(part="curves") for t in roads(seed, cache=cache)]
        if "remedies" in parts:
            made += [t.assign(part="remedies") for task in tasks for t in cures(task, seed, arms, cache)]
        if "data" in parts:
            made += [t.assign(part="data") for t in doublings(seed, cache=cache)]
    table = pd.concat(made, ignore_index=True).reindex(columns=[*KEYS, *VALUES])
    table = table.fillna(LACKING).astype({"size": int})
    return table.round(dict.fromkeys(VALUES, 4))


def tune(task, seeds=range(2), cache=None):
    """What ``STRENGTHS`` was read off: one row an arm and strength, means over the seeds."""
    made = []
    for arm, tried in {"plain": (0,), **remedies.TRIED}.items():
        for strength in tried:
            tables = [cure(task, arm, strength, curves.SMALL, seed, FITTED, cache) for seed in seeds]
            made += [t.assign(strength=strength) for t in tables]
    found = pd.concat(made).groupby(["arm", "strength"], sort=False)
    return found[["train_loss", "val_loss", "val_accuracy"]].mean().round(4)

"""What does each remedy against overfitting do, at a small and at a large batch?

Tasks, data and networks of 10-curves (a fifth of the training labels wrong): the MLP on signals and on images, the
convolutional network on images. Adam, batches of 16 and 128, as many examples at both (40 passes; 20). Arms: plain; a
quarter of the width; l1 (``Run.l1``); coupled weight decay (Adam's) and decoupled (AdamW's); dropout; twice the
training data; shifted copies (signals by up to two points to either side, images by one pixel in eight directions);
decay, dropout and shifts together; and plain, stopped early: at the look, of ten, with the best validation accuracy, or
the least validation loss. All but twice the data meet as many examples as plain does.

Two settings. "tuned": the whole grid of rates for every arm, the strength as ``STRENGTHS`` has it. "to the end": the
rate at which plain's *training* loss ends lowest, ``FITTED``, and strengths of their own for that rate. Rates and
strengths were chosen by ``tune`` on seeds 0 to 3, by validation accuracy; the convolutional network, with fewer arms,
takes over the strengths of the MLP on images. ``under``: a batch of 512 at a low rate, so
that the training data are not fitted. Seeds 1100 to 1111, the convolutional network 1100 to 1109. Some two minutes on
two idle cores.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import torch

import batchlab as bl

SEEDS = range(1100, 1112)
TASKS = {"mlp-signals": 12, "mlp-images": 12, "cnn-images": 10}  # seeds
SIZES, LOOKS = (16, 128), 10
ARMS = ("plain", "smaller", "l1", "coupled", "decoupled", "dropout", "more data", "shifted", "together")
POWERS = {  # of two: the rates of a task at the two sizes
    "mlp-signals": (range(-12, -6), range(-11, -5)),
    "mlp-images": (range(-13, -6), range(-12, -5)),
    "cnn-images": ((-9, -7), (-8, -6)),
}
FITTED = {"mlp-signals": (-8, -7), "mlp-images": (-8, -7), "cnn-images": (-7, -6)}
TRIED = {
    "l1": (1e-4, 3e-4, 1e-3, 3e-3),
    "coupled": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    "decoupled": (0.3, 1, 3, 10),
    "dropout": (0.2, 0.35, 0.5, 0.65),
}
STRENGTHS = {  # task -> (at 16, at 128), each: arm -> (tuned, to the end)
    "mlp-signals": (
        {"l1": (3e-4, 1e-4), "coupled": (1e-2, 1e-2), "decoupled": (1, 1), "dropout": (0.35, 0.35)},
        {"l1": (1e-3, 3e-4), "coupled": (1e-2, 1e-2), "decoupled": (3, 3), "dropout": (0.35, 0.35)},
    ),
    "mlp-images": (
        {"l1": (1e-4, 3e-3), "coupled": (1e-2, 3e-2), "decoupled": (0.3, 1), "dropout": (0.35, 0.65)},
        {"l1": (1e-4, 3e-3), "coupled": (1e-2, 3e-2), "decoupled": (3, 3), "dropout": (0.65, 0.65)},
    ),
}
STRENGTHS["cnn-images"] = STRENGTHS["mlp-images"]  # taken over
FEWER = {"cnn-images": ("plain", "smaller", "decoupled", "dropout", "more data", "shifted")}  # arms, where not all
UNDER, UNDER_POWER = 512, {"mlp-signals": -11, "mlp-images": -11}

curves = bl.results.script("10-curves")


def shifted(data):
    """The training part and its shifted copies, each with the label of its original."""
    x, y = data.train
    if x.ndim == 2 and x.shape[1] == 64:
        x = x.reshape(-1, 1, 8, 8)
    if x.ndim == 4:
        padded = torch.nn.functional.pad(x, (1, 1, 1, 1), value=float(x.min()))
        copies = [padded[:, :, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    else:
        copies = [x.roll(k, -1) for k in range(-2, 3)]
    train = torch.cat(copies).reshape(-1, *data.train[0].shape[1:]), y.repeat(len(copies))
    return replace(data, name=f"{data.name}, shifted", train=train)


def train(task, arm, strength, batch_size, seed, powers, cache=None):
    """The table of ``bl.sweep`` of one arm, at two to the ``powers``."""
    size = curves.TRAIN[task.split("-")[1]]
    data = curves.problem(task, seed, 2 * size if arm == "more data" else None)
    examples = curves.TASKS[task][0] * size
    given = {"dropout": strength["dropout"]} if arm in ("dropout", "together") else {}
    optimizer = bl.optim.adam(weight_decay=strength["coupled"] if arm == "coupled" else 0)
    if arm in ("decoupled", "together"):
        optimizer = bl.optim.adamw(weight_decay=strength["decoupled"])
    run = curves.run(
        task,
        shifted(data) if arm in ("shifted", "together") else data,
        batch_size,
        model=curves.network(task, 0.25 if arm == "smaller" else 1, **given),
        optimizer=optimizer,
        l1=strength["l1"] if arm == "l1" else 0,
        examples=examples,
        evaluate_every=examples // (LOOKS if arm == "plain" else 2),
    )
    jobs = None if task.startswith("mlp") else 2
    return bl.sweep(run, lr=[2.0**k for k in powers], seed=[seed], n_jobs=jobs, cache=cache)


def ends(table, **names):
    """The last look of each lane, with the training loss at the first look after the start."""
    found = bl.outcomes.ends(table)
    early = table.groupby("lr", sort=False).train_loss.nth(1).to_numpy()
    return found.assign(early_loss=early, power=np.log2(found.lr).astype(int), **names)


def stopped(table, by, **names):
    """The look of each lane with the best validation ``by``, as if the run had ended there."""
    best = table.groupby("lr", sort=False)[by].agg("idxmax" if by == "val_accuracy" else "idxmin")
    return ends(table, **names).assign(**{
        name: table.loc[best, name].to_numpy() for name in table.columns if name.endswith(("_loss", "_accuracy"))
    })  # fmt: skip


def arm_rows(task, arm, where, seed, powers=None, cache=None):
    """Both settings of one arm at one size, 0 for the small and 1 for the large batch."""
    size, (tuned, end) = SIZES[where], ({k: v[i] for k, v in STRENGTHS[task][where].items()} for i in (0, 1))
    powers, fitted = powers or POWERS[task][where], FITTED[task][where]
    names = dict(task=task, arm=arm, setting="tuned")
    table = train(task, arm, tuned, size, seed, powers, cache)
    made = [ends(table, **names)]
    if arm == "plain":
        made += [stopped(table, by, **{**names, "arm": f"stopped by {by[4:]}"}) for by in ("val_accuracy", "val_loss")]
    used = {"together": ("decoupled", "dropout")}.get(arm, (arm,))
    if any(tuned.get(k) != end.get(k) for k in used):  # else it is the row at the fitted rate
        made.append(ends(train(task, arm, end, size, seed, [fitted], cache), **{**names, "setting": "end"}))
    else:
        made += [t[t.power == fitted].assign(setting="end") for t in made]
    return made


def rows(seeds=None, tasks=tuple(TASKS), arms=ARMS, powers=None, cache=None):
    """One row a task, arm, setting, batch size, power of two of the rate, and seed."""
    made = []
    for task in tasks:
        for seed in SEEDS[: TASKS[task]] if seeds is None else seeds:
            for arm in (a for a in arms if a in FEWER.get(task, ARMS)):
                for where in (0, 1):
                    made += arm_rows(task, arm, where, seed, powers, cache)
                if task in UNDER_POWER and arm not in ("more data", "shifted", "together"):
                    strength = {k: v[1] for k, v in STRENGTHS[task][0].items()}
                    table = train(task, arm, strength, UNDER, seed, [UNDER_POWER[task]], cache)
                    made.append(ends(table, task=task, arm=arm, setting="under"))
    table = pd.concat(made, ignore_index=True)
    keys = ["task", "arm", "setting", "batch_size", "power", "seed"]
    values = ["early_loss", "train_loss", "val_loss", "val_accuracy", "test_loss", "test_accuracy"]
    return table[keys + values].round(dict.fromkeys(values, 4))


def tune(task, where, seeds=range(4), cache=None):
    """What ``STRENGTHS`` and ``FITTED`` were read off: one row an arm, strength and rate, means over the seeds."""
    made = []
    for arm in ARMS[:-1]:
        for value in TRIED.get(arm, (0,)):
            for seed in seeds:
                table = train(task, arm, {arm: value}, SIZES[where], seed, POWERS[task][where], cache)
                made.append(ends(table, arm=arm, strength=value))
    found = pd.concat(made).groupby(["arm", "strength", "power"], sort=False)
    return found[["train_loss", "val_loss", "val_accuracy"]].mean().round(4)

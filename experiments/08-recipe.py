"""What breaks first in a large batch, and what of it a warmup, more epochs or a whole recipe mends.

An MLP on MNIST-1D, 4,000 examples, 30 epochs; the rate falls along half a cosine, but in "recipe". Parts:
"updates": one rate at B = 32 and 512, its own rate at 512, and at 512 as many steps as 32 makes (SGD).
"images": MNIST, 4,000 images, five epochs at B = 32 and 1,024, each at its own rate (SGD).
"warmup": a grid of rates with a warmup over 5 epochs and without, momentum 0.9 and Adam at B = 512, momentum at 32.
"rule": the rate 0.0125 B, and 0.1, at B = 8 and 128 (SGD).
"recipe": Nesterov momentum 0.9, weight decay 1e-4, the rate cut tenfold after 1/3, 2/3 and 8/9 of the epochs, from
B = 32 up: rate in proportion with a warmup over 5 epochs from the small batch's rate ("scaled, warmup"), without it
("scaled"), and the small batch's rate throughout ("kept"). Rates that are not a grid were tuned by trial runs on seeds
0 to 9; ``LIMIT`` is the smallest at which half of those ten runs failed without a warmup. Seeds from 1400 on. Some two
and a half minutes on two idle cores.
"""

import functools

import pandas as pd

import batchlab as bl

SEEDS = range(1400, 1420)
EXAMPLES, EPOCHS = 4000, 30
TOTAL, WARM = EXAMPLES * EPOCHS, 5 * EXAMPLES
SHARED, OWN_512, OWN_512_STEPS = 1.0, 2.0, 2.0
IMAGES = {32: 0.125, 1024: 0.25}
LIMIT = 2.0**0.75
BASE, BASE_LR = 32, 2.0**-4
PARTS = ("updates", "images", "warmup", "rule", "recipe")
WARMUPS = {  # optimizer, batch size: rates, seeds
    ("momentum", 512): (tuple(LIMIT * 2.0**k for k in (-3, -2, -1, -0.5, 0, 0.5, 1)), 20),
    ("adam", 512): (tuple(2.0**k for k in range(-9, 1)), 10),
    ("momentum", 32): (tuple(2.0**k for k in (-4, -3, -2.5, -2, -1.5, -1)), 6),
}
TESTED = (32, 256, 2048)  # all seeds; elsewhere eight
RECIPE_SIZES = (32, 64, 128, 256, 512, 1024, 2048)


def rows(seeds=SEEDS, parts=PARTS, recipe_sizes=RECIPE_SIZES, warmups=tuple(WARMUPS), cache=None):
    """One row a part, arm, optimizer, batch size, rate and seed: how the run ended."""
    ten, tables = list(seeds)[:10], []
    cosine, S = bl.schedules.cosine(TOTAL), bl.schedules
    if "updates" in parts:
        for arm, batch_size, lr in (("one rate", 32, SHARED), ("one rate", 512, SHARED), ("own rate", 512, OWN_512)):
            tables.append(ends("updates", arm, "sgd", batch_size, [lr], ten, cache, lr_schedule=cosine))
        longer = 3750 * 512
        given = dict(lr_schedule=S.cosine(longer), examples=longer)
        tables.append(ends("updates", "equal steps", "sgd", 512, [OWN_512_STEPS], ten, cache, **given))
    if "images" in parts:
        given = dict(data=bl.data.mnist5k(), model=bl.models.mlp((784, 32, 10)), examples=20_000)
        for batch_size, lr in IMAGES.items():
            schedule = S.cosine(20_000)
            tables.append(
                ends("images", "own rate", "sgd", batch_size, [lr], ten, cache, lr_schedule=schedule, **given)
            )
    if "warmup" in parts:
        for optimizer, batch_size in warmups:
            lrs, n = WARMUPS[optimizer, batch_size]
            for arm, schedule in (("none", cosine), ("warmup", S.product(S.warmup(WARM), cosine))):
                which = list(seeds)[:n]
                tables.append(ends("warmup", arm, optimizer, batch_size, lrs, which, cache, lr_schedule=schedule))
    if "rule" in parts:
        for arm, batch_size, lr in (("scaled", 8, 0.1), ("scaled", 128, 1.6), ("kept", 128, 0.1)):
            tables.append(ends("rule", arm, "sgd", batch_size, [lr], seeds, cache, lr_schedule=cosine))
    if "recipe" in parts:
        cut = S.step(at=(TOTAL // 3, 2 * TOTAL // 3, 8 * TOTAL // 9), factor=0.1)
        for batch_size in recipe_sizes:
            k = batch_size // BASE
            warm = S.product(S.warmup(WARM, start=1 / k), cut)
            arms = (("scaled, warmup", k, warm), ("scaled", k, cut), ("kept", 1, cut))
            for arm, factor, schedule in arms if k > 1 else (("scaled, warmup", 1, cut),):
                given = dict(optimizer=bl.optim.nesterov(weight_decay=1e-4), lr_schedule=schedule)
                which = seeds if batch_size in TESTED and schedule is not cut or k == 1 else list(seeds)[:8]
                tables.append(ends("recipe", arm, "nesterov", batch_size, [factor * BASE_LR], which, cache, **given))
    return pd.concat(tables, ignore_index=True)


@functools.cache
def signals():
    return bl.data.mnist1d(EXAMPLES)


def ends(part, arm, name, batch_size, lrs, seeds, cache, **given):
    run = bl.Run(
        **{
            "data": signals(),
            "model": bl.models.mlp((40, 100, 100, 10)),
            "optimizer": getattr(bl.optim, name)(),
            "examples": TOTAL,
            "lr": 1.0,
            "batch_size": batch_size,
            "evaluate_every": 10_000_000,
            "device": "cpu",
            **given,
        }
    )
    found = bl.outcomes.ends(bl.sweep(run, lr=lrs, seed=seeds, cache=cache))
    found = found.assign(part=part, arm=arm, optimizer=name)
    keys = ["part", "arm", "optimizer", "batch_size", "lr", "seed"]
    values = ["train_loss", "val_loss", "val_accuracy", "test_loss", "test_accuracy"]
    return found[keys + values].round(dict.fromkeys(values, 5))

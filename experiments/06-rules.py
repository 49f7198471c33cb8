"""Regret of the rules: what a setting costs that was tuned at one batch size and carried to another by a rule.

MNIST-1D as in 06-ridge.py (equal examples), momentum 0.9 and AdamW (weight decay 0.1). From three starts, whose rates
were tuned by trial runs on seeds 0 to 3, to every other size: the rate by each rule of ``bl.rescale`` alone, and by the
optimizer's own rules with the rest (momentum; beta1, beta2, eps and weight decay). Beside it the whole grid of rates at
every size with nothing else changed, which says what tuning anew would have given. Seeds 1100 to 1119. Some four
minutes on two idle cores.
"""

import pandas as pd

import batchlab as bl

SEEDS = range(1100, 1120)
SIZES = (4, 16, 64, 256, 1024)
STARTS = {"momentum": {16: 0.0625, 64: 0.1875, 256: 0.6}, "adamw": {16: 0.006, 64: 0.0125, 256: 0.023}}
GRIDS = {"momentum": tuple(2.0**k for k in range(-8, 2)), "adamw": tuple(2.0**k for k in range(-10, -3))}
NOISE_SCALE = 1000  # half-way through a trial run with momentum at B = 64: 1,021, from 842 to 1,263
RULES = ("none", "sqrt", "linear", "gain")
WITH_REST = {"momentum": ("linear", "gain"), "adamw": ("sqrt",)}
EXAMPLES = 128_000


def settings_of(optimizer, lr):
    if optimizer == "momentum":
        return {"lr": lr, "momentum": 0.9}
    return {"lr": lr, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}


def optimizer_with(settings):
    if "momentum" in settings:
        return bl.optim.momentum(settings["momentum"])
    betas = (settings["beta1"], settings["beta2"])
    return bl.optim.adamw(betas, eps=settings["eps"], weight_decay=settings["weight_decay"])


def trained(settings, batch_size, lrs, seeds, cache):
    run = bl.Run(
        data=bl.data.mnist1d(16_000),
        model=bl.models.mlp((40, 100, 100, 10)),
        optimizer=optimizer_with(settings),
        lr=1.0,
        batch_size=batch_size,
        examples=EXAMPLES,
        lr_schedule=bl.schedules.cosine(EXAMPLES),
        evaluate=("val", "test"),
        evaluate_every=EXAMPLES,
        device="cpu",
    )
    return bl.outcomes.ends(bl.sweep(run, lr=lrs, seed=seeds, cache=cache))


def rows(seeds=SEEDS, optimizers=tuple(STARTS), rules=RULES, cache=None):
    """One row an optimizer, move, rule and seed; ``start`` is 0 and ``rule`` "tuned" for the grid at ``batch_size``."""
    tables = []
    for optimizer in optimizers:
        for batch_size in SIZES:
            ends = trained(settings_of(optimizer, 1.0), batch_size, GRIDS[optimizer], seeds, cache)
            tables.append(ends.assign(optimizer=optimizer, start=0, rule="tuned", rest=0))
        for start, lr in STARTS[optimizer].items():
            for batch_size in SIZES:
                for rule in rules if batch_size != start else ():
                    for rest in (0, 1) if rule in WITH_REST[optimizer] else (0,):
                        old = settings_of(optimizer, lr)
                        new = bl.rescale(
                            old,
                            start,
                            batch_size,
                            optimizer="adamw" if optimizer == "adamw" else "sgd",
                            rule=rule,
                            noise_scale=NOISE_SCALE if rule == "gain" else None,
                            keep=() if rest else tuple(name for name in old if name != "lr"),
                        ).settings
                        ends = trained(new, batch_size, [new["lr"]], seeds, cache)
                        tables.append(ends.assign(optimizer=optimizer, start=start, rule=rule, rest=rest))
    keys = ["optimizer", "start", "batch_size", "rule", "rest", "lr", "seed"]
    values = ["val_loss", "test_loss", "test_accuracy"]
    return pd.concat(tables, ignore_index=True)[keys + values].round(dict.fromkeys(values, 5))

"""Lower the learning rate, or raise the batch? At equal examples, on two tasks and for Adam; then at equal time.

"examples": 64,000 examples from batches of 16, plain SGD. The batch goes to 64 after half of them and to 256 after
three quarters (grow), the rate is divided by 4 at the same points (decay), neither (constant), or the batch goes 256,
64, 16 with as many examples at each size (shrink). Signals are MNIST-1D, 16,000 of them; text is the next letter of
Python's manual from three, each example seen once. "adam": a cosine, with a batch of 16 (decay), with a batch that
grows up to sixteenfold along the cosine's inverse, the rate falling along the cosine times the square root of that
growth (grow), or times that growth itself (linear). "time": SGD, the time of 128,000 examples in batches of 64 where a
step of B examples takes 64 + B units: fixed batches with a cosine (decay), and batches that grow up to sixteenfold
along its inverse, in place of it (grow); no second occurs here. Rates lie around those of chapter 6. Seeds 1000 to
1019. Some three minutes on two idle cores.
"""

import numpy as np
import pandas as pd
from torch.nn.functional import one_hot

import batchlab as bl
from batchlab.schedules import constant, cosine, follow, inverse, product, stages

SEEDS = range(1000, 1020)
EXAMPLES, BATCH, MOST = 64_000, 16, 16
AT, HALF, KNEE = (EXAMPLES // 2, 3 * EXAMPLES // 4), (EXAMPLES // 4, EXAMPLES // 2), 64
ARMS = {  # of "examples": the batch, the rate
    "constant": (constant(), constant()),
    "decay": (constant(), stages((1, 1 / 4, 1 / 16), AT)),
    "grow": (stages((1, 4, 16), AT), constant()),
    "shrink": (stages((16, 4, 1), HALF), constant()),
}
RATES = {"signals": tuple(2.0**k for k in range(-6, 2)), "text": tuple(2.0**k for k in range(-4, 4))}
ADAM_RATES = tuple(2.0**k for k in range(-11, -5))
LAYERS = {"signals": (40, 100, 100, 10), "text": (288, 64, 96)}
DECAY_SIZES, GROW_SIZES = (16, 32, 64, 128, 256), (8, 16, 32, 64, 128)
PARTS = ("examples, signals", "examples, text", "adam, signals", "time, signals")


def rows(seeds=SEEDS, parts=PARTS, cache=None):
    """One row a part, arm, first batch size, rate and seed: "updates", an early loss, how it ended; inf: diverged."""
    table = pd.concat([lanes(part, arm, seeds, cache) for part in parts for arm in arms(part)], ignore_index=True)
    keys = ["part", "arm", "batch_size", "lr", "seed"]
    values = ["early_loss", "val_loss", "test_loss", "test_accuracy"]
    return table[[*keys, "updates", *values]].round(dict.fromkeys(values, 5))


def arms(part):
    return {"examples": tuple(ARMS), "adam": ("decay", "grow", "linear"), "time": ("decay", "grow")}[part.split(",")[0]]


def lanes(part, arm, seeds, cache=None):
    kind, task = part.split(", ")
    if kind == "examples":
        batch, rate = ARMS[arm]
        return ends(part, arm, run(task, BATCH, EXAMPLES, batch, rate), RATES[task], seeds, cache)
    falling = cosine(EXAMPLES)
    if kind == "adam":
        batch = constant() if arm == "decay" else inverse(falling, MOST)
        rate = product(falling, follow(1 if arm == "linear" else 0.5, base=BATCH))
        return ends(part, arm, run(task, BATCH, EXAMPLES, batch, rate, bl.optim.adam()), ADAM_RATES, seeds, cache)
    tables = []
    for size in DECAY_SIZES if arm == "decay" else GROW_SIZES:
        examples = in_time(size, grows=arm == "grow")
        batch = inverse(cosine(examples), MOST) if arm == "grow" else constant()
        one = run(task, size, examples, batch, product(cosine(examples), follow(1, base=size)))
        guess = min(size / 32, 2)  # chapter 6
        tables.append(ends(part, arm, one, [guess * factor for factor in (0.25, 0.5, 1, 2)], seeds, cache))
    return pd.concat(tables)


def in_time(size, grows):
    """How many examples go through in KNEE + 64 units of time for each of 2,000 batches of 64."""
    share = inverse(cosine(1000), MOST)(np.arange(1000)) if grows else np.ones(1000)
    per_example = 1 + KNEE / size * (1 / share).mean()
    return round(2000 * (KNEE + 64) / per_example)


def run(task, size, examples, batch, rate, optimizer=None):
    return bl.Run(
        data=bl.data.mnist1d(16_000) if task == "signals" else text(3),
        model=bl.models.mlp(LAYERS[task]),
        optimizer=optimizer or bl.optim.sgd(),
        lr=1.0,
        batch_size=size,
        examples=examples,
        batch_schedule=batch,
        lr_schedule=rate,
        evaluate=("val", "test"),
        evaluate_every=examples // 2,
        device="cpu",
    )


def text(letters, examples=EXAMPLES):
    """Real text for a small network: x the letters before a letter, one-hot, y that letter."""
    of = {name: letters * n for name, n in (("tokens", examples), ("val", 4000), ("test", 8000))}
    windows = bl.data.documentation_text(letters, **of)
    parts = [
        (one_hot(x, 96).flatten(1).float(), y[:, -1].clone()) for x, y in (windows.train, windows.val, windows.test)
    ]
    return bl.data.Dataset(f"{letters} letters", True, *parts, classes=96)


def ends(part, arm, one, rates, seeds, cache):
    table = bl.sweep(one, lr=rates, seed=seeds, cache=cache)
    early = table[table.step > 0].groupby(bl.outcomes.LANE, sort=False).val_loss.first()
    found = bl.outcomes.ends(table).rename(columns={"step": "updates"})
    found = found.merge(early.rename("early_loss").reset_index(), on=bl.outcomes.LANE)
    found["early_loss"] = found.early_loss.where(~found.diverged, np.inf)
    return found.assign(part=part, arm=arm)

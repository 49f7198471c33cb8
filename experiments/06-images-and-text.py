"""The best learning rate at every batch size, on real images and on real text.

A convolutional network on scikit-learn's digits (1,200 training images, 10 epochs), and a small transformer on Python's
manual in tokens of one byte (one pass over 131,072 of them in windows of 32), each with momentum and an adaptive
optimizer; equal examples at every size (TE); the rate falls along half a cosine. Rates were placed by trial runs on
seed 0: those here reach a factor of four to both sides. Seeds 1000 to 1009. Some eight minutes on two idle cores.
"""

import pandas as pd

import batchlab as bl

SEEDS = range(1000, 1010)
SIZES = (4, 8, 16, 32, 64, 128)
GUESS = {  # power of two of the best rate in the trials, at the smallest and the largest size
    ("images", "momentum"): (-4, -1),
    ("text", "adamw"): (-8, -6),
    ("text", "momentum"): (-4, -3),
    ("images", "adam"): (-7, -5),
}
CELLS = tuple(GUESS)


def rates(task, optimizer, batch_size):
    """Powers of two around a straight line between the two guesses: two below it, two above."""
    small, large = GUESS[task, optimizer]
    middle = round(small + (large - small) * SIZES.index(batch_size) / (len(SIZES) - 1))
    return [2.0**k for k in range(middle - 2, middle + 3)]


def rows(seeds=SEEDS, cells=CELLS, sizes=SIZES, cache=None):
    """One row a task, optimizer, batch size, rate and seed; ``batch_size`` counts images, or windows."""
    images = bl.data.digits(images=True, val=400, test=197)
    text = bl.data.documentation_text(32, tokens=131_072, val=16_384, test=16_384)
    tasks = {
        "images": (images, bl.models.cnn((1, 8, 8), 10), 12_000),
        "text": (text, bl.models.transformer(96, 32, width=32, depth=1), 4096),
    }
    tables = []
    for task, optimizer in cells:
        data, model, examples = tasks[task]
        for batch_size in sizes:
            run = bl.Run(
                data=data,
                model=model,
                optimizer=getattr(bl.optim, optimizer)(),
                lr=1.0,
                batch_size=batch_size,
                examples=examples,
                lr_schedule=bl.schedules.cosine(examples),
                evaluate=("val",),
                evaluate_every=examples,
                device="cpu",
            )
            lrs = rates(task, optimizer, batch_size)
            ends = bl.outcomes.ends(bl.sweep(run, lr=lrs, seed=seeds, n_jobs=2, cache=cache))
            tables.append(ends.assign(task=task, optimizer=optimizer))
    keys = ["task", "optimizer", "batch_size", "lr", "seed", "val_loss"]
    return pd.concat(tables, ignore_index=True)[keys].round({"val_loss": 5})

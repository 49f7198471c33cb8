"""Equal steps (TS) on real images and on real text: the best learning rate at every batch size.

The tasks, models and seeds of 06-images-and-text.py, whose rows are equal examples (TE): a convolutional network on
digits with momentum, and a small transformer on Python's manual in tokens of one byte with AdamW. Here every batch size
takes as many steps as B = 32 takes there, 375 and 128, and so sees fewer examples than there or more; the rate falls
along half a cosine. Rates, a factor of two apart, were placed by trial runs on seed 0. Seeds 1000 to 1009. Some three
minutes on two idle cores.
"""

import pandas as pd

import batchlab as bl

SEEDS = range(1000, 1010)
SIZES = (4, 8, 16, 32, 64)
STEPS = {"images": 375, "text": 128}
MIDDLE = {  # power of two around which the five rates lie, at each size
    ("images", "momentum"): (-3, -3, -2, -2, -1),
    ("text", "adamw"): (-7, -7, -7, -7, -7),
}
CELLS = tuple(MIDDLE)


def rows(seeds=SEEDS, cells=CELLS, sizes=SIZES, middle=MIDDLE, cache=None):
    """One row a task, optimizer, batch size, rate and seed; ``batch_size`` counts images, or windows of 32 tokens."""
    images = bl.data.digits(images=True, val=400, test=197)
    text = bl.data.documentation_text(32, tokens=131_072, val=16_384, test=16_384)
    tasks = {
        "images": (images, bl.models.cnn((1, 8, 8), 10)),
        "text": (text, bl.models.transformer(96, 32, width=32, depth=1)),
    }
    tables = []
    for task, optimizer in cells:
        data, model = tasks[task]
        for batch_size in sizes:
            examples = STEPS[task] * batch_size
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
            power = middle[task, optimizer][SIZES.index(batch_size)]
            lrs = [2.0**k for k in range(power - 2, power + 3)]
            ends = bl.outcomes.ends(bl.sweep(run, lr=lrs, seed=seeds, n_jobs=2, cache=cache))
            tables.append(ends.assign(task=task, optimizer=optimizer))
    keys = ["task", "optimizer", "batch_size", "lr", "seed", "val_loss"]
    return pd.concat(tables, ignore_index=True)[keys].round({"val_loss": 5})

"""Thirty epochs over 4,000 examples of MNIST-1D, SGD: what advice about rates and batch sizes does to one small model.

Every size from 2 to 512 at every rate, a factor of two apart; the rate falls along half a cosine (TE; at one rate for
all sizes, FE). ``first_loss`` is the training loss after the first epoch. Rows of protocol "TT" are a second sweep at a
constant rate: the steps to a training loss of 1.0 at B = 512, infinite if not reached within 2,000. Rates were placed
by trial runs on seeds 0 and 1. Seeds 1000 to 1019. Some two minutes on two idle cores.
"""

import numpy as np
import pandas as pd

import batchlab as bl

SEEDS = range(1000, 1020)
SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 512)
RATES = tuple(2.0**k for k in range(-7, 4))
EPOCHS, EXAMPLES = 30, 4000
TT_SIZE, TT_RATES = 512, tuple(2.0**k for k in range(-2, 3))


def rows(seeds=SEEDS, sizes=SIZES, rates=RATES, cache=None):
    """One row a protocol, batch size, rate and seed."""
    data, model = bl.data.mnist1d(EXAMPLES), bl.models.mlp((40, 100, 100, 10))
    shared = dict(data=data, model=model, optimizer=bl.optim.sgd(), lr=1.0, device="cpu")
    run = bl.Run(
        **shared,
        batch_size=32,
        epochs=EPOCHS,
        lr_schedule=bl.schedules.cosine(EPOCHS * EXAMPLES),
        evaluate_every=EXAMPLES,
    )
    table = bl.sweep(run, batch_size=sizes, lr=rates, seed=seeds, cache=cache)
    ends = bl.outcomes.ends(table)
    first = table[(table.step > 0) & (table.examples <= EXAMPLES + max(sizes))]
    first = first.groupby(bl.outcomes.LANE).train_loss.first().rename("first_loss")
    ends = ends.join(first, on=bl.outcomes.LANE).assign(protocol="TE", steps=0.0)
    ends["first_loss"] = ends.first_loss.where(np.isfinite(ends.first_loss), np.inf).fillna(np.inf)

    run = bl.Run(
        **shared,
        batch_size=TT_SIZE,
        steps=2000,
        target=("train_loss", 1.0),
        evaluate=("train",),
        evaluate_every=4 * TT_SIZE,
    )
    timed = bl.outcomes.to_target(bl.sweep(run, lr=TT_RATES, seed=seeds, cache=cache), *run.target)
    timed = timed.rename(columns={"step": "steps"}).assign(protocol="TT")
    keys = ["protocol", "batch_size", "lr", "seed"]
    values = ["first_loss", "val_loss", "val_accuracy", "test_accuracy", "steps"]
    both = pd.concat([ends, timed], ignore_index=True)[keys + values]
    return both.fillna(dict.fromkeys(values, 0.0)).round(dict.fromkeys(values, 5))

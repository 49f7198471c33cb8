"""Does a large batch suffer more than a small one when some classes are many times as common as others?

Data. MNIST-1D (synthetic; ten classes). Each seed has two training sets of its own, of a size (2,040 and 2,042
signals): a balanced one, and a long tail, in which each class is 0.717 times as common as the one before it, so that
the first is twenty times as common as the last. Which class comes first is ``seed % 10``. Network 40-100-100-10, ReLU,
plain SGD at a constant learning rate, reshuffled epochs.

Arms. On each of the two sets: the small batch, 64, takes 512 steps (16 epochs); the large one, 512, takes 16 epochs
(64 steps), or as many steps (512). Each arm has five or six rates, a factor of 2 apart, centred by a pilot on the
validation losses of seeds 2000 to 2003.

Choice of the rate. By the mean validation loss of the tuning seeds 2000 to 2019, on signals distributed as the arm's
own training set is: what somebody with such data would have. Rates that are tied with the best (``stats.Arm``, rule
"tied") are averaged. The measured seeds have no part in it.

Measured. Accuracy on 4,000 test signals, as many of each class, for seeds 1200 to 1249. A run that diverges recognises
nothing.

Statistic. For each seed the accuracy lost to the long tail (balanced minus long tail), large batch minus small batch:
``stats.difference_in_differences``, Student's t over the ten means of the seeds that share a first class. Positive: the
large batch suffers more.

Two cores, otherwise idle: about ten minutes.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

import batchlab as bl

TUNING, MEASURED = range(2000, 2020), range(1200, 1250)
SIZES = {"tail": [600 * 0.05 ** (k / 9) for k in range(10)], "even": [204] * 10}  # signals of each class
RATES = {  # (what is held equal to 512 steps or 16 epochs, batch size) -> learning rates
    ("both", 64): (0.05, 0.1, 0.2, 0.4, 0.8),
    ("epochs", 512): (0.1, 0.2, 0.4, 0.8, 1.6, 3.2),
    ("steps", 512): (0.05, 0.1, 0.2, 0.4, 0.8),
}


def draw(part, kind, first, share, rng):
    """Signals of a part: of the k-th class from ``first`` on, ``share`` times ``SIZES[kind][k]``."""
    x, y = part
    rows = [
        rng.permutation(np.flatnonzero(y == (first + k) % 10))[: round(share * size)]
        for k, size in enumerate(SIZES[kind])
    ]
    rows = rng.permutation(np.concatenate(rows))
    return x[rows], y[rows]


def rows(seeds=(*TUNING, *MEASURED), cache=None):
    """One row an arm, learning rate and seed: the validation loss, and the accuracy on a balanced test set."""
    return pd.concat([one(seed, kind, cache) for seed in seeds for kind in SIZES], ignore_index=True)


def one(seed, kind, cache):
    pool, rng = bl.data.mnist1d(7000, val=2500, test=4000), np.random.default_rng(seed)
    train, val = (draw(part, kind, seed % 10, share, rng) for part, share in ((pool.train, 1), (pool.val, 0.33)))
    data, found = replace(pool, train=train, val=val), []
    for equal, size in RATES:
        run = bl.Run(
            data=data, model=bl.models.mlp((40, 100, 100, 10)), optimizer=bl.optim.sgd(), lr=1.0, batch_size=size,
            steps=64 if equal == "epochs" else 512,
            evaluate=("val", "test"), evaluate_every=10**9, device="cpu",
        )  # fmt: skip
        ends = bl.outcomes.ends(bl.sweep(run, lr=RATES[equal, size], seed=[seed], n_jobs=1, cache=cache))
        kept = ends[["batch_size", "lr", "seed", "diverged", "val_loss", "test_accuracy"]]
        found.append(kept.assign(equal=equal, data=kind))
    return pd.concat(found)


def accuracy(table, equal, size, kind):
    """Test accuracy of each measured seed, a mean over the rates that the tuning seeds chose, and those rates."""
    mine = table[(table.equal == equal) & (table.batch_size == size) & (table.data == kind)]
    loss, found = (mine.pivot(index="seed", columns="lr", values=v) for v in ("val_loss", "test_accuracy"))
    rates = bl.stats.Arm(loss.columns, loss.loc[[*TUNING]], found.loc[[*TUNING]]).chosen("tied")
    return found.loc[[*MEASURED], list(rates)].mean(axis=1), rates


def difference(table, equal):
    """The statistic: accuracy lost to the long tail at B = 512 less that at B = 64, with its 95 % interval."""
    large = [accuracy(table, equal, 512, kind)[0] for kind in ("even", "tail")]
    small = [accuracy(table, "both", 64, kind)[0] for kind in ("even", "tail")]
    return bl.stats.difference_in_differences(*large, *small, clusters=[seed % 10 for seed in MEASURED])

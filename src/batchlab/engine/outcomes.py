"""What a sweep's table says: how each lane ended, how long it took to a target, which learning rate was best.

All functions take the table of ``sweep`` and return a new one. A lane that diverged is a failure, never missing: its
accuracy counts as 0, its loss as infinite, its time to a target as infinite.
"""

import numpy as np

from batchlab._check import fail, one_of

LANE = ["batch_size", "lr", "seed"]
COSTS = ("step", "examples", "epoch", "seconds")


def ends(table):
    """The last row of each lane; for diverged lanes the losses are infinite and the accuracies 0.

    >>> import pandas
    >>> table = pandas.DataFrame({"batch_size": 8, "lr": [0.1, 0.1, 9.0], "seed": 0, "step": [0, 5, 1],
    ...                           "diverged": [False, False, True], "val_loss": [2.3, 0.5, 7.0]})
    >>> ends(table)[["lr", "step", "val_loss"]].values.tolist()
    [[0.1, 5.0, 0.5], [9.0, 1.0, inf]]
    """
    last = table.groupby(LANE, sort=False).tail(1).reset_index(drop=True)
    for name in last.columns:
        if name.endswith("_loss"):
            last[name] = last[name].where(~last.diverged, np.inf)
        elif name.endswith("_accuracy"):
            last[name] = last[name].where(~last.diverged, 0.0)
    return last


def to_target(table, metric, value):
    """What each lane spent until an evaluation met the target: step, examples, epoch and seconds, or infinity.

    The target is an accuracy of at least, or a loss of at most, ``value``. Time is only known at evaluations: a lane
    met the target at some moment after the evaluation before.

    >>> import pandas
    >>> table = pandas.DataFrame({"batch_size": 8, "lr": [0.1, 0.1, 0.2, 0.2], "seed": 0, "step": [0, 5, 0, 5],
    ...                           "examples": [0, 40, 0, 40], "epoch": 0.0, "seconds": 0.0, "diverged": False,
    ...                           "val_loss": [2.3, 0.5, 2.3, 2.2]})
    >>> to_target(table, "val_loss", 1.0)[["lr", "step", "examples"]].values.tolist()
    [[0.1, 5.0, 40.0], [0.2, inf, inf]]
    """
    _metric(table, metric)
    met = table[metric] >= value if metric.endswith("_accuracy") else table[metric] <= value
    first = table[met].groupby(LANE, sort=False)[list(COSTS)].first()
    lanes = table[[*LANE, "diverged"]].drop_duplicates(LANE).set_index(LANE)
    return lanes.join(first).fillna(dict.fromkeys(COSTS, np.inf)).reset_index()


def best_lr(table, metric="val_loss", *, edge="error"):
    """For each batch size the learning rate with the best mean of ``metric`` over seeds, at the end of training.

    Columns: batch_size, lr, the mean, ``diverged`` (the share of seeds that diverged at this rate) and ``at_edge``. A
    best rate at the end of its grid is no optimum, and an error: widen the grid, or say ``edge="flag"`` and look at
    ``at_edge``. Choose on validation metrics only. ``metric`` may also be "step", "examples", "epoch" or "seconds",
    with ``to_target``'s table: then the smallest median over seeds is best.

    >>> import pandas
    >>> table = pandas.DataFrame({"batch_size": 8, "lr": [0.1, 0.2, 0.4], "seed": 0, "diverged": False,
    ...                           "val_loss": [1.0, 0.5, 0.7]})
    >>> best_lr(table).values.tolist()
    [[8, 0.2, 0.5, 0.0, False]]
    """
    _metric(table, metric)
    one_of("edge", edge, ("error", "flag"))
    if metric.startswith("test"):
        fail("metric", metric, "a validation metric: the test part is not for choosing")
    lanes = table if metric in COSTS else ends(table)
    grouped = lanes.groupby(["batch_size", "lr"])
    score = grouped[metric].median() if metric in COSTS else grouped[metric].mean()
    found = score.to_frame().join(grouped.diverged.mean()).reset_index()
    order = found[metric] * (-1 if metric.endswith("_accuracy") else 1)
    best = found.loc[order.groupby(found.batch_size).idxmin()].reset_index(drop=True)
    rates = found.groupby("batch_size").lr
    ends_of_grid = zip(rates.min()[best.batch_size], rates.max()[best.batch_size], strict=True)
    best["at_edge"] = [lr in pair for lr, pair in zip(best.lr, ends_of_grid, strict=True)]
    if edge == "error" and best.at_edge.any():
        where = ", ".join(f"{r.lr:g} for batch size {r.batch_size}" for r in best[best.at_edge].itertuples())
        raise ValueError(f"the best lr is at the edge of its grid ({where}): widen the grid there, or say edge='flag'")
    return best[["batch_size", "lr", metric, "diverged", "at_edge"]]


def at_best(table, best):
    """The rows of ``table`` at the learning rates that ``best_lr`` chose."""
    return table.merge(best[["batch_size", "lr"]], on=["batch_size", "lr"])


def paired(table, metric, a, b):
    """Differences of ``metric`` between batch sizes ``a`` and ``b``, seed by seed: seed, a, b, difference (a - b).

    The table holds one row for each batch size and seed, such as ``at_best(ends(table), best)``. Raises ValueError
    where a seed is there for one of the two only, or more than once.

    >>> import pandas
    >>> table = pandas.DataFrame({"batch_size": [8, 8, 64, 64], "seed": [0, 1, 1, 0], "test_accuracy": [4, 5, 3, 1]})
    >>> paired(table, "test_accuracy", 8, 64).difference.tolist()
    [3, 2]
    """
    _metric(table, metric)
    sides = [table[table.batch_size == size].set_index("seed")[metric].sort_index() for size in (a, b)]
    for size, side in zip((a, b), sides, strict=True):
        if side.empty or not side.index.is_unique:
            fail(f"rows of batch size {size}", len(side), "one for each seed: choose a learning rate and a row first")
    if not sides[0].index.equals(sides[1].index):
        fail("seeds", (list(sides[0].index), list(sides[1].index)), "the same seeds for both batch sizes")
    both = sides[0].to_frame("a").assign(b=sides[1])
    return both.assign(difference=both.a - both.b).reset_index()


def _metric(table, metric):
    if metric not in table.columns:
        fail("metric", metric, "a column of the table: " + ", ".join(table.columns))

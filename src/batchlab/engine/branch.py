"""The branch test: train on from one point with larger batches, and see which of them keep the loss."""

from dataclasses import dataclass, replace

import pandas as pd

from batchlab._check import count, fail, number, one_of
from batchlab.engine.outcomes import ends, paired
from batchlab.engine.sweep import sweep
from batchlab.stats import mean_interval
from batchlab.training import schedules
from batchlab.training.run import Run, metrics


@dataclass(frozen=True, eq=False)
class BranchTest:
    """What ``branch_test`` returns.

    ``largest``: the largest batch size that keeps the loss, as do all smaller ones tried; the trunk's own where none of
    them does. ``loss``: mean loss of the branch that goes on as before. ``table``: one row a larger batch size, with
    its ``batch_size`` and ``lr``, the mean ``excess`` loss as a share of ``loss``, its interval ``low``, ``high``
    (Student's t, paired by seed, 90 %), and whether the size is ``kept``, ``lost`` or neither can be said
    ("undecided").
    """

    largest: int
    loss: float
    table: pd.DataFrame


def branch_test(
    run, at, span, factors=(2, 4, 8, 16), *, lr_exponent=1.0, tolerance=0.01, metric="val_loss", seeds=range(10),
    cache=None,
):  # fmt: skip
    """Find the largest batch size that keeps the loss, from a point of a run on, as a ``BranchTest``.

    After Merrill et al. (2025), "branched training": the run goes through ``at`` examples as it stands. From there
    one branch goes on as before, and the others at ``factors`` times the batch size and factor ** ``lr_exponent`` times
    the learning rate (1: the linear rule, for SGD; 0.5: the square-root rule, for Adam), all through ``span`` examples
    more. A size is kept if its loss at the end is, with 95 % confidence, at most ``tolerance`` (a share of the loss)
    above that of the branch that went on as before. No noise scale is needed, and nothing is assumed of the optimizer.

    run : a ``Run``; its length is not used, and its batch schedule must be constant
    at, span : in examples, whole multiples of the batch sizes, so that all branches see as many (but for the smaller
        last batch of an epoch, where a batch size does not divide the training set)
    metric : a loss that the run evaluates, "val_loss" or "train_loss"
    seeds : at least 2; a branch shares its seed's trunk, which is trained again for each branch (the same, since the
        seed decides it), so that the test costs len(factors) + 1 runs of at + span examples a seed
    cache : as for ``sweep``

    A trunk's noise floor depends on lr / batch_size: with the linear rule the branches share it. Among sizes tried
    only: with no factor that loses, the answer is the largest tried, a lower bound.

    Raises ValueError on arguments outside these, and where a branch diverges in the trunk or as before.

    >>> from batchlab import Run, data, models, optim
    >>> run = Run(data=data.digits(), model=models.mlp((64, 32, 10)), optimizer=optim.sgd(), lr=0.1, batch_size=8,
    ...           epochs=1, device="cpu")
    >>> branch_test(run, at=1024, span=4096, factors=(2, 128), seeds=range(4), tolerance=0.2).largest
    16
    """
    if not isinstance(run, Run):
        fail("run", type(run).__name__, "a batchlab.Run")
    if run.batch_schedule != schedules.constant():
        fail("run.batch_schedule", run.batch_schedule, "a constant one: the branches change the batch size")
    factors = _factors(factors)
    most = len(run.data.train[0]) // run.batch_size
    if factors[-1] > most:
        fail("factors", factors[-1], f"at most {most}: a batch of no more than all training examples")
    at, span = count("at", at), count("span", span)
    for name, value, size in [("at", at, run.batch_size), *(("span", span, run.batch_size * k) for k in factors)]:
        if value % size:
            fail(name, value, f"a whole multiple of the batch size {size}, so that all branches see as many examples")
    lr_exponent, tolerance = number("lr_exponent", lr_exponent), number("tolerance", tolerance, above=0)
    one_of("metric", metric, [name for name in metrics(run) if name.endswith("loss") and not name.startswith("test")])
    seeds = list(seeds)
    if len(seeds) < 2:
        fail("seeds", seeds, "at least two")

    def branch(factor):
        longer = replace(
            run,
            epochs=None,
            steps=None,
            examples=at + span,
            evaluate_every=at + span,
            target=None,
            batch_schedule=schedules.stages((1, factor), (at,)),
            lr_schedule=schedules.product(run.lr_schedule, schedules.stages((1, factor**lr_exponent), (at,))),
        )
        found = ends(sweep(longer, seed=seeds, cache=cache))[["seed", "batch_size", metric, "diverged"]]
        return found.assign(batch_size=run.batch_size * factor)

    base = branch(1)
    if base.diverged.any():
        fail("run.lr", run.lr, "a rate at which the run goes on: as it stands it diverges")
    loss, rows = float(base[metric].mean()), []
    for factor in factors:
        size = run.batch_size * factor
        other = branch(factor)
        if other.diverged.any():
            excess, low, high = float("inf"), float("inf"), float("inf")
        else:
            difference = paired(pd.concat([base, other]), metric, size, run.batch_size).difference
            excess, (low, high) = mean_interval(difference / loss, level=0.9)
        verdict = "kept" if high <= tolerance else "lost" if low > tolerance else "undecided"
        rows.append((size, run.lr * factor**lr_exponent, excess, low, high, verdict))
    table = pd.DataFrame(rows, columns=["batch_size", "lr", "excess", "low", "high", "verdict"])
    return BranchTest(_largest(table, run.batch_size), loss, table)


def _largest(table, own):
    """The largest batch size that is kept as are all smaller ones, or the trunk's ``own``."""
    kept = table.batch_size[(table.verdict == "kept").cummin()]
    return int(kept.max()) if len(kept) else own


def _factors(factors):
    factors = [count("factors", factor, at_least=2) for factor in factors]
    if not factors or sorted(set(factors)) != factors:
        fail("factors", factors, "whole numbers above 1, rising")
    return factors

"""What lanes of one batch size have in common, and what a trained lane comes to, whatever trains it."""

import math
from dataclasses import dataclass, replace

import numpy as np

from batchlab.training import step
from batchlab.training.schedules import constant


@dataclass(frozen=True)
class Plan:
    """What all lanes of a stack have in common, step by step.

    ``examples`` (S + 1,): examples seen before each step, and at the end. ``sizes`` (S,): the batch size that the
    schedule asks for (the last batch of an epoch may be smaller). ``factors`` (S,): what the schedule multiplies the
    base learning rate by. ``stops``: the step counts after which an evaluation is due, the last step included.
    ``used``: how many examples of each epoch's order are used.
    """

    examples: np.ndarray
    sizes: np.ndarray
    factors: np.ndarray
    stops: tuple
    used: tuple


@dataclass(frozen=True)
class Lane:
    """A lane's rows (dicts, as ``History.table`` has them), and how it ended."""

    rows: list
    diverged: bool
    reached: bool


def plan(run):
    """The ``Plan`` of ``run`` and of every run that differs from it in lr and seed only.

    >>> from batchlab import Run, data, models, optim
    >>> run = Run(data=data.digits(), model=models.linear(64, 10), optimizer=optim.sgd(), lr=0.1,
    ...           batch_size=1000, epochs=2)
    >>> plan(run).examples.tolist(), plan(run).stops
    ([0, 1000, 1437, 2437, 2874], (2, 4))
    """
    sizes_made, used = _alike(run) if _is_alike(run) else _one_by_one(run)
    examples = np.cumsum([0, *sizes_made])
    sizes, factors = np.full(len(examples) - 1, run.batch_size), np.ones(len(examples) - 1)
    if not isinstance(run.batch_schedule, constant):
        sizes = np.array([step.size_at(run, seen) for seen in examples[:-1]])
    if not isinstance(run.lr_schedule, constant):
        unit = replace(run, lr=1.0)
        factors = np.array([step.learning_rate(unit, seen) for seen in examples[:-1]])
    every = run.evaluate_every or len(run.data.train[0])
    stops = (1 + np.flatnonzero(np.diff(examples // every))).tolist()  # where step.due says so
    if not stops or stops[-1] != len(sizes):
        stops.append(len(sizes))
    return Plan(np.array(examples, np.int64), sizes, factors, tuple(stops), tuple(used))


def _is_alike(run):
    """Whether all epochs are cut alike, so that nothing has to be counted step by step."""
    whole = run.batch_size <= len(run.data.train[0])
    return whole and isinstance(run.batch_schedule, constant) and run.order != "replacement"


def _alike(run):
    """The examples of each step, and of each epoch's order."""
    total, size = len(run.data.train[0]), run.batch_size
    epoch = [size] * (total // size) + ([total % size] if total % size and not run.drop_last else [])
    ends = [
        run.epochs or math.inf,
        -(-(run.steps or math.inf) // len(epoch)),
        -(-(run.examples or math.inf) // sum(epoch)),
    ]
    made = np.tile(epoch, int(min(ends)))[: run.steps]
    if run.examples is not None:
        made = made[: 1 + np.searchsorted(np.cumsum(made), run.examples)]
    return made, [int(made[i : i + len(epoch)].sum()) for i in range(0, len(made), len(epoch))]


def _one_by_one(run):
    made, used = [], []
    total = len(run.data.train[0])
    for index in step.batches(run, order="replacement" if run.order == "replacement" else "fixed"):
        if index[0] == 0 or not used:  # in fixed order, example 0 begins an epoch
            used.append(0)
        used[-1] += len(index)
        made.append(len(index))
    if run.order == "replacement":  # one endless stream: every epoch's order is used up
        used = [total] * -(-sum(made) // total)
    return made, used


def row(run, plan, at, last, seconds, batch_loss, found):
    """The row of a lane after ``at`` steps; ``last`` is the step whose lr and batch size it shows (None at first)."""
    lr = run.lr if last is None else float(run.lr * plan.factors[last])
    size = run.batch_size if last is None else int(plan.sizes[last])
    return in_lane(step.row(run, at, int(plan.examples[at]), seconds, lr, size, batch_loss, found))


def in_lane(row):
    """A row of ``History.table`` as a lane's: there ``lr`` and ``batch_size`` name the lane, so the step's are renamed.

    >>> in_lane({"step": 8, "lr": 0.1, "batch_size": 32})
    {'step': 8, 'step_lr': 0.1, 'step_batch_size': 32}
    """
    return {f"step_{name}" if name in ("lr", "batch_size") else name: value for name, value in row.items()}

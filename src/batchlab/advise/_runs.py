"""Whole runs at several sizes and rates, where the planned run is short enough to be tried: the experiment itself."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from batchlab.advise._measured import WholeRuns
from batchlab.advise._signal import draw, order
from batchlab.advise._steps import take
from batchlab.instruments._probe import preserved

RUNS = 24  # of the planned length: so many the time must last for, about what four sizes take
SEEDS, MOST = 2, 8  # runs that choose a rate; and runs in all with it, as far as the time lasts
HELD = 512  # examples of the pool, whose loss tells how far a run has come
FIRST, APART = 0.01, 1.1  # it is looked at from a hundredth of the steps on, each time 10 % later
PATIENCE = 1.5  # times the steps that a run should take at most, and it is given up
ENOUGH = 1.5  # times the least time: there the search ends on that side
REACH = 4  # factors of two, between where the search for a rate begins and where it ends


class _Over(Exception):
    """The time is over."""


@dataclass
class _Trials:
    """Runs of a problem. ``held``: the examples that are looked at; ``left()``: seconds, of which none begins a step
    when they are over."""

    problem: object
    pool: object
    held: object
    left: object
    seed: int

    def loss(self):
        """The loss of the held examples in evaluation mode."""
        flags = [(m, m.training) for m in self.problem.model.modules()]
        self.problem.model.eval()
        with torch.no_grad():
            value = float(self.problem.value(self.held))
        for module, training in flags:
            module.training = training
        return value

    def run(self, size, lr, number, most, target=-math.inf):
        """(steps until the loss is at most ``target``, or None, the lowest loss that was seen): at most ``most`` steps
        at the rate ``lr`` of the first group. Between two looks the loss is taken to fall straight."""
        with preserved(self.problem.model, self.problem.optimizer):
            torch.manual_seed(self.seed + number)
            groups = self.problem.optimizer.param_groups
            share = lr / float(groups[0]["lr"])
            for group in groups:
                group["lr"] = float(group["lr"]) * share
            stream = order(self.pool, self.seed, 3, number)
            look, before, last, lowest = max(1, round(FIRST * most)), 0, math.inf, math.inf
            for step in range(1, most + 1):
                take(self.problem, self.problem.sent(self.pool.fetch(draw(stream, size))))
                if self.left() <= 0:
                    raise _Over
                if step not in (look, most):
                    continue
                now = self.loss()
                if not math.isfinite(now):
                    return None, math.inf
                if now <= target:
                    fell = (last - target) / (last - now) if math.isfinite(last) and last > now else 1.0
                    return before + fell * (step - before), now
                before, last, look, lowest = step, now, max(step + 1, round(APART * step)), min(lowest, now)
        return None, lowest

    def tuned(self, size, start, most, target):
        """The ``WholeRuns`` of a size, at the best rate from ``start`` on by factors of two; without steps where one
        did not reach the loss."""
        found, span = {}, [-1, 0, 1]
        while True:
            for k in sorted(span, key=abs):
                if k not in found:
                    limit = math.ceil(min(PATIENCE * min((np.mean(s) for s in found.values()), default=most), most))
                    runs = (self.run(size, start * 2.0**k, number, limit, target)[0] for number in range(SEEDS))
                    found[k] = [2.0 * most if steps is None else steps for steps in runs]
            best = min(span, key=lambda k: (np.mean(found[k]), abs(k)))
            if span[0] < best < span[-1] or len(span) > 2 * REACH:
                reached = max(found[best]) < 2 * most
                return WholeRuns(size, start * 2.0**best, tuple(found[best]) if reached else ())
            span = [span[0] - 1, *span] if best == span[0] else [*span, span[-1] + 1]


def whole_runs(problem, pool, examples, seconds, rates, near, largest, left, seed):
    """(``WholeRuns`` by ascending size, notes): in how many steps runs at several sizes, each at the best of several
    rates, reach the lowest loss that the problem's own batch and rate see within ``examples`` examples.

    seconds, rates : functions of a size: seconds a step; the rate of the first group where the search for one begins
    near, largest : the size to begin with, and the largest to try

    The sizes go by factors of two from ``near`` to both sides, until the time to the loss is ``ENOUGH`` times the
    least. Nothing is tried unless the time is likely to last for ``RUNS`` runs of the planned length; what it did not
    last for is left out, and fewer than three sizes are none. What is left of it goes to more runs at the rates that
    were found, of which one that does not get there counts twice the steps it may take. Every run begins from the model
    as it is, and puts it back.
    """
    own = problem.batch_size
    planned = math.ceil(examples / own)
    needed = RUNS * planned * seconds(own)
    if left() < needed:
        return (), [("whole runs", f"not tried: {RUNS} of the planned length would take about {needed:,.0f} s")]
    trials = _Trials(problem, pool, problem.sent(pool.fetch(np.arange(min(HELD, pool.size)))), left, seed)
    found = {}

    def most(size):
        return math.ceil(PATIENCE * max(planned, planned * own / size))

    def try_out(size, lr):
        found[size] = trials.tuned(size, lr, most(size), target)

    def time_of(size):
        return np.median(found[size].steps) * seconds(size) if found[size].steps else math.inf

    try:
        target = float(np.median([trials.run(own, rates(own), k, planned)[1] for k in range(SEEDS + 1)]))
        if not target < trials.loss():
            return (), [("whole runs", "not tried: with its own settings the loss of a planned run is never lower than "
                         "it began")]  # fmt: skip
        first = 2 ** round(math.log2(max(min(near, largest), 1)))
        try_out(first, rates(first))
        for side, factor in ((max, 2), (min, 1 / 2)):
            while time_of(edge := side(found)) <= ENOUGH * min(map(time_of, found)) and 1 <= edge * factor <= largest:
                try_out(int(edge * factor), found[edge].lr * factor**0.5)
        for number in range(SEEDS, MOST):
            for size, tried in ((size, tried) for size, tried in found.items() if tried.steps):
                steps, _ = trials.run(size, tried.lr, number, most(size), target)
                found[size] = replace(tried, steps=(*tried.steps, 2.0 * most(size) if steps is None else steps))
    except _Over:
        pass
    kept = tuple(found[size] for size in sorted(found) if found[size].steps)
    if len(kept) < 3:
        return (), [("whole runs", f"tried, but the loss was reached with {len(kept)} sizes in the time: too few")]
    return kept, []

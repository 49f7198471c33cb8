"""Lanes: runs that differ in learning rate and seed only, trained as one stacked model.

``torch.func.vmap`` turns the step of one model into a step of all of them: every parameter gets a leading dimension
of lanes, and each lane has its own data order, initial weights and learning rate. A lane that diverges or reaches the
target leaves the stack.
"""

from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import torch
from torch.func import functional_call, grad_and_value, vmap

from batchlab import models, step
from batchlab.schedules import constant

EVALUATED_AT_ONCE = 65536  # examples times lanes in one forward pass of an evaluation


@dataclass(frozen=True)
class Plan:
    """What all lanes of a stack have in common, step by step.

    ``sizes`` (S,): batch sizes. ``examples`` (S + 1,): examples seen before each step, and at the end.
    ``factors`` (S,): what the schedule multiplies the base learning rate by. ``stops``: the step counts after which
    an evaluation is due, the last step included. ``used``: how many examples of each epoch's order are used.
    """

    sizes: np.ndarray
    examples: np.ndarray
    factors: np.ndarray
    stops: tuple
    used: tuple


@dataclass(frozen=True)
class Lane:
    """A lane's rows (dicts, as ``train.History.table`` has them), and how it ended."""

    rows: list
    diverged: bool
    reached: bool


def plan(run):
    """The ``Plan`` of ``run`` and of every run that differs from it in lr and seed only.

    >>> from batchlab import data, models, optim, train
    >>> run = train.Run(data=data.digits(), model=models.linear(64, 10), optimizer=optim.sgd(), lr=0.1,
    ...                 batch_size=1000, epochs=2)
    >>> plan(run).sizes.tolist(), plan(run).stops
    ([1000, 437, 1000, 437], (2, 4))
    """
    sizes, used = [], []
    for index in step.batches(run, order="replacement" if run.order == "replacement" else "fixed"):
        sizes.append(len(index))
        if index[0] == 0 or not used:  # in fixed order, example 0 begins an epoch
            used.append(0)
        used[-1] += len(index)
    sizes = np.array(sizes, np.int64)
    examples = np.concatenate([[0], np.cumsum(sizes)])
    if run.order == "replacement":  # one endless stream: every epoch's order is used up
        used = [len(run.data.train[0])] * -(-int(examples[-1]) // len(run.data.train[0]))
    factors = np.ones(len(sizes))
    if not isinstance(run.lr_schedule, constant):
        unit = replace(run, lr=1.0)
        factors = np.array([step.learning_rate(unit, int(seen)) for seen in examples[:-1]])
    stops = [s + 1 for s in range(len(sizes)) if step.due(run, int(examples[s]), int(examples[s + 1]))]
    if not stops or stops[-1] != len(sizes):
        stops.append(len(sizes))
    return Plan(sizes, examples, factors, tuple(stops), tuple(used))


def row(run, plan, at, seconds, batch_loss, found, last=None):
    """A row after ``at`` steps; ``last`` is the step whose lr and size it shows, by default the one before ``at``."""
    last = max(at - 1 if last is None else last, 0)
    return {
        "step": at,
        "examples": int(plan.examples[at]),
        "epoch": int(plan.examples[at]) / len(run.data.train[0]),
        "seconds": seconds,
        "step_lr": float(run.lr * plan.factors[last]) if at or last else run.lr,
        "step_batch_size": int(plan.sizes[last]) if at or last else run.batch_size,
        "batch_loss": batch_loss,
        **found,
    }


# ---------------------------------------------------------------- the stacked step


def stacked_step(run, model):
    """One training step of a stack: (params, buffers, state, averaged, x, y, lr) -> (losses, the first four anew).

    Every tensor has a leading dimension of lanes: x ``(lanes, b, ...)``, lr and losses ``(lanes,)``.
    """

    def loss(params, buffers, x, y):
        buffers = models.next_draw({name: b.clone() for name, b in buffers.items()})
        return step.mean_loss(run, model, params, buffers, x, y), buffers

    def gradient(params, buffers, x, y):
        size = run.micro_batch or len(x)
        total, grads = 0.0, None
        for xs, ys in zip(x.split(size), y.split(size), strict=True):
            part, (mean, buffers) = grad_and_value(loss, has_aux=True)(params, buffers, xs, ys)
            share = len(xs) / len(x)
            grads = {k: share * g + (grads[k] if grads else 0.0) for k, g in part.items()}
            total = total + share * mean
        if run.l1:
            grads = {k: g + run.l1 * params[k].sign() for k, g in grads.items()}
        return total, grads, buffers

    def one(params, buffers, state, averaged, x, y, lr):
        mean, grads, buffers = gradient(params, buffers, x, y)
        params, state = run.optimizer.update(grads, state, params, lr)
        return mean, params, buffers, state, step.average(run, averaged, params)

    return vmap(one)


def train(run, plan, lanes, compiled=False):
    """Train the lanes, each of them a run, as one stack, and return their ``Lane``s in the same order."""
    model, _, _, parts = step.prepare(lanes[0])
    x, y = parts["train"]
    stack = _Stack(run, plan, lanes, model, parts)
    advance = stacked_step(run, model)
    if compiled:
        advance = torch.compile(advance)
    stack.evaluate(0, np.full(len(lanes), float("nan")))
    losses, seconds = torch.zeros(len(lanes), dtype=torch.float64), 0.0
    since, stops = 0, set(plan.stops)
    for at, index in enumerate(step.batches(run, seed=tuple(lane.seed for lane in lanes))):
        if not stack.alive:
            break
        began = perf_counter()
        model.train()
        index = torch.from_numpy(index[stack.alive]).to(x.device)  # (lanes, b)
        lr = torch.tensor([lane.lr * plan.factors[at] for lane in stack.runs()], dtype=step.dtype_of(run))
        before = stack.tensors
        loss, *after = advance(*before, x[index], y[index], lr.to(x.device))
        losses[stack.alive] += plan.sizes[at] * loss.double().cpu()
        bad = step.has_diverged(loss, run.loss_bound).tolist()
        stack.seconds[stack.alive] += (perf_counter() - began) / len(stack.alive)
        if any(bad):  # no update is made from such a step: those lanes end as they were before it
            seen = int(plan.examples[at + 1] - plan.examples[since])
            stack.evaluate(at, losses.numpy() / seen, only=bad, last=at)
            stack.diverged.update(lane for lane, is_bad in zip(stack.alive, bad, strict=True) if is_bad)
            stack.tensors = after
            stack.keep([not is_bad for is_bad in bad])
        else:
            stack.tensors = after
        if at + 1 in stops and stack.alive:
            seen = int(plan.examples[at + 1] - plan.examples[since])
            stack.evaluate(at + 1, losses.numpy() / seen)
            losses, since = torch.zeros_like(losses), at + 1
    return stack.lanes()

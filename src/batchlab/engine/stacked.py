"""Lanes: runs that differ in learning rate and seed only, trained as one stacked model.

``torch.func.vmap`` turns the step of one model into a step of all of them: every parameter gets a leading dimension
of lanes, and each lane has its own data order, initial weights and learning rate. A lane that diverges or reaches the
target leaves the stack. A GPU replays its steps (``engine.graph``) and is asked only now and then how they went; until
a lane that has diverged can leave, it is held where it was.
"""

from itertools import islice
from time import perf_counter

import numpy as np
import torch
from torch.func import functional_call, grad_and_value, vmap

from batchlab.engine.graph import Graphs
from batchlab.engine.plan import Lane, row
from batchlab.training import models, step

EVALUATED_AT_ONCE = 2**16  # examples times lanes, in one forward pass of an evaluation
UNASKED = 64  # steps that a GPU takes before it is asked which lanes have diverged
SENT_AT_ONCE = 2**22  # places of examples in the data, sent to a GPU for several steps


def train(plan, runs, compiled=False):
    """Train the runs, which differ in lr and seed only, as one stack; return one ``Lane`` each, in their order.

    A lane's ``seconds`` are its share of the stack's. ``compiled`` puts the step through ``torch.compile``.
    """
    run = runs[0]
    model, _, _, parts = step.prepare(run)
    device, dtype = parts["train"][0].device, step.dtype_of(run)
    wide = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
    advance = stacked_step(run, model, alone=len(runs) == 1)
    if compiled:
        torch.compiler.reset()  # else code compiled for other models counts towards the limit of recompilations
        advance = torch.compile(advance)
    advance = _guarded(advance, run, *parts["train"])
    if device.type == "cuda":
        advance = Graphs(advance)
    stack = _start(runs, parts)  # params, buffers, state, averaged: dicts of tensors (lanes, ...)
    rows, diverged, reached = [[] for _ in runs], [False] * len(runs), [False] * len(runs)
    seconds, losses = np.zeros(len(runs)), np.zeros(len(runs))  # losses: summed over the examples since the last row
    alive, last_row = list(range(len(runs))), 0

    def record(places, made, tried):
        """A row for each of these places in the stack: the steps made, and the steps tried, the last of them shown."""
        found = measure(run, model, _select(stack, places), parts)
        for p, made_here, tried_here, metrics in zip(places, made, tried, found, strict=True):
            lane, last = alive[p], tried_here - 1 if tried_here else None
            seen = int(plan.examples[tried_here] - plan.examples[last_row])
            mean = float(losses[lane] / seen) if seen else float("nan")
            rows[lane].append(row(runs[lane], plan, made_here, last, float(seconds[lane]), mean, metrics))
            reached[lane] = not diverged[lane] and step.meets(run.target, metrics)

    def leave():
        stays = [p for p, lane in enumerate(alive) if not diverged[lane] and not reached[lane]]
        if len(stays) == len(alive):
            return stack, alive
        return _select(stack, stays), [alive[p] for p in stays]

    record(range(len(runs)), [0] * len(runs), [0] * len(runs))
    stack, alive = leave()
    stream = step.batches(run, seed=tuple(r.seed for r in runs))
    for first, stop in _stretches(plan.stops, device, run.batch_size * len(runs)):
        if not alive:
            break
        indices = list(islice(stream, stop - first))  # of each step (runs, b)
        sizes = [index.shape[1] for index in indices]
        rates = np.outer(plan.factors[first:stop], [runs[lane].lr for lane in alive])
        began = perf_counter()
        model.train()
        batches = torch.from_numpy(np.concatenate(indices, axis=1)[alive]).to(device)
        rates = torch.from_numpy(rates).to(dtype).to(device)
        ok = torch.ones(len(alive), dtype=torch.bool, device=device)
        carry = (stack, torch.zeros_like(ok, dtype=wide), ok, torch.zeros_like(ok, dtype=torch.int64))
        for batch, lr in zip(batches.split(sizes, 1), rates, strict=True):
            carry = advance(carry, batch, lr)
        stack, total, ok, made = carry
        losses[alive] += total.cpu().numpy()
        seconds[alive] += (perf_counter() - began) / len(alive)
        bad = [p for p, good in enumerate(ok.tolist()) if not good]
        if bad:  # no update was made from such a step: these lanes end as they were before it
            for p in bad:
                diverged[alive[p]] = True
            made = [first + m for m in made[bad].tolist()]
            record(bad, made, [m + 1 for m in made])
            stack, alive = leave()
        if stop in plan.stops and alive:
            record(range(len(alive)), [stop] * len(alive), [stop] * len(alive))
            losses[:], last_row = 0, stop
            stack, alive = leave()
    return [Lane(*lane) for lane in zip(rows, diverged, reached, strict=True)]


def _stretches(stops, device, examples):
    """(first, stop) of the steps between which lanes may leave: every single step on a CPU, where asking is free."""
    most = 1 if device.type == "cpu" else max(1, min(UNASKED, SENT_AT_ONCE // examples))
    for before, stop in zip((0, *stops[:-1]), stops, strict=True):
        for first in range(before, stop, most):
            yield first, min(first + most, stop)


def _guarded(advance, run, x, y):
    """``advance`` on examples of x and y, a lane being held from the step on whose loss has diverged.

    (carry, batch (lanes, b), lr (lanes,)) -> carry, with carry = (stack, sum of losses over examples, whether the lane
    goes on, steps made), all but the stack (lanes,).
    """

    def guarded(carry, batch, lr):
        stack, total, ok, made = carry
        loss, *after = advance(*stack, x[batch], y[batch], lr)
        total = total + batch.shape[1] * torch.where(ok, loss, 0.0).to(total.dtype)
        ok = ok & ~step.has_diverged(loss, run.loss_bound)
        if ok.device.type != "cpu" or not ok.all():
            after = _where(ok, after, stack)
        return after, total, ok, made + ok

    return guarded


def _where(ok, after, before):
    """Trees of tensors (lanes, ...): ``after`` for the lanes that are ok, ``before`` for the others."""
    if isinstance(after, torch.Tensor):
        return torch.where(ok.view(-1, *[1] * (after.ndim - 1)), after, before)
    if isinstance(after, dict):
        return {name: _where(ok, after[name], before[name]) for name in after}
    return [_where(ok, *branches) for branches in zip(after, before, strict=True)]


def stacked_step(run, model, alone=False):
    """One step of a whole stack: (params, buffers, state, averaged, x, y, lr) -> (losses, and the first four anew).

    Every tensor has a leading dimension of lanes: x ``(lanes, b, ...)``, lr and losses ``(lanes,)``. Lane by lane
    it is the step of ``fit``. ``alone``: there is one lane only, and nothing to stack.
    """

    def loss(params, buffers, x, y):
        buffers = models.next_draw({name: b.clone() for name, b in buffers.items()})
        return step.mean_loss(run, model, params, buffers, x, y), buffers

    def one(params, buffers, state, averaged, x, y, lr):
        total, grads = 0.0, None
        for share, xs, ys in step.pieces(x, y, run.micro_batch or len(x)):
            part, (mean, buffers) = grad_and_value(loss, has_aux=True)(params, buffers, xs, ys)
            grads = {k: share * g + (grads[k] if grads else 0.0) for k, g in part.items()}
            total = total + share * mean
        if run.l1:
            grads = {k: g + run.l1 * params[k].sign() for k, g in grads.items()}
        params, state = run.optimizer.update(grads, state, params, lr)
        return total, params, buffers, state, step.average(run, averaged, params)

    if alone:
        return lambda *stack: _each(lambda t: t[None], one(*_each(lambda t: t[0], stack)))
    return vmap(one)


def try_step(run):
    """Take a step of two lanes on a few examples, for its errors: they say that ``run`` cannot be stacked."""
    model, _, _, parts = step.prepare(run)
    few = slice(0, min(run.batch_size, 8))
    x, y = (torch.stack([t[few]] * 2) for t in parts["train"])
    stack = _start([run, run], parts)
    stacked_step(run, model.train())(*stack, x, y, torch.full((2,), run.lr, dtype=step.dtype_of(run), device=x.device))


def _start(runs, parts):
    """What a stack begins with; the same seed gives the same weights, whatever the learning rate."""
    device, dtype = parts["train"][0].device, step.dtype_of(runs[0])
    built = {run.seed: models.build(run.model, run.seed).to(device, dtype) for run in runs}
    params = [dict(built[run.seed].named_parameters()) for run in runs]
    buffers = [dict(built[run.seed].named_buffers()) for run in runs]
    params, buffers = (
        {name: torch.stack([one[name].detach() for one in each]) for name in each[0]} for each in (params, buffers)
    )
    return [params, buffers, vmap(runs[0].optimizer.init)(params), params]


def _select(stack, places):
    """The lanes at ``places`` of a stack."""
    return _each(lambda tensor: tensor[list(places)], stack)


def _each(change, tree):
    """``change`` for every tensor of a tree: a list, tuple or dict of tensors, or of such."""
    if isinstance(tree, torch.Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {name: _each(change, branch) for name, branch in tree.items()}
    return [_each(change, branch) for branch in tree]


@torch.no_grad()
def measure(run, model, stack, parts):
    """Every metric of ``step.metrics(run)`` for each lane: a list of dicts, as ``step.measure_all`` returns for one."""
    _, buffers, _, averaged = stack
    lanes = len(next(iter(averaged.values())))
    model.eval()

    def one(params, buffers, x, y):
        outputs = functional_call(model, (params, buffers), (x,))
        loss = step.loss_of(run, outputs, y)
        right = (outputs.argmax(-1) == y).float().mean() if run.data.classes is not None else loss
        return torch.stack([loss, right.to(loss)])

    found = [{} for _ in range(lanes)]
    for part in run.evaluate:
        x, y = parts[part]
        size = min(step.MEASURED_AT_ONCE, max(1, EVALUATED_AT_ONCE // lanes))
        sums = torch.zeros(lanes, 2, dtype=torch.float64)
        for share, xs, ys in step.pieces(x, y, size):
            sums += share * vmap(one, in_dims=(0, 0, None, None))(averaged, buffers, xs, ys).cpu().double()
        for metrics, (loss, right) in zip(found, sums.tolist(), strict=True):
            metrics[f"{part}_loss"] = loss
            if run.data.classes is not None:
                metrics[f"{part}_accuracy"] = right
    return found


def bytes_of_a_lane(run):
    """About how many bytes one lane adds to a stack: weights, state and gradients, and a batch's activations.

    An estimate from above for the step itself: it counts every tensor that the backward pass of one lane keeps, twice.
    """
    model, params, buffers, parts = step.prepare(run)
    x, y = (t[: run.batch_size] for t in parts["train"])
    saved = [x.nbytes, y.nbytes]
    params = {name: p.requires_grad_() for name, p in params.items()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        step.mean_loss(run, model.train(), params, buffers, x, y)
    weights = sum(p.nbytes for p in params.values())
    states = 2 * len(run.optimizer.init(params)) + 6  # old and new of each moment, weights, gradients and averages
    return weights * states + 2 * sum(saved)

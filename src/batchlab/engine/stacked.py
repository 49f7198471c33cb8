"""Lanes: runs that differ in learning rate and seed only, trained as one stacked model.

``torch.func.vmap`` turns the step of one model into a step of all of them: every parameter gets a leading dimension
of lanes, and each lane has its own data order, initial weights and learning rate. A lane that diverges or reaches the
target leaves the stack.
"""

from time import perf_counter

import numpy as np
import torch
from torch.func import functional_call, grad_and_value, vmap

from batchlab.engine.plan import Lane, row
from batchlab.training import models, step

EVALUATED_AT_ONCE = 2**16  # examples times lanes, in one forward pass of an evaluation


def train(plan, runs, compiled=False):
    """Train the runs, which differ in lr and seed only, as one stack; return one ``Lane`` each, in their order.

    A lane's ``seconds`` are its share of the stack's. ``compiled`` puts the step through ``torch.compile``.
    """
    run = runs[0]
    model, _, _, parts = step.prepare(run)
    x, y = parts["train"]
    advance = stacked_step(run, model)
    if compiled:
        torch.compiler.reset()  # else code compiled for other models counts towards the limit of recompilations
        advance = torch.compile(advance)
    stack = _start(runs, parts)  # params, buffers, state, averaged: dicts of tensors (lanes, ...)
    rows, diverged, reached = [[] for _ in runs], [False] * len(runs), [False] * len(runs)
    seconds, losses = np.zeros(len(runs)), np.zeros(len(runs))  # losses: summed over the examples since the last row
    alive, last_row = list(range(len(runs))), 0

    def record(at, last, places, seen):
        chosen = [alive[p] for p in places]
        found = measure(run, model, _select(stack, places), parts)
        for lane, metrics in zip(chosen, found, strict=True):
            mean = losses[lane] / seen if seen else float("nan")
            rows[lane].append(row(runs[lane], plan, at, last, float(seconds[lane]), float(mean), metrics))
            reached[lane] = not diverged[lane] and step.meets(run.target, metrics)

    def leave():
        stays = [p for p, lane in enumerate(alive) if not diverged[lane] and not reached[lane]]
        if len(stays) == len(alive):
            return stack, alive
        return _select(stack, stays), [alive[p] for p in stays]

    record(0, None, range(len(alive)), 0)
    stack, alive = leave()
    for at, index in enumerate(step.batches(run, seed=tuple(r.seed for r in runs))):  # index (runs, b)
        if not alive:
            break
        began = perf_counter()
        model.train()
        batch = torch.from_numpy(index[alive]).to(x.device)
        lr = np.array([runs[lane].lr * plan.factors[at] for lane in alive])
        loss, *after = advance(*stack, x[batch], y[batch], torch.from_numpy(lr).to(x.device, step.dtype_of(run)))
        bad = step.has_diverged(loss, run.loss_bound)
        losses[alive] += loss.double().cpu().numpy() * index.shape[1]
        seconds[alive] += (perf_counter() - began) / len(alive)
        seen = int(plan.examples[at + 1] - plan.examples[last_row])
        if bad.any():  # no update is made from such a step: these lanes end as they were before it
            places = bad.nonzero().flatten().tolist()
            for p in places:
                diverged[alive[p]] = True
            record(at, at, places, seen)
        stack = after
        stack, alive = leave()
        if at + 1 in plan.stops and alive:
            record(at + 1, at, range(len(alive)), seen)
            losses[:], last_row = 0, at + 1
            stack, alive = leave()
    return [Lane(*lane) for lane in zip(rows, diverged, reached, strict=True)]


def stacked_step(run, model):
    """One step of a whole stack: (params, buffers, state, averaged, x, y, lr) -> (losses, and the first four anew).

    Every tensor has a leading dimension of lanes: x ``(lanes, b, ...)``, lr and losses ``(lanes,)``. Lane by lane
    it is the step of ``fit``.
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

    return vmap(one)


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


def _select(tree, places):
    """The lanes at ``places`` of a stack: a list or dict of tensors, or of such."""
    if isinstance(tree, torch.Tensor):
        return tree[list(places)]
    if isinstance(tree, dict):
        return {name: _select(branch, places) for name, branch in tree.items()}
    return [_select(branch, places) for branch in tree]


@torch.no_grad()
def measure(run, model, stack, parts):
    """Every metric of ``step.metrics(run)`` for each lane: a list of dicts, as ``step.measure_all`` returns for one."""
    _, buffers, _, averaged = stack
    lanes = len(next(iter(averaged.values())))
    model.eval()

    def one(params, buffers, x, y):
        outputs = functional_call(model, (params, buffers), (x,))
        right = (outputs.argmax(-1) == y).float().mean() if run.data.classes is not None else torch.zeros(())
        return step.loss_of(run, outputs, y).double(), right.double()

    found = [{} for _ in range(lanes)]
    for part in run.evaluate:
        x, y = parts[part]
        size = min(step.MEASURED_AT_ONCE, max(1, EVALUATED_AT_ONCE // lanes))
        sums = torch.zeros(2, lanes, dtype=torch.float64)
        for share, xs, ys in step.pieces(x, y, size):
            loss, right = vmap(one, in_dims=(0, 0, None, None))(averaged, buffers, xs, ys)
            sums += share * torch.stack([loss, right.expand(lanes)]).cpu()
        for metrics, loss, right in zip(found, *sums.tolist(), strict=True):
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

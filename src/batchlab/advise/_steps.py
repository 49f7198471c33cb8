"""The step that is measured, and what a loss must be for its batches to mean anything."""

import math

import numpy as np
import torch

from batchlab._check import fail
from batchlab.instruments._probe import check_loss, ignored, trained

MEAN = "a mean over the examples of a batch"
ODD = (
    "no sum of halves nor their mean: a contrastive or ranking loss, say. The noise of such a loss has no batch size: "
    "find its rate and batch by trial"
)


def take(problem, batch):
    """One training step, as a plain loop takes it; the loss before it."""
    problem.optimizer.zero_grad(set_to_none=True)
    value = problem.value(batch)
    check_loss(value)
    value.backward()
    problem.optimizer.step()
    return value.detach()


def batch_norms(model):
    """Names of layers that normalise by the statistics of the batch when they train."""
    kinds = torch.nn.modules.batchnorm._BatchNorm
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def refuse_bare_statistics(model):
    """Refuse batch normalisation that has no running statistics: its loss is a mean over no examples, in any mode."""
    for name in batch_norms(model):
        if model.get_submodule(name).running_mean is None:
            fail(f"model.{name}", "batch statistics in any mode", "track_running_stats=True, so that an example has a "
                 "loss of its own")  # fmt: skip


def dropouts(model):
    """Names of layers that drop units at random when they train."""
    kinds = torch.nn.modules.dropout._DropoutNd
    names = [name for name, module in model.named_modules() if isinstance(module, kinds) and module.p > 0]
    return names + [
        name for name, module in model.named_modules()
        if not isinstance(module, kinds) and isinstance(getattr(module, "dropout", 0), float) and module.dropout > 0
    ]  # fmt: skip


def tried(problem, batch):
    """Refuse a problem of which no step can be made: its loss no number, not finite, or free of the parameters."""
    value = problem.value(batch)
    check_loss(value)
    if not math.isfinite(float(value.detach())):
        fail("loss", float(value.detach()), "a finite number for the model as it is")
    parameters = trained(problem.model)
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    if all(g is None for g in found):
        ignored(value)
    if any(g is not None and not torch.isfinite(g).all() for g in found):
        fail("the gradient of the loss", "NaN or infinity", "finite numbers for the model as it is")


def kind_of_loss(problem, pool):
    """Look at the loss of parts and of their unions, in evaluation mode: "mean", "weighted" or "random".

    "weighted": each union lies between its parts as if each part had a weight of its own, the same beside every other:
    a mean over tokens, or with class weights. Raises ValueError for a sum, and for a loss that is neither.
    """
    size = min(8, pool.size // 3)
    if size == 0:
        return "mean"
    one, two, three = (np.arange(k * size, (k + 1) * size) for k in range(3))
    unions = [np.concatenate(pair) for pair in ((one, two), (two, three), (one, three))]
    flags = [(m, m.training) for m in problem.model.modules()]
    problem.model.eval()
    try:
        with torch.no_grad():
            batches = (problem.sent(pool.fetch(places)) for places in (one, two, three, *unions, unions[0]))
            values = [problem.value(batch) for batch in batches]
    finally:
        for module, training in flags:
            module.training = training
    a, b, c, ab, bc, ac, again = map(float, values)
    rounding = min(64 * torch.finfo(values[0].dtype).eps, 0.03) * (abs(a) + abs(b) + abs(c) + abs(ab)) + 1e-12

    def near(x, y):
        return abs(x - y) <= rounding

    if not near(ab, again):
        return "random"
    if near(ab, (a + b) / 2) and near(bc, (b + c) / 2):
        return "mean"
    if near(ab, a + b) and near(bc, b + c):
        fail("loss", f"{ab:.6g}, the sum of its two halves", f"{MEAN}: reduction='mean', or divide by the batch size")
    shares = [_share(*found, rounding) for found in ((a, b, ab), (b, c, bc), (a, c, ac))]
    if None not in shares:
        (first, e), (second, f), (whole, g) = shares
        if abs(first + second - whole) <= 0.002 + e + f + g:
            return "weighted"
    return fail("loss", f"{ab:.6g} where two halves have {a:.6g} and {b:.6g}", f"{MEAN}; it is {ODD}")


def _share(first, second, whole, rounding):
    """(log of the weight of the first part over that of the second, its error by rounding), None if there are none."""
    apart = first - second
    if abs(apart) <= 4 * rounding:
        return (0.0, math.inf) if abs(whole - first) <= 4 * rounding else None
    share = (whole - second) / apart
    if not 0 < share < 1:
        return None
    return math.log(share / (1 - share)), 2 * rounding / abs(apart) / (share * (1 - share))

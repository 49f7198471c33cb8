"""The step that is measured, and what a loss must be for its batches to mean anything."""

import math

import numpy as np
import torch

from batchlab._check import fail
from batchlab.instruments._probe import check_loss, ignored, trained
from batchlab.problem._trees import leaves

MEAN = "a mean over the examples of a batch"
ODD = (
    "no sum of halves nor their mean: a contrastive or ranking loss, class weights, or batch statistics without "
    "running ones. The noise of such a loss has no batch size; find its rate and batch by trial"
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
    """Look at the loss of two halves and of the whole, in evaluation mode: "mean", "tokens" or "random".

    "tokens": the halves average to the whole once each is weighted by how many tokens it has. Raises ValueError for a
    sum, and for a loss that is neither.
    """
    half = min(8, pool.size // 2)
    if half == 0:
        return "mean"
    batches = [pool.fetch(np.arange(start, stop)) for start, stop in ((0, half), (half, 2 * half), (0, 2 * half))]
    flags = [(m, m.training) for m in problem.model.modules()]
    problem.model.eval()
    try:
        with torch.no_grad():
            values = [problem.value(problem.sent(batch)) for batch in (*batches, batches[-1])]
    finally:
        for module, training in flags:
            module.training = training
    first, second, whole, again = map(float, values)
    rounding = min(64 * torch.finfo(values[0].dtype).eps, 0.03) * (abs(first) + abs(second) + abs(whole)) + 1e-12

    def near(a, b):
        return abs(a - b) <= rounding

    if not near(whole, again):
        return "random"
    if near(whole, (first + second) / 2):
        return "mean"
    if near(whole, first + second):
        fail(
            "loss", f"{whole:.6g}, the sum of its two halves", f"{MEAN}: reduction='mean', or divide by the batch size"
        )
    counts = [_tokens(batch) for batch in batches[:2]]
    if all(counts) and near(whole, (counts[0] * first + counts[1] * second) / sum(counts)):
        return "tokens"
    return fail("loss", f"{whole:.6g} where two halves have {first:.6g} and {second:.6g}", f"{MEAN}; it is {ODD}")


def _tokens(batch):
    """How many tokens count: targets that are not -100, or what a mask keeps; None where nothing says."""
    named = [(path.split(".")[-1].lower(), tensor) for path, tensor in leaves(batch)]
    for name, tensor in named:
        if name.startswith(("label", "target")) and tensor.ndim > 1:
            return int((tensor != -100).sum()) if (tensor == -100).any() else None
    masks = [tensor for name, tensor in named if "mask" in name and tensor.ndim > 1]
    return int((masks[0] != 0).sum()) if masks else None

"""What the instruments share: refuse a model or loss that cannot be measured, and put everything back
afterwards."""

from contextlib import contextmanager

import torch

from batchlab._check import fail


def first_odd(tensor):
    """The first NaN or infinity in ``tensor``, for an error message."""
    return tensor.detach()[~torch.isfinite(tensor)][0].item()


def check_batch(x, y):
    """Return the number of examples in the tensors ``x`` (N, ...) and ``y`` (N, ...); refuse empty or odd
    ones."""
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, torch.Tensor):
            fail(name, type(value).__name__, "a torch.Tensor whose first axis counts examples")
        if value.ndim == 0 or value.shape[0] == 0:
            fail(f"{name}.shape", tuple(value.shape), "at least one example on the first axis")
        if value.is_floating_point() and not torch.isfinite(value).all():
            fail(name, first_odd(value), "finite numbers only (no NaN, no infinity)")
    if len(x) != len(y):
        fail("len(y)", len(y), f"as many examples as x has, {len(x)}")
    return len(x)


def check_model(model, loss):
    """Refuse what is no ``torch.nn.Module`` with trainable, finite parameters, and a ``loss`` that cannot
    be called."""
    if not isinstance(model, torch.nn.Module):
        fail("model", type(model).__name__, "a torch.nn.Module")
    if not callable(loss):
        fail("loss", loss, "a callable: loss(model(x), y) -> the mean over the examples")
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trained:
        fail("model", type(model).__name__, "a module with at least one parameter that requires a gradient")
    for name, p in trained:
        if not torch.isfinite(p).all():
            fail(f"model.{name}", first_odd(p), "finite numbers only (no NaN, no infinity)")


def check_deterministic(model):
    """Refuse layers that make one example's loss random, or dependent on the other examples of its batch."""
    for name, module in model.named_modules():
        where, kind = f"model.{name}" if name else "model", type(module).__name__
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            # Without running statistics the layer normalises by the batch even in evaluation mode.
            if module.training or module.running_mean is None:
                fail(
                    where,
                    kind,
                    "no batch statistics: they tie the examples together; call model.eval() first",
                )
        elif isinstance(module, torch.nn.modules.dropout._DropoutNd):
            if module.training and module.p > 0:
                fail(where, kind, "no dropout: the loss is random; call model.eval() first")
        elif module.training and (isinstance(getattr(module, "dropout", 0), float) and module.dropout > 0):
            fail(
                where,
                kind,
                f"no dropout (here {module.dropout}): the loss is random; call model.eval() first",
            )


def check_mean_loss(value, x, y):
    """Refuse a loss that is not a mean over examples: ``value(x, y)`` of two halves must average to the
    whole.

    At most 16 examples are looked at. A sum fails, and so do a class-weighted mean, examples that depend on
    one another, and a loss that is random. A loss of exactly zero everywhere tells nothing and passes.
    """
    n = min(len(x), 16)
    cut = n // 2
    # One example alone is set beside itself: the mean of the pair must be its own loss.
    (xa, ya), (xb, yb) = ((x[:cut], y[:cut]), (x[cut:n], y[cut:n])) if n > 1 else ((x, y), (x, y))
    with torch.no_grad():
        whole = value(torch.cat([xa, xb]), torch.cat([ya, yb]))
        if not isinstance(whole, torch.Tensor) or whole.ndim != 0:
            got = tuple(whole.shape) if isinstance(whole, torch.Tensor) else type(whole).__name__
            fail("loss", got, "a tensor of shape (), the mean over the examples")
        halves = (len(xa) * value(xa, ya) + len(xb) * value(xb, yb)) / (len(xa) + len(xb))
    eps = torch.finfo(whole.dtype).eps
    whole, halves = float(whole), float(halves)
    if abs(whole - halves) > eps**0.5 * (abs(whole) + abs(halves)) + eps:
        fail(
            "loss",
            whole,
            f"{halves:.6g}, what its two halves average to: a mean over examples that are independent of one"
            " another (no sum, no class weights, nothing random)",
        )


def synchronise(device):
    """Wait until ``device`` has done what it was asked; nothing to wait for on a CPU."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def device_of(model):
    """The device of the first parameter of ``model``."""
    return next(model.parameters()).device


@contextmanager
def preserved(model, optimiser):
    """Run a block that may train ``model``; afterwards every value is what it was before, bit for bit.

    Kept: parameters, buffers, gradients, training flags, the optimiser's state and settings, and torch's
    random generators (CPU and the model's device). The copies wait on the CPU, so that they take no device
    memory.
    """
    device = device_of(model)
    flags = [(m, m.training) for m in model.modules()]
    tensors = [*model.parameters(), *model.buffers()]
    saved = [t.detach().to("cpu", copy=True) for t in tensors]
    grads = [None if p.grad is None else p.grad.detach().to("cpu", copy=True) for p in model.parameters()]
    state = {
        p: {k: (v, v.detach().to("cpu", copy=True) if isinstance(v, torch.Tensor) else v) for k, v in s.items()}
        for p, s in optimiser.state.items()
    }
    groups = [dict(group) for group in optimiser.param_groups]
    rng = torch.get_rng_state()
    device_rng = getattr(torch, device.type).get_rng_state() if device.type in ("cuda", "mps") else None
    try:
        yield
    finally:
        with torch.no_grad():
            for t, before in zip(tensors, saved, strict=True):
                t.copy_(before)
            for p, before in zip(model.parameters(), grads, strict=True):
                p.grad = None if before is None else before.to(p.device)
            optimiser.state.clear()
            for p, s in state.items():
                # The same tensor objects, written in place: putting back must not need memory that may be
                # short.
                for v, before in s.values():
                    if isinstance(v, torch.Tensor):
                        v.copy_(before)
                optimiser.state[p] = {k: v for k, (v, _) in s.items()}
        for group, before in zip(optimiser.param_groups, groups, strict=True):
            group.clear()
            group.update(before)
        for m, training in flags:
            m.training = training
        torch.set_rng_state(rng)
        if device_rng is not None:
            getattr(torch, device.type).set_rng_state(device_rng)

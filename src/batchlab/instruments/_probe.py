"""What the instruments share: refuse a model or loss that cannot be measured, and put everything back afterwards."""

from contextlib import contextmanager

import torch

from batchlab._check import fail


def first_odd(tensor):
    """The first NaN or infinity in ``tensor``, for an error message."""
    return tensor.detach()[~torch.isfinite(tensor)][0].item()


def _check_tensor(name, tensor):
    """Refuse what torch cannot differentiate, or cannot look into."""
    if torch.is_inference_mode_enabled():
        fail("torch.is_inference_mode_enabled()", True, "False: inside torch.inference_mode() there are no gradients")
    if torch.nn.parameter.is_lazy(tensor):
        fail(name, "an uninitialised parameter", "a model that has seen a batch")
    if tensor.is_inference():
        fail(name, "an inference tensor", "a tensor made outside torch.inference_mode()")
    if tensor.is_meta:
        fail(f"{name}.device", "meta", "a device that holds numbers")
    if tensor.layout != torch.strided:
        fail(f"{name}.layout", str(tensor.layout), "a dense tensor")
    if (tensor.is_floating_point() or tensor.is_complex()) and not torch.isfinite(tensor).all():
        fail(name, first_odd(tensor), "finite numbers only (no NaN, no infinity)")


def check_batch(x, y):
    """Return the number of examples in the tensors ``x`` (N, ...) and ``y`` (N, ...); refuse empty or odd ones."""
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, torch.Tensor):
            fail(name, type(value).__name__, "a torch.Tensor whose first axis counts examples")
        if value.ndim == 0 or value.shape[0] == 0:
            fail(f"{name}.shape", tuple(value.shape), "at least one example on the first axis")
        _check_tensor(name, value)
    if len(x) != len(y):
        fail("len(y)", len(y), f"as many examples as x has, {len(x)}")
    return len(x)


def made(make_batch, batch_size):
    """The (x, y) that ``make_batch(batch_size)`` returns, if it has that many examples."""
    x, y = make_batch(batch_size)
    if check_batch(x, y) != batch_size:
        fail("make_batch", len(x), f"a batch of {batch_size} examples")
    return x, y


def check_model(model, loss):
    """Refuse what is no ``torch.nn.Module`` with trainable, finite parameters, and a ``loss`` that cannot be called."""
    if not isinstance(model, torch.nn.Module):
        fail("model", type(model).__name__, "a torch.nn.Module")
    if not callable(loss):
        fail("loss", loss, "a callable: loss(model(x), y) -> the mean over the examples")
    if not trained(model):
        fail("model", type(model).__name__, "a module with at least one parameter that requires a gradient")
    devices = sorted({str(p.device) for p in model.parameters()})
    if len(devices) > 1:
        fail("model", f"parameters on {' and '.join(devices)}", "parameters on one device")
    for name, p in model.named_parameters():
        if p.requires_grad:
            _check_tensor(f"model.{name}", p)


def check_optimizer(optimizer):
    """Refuse what is no ``torch.optim.Optimizer``."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        fail("optimizer", type(optimizer).__name__, "a torch.optim.Optimizer")


def trained(model):
    """The parameters that require a gradient."""
    return [p for p in model.parameters() if p.requires_grad]


def check_independent(model):
    """Refuse layers that make one example's loss random, dependent on the other examples, or without a dense gradient.

    And complex parameters, whose gradients are no vectors of real numbers.
    """
    for name, p in model.named_parameters():
        if p.requires_grad and not p.is_floating_point():
            fail(f"model.{name}", str(p.dtype), "real parameters")
    for name, module in model.named_modules():
        where, kind = f"model.{name}" if name else "model", type(module).__name__
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            # Without running statistics the layer normalises by the batch even in evaluation mode.
            if module.training or module.running_mean is None:
                fail(where, kind, "no batch statistics: they tie the examples together; call model.eval() first")
        elif isinstance(module, torch.nn.modules.dropout._DropoutNd):
            if module.training and module.p > 0:
                fail(where, kind, "no dropout: the loss is random; call model.eval() first")
        elif module.training and (isinstance(getattr(module, "dropout", 0), float) and module.dropout > 0):
            fail(where, kind, f"no dropout (here {module.dropout}): the loss is random; call model.eval() first")
        elif isinstance(module, (torch.nn.Embedding, torch.nn.EmbeddingBag)) and module.sparse:
            fail(where, kind, "dense gradients: sparse=False")


def check_loss(value):
    """Refuse a loss that is no number, or that no backward pass can start from."""
    if not isinstance(value, torch.Tensor) or value.ndim != 0:
        got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        fail("loss", got, "a tensor of shape (), the mean over the examples")
    if not value.is_floating_point():
        fail("loss", str(value.dtype), "a real floating-point number")
    if not torch.is_grad_enabled():
        fail("torch.is_grad_enabled()", False, "True: a step needs gradients")
    if not value.requires_grad:
        ignored(value)


def ignored(value):
    """Raise the error for a loss that no parameter has a part in."""
    fail("loss", value.item(), "a loss that depends on the model's parameters")


def gradient(value, parameters):
    """The gradients of a loss by the ``parameters``, zeros for those it ignores; a loss that ignores all is refused."""
    check_loss(value)
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    if all(g is None for g in found):
        ignored(value)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def check_mean_loss(value, x, y):
    """Refuse a loss that is not a mean over examples: ``value(x, y)`` of two halves must average to the whole.

    At most 16 examples are looked at. A sum fails, and so do a class-weighted mean, examples that depend on one
    another, and a loss that is random. A loss of exactly zero everywhere tells nothing and passes.
    """
    n = min(len(x), 16)
    cut = n // 2
    # One example alone is set beside itself: the mean of the pair must be its own loss.
    (xa, ya), (xb, yb) = ((x[:cut], y[:cut]), (x[cut:n], y[cut:n])) if n > 1 else ((x, y), (x, y))
    with torch.no_grad():
        whole = value(torch.cat([xa, xb]), torch.cat([ya, yb]))
        halves = (len(xa) * value(xa, ya) + len(xb) * value(xb, yb)) / (len(xa) + len(xb))
    eps = torch.finfo(whole.dtype).eps
    whole, halves = float(whole), float(halves)
    if abs(whole - halves) > eps**0.5 * (abs(whole) + abs(halves)) + eps:
        what = "a mean over examples that are independent of one another (no sum, no class weights, nothing random)"
        fail("loss", whole, f"{halves:.6g}, what its two halves average to: {what}")


def pieces(x, y, size):
    """Yield (share, xs, ys): the batch in pieces of ``size`` examples, the last maybe smaller, with their shares."""
    for xs, ys in zip(x.split(size), y.split(size), strict=True):
        yield len(xs) / len(x), xs, ys


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
def preserved(model, optimizer):
    """Run a block that may train ``model``, gradients on; afterwards every value is what it was before, bit for bit.

    Kept: parameters, buffers, gradients, training flags, the optimiser's state and settings, and torch's random
    generators (CPU and the model's device). The copies wait on the CPU, so that they take no device memory.
    """
    device = device_of(model)
    flags = [(m, m.training) for m in model.modules()]
    tensors = [*model.parameters(), *model.buffers()]
    saved = [t.detach().to("cpu", copy=True) for t in tensors]
    grads = [None if p.grad is None else p.grad.detach().to("cpu", copy=True) for p in model.parameters()]
    state = {
        p: {k: (v, v.detach().to("cpu", copy=True) if isinstance(v, torch.Tensor) else v) for k, v in s.items()}
        for p, s in optimizer.state.items()
    }
    groups = [dict(group) for group in optimizer.param_groups]
    generators = torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type)
    with generators, torch.enable_grad():
        try:
            yield
        finally:
            with torch.no_grad():
                for t, before in zip(tensors, saved, strict=True):
                    t.copy_(before)
                for p, before in zip(model.parameters(), grads, strict=True):
                    p.grad = None if before is None else before.to(p.device)
                optimizer.state.clear()
                for p, s in state.items():
                    # The same tensor objects, written in place: putting back must not need memory that may be short.
                    for v, before in s.values():
                        if isinstance(v, torch.Tensor):
                            v.copy_(before)
                    optimizer.state[p] = {k: v for k, (v, _) in s.items()}
            for group, before in zip(optimizer.param_groups, groups, strict=True):
                group.clear()
                group.update(before)
            for m, training in flags:
                m.training = training

"""The loss as a function of the parameters as one vector: its gradients, example by example, and Hessian products."""

import math

import numpy as np
import torch
from torch.func import functional_call, grad, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from batchlab._check import fail, number
from batchlab._seeds import generator
from batchlab.instruments._probe import (
    check_batch,
    check_independent,
    check_mean_loss,
    check_model,
    device_of,
    first_odd,
    gradient,
)

AT_ONCE = 1024  # examples whose gradients are held at once, where memory allows more


def wide(device):
    """float64, or the widest type that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64


def cast(tensor, dtype):
    """A tensor without its history, its floats in ``dtype`` (None: as they are)."""
    tensor = tensor.detach()
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def flat(model, loss, dtype=None):
    """(f, w) with f(w, x, y) the loss of the model at the flat parameters w (P,); nothing of the model is changed.

    w holds the parameters that require a gradient, in the order of ``model.named_parameters()``, in ``dtype``.
    """
    trained = {name: cast(p, dtype) for name, p in model.named_parameters() if p.requires_grad}
    held = {n: cast(t, dtype) for n, t in [*model.named_parameters(), *model.named_buffers()] if n not in trained}
    w = torch.cat([p.reshape(-1) for p in trained.values()])
    sizes, shapes = [p.numel() for p in trained.values()], [p.shape for p in trained.values()]

    def objective(w, x, y):
        parts = {n: part.view(s) for n, part, s in zip(trained, w.split(sizes), shapes, strict=True)}
        # Fused attention kernels have no second derivative and no vmap; the plain one computes the same function.
        with sdpa_kernel(SDPBackend.MATH):
            return loss(functional_call(model, {**parts, **held}, (x,)), y)

    return objective, w


def checked(model, loss, x, y, widest=False):
    """(f, w, x, y), see ``flat``, once model, data and loss have shown that they can be measured.

    ``widest``: all of them in float64, or what the device has.
    """
    check_model(model, loss)
    check_batch(x, y)
    check_independent(model)
    dtype = wide(device_of(model)) if widest else None
    objective, w = flat(model, loss, dtype)
    x, y = cast(x, dtype), cast(y, dtype)
    with torch.enable_grad():
        v = w.clone().requires_grad_()
        gradient(objective(v, x[:2], y[:2]), [v])
    check_mean_loss(lambda xb, yb: objective(w, xb, yb), x, y)
    return objective, w, x, y


def at_once(w, memory):
    """How many gradients fit in half of ``memory``; the other half is for what computes them."""
    one = 2 * w.numel() * w.element_size()
    if number("memory", memory, above=0) < one:
        fail("memory", memory, f"at least {one} bytes, for one gradient of {w.numel()} parameters and its workings")
    return int(memory // one)


def at_least_single(g):
    """Half-precision gradients as float32: sums of their squares need the digits."""
    return g.to(torch.promote_types(g.dtype, torch.float32))


def gradients(objective, w, x, y, memory):
    """Yield (start, g) with g (n, P) the gradients of the examples from ``start`` on, a chunk at a time."""
    together = min(at_once(w, memory), AT_ONCE)
    each = vmap(grad(lambda w, x, y: objective(w, x[None], y[None])), (None, 0, 0))
    for start in range(0, len(x), together):
        g = at_least_single(each(w, x[start : start + together], y[start : start + together]).detach())
        if not torch.isfinite(g.sum()) and not torch.isfinite(g).all():  # the sum is one cheap pass
            row = int((~torch.isfinite(g)).any(1).nonzero()[0, 0])
            fail(f"the gradient of example {start + row}", first_odd(g[row]), "finite numbers only")
        yield start, g


def hessian_product(objective, w, x, y):
    """The function v (P,) -> H v (P,), H the Hessian of the loss of this batch at w; its graph is built once.

    Reverse mode over reverse mode: forward over reverse is no faster, and still fails inside torch for mse_loss.
    """
    pull = vjp(grad(lambda u: objective(u, x, y)), w)[1]

    def product(v):
        found = pull(v)[0].detach()
        if not torch.isfinite(found).all():
            fail("H v", first_odd(found), "finite numbers only: the loss has no second derivative here")
        return found

    return product


def products(objective, w, x, y, vectors, seed):
    """H v for each row v of ``vectors`` (k, P), H the Hessian of the mean loss; and v'Hv for pieces of the data."""
    out, forms, n = torch.zeros_like(vectors), [], len(x)
    order = generator(seed, "pieces").permutation(n)
    for piece in np.array_split(order, max(min(16, n // 2), math.ceil(n / (2 * AT_ONCE)))):
        index = torch.from_numpy(np.sort(piece)).to(x.device)
        product = hessian_product(objective, w, x[index], y[index])
        found = torch.stack([product(v.to(w.dtype)) for v in vectors]).to(vectors.dtype)
        forms.append((found * vectors).sum(1))
        out += len(piece) / n * found
    return out, torch.stack(forms).cpu().numpy()

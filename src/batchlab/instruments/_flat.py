"""Gradients of single examples, and Hessian-vector products, as functions of flat parameters."""

import math

import numpy as np
import torch

from batchlab._check import fail, number
from batchlab.instruments._probe import check_batch, check_deterministic, check_mean_loss, check_model, first_odd

AT_ONCE = 1024  # examples whose gradients are held at once, where memory allows more


def flat(model, loss):
    """(f, w) with f(w, x, y) the loss of the model at the flat parameters w; nothing of the model is changed."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    held = {n: t.detach() for n, t in [*model.named_parameters(), *model.named_buffers()] if n not in trained}
    w = torch.cat([p.reshape(-1) for p in trained.values()])
    sizes, shapes = [p.numel() for p in trained.values()], [p.shape for p in trained.values()]

    def objective(w, x, y):
        parts = {n: part.view(s) for n, part, s in zip(trained, w.split(sizes), shapes, strict=True)}
        return loss(torch.func.functional_call(model, {**parts, **held}, (x,)), y)

    return objective, w


def checked(model, loss, x, y):
    check_model(model, loss)
    check_batch(x, y)
    check_deterministic(model)
    objective, w = flat(model, loss)
    check_mean_loss(lambda xb, yb: objective(w, xb, yb), x, y)
    return objective, w


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
    gradient = torch.func.vmap(torch.func.grad(lambda w, x, y: objective(w, x[None], y[None])), (None, 0, 0))
    for start in range(0, len(x), together):
        g = at_least_single(gradient(w, x[start : start + together], y[start : start + together]).detach())
        if not torch.isfinite(g.sum()) and not torch.isfinite(g).all():  # the sum is one cheap pass
            row = int((~torch.isfinite(g)).any(1).nonzero()[0, 0])
            fail(f"the gradient of example {start + row}", first_odd(g[row]), "finite numbers only")
        yield start, g


def products(objective, w, x, y, vectors, seed):
    """H v for each row v of ``vectors`` (k, P), H the Hessian of the mean loss; and v'Hv for pieces of the data."""
    out, forms, n = torch.zeros_like(vectors), [], len(x)
    order = np.random.default_rng(np.random.SeedSequence([seed, 1])).permutation(n)
    for piece in np.array_split(order, max(min(16, n // 2), math.ceil(n / (2 * AT_ONCE)))):
        index = torch.from_numpy(np.sort(piece)).to(x.device)
        xb, yb = x[index], y[index]
        pull = torch.func.vjp(torch.func.grad(lambda u: objective(u, xb, yb)), w)[1]  # noqa: B023
        found = torch.stack([pull(v.to(w.dtype))[0].detach() for v in vectors]).to(vectors.dtype)
        forms.append((found * vectors).sum(1))
        out += len(piece) / n * found
    if not torch.isfinite(out).all():
        fail("H v", first_odd(out), "finite numbers only: the loss has no second derivative here")
    return out, torch.stack(forms).cpu().numpy()

"""The gradients of single examples and of batches, and what a batch's gradient points at."""

import math

import numpy as np
import torch
from torch.func import grad, vmap

from batchlab._check import count, fail, one_of
from batchlab._seeds import generator
from batchlab.instruments._flat import AT_ONCE, at_once, checked, gradients
from batchlab.instruments._probe import first_odd
from batchlab.stats import Interval, mean_interval


def per_example_gradients(model, loss, x, y, memory=2**28):
    """Return the gradient of each example's own loss, a tensor (N, P) on the model's device.

    ``loss(model(x), y)`` is a mean over examples; ``x`` (N, ...), ``y`` (N, ...). ``memory`` in bytes bounds what is
    held besides the result (and besides activations). ``noise_scale`` does not need this matrix.

    Raises ValueError for empty data, a loss that is not a mean over independent examples, a model on batch statistics
    or with dropout on, gradients that are not finite, and a ``memory`` too small for one gradient.

    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> mse = torch.nn.functional.mse_loss
    >>> per_example_gradients(model, mse, torch.tensor([[1.0, 2.0], [4.0, 1.0]]), torch.tensor([[1.0], [3.0]]))
    tensor([[ -2.,  -4.],
            [-24.,  -6.]])
    """
    objective, w, x, y = checked(model, loss, x, y)
    out = w.new_empty(len(x), len(w))
    for start, g in gradients(objective, w, x, y, memory):
        out[start : start + len(g)] = g
    return out


def batch_gradients(model, loss, x, y, batch_size, draws, seed=0, replacement=True, memory=2**28):
    """Return the gradients of ``draws`` batches drawn from the N examples at random, a tensor (draws, P).

    With ``replacement`` every example of a batch is an independent draw; without, a batch holds no example twice, and
    each is drawn anew from all N. Raises ValueError as ``per_example_gradients`` does, and for a batch larger than N
    without replacement.

    >>> model = torch.nn.Linear(2, 1)
    >>> x, y = torch.randn(10, 2), torch.randn(10, 1)
    >>> g = batch_gradients(model, torch.nn.functional.mse_loss, x, y, batch_size=10, draws=2, replacement=False)
    >>> bool(torch.allclose(g[0], g[1], atol=1e-6))
    True
    """
    objective, w, x, y = checked(model, loss, x, y)
    one_of("replacement", replacement, (True, False))
    batch_size = count("batch_size", batch_size, at_most=None if replacement else len(x))
    draws = count("draws", draws)
    random = generator(seed, "batches")
    together = max(1, min(at_once(w, memory), AT_ONCE * 4 // batch_size))
    gradient = vmap(grad(objective), (None, 0, 0))
    out = w.new_empty(draws, len(w))
    for start in range(0, draws, together):
        rows = min(together, draws - start)
        if replacement:
            index = random.integers(0, len(x), (rows, batch_size))
        else:
            index = np.stack([random.permutation(len(x))[:batch_size] for _ in range(rows)])
        index = torch.from_numpy(index).to(x.device)
        out[start : start + rows] = gradient(w, x[index], y[index]).detach()
    if not torch.isfinite(out).all():
        fail("the gradient of a batch", first_odd(out), "finite numbers only (no NaN, no infinity)")
    return out


def cosine_to_full(model, loss, x, y, batch_size, draws=200, seed=0, replacement=True, memory=2**28):
    """Return the mean cosine between a batch's gradient and the gradient of all N examples, an ``Interval``.

    About (1 + B_simple / batch_size)^(-1/2), see ``theory.gradient_cosine``. The interval is Student's, over the draws.
    NaN where a gradient is zero. Arguments and errors as for ``batch_gradients``; at least 2 draws.

    >>> model = torch.nn.Linear(2, 1)
    >>> x, y = torch.randn(10, 2), torch.randn(10, 1)
    >>> full = cosine_to_full(model, torch.nn.functional.mse_loss, x, y, batch_size=10, draws=4, replacement=False)
    >>> round(full.estimate, 5)
    1.0
    """
    count("draws", draws, at_least=2)
    g = batch_gradients(model, loss, x, y, batch_size, draws, seed, replacement, memory)
    objective, w, x, y = checked(model, loss, x, y)
    full = sum(part.sum(0).cpu().double() for _, part in gradients(objective, w, x, y, memory))
    g = g.cpu().double()
    cosine = (g @ full / (g.norm(dim=1) * full.norm())).numpy()
    return mean_interval(cosine) if np.isfinite(cosine).all() else Interval(math.nan, math.nan, math.nan)

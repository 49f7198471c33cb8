"""The loss of all the data as one function of w: its value, its gradient and its Hessian products."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.func import grad_and_value

from batchlab._check import count, fail
from batchlab.instruments._flat import checked, hessian_product
from batchlab.instruments._probe import pieces


@dataclass(frozen=True)
class Objective:
    """L at the flat parameters ``w`` (P,); tensors in the widest type of the model's device."""

    w: torch.Tensor
    loss: float  # at w
    gradient: Callable  # w -> (L, its gradient (P,))
    product: Callable  # v (P,) -> H v (P,) at w


def objective(model, loss, x, y, micro_batch):
    """The ``Objective`` of a model and its data, computed ``micro_batch`` examples at a time."""
    f, w, x, y = checked(model, loss, x, y, widest=True)
    parts = list(pieces(x, y, count("micro_batch", micro_batch)))

    def gradient(w):
        total, slope = 0.0, torch.zeros_like(w)
        for share, xs, ys in parts:
            g, v = grad_and_value(f)(w, xs, ys)
            total, slope = total + share * float(v), slope + share * g.detach()
        return total, slope

    # One piece fits in memory by the caller's word, so its graph is built once and used for every product.
    kept = hessian_product(f, w, x, y) if len(parts) == 1 else None

    def product(v):
        return sum(share * (kept or hessian_product(f, w, xs, ys))(v) for share, xs, ys in parts)

    with torch.no_grad():
        start = float(sum(share * f(w, xs, ys) for share, xs, ys in parts))
    if not np.isfinite(start):
        fail("loss", start, "a finite number at the model's parameters")
    return Objective(w, start, gradient, product)

"""The loss away from w: the worst point of a small box, and the straight line between two solutions."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from scipy import optimize

from batchlab._check import array, count, fail, number, one_of
from batchlab._seeds import generator
from batchlab.instruments._flat import wide
from batchlab.instruments._probe import check_independent, check_model, device_of
from batchlab.instruments.curvature._objective import objective


@dataclass(frozen=True)
class Sharpness:
    """How much the loss can grow inside a box around w.

    ``value`` (see ``sharpness`` for its definition and unit), ``loss`` at the centre and ``worst``, the highest loss
    found in the box.
    """

    value: float
    loss: float
    worst: float


@dataclass(frozen=True)
class Line:
    """The loss on the straight line between two solutions: ``at`` (k,), 0 the first and 1 the second; ``loss`` (k,)."""

    at: np.ndarray
    loss: np.ndarray


def sharpness(model, loss, x, y, *, kind="keskar", radius=1e-3, iterations=10, starts=3, seed=0, micro_batch=1024):
    """How far the loss can rise in a small box around the parameters w, as a ``Sharpness``.

    ``kind="keskar"``: 100 (max L(w + d) - L(w)) / (1 + L(w)), in percent, over |d_i| <= radius (|w_i| + 1): the
    sharpness of Keskar et al. (2017) in the full space, not in a random subspace. It changes when layers are rescaled
    without changing the function (Dinh et al., 2017).

    ``kind="adaptive"``: max L(w + d) - L(w), in units of the loss, over |d_i| <= radius |w_i|: the adaptive sharpness
    of Kwon et al. (2021) with the elementwise operator T_w = diag(|w|) and the maximum norm. Rescaling weights without
    changing the function leaves it as it is.

    The maximum is sought by ``iterations`` iterations of L-BFGS-B from w and from ``starts`` random points of the box
    (at an exact minimum w itself is stationary). What comes back was reached by some point of the box: a lower bound of
    the true maximum, never below zero. On ten weights, against all corners of the box, 3 starts fell 12% short and 100
    starts found it.

    Raises as ``hessian_vector`` does; and a negative loss is refused for "keskar", whose denominator assumes none.

    >>> line = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.ones_(line.weight)
    >>> x = y = torch.ones(1, 1)                        # L(w) = (w - 1)^2 at its minimum
    >>> round(sharpness(line, torch.nn.functional.mse_loss, x, y, radius=0.1).value, 9)     # 100 (0.1 * 2)^2
    4.0
    >>> round(sharpness(line, torch.nn.functional.mse_loss, x, y, radius=0.1, kind="adaptive").value, 9)
    0.01
    """
    one_of("kind", kind, ["keskar", "adaptive"])
    number("radius", radius, above=0)
    count("iterations", iterations)
    count("starts", starts, at_least=0)
    here = objective(model, loss, x, y, micro_batch)
    w, centre = here.w, here.loss
    if kind == "keskar" and centre < 0:
        fail("loss", centre, "a loss of at least 0 for kind='keskar'")
    half = radius * (w.abs() + 1 if kind == "keskar" else w.abs())
    worst = centre

    def downhill(u, scale):
        """Minus the loss and its slope at w + u * half, divided by ``scale``; remembers the highest loss seen."""
        nonlocal worst
        value, slope = here.gradient(w + torch.from_numpy(np.array(u)).to(w) * half)
        worst = max(worst, value) if np.isfinite(value) else np.nan
        return -(value - centre) / scale, -(slope * half).double().cpu().numpy() / scale

    rng = generator(seed, "box")
    for start in [np.zeros(len(w)), *rng.uniform(-1, 1, size=(starts, len(w)))]:
        # Box coordinates u in [-1, 1] make the search itself blind to the scale of the weights; slopes of order one let
        # its first step reach across the box however small the radius.
        scale = np.abs(downhill(start, 1.0)[1]).mean()
        if scale > 0:
            settings = {"maxiter": iterations, "gtol": 0.0, "ftol": 1e-12}
            bounds = optimize.Bounds(-np.ones(len(w)), np.ones(len(w)))
            optimize.minimize(downhill, start, (scale,), "L-BFGS-B", jac=True, bounds=bounds, options=settings)
        if not np.isfinite(worst):
            fail("radius", radius, "a box in which the loss is finite")
    rise = worst - centre
    return Sharpness(100 * rise / (1 + centre) if kind == "keskar" else rise, centre, worst)


def loss_along_line(first, second, loss, x, y, *, at=None, micro_batch=1024):
    """The loss at (1 - t) w_first + t w_second for every t in ``at`` (default: 25 points from 0 to 1), as a ``Line``.

    A straight cut between two solutions of one architecture (Goodfellow, Vinyals and Saxe, 2015). All parameters and
    floating-point buffers are interpolated. A rise in between says that this line leaves the low region, not that no
    path stays in it.

    Raises as ``hessian_vector`` does, and ValueError if the two models' names or shapes differ.

    >>> a, b = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.zeros_(a.weight), torch.nn.init.constant_(b.weight, 2.0)
    >>> x = y = torch.ones(1, 1)
    >>> loss_along_line(a, b, torch.nn.functional.mse_loss, x, y, at=[0, 0.5, 1]).loss  # (w - 1)^2
    array([1., 0., 1.])
    """
    at = np.linspace(0, 1, 25) if at is None else array("at", at, ndim=1)
    ends = []
    for model in (first, second):
        check_model(model, loss)
        check_independent(model)
        ends.append({**dict(model.named_parameters()), **dict(model.named_buffers())})
    a, b = ends
    shapes = [{name: tuple(t.shape) for name, t in end.items()} for end in ends]
    if shapes[0] != shapes[1]:
        fail("second", shapes[1], f"the names and shapes of first, {shapes[0]}")
    middle, losses = copy.deepcopy(first).to(wide(device_of(first))), []
    slots = {**dict(middle.named_parameters()), **dict(middle.named_buffers())}
    for t in at:
        with torch.no_grad():
            for name, slot in slots.items():
                if slot.is_floating_point():
                    slot.copy_((1 - t) * a[name].to(slot) + t * b[name].to(slot))
        losses.append(objective(middle, loss, x, y, micro_batch).loss)
    return Line(at, np.array(losses))

"""Curvature of the training loss: Hessian-vector products, spectrum, trace, sharpness, loss along a line.

Everywhere the loss is L(w) = (1/N) sum_i loss(model(x_i), y_i), a mean over N examples, and w (P,) holds the
parameters that require a gradient, flattened in the order of ``model.named_parameters()``. All is computed in
float64 (float32 on MPS, which has no float64), ``micro_batch`` examples at a time, on the model's own device;
the model itself is never changed. Dropout and batch statistics must be off (``model.eval()``).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import optimize, stats
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch.nn.attention import SDPBackend, sdpa_kernel

from batchlab._check import array, count, fail, number, one_of
from batchlab.instruments._probe import check_batch, check_deterministic, check_mean_loss, check_model, first_odd

DENSE = 2048  # the largest number of parameters for which the whole Hessian is ever written down


@dataclass(frozen=True)
class Spectrum:
    """The largest eigenvalues of a Hessian.

    ``values`` (k,) in descending order; ``vectors`` (P, k), one unit eigenvector a column; ``residuals``
    (k,), the norms |Hv - lambda v|, each a bound on the distance from its value to an eigenvalue of H.
    """

    values: np.ndarray
    vectors: np.ndarray
    residuals: np.ndarray


@dataclass(frozen=True)
class Trace:
    """An unbiased estimate of a trace with a 95% interval; ``products`` matrix-vector products were spent."""

    value: float
    low: float
    high: float
    products: int


@dataclass(frozen=True)
class Sharpness:
    """How much the loss can grow inside a box around w: ``value`` (see ``sharpness`` for its definition and
    unit),
    ``loss`` at the centre and ``worst``, the highest loss found in the box."""

    value: float
    loss: float
    worst: float


@dataclass(frozen=True)
class Line:
    """The loss on the straight line between two solutions: ``at`` (k,) positions, 0 = first, 1 = second;
    ``loss`` (k,)."""

    at: np.ndarray
    loss: np.ndarray


@dataclass(frozen=True)
class _Objective:
    w: torch.Tensor  # (P,)
    loss: float  # at w
    gradient: Callable  # w -> (float, (P,) tensor)
    product: Callable  # v -> (P,) tensor, H(w) v


def _wide(tensor):
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _objective(model, loss, x, y, micro_batch):
    check_model(model, loss)
    examples = check_batch(x, y)
    micro_batch = count("micro_batch", micro_batch)
    check_deterministic(model)
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    dtype = _wide(next(iter(trained.values())))

    def widen(t):
        return t.detach().to(dtype) if t.is_floating_point() else t.detach()

    x, y = widen(x), widen(y)
    held = {n: widen(t) for n, t in [*model.named_parameters(), *model.named_buffers()] if n not in trained}
    w = torch.cat([widen(p).reshape(-1) for p in trained.values()])
    sizes, shapes = [p.numel() for p in trained.values()], [p.shape for p in trained.values()]

    def batch_loss(w, xb, yb):
        parts = {n: part.view(s) for n, part, s in zip(trained, w.split(sizes), shapes, strict=True)}
        # Fused attention kernels have no second derivative; the plain one computes the same function.
        with sdpa_kernel(SDPBackend.MATH):
            return loss(torch.func.functional_call(model, {**parts, **held}, (xb,)), yb)

    check_mean_loss(lambda xb, yb: batch_loss(w, xb, yb), x, y)
    batches = zip(x.split(micro_batch), y.split(micro_batch), strict=True)
    chunks = [(len(xb) / examples, xb, yb) for xb, yb in batches]

    def gradient(w):
        total, slope = 0.0, torch.zeros_like(w)
        for share, xb, yb in chunks:
            g, v = torch.func.grad_and_value(batch_loss)(w, xb, yb)
            total, slope = total + share * float(v), slope + share * g.detach()
        return total, slope

    def pullback(xb, yb):
        # Reverse over reverse: forward mode over reverse is no faster and still fails inside torch for
        # mse_loss.
        return torch.func.vjp(torch.func.grad(lambda u: batch_loss(u, xb, yb)), w)[1]

    # One chunk fits in memory by the caller's word, so its graph is built once and used for every product.
    kept = pullback(x, y) if len(chunks) == 1 else None

    def product(v):
        total = torch.zeros_like(w)
        for share, xb, yb in chunks:
            total += share * (kept or pullback(xb, yb))(v)[0].detach()
        if not torch.isfinite(total).all():
            fail("H v", first_odd(total), "finite numbers only: the loss has no second derivative here")
        return total

    with torch.no_grad():
        start = float(sum(share * batch_loss(w, xb, yb) for share, xb, yb in chunks))
    if not np.isfinite(start):
        fail("loss", start, "a finite number at the model's parameters")
    return _Objective(w, start, gradient, product)


def _on_numpy(objective):
    """v (P,) -> H v (P,), both float64 arrays."""
    like = objective.w
    return lambda v: (
        objective.product(torch.from_numpy(np.array(v, np.float64)).to(like).reshape(-1)).double().cpu().numpy()
    )


def hessian_vector(model, loss, x, y, vector, *, micro_batch=1024):
    """The product H v (P,), float64, of the loss's Hessian at the model's parameters with ``vector`` (P,).

    The derivative of v'g(w), by reverse mode over reverse mode: exact, at the cost of a few gradients, with
    no P x P matrix (Pearlmutter, 1994). Raises ValueError for a wrong shape, for empty or non-finite data,
    parameters or products, for a loss that is not a mean over examples, and for dropout or batch statistics
    that are switched on.

    >>> line = torch.nn.Linear(2, 1, bias=False)
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
    >>> hessian_vector(line, torch.nn.functional.mse_loss, x, y, [1.0, 1.0])   # H = (2/N) x'x = diag(1, 4)
    array([1., 4.])
    """
    objective = _objective(model, loss, x, y, micro_batch)
    return _on_numpy(objective)(array("vector", vector, shape=(len(objective.w),)))


def hessian(model, loss, x, y, *, micro_batch=1024):
    """The whole Hessian (P, P), float64, from P Hessian-vector products; refused above 2048 parameters.

    Raises as ``hessian_vector`` does.

    >>> line = torch.nn.Linear(2, 1, bias=False)
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
    >>> hessian(line, torch.nn.functional.mse_loss, x, y)
    array([[1., 0.],
           [0., 4.]])
    """
    return _dense(_objective(model, loss, x, y, micro_batch))


def _dense(objective):
    size = len(objective.w)
    if size > DENSE:
        fail("parameters", size, f"at most {DENSE} for a whole Hessian; use hessian_vector or top_eigenvalues")
    product = _on_numpy(objective)
    return np.stack([product(row) for row in np.eye(size)])


def top_eigenvalues(model, loss, x, y, k=1, *, tolerance=1e-4, seed=0, micro_batch=1024):
    """The ``k`` largest (algebraic, not absolute) eigenvalues of the loss's Hessian, as a ``Spectrum``.

    Lanczos' method with implicit restarts (ARPACK through ``scipy.sparse.linalg.eigsh``). ``tolerance``
    bounds the residual |Hv - lambda v| relative to |lambda|; the eigenvalue's own error is of the order of
    its square. ``seed`` picks the start vector. Up to 64 parameters, or when k is near P, the whole Hessian
    is diagonalised. Gradient descent with a learning rate above 2 / lambda_max cannot settle at this point.

    Raises as ``hessian_vector`` does, ValueError for k outside [1, P], and RuntimeError if Lanczos does not
    converge.

    >>> line = torch.nn.Linear(2, 1, bias=False)
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
    >>> top_eigenvalues(line, torch.nn.functional.mse_loss, x, y, k=2).values
    array([4., 1.])
    """
    number("tolerance", tolerance, above=0, below=1)
    objective = _objective(model, loss, x, y, micro_batch)
    size = len(objective.w)
    count("k", k, at_most=size)
    product = _on_numpy(objective)
    start = np.random.default_rng(np.random.SeedSequence(seed)).standard_normal(size)
    if size <= 64 or k > size // 2:
        values, vectors = np.linalg.eigh(_dense(objective))
    elif not product(start).any():
        # H = 0 almost surely, and ARPACK cannot start from H v = 0: every vector is an eigenvector.
        values, vectors = np.zeros(k), np.eye(size, k)
    else:
        operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
        try:
            values, vectors = eigsh(operator, k=k, which="LA", tol=tolerance, v0=start)
        except ArpackNoConvergence as error:
            found = f"{len(error.eigenvalues)} of {k} eigenvalues to a relative residual of {tolerance}"
            raise RuntimeError(f"Lanczos found {found}: raise the tolerance or lower k") from None
    order = np.argsort(values)[::-1][:k]
    values, vectors = values[order], vectors[:, order]
    images = np.stack([product(v) for v in vectors.T], axis=1)
    return Spectrum(values, vectors, np.linalg.norm(images - vectors * values, axis=0))


def hutchinson(product, size, probes=64, *, deflate=0, seed=0):
    """Estimate the trace of a symmetric matrix (size, size) that is known only through ``product``: v -> A v.

    Hutchinson (1989): the mean of z' A z over random sign vectors z is unbiased, with variance
    2 (|A|_F^2 - sum_i A_ii^2) / probes; exact for a diagonal matrix. With ``deflate`` = q > 0 the trace on
    the span of A times q sign vectors is taken exactly and only the rest is estimated (Hutch++: Meyer,
    Musco, Musco and Woodruff, 2021), which pays when a few eigenvalues dominate; it spends 2q more
    products. The 95% interval is Student's t over the probes.

    >>> hutchinson(lambda v: np.array([3.0, 2.0]) * v, size=2, probes=4)
    Trace(value=5.0, low=5.0, high=5.0, products=4)
    """
    count("size", size)
    count("probes", probes, at_least=2)
    count("deflate", deflate, at_least=0, at_most=size)
    rng = np.random.default_rng(np.random.SeedSequence(seed))

    def signs(columns):
        return rng.integers(0, 2, size=(size, columns)) * 2.0 - 1.0

    def times(block):
        return np.stack([product(v) for v in block.T], axis=1)

    known, z = 0.0, signs(probes)
    if deflate:
        q, _ = np.linalg.qr(times(signs(deflate)))
        known = float(np.sum(q * times(q)))
        z = z - q @ (q.T @ z)
    rest = np.sum(z * times(z), axis=0)
    if not np.isfinite(rest).all():
        fail("product", rest, "finite numbers only (no NaN, no infinity)")
    value, error = known + float(rest.mean()), float(rest.std(ddof=1)) / probes**0.5
    width = float(stats.t.ppf(0.975, probes - 1)) * error
    return Trace(value, value - width, value + width, probes + 2 * deflate)


def trace(model, loss, x, y, probes=64, *, deflate=0, seed=0, micro_batch=1024):
    """The trace of the loss's Hessian (the sum of its eigenvalues), estimated by ``hutchinson``, as a
    ``Trace``.

    Raises as ``hessian_vector`` does, and ValueError for fewer than 2 probes.

    >>> line = torch.nn.Linear(2, 1, bias=False)
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
    >>> trace(line, torch.nn.functional.mse_loss, x, y, probes=2).value
    5.0
    """
    objective = _objective(model, loss, x, y, micro_batch)
    return hutchinson(_on_numpy(objective), len(objective.w), probes, deflate=deflate, seed=seed)


def sharpness(model, loss, x, y, *, kind="keskar", radius=1e-3, iterations=10, starts=3, seed=0, micro_batch=1024):
    """How far the loss can rise in a small box around the parameters w, as a ``Sharpness``.

    ``kind="keskar"``: 100 (max L(w + d) - L(w)) / (1 + L(w)), in percent, over |d_i| <= radius (|w_i| + 1):
    the sharpness of Keskar et al. (2017) in the full space, not in a random subspace. It changes when layers
    are rescaled without changing the function (Dinh et al., 2017).
    ``kind="adaptive"``: max L(w + d) - L(w), in units of the loss, over |d_i| <= radius |w_i|: the adaptive
    sharpness of Kwon et al. (2021) with the elementwise operator T_w = diag(|w|) and the maximum norm.
    Rescaling weights without changing the function leaves it as it is.

    The maximum is sought by ``iterations`` iterations of L-BFGS-B from w and from ``starts`` random points
    of the box (at an exact minimum w itself is stationary). What comes back was reached by some point of
    the box: a lower bound of the true maximum, never below zero; on ten weights, against all corners of the
    box, 3 starts fell 12% short and 100 starts found it. Raises as ``hessian_vector`` does; a
    negative loss is refused for ``keskar``, whose denominator assumes none.

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
    objective = _objective(model, loss, x, y, micro_batch)
    w, here = objective.w, objective.loss
    if kind == "keskar" and here < 0:
        fail("loss", here, "a loss of at least 0 for kind='keskar'")
    half = radius * (w.abs() + 1 if kind == "keskar" else w.abs())
    worst = here

    def downhill(u, scale):
        """Minus the loss and its slope at w + u * half, divided by ``scale``; remembers the highest loss
        seen."""
        nonlocal worst
        value, slope = objective.gradient(w + torch.from_numpy(np.array(u)).to(w) * half)
        worst = max(worst, value) if np.isfinite(value) else np.nan
        return -(value - here) / scale, -(slope * half).double().cpu().numpy() / scale

    rng = np.random.default_rng(np.random.SeedSequence(seed))
    for start in [np.zeros(len(w)), *rng.uniform(-1, 1, size=(starts, len(w)))]:
        # Box coordinates u in [-1, 1] make the search itself blind to the scale of the weights; slopes of
        # order one let its first step reach across the box however small the radius.
        scale = np.abs(downhill(start, 1.0)[1]).mean()
        if scale > 0:
            settings = {"maxiter": iterations, "gtol": 0.0, "ftol": 1e-12}
            bounds = optimize.Bounds(-np.ones(len(w)), np.ones(len(w)))
            optimize.minimize(downhill, start, (scale,), "L-BFGS-B", jac=True, bounds=bounds, options=settings)
        if not np.isfinite(worst):
            fail("radius", radius, "a box in which the loss is finite")
    rise = worst - here
    return Sharpness(100 * rise / (1 + here) if kind == "keskar" else rise, here, worst)


def loss_along_line(first, second, loss, x, y, *, at=None, micro_batch=1024):
    """The loss at (1 - t) w_first + t w_second for every t in ``at`` (default: 25 points from 0 to 1), as a
    ``Line``.

    A straight cut between two solutions of one architecture (Goodfellow, Vinyals and Saxe, 2015). All
    parameters and floating-point buffers are interpolated. Raises as ``hessian_vector`` does, and
    ValueError if the two models' names or shapes differ. A rise in between says that this line leaves the
    low region, not that no path stays in it.

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
        check_deterministic(model)
        ends.append({**dict(model.named_parameters()), **dict(model.named_buffers())})
    a, b = ends
    shapes = [{name: tuple(t.shape) for name, t in end.items()} for end in ends]
    if shapes[0] != shapes[1]:
        fail("second", shapes[1], f"the names and shapes of first, {shapes[0]}")
    middle, losses = copy.deepcopy(first), []
    middle.to(_wide(next(middle.parameters())))
    slots = {**dict(middle.named_parameters()), **dict(middle.named_buffers())}
    for t in at:
        with torch.no_grad():
            for name, slot in slots.items():
                if slot.is_floating_point():
                    slot.copy_((1 - t) * a[name].to(slot) + t * b[name].to(slot))
        losses.append(_objective(middle, loss, x, y, micro_batch).loss)
    return Line(at, np.array(losses))

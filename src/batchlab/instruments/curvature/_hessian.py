"""The Hessian of the loss: products with vectors, the whole of it, its largest eigenvalues and its trace."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from batchlab._check import array, count, fail, number
from batchlab._seeds import generator
from batchlab.instruments.curvature._objective import objective
from batchlab.stats import mean_interval

DENSE = 2048  # the largest number of parameters for which the whole Hessian is ever written down


@dataclass(frozen=True)
class Spectrum:
    """The largest eigenvalues of a Hessian.

    ``values`` (k,) in descending order; ``vectors`` (P, k), one unit eigenvector a column; ``residuals`` (k,), the
    norms |Hv - lambda v|, each a bound on the distance from its value to an eigenvalue of H.
    """

    values: np.ndarray
    vectors: np.ndarray
    residuals: np.ndarray


def hessian_vector(model, loss, x, y, vector, *, micro_batch=1024):
    """The product H v (P,), float64, of the loss's Hessian at the model's parameters with ``vector`` (P,).

    The derivative of v'g(w), by reverse mode over reverse mode: exact, at the cost of a few gradients, with no P x P
    matrix (Pearlmutter, 1994).

    Raises ValueError for a wrong shape, for empty or non-finite data, parameters or products, for a loss that is not a
    mean over examples or does not depend on the parameters, and for dropout or batch statistics that are switched on.

    >>> line = torch.nn.Linear(2, 1, bias=False)
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
    >>> hessian_vector(line, torch.nn.functional.mse_loss, x, y, [1.0, 1.0])   # H = (2/N) x'x = diag(1, 4)
    array([1., 4.])
    """
    here = objective(model, loss, x, y, micro_batch)
    return _on_numpy(here)(array("vector", vector, shape=(len(here.w),)))


def hessian(model, loss, x, y, *, micro_batch=1024):
    """The whole Hessian (P, P), float64, from P Hessian-vector products; refused above 2048 parameters.

    Raises as ``hessian_vector`` does.

    >>> line = torch.nn.Linear(2, 1, bias=False)
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
    >>> hessian(line, torch.nn.functional.mse_loss, x, y)
    array([[1., 0.],
           [0., 4.]])
    """
    return _dense(objective(model, loss, x, y, micro_batch))


def top_eigenvalues(model, loss, x, y, k=1, *, tolerance=1e-4, seed=0, micro_batch=1024):
    """The ``k`` largest (algebraic, not absolute) eigenvalues of the loss's Hessian, as a ``Spectrum``.

    Lanczos' method with implicit restarts (ARPACK through ``scipy.sparse.linalg.eigsh``). ``tolerance`` bounds the
    residual |Hv - lambda v| relative to |lambda|; the eigenvalue's own error is of the order of its square. ``seed``
    picks the start vector. Up to 64 parameters, or when k is near P, the whole Hessian is diagonalised. Gradient
    descent with a learning rate above 2 / lambda_max cannot settle at this point.

    Raises as ``hessian_vector`` does, ValueError for k outside [1, P], and RuntimeError if Lanczos does not converge.

    >>> line = torch.nn.Linear(2, 1, bias=False)
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
    >>> top_eigenvalues(line, torch.nn.functional.mse_loss, x, y, k=2).values
    array([4., 1.])
    """
    number("tolerance", tolerance, above=0, below=1)
    here = objective(model, loss, x, y, micro_batch)
    size = len(here.w)
    count("k", k, at_most=size)
    product = _on_numpy(here)
    start = generator(seed, "start").standard_normal(size)
    if size <= 64 or k > size // 2:
        values, vectors = np.linalg.eigh(_dense(here))
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
    2 (|A|_F^2 - sum_i A_ii^2) / probes; exact for a diagonal matrix. With ``deflate`` = q > 0 the trace on the span of
    A times q sign vectors is taken exactly and only the rest is estimated (Hutch++: Meyer, Musco, Musco and Woodruff,
    2021), which pays when a few eigenvalues dominate. It takes probes + 2q products. The 95% interval is Student's t
    over the probes.

    >>> print(hutchinson(lambda v: np.array([3.0, 2.0]) * v, size=2, probes=4))
    5 [5, 5]
    """
    count("size", size)
    count("probes", probes, at_least=2)
    count("deflate", deflate, at_least=0, at_most=size)
    rng = generator(seed, "signs")

    def signs(columns):
        return rng.integers(0, 2, size=(size, columns)) * 2.0 - 1.0

    def times(block):
        return np.stack([product(v) for v in block.T], axis=1)

    known, z = 0.0, signs(probes)
    if deflate:
        q, _ = np.linalg.qr(times(signs(deflate)))
        known = float(np.sum(q * times(q)))
        z = z - q @ (q.T @ z)
    found = known + np.sum(z * times(z), axis=0)
    if not np.isfinite(found).all():
        fail("product", found, "finite numbers only (no NaN, no infinity)")
    return mean_interval(found)


def trace(model, loss, x, y, probes=64, *, deflate=0, seed=0, micro_batch=1024):
    """The trace of the loss's Hessian (the sum of its eigenvalues), estimated by ``hutchinson``, as an ``Interval``.

    Raises as ``hessian_vector`` does, and ValueError for fewer than 2 probes.

    >>> line = torch.nn.Linear(2, 1, bias=False)
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
    >>> print(trace(line, torch.nn.functional.mse_loss, x, y, probes=2))
    5 [5, 5]
    """
    here = objective(model, loss, x, y, micro_batch)
    return hutchinson(_on_numpy(here), len(here.w), probes, deflate=deflate, seed=seed)


def _on_numpy(here):
    """v (P,) -> H v (P,), both float64 arrays."""

    def product(v):
        v = torch.from_numpy(np.array(v, np.float64)).to(here.w).reshape(-1)
        return here.product(v).double().cpu().numpy()

    return product


def _dense(here):
    size = len(here.w)
    if size > DENSE:
        fail("parameters", size, f"at most {DENSE} for a whole Hessian; use hessian_vector or top_eigenvalues")
    product = _on_numpy(here)
    return np.stack([product(row) for row in np.eye(size)])

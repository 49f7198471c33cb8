"""Curvature of the training loss: Hessian-vector products, spectrum, trace, sharpness, the loss along a line.

Everywhere the loss is L(w) = (1/N) sum_i loss(model(x_i), y_i), a mean over N examples, and w (P,) holds the parameters
that require a gradient, flattened in the order of ``model.named_parameters()``. All is computed in float64 (float32 on
MPS, which has no float64), ``micro_batch`` examples at a time, on the model's own device; the model itself is never
changed. Dropout and batch statistics must be off (``model.eval()``).
"""

from batchlab.instruments.curvature._hessian import (
    Spectrum,
    hessian,
    hessian_vector,
    hutchinson,
    top_eigenvalues,
    trace,
)
from batchlab.instruments.curvature._landscape import Line, Sharpness, loss_along_line, sharpness

__all__ = [
    "Line",
    "Sharpness",
    "Spectrum",
    "hessian",
    "hessian_vector",
    "hutchinson",
    "loss_along_line",
    "sharpness",
    "top_eigenvalues",
    "trace",
]

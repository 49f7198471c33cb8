"""batchlab: the measuring instruments behind *Batch Size, Measured*.

``import batchlab as bl`` brings every module but ``plot`` and ``playground``, so that a cluster's workers need no
matplotlib; a notebook that draws says ``from batchlab import plot``.
"""

from batchlab import (
    claims,
    curvature,
    data,
    least_squares,
    memory,
    models,
    noise,
    noisy_quadratic,
    optim,
    outcomes,
    schedules,
    stats,
    theory,
    throughput,
)
from batchlab.sweep import sweep
from batchlab.train import History, Run, fit

__all__ = [
    "History",
    "Run",
    "claims",
    "curvature",
    "data",
    "fit",
    "least_squares",
    "memory",
    "models",
    "noise",
    "noisy_quadratic",
    "optim",
    "outcomes",
    "schedules",
    "stats",
    "sweep",
    "theory",
    "throughput",
]
__version__ = "0.1.0"

"""batchlab: the measuring instruments behind *Batch Size, Measured*.

``import batchlab as bl`` brings every module but ``plot`` and ``playground``, so that a cluster's workers need no
matplotlib; a notebook that draws says ``from batchlab import plot``.
"""

from batchlab import claims, curvature, data, memory, models, optim, schedules, stats, step, theory, throughput, train
from batchlab.train import History, Run, fit

__all__ = [
    "History",
    "Run",
    "claims",
    "curvature",
    "data",
    "fit",
    "memory",
    "models",
    "optim",
    "schedules",
    "stats",
    "step",
    "theory",
    "throughput",
    "train",
]
__version__ = "0.1.0"

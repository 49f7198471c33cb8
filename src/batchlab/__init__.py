"""batchlab: the measuring instruments behind *Batch Size, Measured*.

``import batchlab as bl`` brings every module but ``plot`` and ``playground``, so that a cluster's workers need no
matplotlib; a notebook that draws says ``from batchlab import plot``.
"""

from batchlab import claims, data, models, optim, schedules, stats, step, theory, train
from batchlab.train import History, Run, fit

__all__ = [
    "History",
    "Run",
    "claims",
    "data",
    "fit",
    "models",
    "optim",
    "schedules",
    "stats",
    "step",
    "theory",
    "train",
]
__version__ = "0.1.0"

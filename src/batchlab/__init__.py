"""batchlab: the measuring instruments behind *Batch Size, Measured*."""

from batchlab import data, models, optim, schedules, step, train
from batchlab.train import History, Run, fit

__version__ = "0.1.0"
__all__ = ["History", "Run", "data", "fit", "models", "optim", "schedules", "step", "train"]

"""batchlab: the measuring instruments behind *Batch Size, Measured*.

<<<<<<< HEAD
from batchlab import data, models, optim, schedules, step, train
from batchlab.train import History, Run, fit

=======
``import batchlab as bl`` brings every module but ``plot`` and ``playground``, so that a cluster's workers need no
matplotlib; a notebook that draws says ``from batchlab import plot``.
"""

from batchlab import claims, theory

__all__ = ["claims", "theory"]
>>>>>>> main
__version__ = "0.1.0"
__all__ = ["History", "Run", "data", "fit", "models", "optim", "schedules", "step", "train"]

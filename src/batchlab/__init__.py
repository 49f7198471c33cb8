"""batchlab: the measuring instruments behind *Batch Size, Measured*."""

__version__ = "0.1.0"

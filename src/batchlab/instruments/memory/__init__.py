"""Where the bytes of a training step go, how they grow with the batch, and the largest batch that fits.

A step needs parameters, buffers, gradients and the optimiser's state, which do not depend on the batch; and the batch
itself and the activations kept for the backward pass, which grow with it. So m(B) = m_0 + m_1 B. It is an account by
kind, not a moment: the backward pass makes the gradients while it frees the activations (under accumulation both are
held at once). Temporary tensors are a large part in a shallow network: ``step_peak`` measures the fullest moment of a
step, and ``timeline`` every moment of it. What an allocator rounds up and keeps in reserve comes on top.
"""

from batchlab.instruments.memory._account import Memory, MemoryLaw, memory_law, step_memory
from batchlab.instruments.memory._largest import LargestBatch, largest_batch, out_of_memory, step_fits
from batchlab.instruments.memory._peak import step_peak, timeline

__all__ = [
    "LargestBatch",
    "Memory",
    "MemoryLaw",
    "largest_batch",
    "memory_law",
    "out_of_memory",
    "step_fits",
    "step_memory",
    "step_peak",
    "timeline",
]

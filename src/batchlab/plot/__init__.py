"""Figures of the book: arrays in, an ``Axes`` out.

Every function takes data and an optional ``ax``, draws on it (on a new figure's if None), returns it, and touches no
global state. ``plt.style.use(plot.STYLE)`` gives a notebook the book's one style.
"""

from pathlib import Path

from batchlab.plot._laws import against_law, steps_to_target, throughput
from batchlab.plot._shapes import (
    HATCHES,
    along_training,
    loss_along_line,
    lr_ridge,
    memory_stack,
    seed_band,
    spectrum,
)

STYLE = Path(__file__).with_name("book.mplstyle")

__all__ = [
    "HATCHES",
    "STYLE",
    "against_law",
    "along_training",
    "loss_along_line",
    "lr_ridge",
    "memory_stack",
    "seed_band",
    "spectrum",
    "steps_to_target",
    "throughput",
]

"""A grid of runs at once: ``sweep``, what trains its lanes, where they are kept, and what its table says."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["files", "identity", "kernel", "keys", "native", "outcomes", "plan", "stacked", "store", "sweep"],
)

"""One training run: what decides it (``run``), the loop (``loop``), and the pieces they are made of."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submodules=["check", "data", "dataset", "loop", "models", "optim", "parallel", "run", "schedules", "step"]
)

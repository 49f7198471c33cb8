"""What can be measured on a model of your own: ``noise``, ``curvature``, ``throughput`` and ``memory``."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["curvature", "memory", "noise", "throughput"])

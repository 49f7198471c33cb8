"""batchlab: the measuring instruments behind *Batch Size, Measured*.

``import batchlab as bl`` loads nothing yet: ``bl.noise``, ``bl.sweep`` and the rest are imported when first used, so
that the ledger can be read where torch is not, and a cluster's workers need no matplotlib. What there is stands in
``__init__.pyi``, where editors read it too. Every module also has a short name: ``import batchlab.noise`` is the module
``batchlab.instruments.noise``.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


class _ShortNames(MetaPathFinder, Loader):
    """Finds ``batchlab.noise`` where the face has it: asked last, when no file of that name was found."""

    def find_spec(self, name, path=None, target=None):  # Python holds a lock for all imports here: import nothing
        short = name.removeprefix("batchlab.")
        return ModuleSpec(name, self) if short != name and short in __all__ else None

    def create_module(self, spec):
        module = __getattr__(spec.name.removeprefix("batchlab."))
        if not isinstance(module, ModuleType):
            raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module):  # it has run already: give it back the name it goes by
        module.__spec__ = module.__spec__.loader_state


sys.meta_path.append(_ShortNames())

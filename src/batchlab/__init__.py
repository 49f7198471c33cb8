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

    def find_spec(self, name, path=None, target=None):
        short = name.removeprefix("batchlab.")
        if name == short or short not in __all__ or not isinstance(__getattr__(short), ModuleType):
            return None
        return ModuleSpec(name, self)

    def create_module(self, spec):
        module = __getattr__(spec.name.removeprefix("batchlab."))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module):  # it has run already: give it back the name it goes by
        module.__spec__ = module.__spec__.loader_state


sys.meta_path.append(_ShortNames())

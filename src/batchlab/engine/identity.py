"""What a value is, as a hash: code, arrays and state taken whole, never by their repr.

A function is its bytecode, constants, defaults, closure and the globals it uses, and so on from there; a class is what
its body holds; any other object is its class and the state that pickle would save. Bytecode is what runs, where a
source file may have been edited since it was imported. (joblib.hash and cloudpickle take what a module defines by its
name, and so miss its body; cloudpickle's bytes also differ from process to process.)

The walk ends at code that a version stands for: Python's, installed packages', and what of this package trains, which
``keys`` hashes whole. It cannot see packages edited or patched in place, nor what code reads from files.
"""

import builtins
import copyreg
import dis
import importlib.metadata
import random
import sys
import sysconfig
import types
from collections.abc import Iterator
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

OWN = ("training", "engine", "_check.py", "_seeds.py")  # of this package, what decides a lane's numbers
PLAIN = (type(None), bool, int, float, complex, str, bytes, range, type(...), type(NotImplemented))  # repr says it all
NATIVE = tuple(map(type, (len, str.join, object.__init__, "".__str__, vars(dict)["fromkeys"])))  # compiled functions
HOLDERS = {  # of functions, and what they hold
    property: ("fget", "fset", "fdel"), staticmethod: ("__func__",), classmethod: ("__func__",),
    cached_property: ("func",), types.MethodType: ("__func__", "__self__"),
    types.MemberDescriptorType: ("__name__",), types.GetSetDescriptorType: ("__name__",),
}  # fmt: skip
RANDOM = (random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator, torch.Generator)
UNSEEN = {"eval", "exec", "globals", "open", "input", "__import__"}  # built-ins that read what no walk can see
OF_A_CLASS = {  # what a class holds beside what decides anything
    "__doc__", "__module__", "__dict__", "__weakref__", "__annotations__", "__annotate_func__", "__annotations_cache__",
    "__annotate__", "__firstlineno__", "__static_attributes__", "__dataclass_fields__", "__dataclass_params__",
    "__match_args__", "__abstractmethods__", "_abc_impl", "__slotnames__",
}  # fmt: skip
MOST = 1_000_000  # values in one key


class Unkeyable(Exception):
    """Something whose numbers could change without a trace in the key."""


def identity(**parts):
    """A hash of the parts, in hexadecimal; the names of the parts serve the error. Raises Unkeyable.

    >>> identity(f=lambda x: x + 1) == identity(f=lambda x: x + 1) != identity(f=lambda x: x + 2)
    True
    """
    key = _Key()
    try:
        for part, value in parts.items():
            key.part(part, value)
    except Unkeyable:
        raise
    except Exception as error:  # values may raise anything when they are looked at, and may be nested too deeply
        key.refuse(f"{type(error).__name__}: {error}")
    return key.digest.hexdigest()


@cache
def _version(module):
    """What stands for the code of a module: "" for Python's and this package's, None for the reader's own."""
    package, _, rest = str(module).partition(".")
    if package == __name__.partition(".")[0]:
        return "" if rest.partition(".")[0] in {part.removesuffix(".py") for part in OWN} else None
    if module in sys.builtin_module_names:
        return ""
    file = next((f for m in (module, package) if (f := getattr(sys.modules.get(m), "__file__", None))), None)
    if module == "__main__" or file is None:
        return None
    if {"site-packages", "dist-packages"} & set(Path(file).parts):
        try:
            return str(getattr(sys.modules[package], "__version__", None) or importlib.metadata.version(package))
        except (KeyError, importlib.metadata.PackageNotFoundError):
            return None
    python = (Path(sysconfig.get_path(which)).resolve() for which in ("stdlib", "platstdlib"))
    return "" if any(Path(file).resolve().is_relative_to(folder) for folder in python) else None


def _vouched(value, name):
    """The version that stands for ``value``, if a module that has one knows it under its name; else None."""
    home = getattr(value, "__module__", None)  # ufuncs have none: whoever has them will do
    for module in sorted(sys.modules) if home is None else [home]:
        found = sys.modules.get(module)
        for part in name.split("."):
            found = getattr(found, "__dict__", {}).get(part)
        if found is value and (version := _version(module)) is not None:
            return version
    return None


def _uses(code):
    """What code reads from outside: globals it loads, modules it imports as (level, name), and all names in it."""
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    loaded = {step.argval for step in steps if "GLOBAL" in step.opname or step.opname == "LOAD_NAME"}
    imported = {(steps[i - 2].argval, step.argval) for i, step in enumerate(steps) if step.opname == "IMPORT_NAME"}
    names = {*code.co_names, *(constant for constant in code.co_consts if isinstance(constant, str))}
    for inner in (constant for constant in code.co_consts if isinstance(constant, types.CodeType)):
        for mine, its in zip((loaded, imported, names), _uses(inner), strict=True):
            mine |= its
    return loaded, imported, names


class _Key:
    """A walk over values that feeds a hash: the same for the same values in any process."""

    def __init__(self):
        self.digest, self.seen, self.count, self.trail = sha256(), {}, 0, []

    def put(self, *words):
        self.digest.update(f"{words!r}\n".encode())

    def put_bytes(self, data):
        self.put(len(data))
        self.digest.update(data)

    def refuse(self, why):
        raise Unkeyable(f"{' > '.join(self.trail)}: {why}")

    def part(self, name, value, names=None):
        """Walk a part of a value. ``names``: what the code that uses it may ask of it, if it is a module."""
        self.trail.append(name)
        self.put("part", name)
        if isinstance(value, types.ModuleType):
            self.module(value, names)
        else:
            self.walk(value)
        self.trail.pop()

    def met(self, value, names=None):
        """Whether a value was met before, which is then noted: values that hold one another make circles."""
        key = id(value), id(names)
        if key in self.seen:
            self.put("again", self.seen[key][0])
            return True
        self.seen[key] = len(self.seen), value, names  # which keeps them alive, so that no other gets their id
        return False

    def walk(self, value):
        self.count += 1
        if self.count > MOST:
            self.refuse(f"more than {MOST:,} values (numbers in an array count as one)")
        kind = type(value)
        if kind in PLAIN:
            self.put(kind.__name__, repr(value))
        elif kind is tuple:
            self.put("tuple", len(value))
            for item in value:
                self.walk(item)
        elif kind in (set, frozenset):  # in no order
            self.put(kind.__name__, sorted(identity(item=item) for item in value))
        elif kind is types.CodeType:
            self.code(value)
        elif not self.met(value):
            self.enter(value, kind)

    def enter(self, value, kind):
        if kind is list:
            self.put("list")
            self.walk(tuple(value))
        elif kind is dict:
            self.put("dict", len(value))
            for key, item in value.items():
                self.walk(key)
                self.part(key if type(key) is str else "[]", item)
        elif isinstance(value, types.ModuleType):
            self.module(value)
        elif isinstance(value, type):
            self.type(value)
        elif kind is types.FunctionType:
            self.function(value)
        elif kind in NATIVE:
            self.native(value)
        elif kind in HOLDERS:
            self.walk((kind, *(getattr(value, name) for name in HOLDERS[kind])))
        elif kind is types.MappingProxyType:
            self.walk((kind, dict(value)))
        elif isinstance(value, np.ndarray):
            self.array(value)
        elif isinstance(value, torch.Tensor):
            self.tensor(value)
        elif isinstance(value, RANDOM):
            self.refuse("a generator's state moves; make it from the seed")
        else:
            self.instance(value, kind)

    def array(self, value):
        self.put("array", value.dtype.descr, value.shape)
        self.walk((type(value), getattr(value, "__dict__", None)))
        whole = value.view(np.ndarray)
        if whole.dtype.hasobject or whole.dtype.kind == "T":
            self.walk(whole.tolist())
        else:
            self.put_bytes(whole.tobytes())

    def tensor(self, value):
        self.put("tensor", str(value.dtype), tuple(value.shape), value.device.type, value.requires_grad)
        self.walk((type(value), vars(value)))
        try:
            whole = value.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten()
            self.put_bytes(whole.view(torch.uint8).numpy().tobytes())
        except (RuntimeError, TypeError, NotImplementedError) as error:
            self.refuse(f"a tensor whose numbers cannot be read ({error})")

    def code(self, code):
        self.put("code", code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        self.put(code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        self.put(code.co_code, code.co_exceptiontable)
        self.walk(code.co_consts)

    def function(self, function):
        code, scope = function.__code__, function.__globals__
        loaded, imported, names = _uses(code)
        module = scope.get("__name__")
        version = _version(module) if scope is getattr(sys.modules.get(module), "__dict__", None) else None
        self.put("function", module if version is not None else "", version)
        self.code(code)
        self.walk((function.__defaults__, function.__kwdefaults__, function.__dict__))
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # nothing in it yet
                continue
            self.part(name, value, names)
        if version is not None:
            return
        for name in sorted(loaded):
            if name in scope:
                self.part(name, scope[name], names)
            elif name in UNSEEN and hasattr(builtins, name):
                self.refuse(f"what {name}() reads cannot be known; put it into the function's arguments or globals")
        for level, name in sorted(imported):
            try:
                module = importlib.import_module("." * level + name, scope.get("__package__"))
            except ImportError:  # nor will the function's own import succeed
                continue
            self.part(name, module, names)

    def module(self, module, names=None):
        version = _version(module.__name__)
        self.put("module", module.__name__, version)
        if version is not None or (names is not None and self.met(module, names)):
            return
        if names is None:
            self.refuse("a module as a value: what is used of it cannot be known")
        try:
            self.put_bytes(Path(module.__file__).read_bytes())
        except (AttributeError, TypeError, OSError):
            self.refuse("a module without a file or a version")
        for name in sorted(names & set(dir(module))):
            self.part(name, getattr(module, name), names)

    def type(self, cls):
        version = _vouched(cls, cls.__qualname__)
        if version is not None:
            self.put("class", cls.__module__, cls.__qualname__, version)
            return
        self.put("class")
        self.walk((type(cls), cls.__bases__))
        for name, value in vars(cls).items():
            if name not in OF_A_CLASS:
                self.part(name, value)

    def native(self, value):
        """Compiled code: its name and its owner's version are all that can be told."""
        version = _vouched(value, value.__qualname__)
        owner = getattr(value, "__self__", None) or getattr(value, "__objclass__", None)
        if version is None and not isinstance(owner, types.ModuleType):
            kind = owner if isinstance(owner, type) else type(owner)
            version = _version(kind.__module__)
            self.walk(owner)
        if version is None:
            self.refuse(f"{value.__qualname__} is compiled code that no version stands for")
        self.put("native", getattr(value, "__module__", None), value.__qualname__, version)

    def instance(self, value, kind):
        """An object of another kind: its class, and the state that pickle would save."""
        self.walk(kind)
        try:
            saved = copyreg.dispatch_table[kind](value) if kind in copyreg.dispatch_table else value.__reduce_ex__(4)
        except Exception as error:  # an object may raise anything
            self.refuse(f"the state of a {kind.__name__} cannot be read ({error})")
        if not isinstance(saved, str):
            self.walk(tuple(list(part) if isinstance(part, Iterator) else part for part in saved))
            if _version(kind.__module__) is None:  # a class of the reader's own may save less than it has
                self.walk(getattr(value, "__dict__", None))
        elif (version := _vouched(value, saved)) is not None:
            self.put("named", saved, version)
        elif hasattr(value, "__wrapped__"):  # by functools.lru_cache
            self.walk(value.__wrapped__)
        else:
            self.refuse(f"{saved} is known by its name only")

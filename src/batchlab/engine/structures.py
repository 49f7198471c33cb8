"""What Python hands to the C kernel: its structures, as ``lane/`` declares them, and arrays as it wants them."""

import ctypes

import numpy as np
import torch

RULES = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "lars", "lamb")  # as rules.c counts them

SMALLEST = float(np.finfo(np.float32).tiny)  # of an eps: the kernel takes smaller numbers for 0

whole, pair, real, pointer = ctypes.c_int, ctypes.c_int * 2, ctypes.c_float, ctypes.c_void_p
ARRAYS = [(name, pointer) for name in ("w", "m", "v", "average")]  # an array of arrays each


class Unreadable(Exception):
    """The kernel does not compute what is asked; the message says what."""


class Settings(ctypes.Structure):  # rules.c
    _fields_ = [("kind", whole)] + [
        (name, ctypes.c_double) for name in ("momentum", "b1", "b2", "eps", "trust", "weight_decay", "l1", "ema")
    ]


class Data(ctypes.Structure):  # network.c
    _fields_ = [*[(name, pointer) for name in ("x", "token", "label", "target")], ("examples", ctypes.c_int64)]


class Chain(ctypes.Structure):  # Lane, in network.c
    _fields_ = [
        ("layers", whole), ("is_tanh", whole), ("norm_eps", real), ("sizes", pointer), *ARRAYS, ("scratch", pointer),
        ("step", ctypes.c_int64), ("draw", pointer), ("rate", ctypes.c_double),
    ]  # fmt: skip


class Op(ctypes.Structure):  # tape.c
    _fields_ = [
        *[(name, whole) for name in ("kind", "source", "other", "to", "weight", "relu")],
        *[(name, pair) for name in ("kernel", "stride", "padding")],
        ("choice", whole), ("eps", real), ("momentum", real), ("rate", ctypes.c_double), ("running", pointer),
    ]  # fmt: skip


class Shape(ctypes.Structure):  # tape.c
    _fields_ = [(name, whole) for name in ("channels", "height", "width")]


class Matrix(ctypes.Structure):  # tape.c
    _fields_ = [(name, whole) for name in ("rows", "length", "bias", "norm")]


class Tape(ctypes.Structure):  # tape.c
    _fields_ = [
        *[(name, whole) for name in ("ops", "tensors", "matrices", "piece", "judged")],
        *[(name, pointer) for name in ("op", "shape", "matrix")], *ARRAYS, ("draw", pointer), ("scratch", pointer),
        ("step", ctypes.c_int64),
    ]  # fmt: skip


def altered(model):
    """Whether a model does more than its layers' types say: by hooks, or by methods put on one object."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    everywhere = any(getattr(torch.nn.modules.module, f"_global{name}") for name in hooks)
    methods = {"forward", "train", "eval", "__call__"}
    return everywhere or any(
        methods & vars(m).keys() or any(getattr(m, name) for name in hooks) for m in model.modules()
    )


def settings(run):
    given = dict(run.optimizer.settings)
    b1, b2 = given.pop("betas", (0.0, given.pop("alpha", 0.0)))
    return Settings(RULES.index(run.optimizer.name), b1=b1, b2=b2, l1=run.l1, ema=run.ema or 0.0, **given)


def holding(structure, *arrays):
    """The structure, with the arrays that it points at kept alive."""
    structure.arrays = arrays
    return structure


def address(array):
    return array.ctypes.data


def in_vectors(n, vector):
    """``n``, rounded up to whole vectors."""
    return -(-n // vector) * vector


def aligned(*shape):
    """Zeros that start where a cache line starts: a vector that spans two lines costs two loads."""
    size = int(np.prod(shape))
    raw = np.zeros(size + 16, np.float32)
    start = -address(raw) % 64 // 4
    return raw[start : start + size].reshape(shape)


def padded(matrix, vector):
    """A copy whose rows are whole vectors, filled up with zeros."""
    made = aligned(len(matrix), in_vectors(matrix.shape[1], vector))
    made[:, : matrix.shape[1]] = matrix
    return made


def kept(run, weights, remembered):
    """What the fields ``ARRAYS`` point at, and the arrays that must live as long: the weights, what the optimizer
    remembers, zero, and the average, if there is one. What is not kept is the weights."""
    beside = {name: [aligned(*w.shape) for w in weights] for name in remembered}
    if run.ema is not None:
        beside["average"] = [aligned(*w.shape) for w in weights]
        for average, w in zip(beside["average"], weights, strict=True):
            average[:] = w
    tables = [(pointer * len(weights))(*map(address, beside.get(name, weights))) for name, _ in ARRAYS]
    places = {name: ctypes.addressof(table) for (name, _), table in zip(ARRAYS, tables, strict=True)}
    return places, (weights, beside, tables)

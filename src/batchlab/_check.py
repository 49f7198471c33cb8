"""Arguments are checked at the door: every error names the argument, its value and what is accepted.

A bad value is a ``ValueError``, whatever is wrong with it: its type, its sign, or its size.
"""

from numbers import Integral, Real

import numpy as np


def fail(name, value, accepted):
    """Raise the one error this package raises for a bad argument.

    >>> fail("lr", -1, "a finite number above 0")
    Traceback (most recent call last):
    ...
    ValueError: lr = -1: expected a finite number above 0
    """
    raise ValueError(f"{name} = {value!r}: expected {accepted}")


def number(name, value, *, above=None, at_least=None, below=None, at_most=None):
    """Return ``value`` as a float if it is a finite real number within the bounds given, else raise ValueError.

    >>> number("lr", 0.1, above=0)
    0.1
    >>> number("momentum", 1.0, at_least=0, below=1)
    Traceback (most recent call last):
    ...
    ValueError: momentum = 1.0: expected a finite number, at least 0 and below 1
    """
    bounds = [
        (above, "above", lambda v: v > above),
        (at_least, "at least", lambda v: v >= at_least),
        (below, "below", lambda v: v < below),
        (at_most, "at most", lambda v: v <= at_most),
    ]
    bounds = [b for b in bounds if b[0] is not None]
    ok = isinstance(value, Real) and not isinstance(value, (bool, np.bool_)) and np.isfinite(value)
    if not (ok and all(holds(value) for _, _, holds in bounds)):
        words = " and ".join(f"{word} {bound}" for bound, word, _ in bounds)
        fail(name, value, "a finite number" + (", " + words if words else ""))
    return float(value)


def count(name, value, *, at_least=1, at_most=None):
    """Return ``value`` as an int if it is a whole number in [at_least, at_most], else raise ValueError.

    Booleans, strings and fractions are refused; ``4.0`` is a fraction here.

    >>> count("batch_size", 32, at_most=1437)
    32
    >>> count("batch_size", 0.128)
    Traceback (most recent call last):
    ...
    ValueError: batch_size = 0.128: expected a whole number, at least 1
    """
    words = f"a whole number, at least {at_least}" + (f" and at most {at_most}" if at_most is not None else "")
    if not isinstance(value, Integral) or isinstance(value, (bool, np.bool_)):
        fail(name, value, words)
    if value < at_least or (at_most is not None and value > at_most):
        fail(name, value, words)
    return int(value)


def one_of(name, value, options):
    """Return ``value`` if it is among ``options``, else raise ValueError listing them.

    >>> one_of("norm", "layer", ["none", "layer"])
    'layer'
    """
    if not any(type(value) is type(o) and value == o for o in options):
        fail(name, value, "one of " + ", ".join(repr(o) for o in options))
    return value


def array(name, value, *, ndim=None, shape=None, above=None, at_least=None):
    """Return ``value`` as a non-empty float64 array of finite numbers within the bounds given, else raise ValueError.

    ``shape`` may hold None where any length will do.

    >>> array("x", [[1, 2], [3, 4]], shape=(None, 2)).dtype
    dtype('float64')
    """
    try:
        a = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        fail(name, value, "an array of numbers")
    if a.size == 0:
        fail(name, value, "a non-empty array")
    if ndim is not None and a.ndim != ndim:
        fail(f"{name}.ndim", a.ndim, f"{ndim}")
    if shape is not None and (
        a.ndim != len(shape) or any(s not in (None, n) for s, n in zip(shape, a.shape, strict=True))
    ):
        fail(f"{name}.shape", a.shape, f"{shape}".replace("None", "any"))
    if not np.isfinite(a).all():
        fail(name, value, "finite numbers only (no NaN, no infinity)")
    if above is not None and (a <= above).any():
        fail(name, value, f"numbers above {above}")
    if at_least is not None and (a < at_least).any():
        fail(name, value, f"numbers of at least {at_least}")
    return a

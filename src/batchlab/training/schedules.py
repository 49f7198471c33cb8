"""Schedules: pure functions of the examples seen, which multiply the base learning rate or the base batch size.

A learning-rate schedule is called as ``schedule(examples, batch_size)`` before each step, with the examples seen so
far and the size of the coming batch; a batch schedule as ``schedule(examples)``. ``examples`` may be a number, an
array or a tensor, and the multiplier comes back in kind. Any function of that form will do; those here have a stable
repr and hash, so that results can be kept by what they were made with.

Counting examples rather than steps or epochs lets one schedule serve every batch size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from batchlab._check import count, fail, number


@dataclass(frozen=True)
class constant:
    """Always 1.

    >>> constant()(1000, 32)
    1.0
    """

    def __call__(self, examples, batch_size=None):
        return examples * 0 + 1.0


@dataclass(frozen=True)
class step:
    """Multiply by ``factor`` once each number of examples in ``at`` has been seen.

    >>> step(at=(1000, 2000), factor=0.1)(1500)
    0.1
    """

    at: tuple
    factor: float

    def __post_init__(self):
        _increasing("at", self.at)
        number("factor", self.factor, above=0)

    def __call__(self, examples, batch_size=None):
        return self.factor ** sum(_passed(examples, bound) for bound in self.at)


@dataclass(frozen=True)
class cosine:
    """Fall from 1 to ``final`` along half a cosine over ``total`` examples, and stay there (Loshchilov & Hutter 2017).

    >>> cosine(total=1000)(0), cosine(total=1000)(500), cosine(total=1000)(2000)
    (1.0, 0.5, 0.0)
    """

    total: int
    final: float = 0.0

    def __post_init__(self):
        count("total", self.total)
        number("final", self.final, at_least=0)

    def __call__(self, examples, batch_size=None):
        done = _clipped(examples / self.total)
        return self.final + (1 - self.final) * (1 + _cos(done * math.pi)) / 2


@dataclass(frozen=True)
class warmup:
    """Rise in a straight line from ``start`` to 1 over ``total`` examples, and stay there (Goyal et al. 2017).

    By default the rate rises at every step. ``every=N`` makes it rise in stairs, once in N examples: with the size of
    the training set for N, once an epoch. With ``start=0`` the first step does nothing; Goyal et al. start at the
    small batch's rate, ``start = 1/k`` for a batch k times as large.

    >>> warmup(total=1000, start=0.1)(0), warmup(total=1000)(250), warmup(total=1000, every=500)(750)
    (0.1, 0.25, 0.5)
    """

    total: int
    start: float = 0.0
    every: int = 1

    def __post_init__(self):
        count("total", self.total)
        number("start", self.start, at_least=0, at_most=1)
        count("every", self.every)

    def __call__(self, examples, batch_size=None):
        done = _clipped(examples // self.every * self.every / self.total)
        return self.start + (1 - self.start) * done


@dataclass(frozen=True)
class inverse_sqrt:
    """1 up to ``after`` examples, then falling as 1/sqrt(examples): sqrt(after / max(examples, after)).

    >>> inverse_sqrt(after=100)(50), inverse_sqrt(after=100)(400)
    (1.0, 0.5)
    """

    after: int

    def __post_init__(self):
        count("after", self.after)

    def __call__(self, examples, batch_size=None):
        return 1.0 / _at_least(examples / self.after, 1.0) ** 0.5


@dataclass(frozen=True)
class inverse_time:
    """1 / (1 + examples / half), so that the rate is halved after ``half`` examples (Robbins & Monro 1951).

    Its sum diverges and the sum of its squares does not: SGD then has no noise floor.

    >>> inverse_time(half=100)(100), inverse_time(half=100)(300)
    (0.5, 0.25)
    """

    half: int

    def __post_init__(self):
        count("half", self.half)

    def __call__(self, examples, batch_size=None):
        return 1.0 / (1.0 + examples / self.half)


@dataclass(frozen=True)
class follow:
    """Tie the learning rate to the batch size: (batch_size / base) ** exponent.

    Exponent 0 leaves the rate alone, 1/2 is the square-root rule and 1 the linear rule; ``base`` is the batch size at
    which the base rate was found. It follows the batch along a batch schedule, and across a sweep of batch sizes.

    >>> follow(1, base=32)(0, 128), follow(0.5, base=32)(0, 128), follow(0, base=32)(0, 128)
    (4.0, 2.0, 1.0)
    """

    exponent: float
    base: int

    def __post_init__(self):
        number("exponent", self.exponent)
        count("base", self.base)

    def __call__(self, examples, batch_size):
        return examples * 0 + (batch_size / self.base) ** self.exponent


@dataclass(frozen=True)
class stages:
    """Multiply by ``factors[i]`` after ``at[i - 1]`` examples: a batch that grows (or a rate that falls) in steps.

    >>> growing = stages(factors=(1, 4, 16), at=(1000, 2000))
    >>> growing(999), growing(1000), growing(5000)
    (1.0, 4.0, 16.0)
    """

    factors: tuple
    at: tuple

    def __post_init__(self):
        if not isinstance(self.factors, tuple) or len(self.factors) != len(self.at) + 1:
            fail("factors", self.factors, f"a tuple of {len(self.at) + 1}, one more than there are bounds in at")
        for factor in self.factors:
            number("factors", factor, above=0)
        _increasing("at", self.at)

    def __call__(self, examples, batch_size=None):
        value = examples * 0 + float(self.factors[0])
        for before, after, bound in zip(self.factors[:-1], self.factors[1:], self.at, strict=True):
            value = value + (after - before) * _passed(examples, bound)
        return value


@dataclass(frozen=True)
class inverse:
    """Multiply by 1 / ``schedule``, at most ``most``: a batch that grows where a rate would fall (Smith et al. 2018).

    As the batch schedule beside ``lr_schedule=product(schedule, follow(1, base=B))``, with B the run's batch size: the
    rate per example falls as ``schedule`` says, by a larger batch until that is ``most`` times as large, by a lower
    rate from there on. With ``follow(0.5, base=B)`` it is Seesaw (Meterez et al. 2025), for Adam.

    >>> grow = inverse(cosine(total=1000), most=16)
    >>> grow(0), grow(500), grow(1000)
    (1.0, 2.0, 16.0)
    """

    schedule: Callable
    most: float

    def __post_init__(self):
        if not callable(self.schedule):
            fail("schedule", self.schedule, "a function of the examples seen and the batch size")
        number("most", self.most, above=0)

    def __call__(self, examples, batch_size=None):
        return 1.0 / _at_least(self.schedule(examples, batch_size), 1 / self.most)


@dataclass(frozen=True, repr=False)
class product:
    """Several schedules multiplied: ``product(warmup(1000), cosine(50_000))``.

    >>> product(constant(), step(at=(10,), factor=0.5))(20, 32)
    0.5
    """

    schedules: tuple

    def __init__(self, *schedules):
        for schedule in schedules:
            if not callable(schedule):
                fail("schedules", schedule, "functions of the examples seen and the batch size")
        object.__setattr__(self, "schedules", schedules)

    def __repr__(self):
        return f"product({', '.join(map(repr, self.schedules))})"

    def __call__(self, examples, batch_size=None):
        return math.prod(schedule(examples, batch_size) for schedule in self.schedules)


# Numbers stay Python floats, so that a table or a doctest does not fill with numpy scalars.


def _passed(examples, bound):
    return (examples >= bound) * (examples * 0 + 1.0)  # 0 or 1, in the precision of examples


def _clipped(share):
    if isinstance(share, torch.Tensor):
        return share.clamp(max=1.0)
    return np.minimum(share, 1.0) if isinstance(share, np.ndarray) else min(float(share), 1.0)


def _at_least(value, bound):
    if isinstance(value, torch.Tensor):
        return value.clamp(min=bound)
    return np.maximum(value, bound) if isinstance(value, np.ndarray) else max(float(value), bound)


def _cos(angle):
    if isinstance(angle, torch.Tensor):
        return angle.cos()
    return np.cos(angle) if isinstance(angle, np.ndarray) else math.cos(angle)


def _increasing(name, bounds):
    if not isinstance(bounds, tuple) or not bounds:
        fail(name, bounds, "a tuple of numbers of examples")
    for bound in bounds:
        count(name, bound)
    if list(bounds) != sorted(set(bounds)):
        fail(name, bounds, "increasing numbers of examples")

"""Schedules: pure functions of the examples seen. Learning-rate schedules return a multiplier of the base rate.

A learning-rate schedule is called as ``schedule(examples, batch_size)`` before each step, with the examples seen so
far; a batch schedule as ``schedule(examples)``, and returns the size of the next batch. Any function will do.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class constant:
    """Always 1.

    >>> constant()(1000, 32)
    1.0
    """

    def __call__(self, examples, batch_size=None):
        return examples * 0 + 1.0

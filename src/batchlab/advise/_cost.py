"""What a step costs at any size, from the sizes that were timed."""

import math

import numpy as np
from scipy import optimize

from batchlab._seeds import generator

MISFIT = 0.1  # by which timed steps miss a straight line (chapter 4)


def step_seconds(measured):
    """The function from B to seconds a step: as timed, straight between sizes, with loading, and in pieces beyond the
    largest batch that fits. A larger batch is taken to cost no less, and beyond the largest timed each example costs
    what a line through all of them says."""
    sizes = np.array([size for size, _ in measured.timings], dtype=float)
    times = optimize.isotonic_regression(_smoothed(measured.timings)[0]).x
    most, each_step = fits(measured), max(_line(sizes, [t.estimate for _, t in measured.timings])[1], 0.0)
    fixed, each = measured.load or (0.0, 0.0)

    def one(size):
        if size > sizes[-1]:
            return times[-1] + each_step * (size - sizes[-1])
        return float(np.interp(size, sizes, times))

    def seconds(size):
        pieces = max(1, math.ceil(size / most))
        step, load = pieces * one(size / pieces), pieces * fixed + each * size
        return float(max(step, load) if measured.overlapped else step + load)

    return seconds


def knee_of(measured):
    """t_0 / tau of t(B) = t_0 + tau B, fitted in relative error to the timed steps with their loading; inf where tau is
    not above 0, 0 where t_0 is not."""
    seconds, sizes = step_seconds(measured), [size for size, _ in measured.timings]
    fixed, each = _line(sizes, [seconds(size) for size in sizes])
    return math.inf if each <= 0 else max(float(fixed / each), 0.0)


def _smoothed(timings):
    """(seconds, standard deviation of their logarithms): each timing is drawn towards the line through all of them, the
    more the less exactly it is known beside ``MISFIT``, by which steps miss a line anyway."""
    sizes, times = [size for size, _ in timings], np.array([t.estimate for _, t in timings])
    wide = np.array([math.log(t.high / t.low) / (2 * 1.96) for _, t in timings])
    fixed, each = _line(sizes, times)
    line = fixed + each * np.array(sizes)
    own = np.where(line > 0, MISFIT**2 / (MISFIT**2 + wide**2), 1.0)
    drawn = np.exp(own * np.log(times) + (1 - own) * np.log(np.where(line > 0, line, 1.0)))
    return drawn, np.sqrt(own) * wide


def _line(sizes, times):
    """(t_0, tau) of t(B) = t_0 + tau B by least squares in relative error."""
    sizes, times = np.array(sizes, dtype=float), np.array(times, dtype=float)
    return np.linalg.lstsq(np.stack([1 / times, sizes / times], 1), np.ones(len(sizes)), rcond=None)[0]


def fits(measured):
    """The largest batch that is known to fit where a larger one does not, else infinity."""
    return math.inf if measured.bounded else measured.largest_longest or measured.largest or math.inf


def jitter(measured, sizes, draws):
    """(sizes, draws) factors by which the timings may be wrong, drawn from their intervals: always the same ones."""
    at = np.log([b for b, _ in measured.timings])
    wide = _smoothed(measured.timings)[1]
    random = generator(0, "timings").standard_normal((len(sizes), draws))
    return np.exp(random * np.interp(np.log(sizes), at, wide)[:, None])

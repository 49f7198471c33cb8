"""Four pieces to move with your own hands: in the book's pages, in Jupyter, and as numbers in Python.

``descent()``, ``noise()``, ``time_to_target()`` and ``change_batch()`` return a :class:`Piece`. At the end of a cell it
is shown: moving where anywidget is installed (``pip install "batchlab[playground]"``), as a plain figure elsewhere; the
book's pages bring the moving one with them. What a piece computes in a browser is in ``twin`` as well, number for
number, so that it can be tested, and used without a browser.

>>> descent(batch_size=16, lr=0.1)
descent(surface='valley', batch_size=16, lr=0.1, momentum=0, particles=100, seed=0)
"""

from batchlab.playground import twin
from batchlab.playground._piece import Piece

__all__ = ["Piece", "change_batch", "descent", "noise", "time_to_target", "twin"]


def descent(**settings):
    """Return the piece *Descent*: many runs of SGD on a loss surface, with their noise floor.

    Args:
        surface: "bowl", "valley" or "saddle".
        batch_size: 1 to 1,024; a batch's gradient has noise of variance 1 / batch_size on both axes.
        lr, momentum: of heavy-ball SGD, v' = momentum v + g and w' = w - lr v'.
        particles: how many runs, up to 200.
        seed: of their noise, a whole number below 2**32.

    Raises ValueError on another name, or a value out of bounds.

    >>> descent(batch_size=0)
    Traceback (most recent call last):
    ...
    ValueError: batch_size = 0: expected a whole number, at least 1 and at most 1024
    """
    return Piece("descent", settings)


def noise(**settings):
    """Return the piece *Noise*: 200 gradients of batches, scattered round the gradient that they estimate.

    Args:
        batch_size: 1 to 1,024.
        preset: a noise scale that the book measured ("digits", "digits-late", "text"), or "own".
        noise_scale: tr Sigma / |g|^2, in examples; given, the preset is "own".
        directions: over how many directions the noise is spread, 2 to 100.
        drawn: "with" replacement, or "without", from 1,437 examples.
        seed: of the draws, a whole number below 2**32.

    >>> noise(noise_scale=300).settings["preset"]
    'own'
    """
    return Piece("noise", settings)


def time_to_target(**settings):
    """Return the piece *Time to target*: steps, time, cost and the fastest batch size.

    Args:
        preset: numbers that the book measured ("large-gpu", for one; an error lists them), or "own".
        batch_size: yours, in examples, over all devices.
        s_min, critical_batch: of the steps S_min (1 + B_crit / B).
        fixed_ms, knee: of the time of a step on one device, fixed (1 + B / knee).
        devices, communication_ms: how many, and what a step takes longer where there are two or more.
        price: of a device, an hour.

    Any of the four measured numbers given makes the preset "own", and the others keep the default preset's values.

    >>> time_to_target(preset="large-gpu").settings["knee"]
    3780
    """
    return Piece("target", settings)


def change_batch(**settings):
    """Return the piece *Change B*: what ``batchlab.rescale`` makes of settings at another batch size.

    Args:
        optimizer: "sgd", "adam" or "adamw".
        batch_size, new_batch_size: before and after.
        lr, momentum, beta1, beta2, eps, weight_decay, ema, warmup_steps: the settings before; None leaves one out.
        rule, noise_scale, critical_batch: as for ``rescale``.
        keep: "advised" (SGD's momentum), "none", or "decays" (momentum, beta1, beta2 and ema).

    >>> change_batch(new_batch_size=1024).settings["new_batch_size"]
    1024
    """
    return Piece("change", settings)

"""Closed forms, numpy and scipy only. The laws have the short names (``theory.gradient_cosine``)."""

import lazy_loader

from batchlab.theory.laws import (
    adam_variance,
    article_004_progress,
    gd_max_lr,
    gd_risk,
    gd_steps,
    gradient_cosine,
    gradient_squared_norm,
    gradient_variance,
    heavy_ball_variance,
    mean_estimation_variance,
    saddle_spread,
    saddle_steps,
    sampling_factor,
)

__all__ = [
    "adam_variance",
    "all_reduce",
    "article_004_progress",
    "gd_max_lr",
    "gd_risk",
    "gd_steps",
    "gradient_cosine",
    "gradient_squared_norm",
    "gradient_variance",
    "heavy_ball_variance",
    "least_squares",
    "mean_estimation_variance",
    "noisy_quadratic",
    "saddle_spread",
    "saddle_steps",
    "sampling_factor",
]

# Not imported above: a thread that imports theory.noisy_quadratic waits for this file, which must not wait for it.
__getattr__ = lazy_loader.attach(__name__, submodules=["all_reduce", "least_squares", "noisy_quadratic"])[0]


def __dir__():
    return __all__

"""Numbers with their uncertainty: one ``Interval`` for all of them, the bootstrap, paired differences, and two fits.

Everything takes values with one row a seed and returns an ``Interval``, which unpacks as ``claims.check`` wants it:
``(estimate, (low, high))``. NaN is refused everywhere: a run that diverged or missed its target is a failure, to be
counted with ``proportion`` or left out by name, never averaged away.
"""

from batchlab.stats._fits import StepsToTarget, fit_steps_to_target, loglog_slope
from batchlab.stats._intervals import (
    Equivalence,
    Interval,
    fieller,
    mean_interval,
    proportion,
    ratio_of_means,
    student_t,
    tost,
)
from batchlab.stats._resampling import bootstrap, paired_difference

__all__ = [
    "Equivalence",
    "Interval",
    "StepsToTarget",
    "bootstrap",
    "fieller",
    "fit_steps_to_target",
    "loglog_slope",
    "mean_interval",
    "paired_difference",
    "proportion",
    "ratio_of_means",
    "student_t",
    "tost",
]

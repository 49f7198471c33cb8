"""Numbers with their uncertainty: one ``Interval`` for all of them, the bootstrap, paired differences, and two fits.

Everything takes values with one row a seed and returns an ``Interval``, which unpacks as ``claims.check`` wants it:
``(estimate, (low, high))``. NaN is refused everywhere: a run that diverged or missed its target is a failure, to be
counted with ``proportion`` or left out by name, never averaged away.

With ten seeds take Student's t; where a learning rate was chosen, ``tuned_mean`` and ``tuned_difference``; where seeds
are nested in classes or data sets, ``clusters``. How often each interval covers is in ``results/00-coverage.csv``.
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
from batchlab.stats._matched import matched_loss
from batchlab.stats._paired import difference_in_differences, paired_difference
from batchlab.stats._resampling import bootstrap, bootstrap_t
from batchlab.stats._ridge import best_rates, ridge_slope
from batchlab.stats._tuned import Arm, tuned_difference, tuned_mean

__all__ = [
    "Arm",
    "Equivalence",
    "Interval",
    "StepsToTarget",
    "best_rates",
    "bootstrap",
    "bootstrap_t",
    "difference_in_differences",
    "fieller",
    "fit_steps_to_target",
    "loglog_slope",
    "matched_loss",
    "mean_interval",
    "paired_difference",
    "proportion",
    "ratio_of_means",
    "ridge_slope",
    "student_t",
    "tost",
    "tuned_difference",
    "tuned_mean",
]

"""From measurements to advice: arithmetic only, so that a rule can be judged on stored measurements.

The time to a loss is T(B) = S(B) t(B), with S(B) = S_min (1 + B_crit / B) (McCandlish et al. 2018; chapter 4) and t(B)
as timed, loading and accumulation included. B_crit is not known but within a factor: a distribution of it, log-normal,
is carried through, and the advice is the size whose time is, in the mean over that distribution, least above the best.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from batchlab._check import fail, number, one_of
from batchlab.advise._cost import fits, jitter, knee_of, step_seconds
from batchlab.advise._critical import critical_batch
from batchlab.advise._measured import Measured
from batchlab.rescale import rescale
from batchlab.stats import Interval

OBJECTIVES = ("time", "compute", "deadline")
MORE_EXAMPLES = 0.2  # "compute": at most so many more than the fewest
QUANTILES = np.arange(0.5, 25) / 25
BEYOND = 8  # sizes up to so many times the largest that was timed are considered


@dataclass(frozen=True)
class Advice:
    """What ``decide`` returns; seconds are those of ``Measured.timings``.

    ``batch_size`` with ``low`` and ``high``, between which the best size lies four times of five (as far as B_crit is
    known); ``critical`` (an 80 % interval) and ``knee``, in examples. ``micro_batch`` x ``pieces`` is the batch.
    ``settings``: a ``Rescaled`` for each parameter group, or None; ``capped``: what the rate was lowered from, if it
    was. ``excess``: the mean share of time above the best size's, and ``worst``, its 90th percentile. ``off_by``:
    (factor, size, share of time beside this advice's, its 10th and 90th percentile). ``curve``: (size, time over the
    best time at the median B_crit, 10th, 90th percentile). ``total``: seconds of the whole run, where its examples are
    known. ``devices``: (how many, best batch, times as fast). ``met``: whether a deadline can be met.
    """

    objective: str
    batch_size: int
    low: int
    high: int
    critical: Interval
    knee: float
    noise: float | None
    micro_batch: int
    pieces: int
    settings: tuple | None
    capped: float | None
    seconds: float
    excess: float
    worst: float
    off_by: tuple
    curve: tuple
    total: float | None = None
    before: float | None = None
    devices: tuple = ()
    met: bool | None = None
    notes: tuple = ()

    @property
    def confidence(self):
        """Say "sure", "fairly sure", "a guess": nine times of ten below 10 %, 30 %, or more over the best time."""
        return "sure" if self.worst < 0.1 else "fairly sure" if self.worst < 0.3 else "a guess"


def decide(
    measured, objective="time", *, deadline=None, examples=None, devices=(), device_seconds=None
):  # fmt: skip
    """Advice from a ``Measured``, a pure function.

    objective : "time", the least time to a loss on this machine; "compute", the least time with at most 20 % more
        examples than the fewest; "deadline", the fewest examples with which the run ends within ``deadline`` seconds
    examples : how many the run is planned for at the problem's own batch size; a deadline needs it
    devices, device_seconds : numbers of devices, and the cost model: a function (compute, devices) -> seconds a step
        where each device computes for ``compute`` seconds, as ``theory.all_reduce.step_seconds`` is made into one

    Raises ValueError without timings, for another objective, and for a deadline without ``examples``.

    >>> line = [(2**k, Interval(*3 * [0.001 * (32 + 2**k)])) for k in range(12)]  # a knee of 32
    >>> from batchlab.advise._measured import Look
    >>> looks = (Look(100, Interval(128, 100, 160), "here"),)
    >>> found = decide(Measured(16, "sgd", ({"lr": 0.1},), timings=tuple(line), looks=looks))
    >>> found.batch_size, round(found.knee), found.confidence      # sqrt(32 x 128) = 64
    (64, 32, 'sure')
    """
    one_of("objective", objective, OBJECTIVES)
    if not isinstance(measured, Measured) or len(measured.timings) < 2:
        fail("measured", getattr(measured, "timings", measured), "a Measured with timings of at least two sizes")
    if objective == "deadline":
        number("deadline", deadline, above=0)
        number("examples", examples, above=0)
    elif deadline is not None:
        fail("deadline", deadline, "None, or objective='deadline'")
    if examples is not None:
        number("examples", examples, above=0)
    if devices and not callable(device_seconds):
        fail("device_seconds", device_seconds, "a function (compute, devices) -> seconds a step, beside devices")

    seconds, knee = step_seconds(measured), knee_of(measured)
    middle, spread, noise = critical_batch(measured, knee)
    draws = middle * np.exp(spread * stats.norm.ppf(QUANTILES))
    sizes = candidates(measured)
    smooth = relative_times(sizes, draws, np.array([seconds(b) for b in sizes]))  # (sizes, draws)
    times = smooth * jitter(measured, sizes, len(QUANTILES))
    best = sizes[times.argmin(0)]
    chosen, met, at_draws = _chosen(objective, sizes, times, draws, seconds, measured, deadline, examples)
    place = int(np.flatnonzero(sizes == chosen)[0])
    excess = times / times.min(0) - 1
    low, high = np.quantile(best if at_draws is None else at_draws, [0.1, 0.9], method="nearest")
    pieces = max(1, math.ceil(chosen / fits(measured)))
    settings, capped, notes = settings_at(measured, int(chosen), None if noise is None else middle)
    factor = stats.norm.ppf(0.9) * spread
    total = before = None
    if examples is not None:
        total, before = (
            run_seconds(b, middle, seconds, measured.batch_size, examples) for b in (chosen, measured.batch_size)
        )
    return Advice(
        objective=objective,
        batch_size=int(chosen),
        low=int(min(low, chosen)),
        high=int(max(high, chosen)),
        critical=Interval(middle, middle * math.exp(-factor), middle * math.exp(factor), 0.8),
        knee=knee,
        noise=noise,
        micro_batch=math.ceil(chosen / pieces),
        pieces=pieces,
        settings=settings,
        capped=capped,
        seconds=seconds(chosen),
        excess=float(excess[place].mean()),
        worst=float(np.quantile(excess[place], 0.9)),
        off_by=tuple(
            _off_by(k, chosen, draws, seconds) for k in (1 / 4, 1 / 2, 2, 4)
            if 1 <= chosen * k <= (measured.population or math.inf)
        ),
        curve=tuple(
            (int(b), *map(float, np.quantile(row, [0.5, 0.1, 0.9])))
            for b, row in zip(sizes, smooth / smooth.min(0), strict=True)
        ),
        total=total,
        before=before,
        devices=tuple(_with(n, device_seconds, seconds, measured, middle, chosen) for n in devices),
        met=met,
        notes=(*notes, *_at_the_end(measured, chosen, sizes)),
    )  # fmt: skip


def relative_times(sizes, critical, seconds):
    """T(B) / S_min for sizes (n,), critical batches (m,) and seconds a step (n,): an array (n, m).

    >>> relative_times(np.array([1, 2]), np.array([2.0]), np.array([1.0, 1.0])).tolist()
    [[3.0], [2.0]]
    """
    return (1 + critical[None, :] / sizes[:, None]) * seconds[:, None]


def run_seconds(batch_size, critical, seconds, own, examples):
    """Seconds of the run that needs ``examples`` at batch ``own``: E(B) = E(own) (B + B_crit) / (own + B_crit)."""
    return float(examples * (batch_size + critical) / (own + critical) / batch_size * seconds(batch_size))


def candidates(measured, devices=1):
    """Powers of two and halfway between, up to the training set and, a device, to ``most`` and ``BEYOND`` times what
    was timed."""
    top = devices * min(measured.most or math.inf, BEYOND * measured.timings[-1][0])
    top = min(measured.population or math.inf, top)
    powers = [2**k for k in range(40)] + [3 * 2**k for k in range(40)]
    least = measured.timings[0][0]
    return np.array(sorted(b for b in powers if least <= b <= max(top, least)))


def _chosen(objective, sizes, times, draws, seconds, measured, deadline, examples):
    """(size, whether a deadline is met, the best size at each draw or None for that of the time)."""
    if objective == "time":
        return sizes[(times / times.min(0)).mean(1).argmin()], None, None
    if objective == "compute":
        allowed = sizes[:, None] <= np.maximum(MORE_EXAMPLES * draws, sizes[0])
        at_draws = sizes[np.where(allowed, times, np.inf).argmin(0)]
        return sizes[np.abs(np.log(sizes) - np.log(np.median(at_draws))).argmin()], None, at_draws
    totals = np.array([[run_seconds(b, c, seconds, measured.batch_size, examples) for c in draws] for b in sizes])
    in_time = totals <= deadline
    at_draws = sizes[np.where(in_time.any(0), in_time.argmax(0), totals.argmin(0))]  # the smallest in time, or fastest
    middle = in_time[:, len(draws) // 2]
    return (sizes[middle.argmax()], True, at_draws) if middle.any() else (
        sizes[totals[:, len(draws) // 2].argmin()], False, at_draws)  # fmt: skip


def _at_the_end(measured, chosen, sizes):
    """What to say where the advised size is the largest that was considered."""
    if chosen < sizes[-1]:
        return ()
    of = {
        "the training set": measured.population,
        "most": measured.most,
        "what was timed": BEYOND * measured.timings[-1][0],
    }
    least = min((limit, name) for name, limit in of.items() if limit is not None)[1]
    return (("batch size", f"the largest that was considered, for {least}: a larger one might be better still"),)


def _off_by(factor, chosen, draws, seconds):
    size = round(chosen * factor)
    there, here = (relative_times(np.array([b]), draws, np.array([seconds(b)]))[0] for b in (size, chosen))
    return (factor, size, *map(float, np.quantile(there / here, [0.5, 0.1, 0.9])))


def _with(devices, device_seconds, seconds, measured, critical, chosen):
    """(devices, their best batch together, times as fast as one device with the batch ``chosen``)."""
    sizes = candidates(measured, devices)
    sizes = sizes[sizes >= devices]
    cost = [number("device_seconds", device_seconds(seconds(b / devices), devices), above=0) for b in sizes]
    times = relative_times(sizes, np.array([critical]), np.array(cost))[:, 0]
    return devices, int(sizes[times.argmin()]), float((1 + critical / chosen) * seconds(chosen) / times.min())


def settings_at(measured, size, critical):
    """(a ``Rescaled`` a parameter group or None, the rate before it was lowered or None, notes).

    The gain is taken with B_crit, so that rate and steps follow one law; with the noise scale as measured, Adam's rates
    came out too low on the problems that this was tried on.
    """
    if measured.family == "other":
        return None, None, (("settings", "how this optimizer's settings move is not known: tune its rate anew"),)
    optimizer = {"momentum": "sgd"}.get(measured.family, measured.family)
    far = not 1 / 4 <= size / measured.batch_size <= 4
    found = []
    for group in measured.settings:
        betas = tuple(name for name in ("beta1", "beta2") if name in group)
        keep = betas if far and betas else None
        found.append(rescale(group, measured.batch_size, size, optimizer=optimizer, noise_scale=critical, keep=keep))
    lr = found[0].settings["lr"]
    if measured.runs:
        near = min(measured.runs, key=lambda r: abs(math.log(r.batch_size / size)))
        first = {**measured.settings[0], "lr": near.lr}
        moved = rescale(first, near.batch_size, size, optimizer=optimizer, noise_scale=critical, keep=keep)
        return _at_rate(found, moved.settings["lr"], f"the best of whole runs with {near.batch_size}"), None, ()
    range_of = next((r for r in measured.ranges if r.batch_size == size and r.diverges), None)
    most, why = (range_of.diverges / 2, "a short range") if range_of else (math.inf, "")
    with_it = min((rate for at, rate in measured.left if at == size), default=math.inf) / 2
    if with_it < most:
        most, why = with_it, "a short run"
    if lr <= most:
        return tuple(found), None, ()
    return _at_rate(found, most, f"lowered: half of the rate at which {why} left"), lr, ()


def _at_rate(found, lr, why):
    """``Rescaled``s with the first group's rate ``lr``, and the other groups' in proportion."""
    share = lr / found[0].settings["lr"]
    return tuple(
        replace(f, settings={**f.settings, "lr": f.settings["lr"] * share}, rules={**f.rules, "lr": why}) for f in found
    )

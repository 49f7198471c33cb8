"""What is known about a problem before anything is decided: measurements only, kept and read back as JSON."""

import json
import math
from dataclasses import asdict, dataclass, field

from batchlab.stats import Interval

FAMILIES = ("sgd", "momentum", "adam", "adamw", "other")


@dataclass(frozen=True)
class Look:
    """The noise scale ``b_simple`` (examples) after ``examples`` of the short run, and ``call``, what measured it."""

    examples: int
    b_simple: Interval
    call: str


@dataclass(frozen=True)
class RateRange:
    """A run whose rate rises at every step: ``lrs`` and the smoothed ``losses``; where the loss is lowest, and the rate
    at which it left (None: it did not)."""

    batch_size: int
    lrs: tuple
    losses: tuple
    steepest: float
    diverges: float | None


@dataclass(frozen=True)
class Branch:
    """Training on with ``batch_size`` instead: the excess loss as a share of the loss, and the verdict."""

    batch_size: int
    lr: float
    excess: Interval
    verdict: str


@dataclass(frozen=True)
class WholeRuns:
    """Runs from the model as it was to the lowest loss that the problem's own settings see in the planned run:
    ``steps``, a number a run, with ``batch_size`` at ``lr``, the best of the rates that were tried."""

    batch_size: int
    lr: float
    steps: tuple


@dataclass(frozen=True)
class Measured:
    """Everything that ``decide`` looks at.

    ``batch_size``: at which the settings were good. ``family``: one of FAMILIES; ``settings``: one dict a parameter
    group, as ``rescale`` takes them. ``population``: examples in the training set, None where not known. ``most``: the
    largest batch that may be advised, None for any. ``timings``: (batch size, seconds a step) pairs, ascending.
    ``load``: seconds to load a batch and each example in it,
    ``overlapped`` with the step or before it. ``largest``: the largest batch that fits, of usual and of the longest
    examples; ``bounded``: whether a larger one may fit as well (the cap or the time ended the search). ``fresh``:
    whether the optimizer had not yet taken a step. ``left``: (batch size, rate) pairs with which a short run left its
    loss. ``runs``: ``WholeRuns`` by ascending size, three or none. ``notes``: (name, sentence) pairs, what could not
    be judged or was handled.
    """

    batch_size: int
    family: str
    settings: tuple
    population: int | None = None
    most: int | None = None
    timings: tuple = ()
    load: tuple | None = None
    overlapped: bool = False
    largest: int | None = None
    largest_longest: int | None = None
    memory: int | None = None
    bounded: bool = True
    looks: tuple = ()
    layers: dict = field(default_factory=dict)
    fresh: bool = True
    ranges: tuple = ()
    left: tuple = ()
    runs: tuple = ()
    branches: tuple = ()
    notes: tuple = ()

    def json(self):
        """The measurements as a JSON text; infinities and NaN as the strings "inf", "nan".

        >>> m = Measured(32, "sgd", ({"lr": 0.1},), timings=((1, Interval(0.5, 0.4, math.inf)),))
        >>> Measured.read(m.json()) == m
        True
        """
        return json.dumps(plain(asdict(self)), indent=1)

    @classmethod
    def read(cls, text):
        """The measurements that ``json`` wrote."""
        d = {name: _numbers(value) for name, value in json.loads(text).items()}
        d["timings"] = tuple((int(size), Interval(**t)) for size, t in d["timings"])
        d["looks"] = tuple(Look(x["examples"], Interval(**x["b_simple"]), x["call"]) for x in d["looks"])
        d["layers"] = {name: Interval(**x) for name, x in d["layers"].items()}
        d["ranges"] = tuple(
            RateRange(**{**x, "lrs": tuple(x["lrs"]), "losses": tuple(x["losses"])}) for x in d["ranges"]
        )
        d["left"] = tuple(tuple(x) for x in d.get("left", ()))
        d["runs"] = tuple(WholeRuns(**{**x, "steps": tuple(x["steps"])}) for x in d.get("runs", ()))
        d["branches"] = tuple(Branch(**{**x, "excess": Interval(**x["excess"])}) for x in d["branches"])
        d["load"] = None if d["load"] is None else tuple(d["load"])
        d["settings"], d["notes"] = tuple(d["settings"]), tuple(tuple(x) for x in d["notes"])
        return cls(**d)


def plain(value):
    """``value`` with every float that JSON has no word for as a string."""
    if isinstance(value, dict):
        return {str(name): plain(x) for name, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(x) for x in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(value):
    if isinstance(value, dict):
        return {name: _numbers(x) for name, x in value.items()}
    if isinstance(value, list):
        return [_numbers(x) for x in value]
    return float(value) if value in ("inf", "-inf", "nan") else value

"""Rows of the experiments that take longer than a chapter: read where a notebook draws them, and held to a slice.

``experiments/NN-name.py`` trains for minutes, ``make experiments`` stores what its ``rows`` returns as
``results/NN-name.csv``, with ``NN-name.json`` to say how it came about. A notebook reads those, has the script train a
stated slice of them again, and ``rederive`` raises where the two disagree.
"""

import importlib.util
import json
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

from batchlab._check import fail, number

FEWEST = 10  # stored seeds that a spread can be taken from
LAST_DIGIT = 4e-16  # which pandas before 3.1 may read wrongly


class Disagrees(AssertionError):
    """Rows trained again are not those that are stored: the code, the data or the file has changed."""


def folder(kind):
    """Where "results" or "experiments" are: in the repository, or beside this module in an installed package."""
    beside = Path(__file__).with_name(f"_{kind}")
    return beside if beside.exists() else Path(__file__).parents[2] / kind


def read(name):
    """The stored rows of an experiment, "03-rare-classes" say; a pandas.DataFrame as the script's ``rows`` returned it.

    ``.attrs`` says how it was made: "seeds", "date", "commit", "seconds", "environment" (a dict: Python, numpy, torch,
    processor, threads, ...). Raises ValueError on a name that is not there.
    """
    path = _find("results", name, ".csv")
    rows = pd.read_csv(path, keep_default_na=False)
    rows.attrs = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return rows


def script(name):
    """An experiment's script as a module, so that a notebook can train some of its rows again.

    By convention ``script(name).rows(seeds=...)`` trains the lanes of these seeds only, and keeps no lane unless it is
    given ``cache=``. Raises ValueError on a name that is not there.
    """
    spec = importlib.util.spec_from_file_location(name, _find("experiments", name, ".py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # not in sys.modules, so that processes of a sweep get its functions by value
    return module


def _find(kind, name, suffix):
    there = sorted(path.stem for path in folder(kind).glob(f"[0-9][0-9]-*{suffix}"))
    if name not in there:
        fail("name", name, f"one of {there} (in {kind}/)")
    return folder(kind) / f"{name}{suffix}"


@dataclass(frozen=True)
class Agreement:
    """What ``rederive`` found: of ``stored`` rows, ``rows`` were trained again, ``equal`` in every digit.

    ``largest``: the largest difference of a row. ``used``: the share of what was allowed that the worst
    comparison used, at most 1.
    """

    rows: int
    stored: int
    equal: int
    largest: float
    used: float

    def __str__(self):
        return (
            f"{self.rows} of {self.stored} rows were trained again here, ≈ {self.equal} of them the same in every "
            f"digit; largest difference ≈ {self.largest:.2g}, ≈ {self.used:.2f} of what is allowed"
        )


def rederive(stored, again, *, on, value, rtol=None, atol=0.0, alarm=0.001):
    """Hold rows trained again against the stored rows of the same name; return an ``Agreement``, or raise Disagrees.

    stored, again : tables; ``again`` holds some of the rows of ``stored``
    on : the columns that name a row, "seed" among them; the others name its condition
    value : the column compared
    rtol : if given, each row must agree: |again - stored| <= atol + rtol * |stored|. For what rounding does not reach,
        such as a loss after the first dozens of steps: there this sees any change of the code, on any processor.
    atol : a difference that does not matter
    alarm : without ``rtol``, the chance of a false alarm, at most, in one call

    Training amplifies rounding, so another processor ends long runs elsewhere, though in the same distribution: at
    worst as if it had drawn new noise. Without ``rtol`` the rule is therefore about means. With s the standard
    deviation over all stored seeds of a condition, two independent trainings of n seeds differ in their mean by a
    standard error of s * sqrt(2 / n), which is more than what shared data and initial weights leave. Each
    condition's mean difference must be at most z of these (plus ``atol``), and so must the mean over all conditions, in
    units of s; z is the normal quantile that gives ``alarm`` to all comparisons together (Bonferroni). A change that
    moves the mean by less than that passes: hence ``rtol`` where it can be had. A row that is infinite
    (diverged) in one table only never agrees.

    Raises Disagrees, which names the row, and ValueError where a table lacks a column or names a row twice, where a
    value is NaN, ``again`` is empty or has a row that ``stored`` has not, or fewer than 10 seeds of a condition are
    stored (give ``rtol``).

    >>> stored = pd.DataFrame({"batch_size": 8, "seed": range(10), "loss": np.linspace(1, 2, 10)})
    >>> print(rederive(stored, stored[:3], on=["batch_size", "seed"], value="loss"))  # doctest: +ELLIPSIS
    3 of 10 rows were trained again here, ≈ 3 of them the same in every digit; largest difference ≈ 0, ≈ 0.00 of ...
    """
    on = [on] if isinstance(on, str) else list(on)
    if "seed" not in on:
        fail("on", on, "the columns that name a row, 'seed' among them")
    for name, table in (("stored", stored), ("again", again)):
        _check_table(name, table, on, value)
    atol, alarm = number("atol", atol, at_least=0), number("alarm", alarm, above=0, below=1)
    both = again[[*on, value]].merge(stored[[*on, value]], "left", on, suffixes=("_again", ""), indicator=True)
    lost = both[both["_merge"] == "left_only"]
    if len(lost):
        fail("again", _name(lost.iloc[0], on), "rows that are among the stored ones")
    both = both.rename(columns={value: "stored", f"{value}_again": "again"})
    with np.errstate(invalid="ignore"):
        same = np.isclose(both.again, both.stored, rtol=LAST_DIGIT, atol=0)  # infinity and infinity too
        both["gap"] = np.where(same, 0.0, both.again - both.stored)
    for _, row in both[~np.isfinite(both.gap)].head(1).iterrows():
        raise Disagrees(f"{value} at {_name(row, on)}: {_two(row)}")
    if rtol is None:
        used = _by_seeds(stored, both, [name for name in on if name != "seed"], value, atol, alarm)
    else:
        used = _by_rows(both, on, value, number("rtol", rtol, at_least=0), atol)
    return Agreement(len(both), len(stored), int((both.gap == 0).sum()), float(both.gap.abs().max()), used)


def _check_table(name, table, on, value):
    missing = {*on, value} - set(getattr(table, "columns", ()))
    if missing or not len(table):
        fail(f"{name}.columns", sorted(missing), f"a table that is not empty, with columns {[*on, value]}")
    if table[[*on, value]].isna().any(axis=None):
        fail(name, "NaN", "numbers: a run that diverged is infinite or a failure, never missing")
    twice = table[table.duplicated(on)]
    if len(twice):
        fail(name, _name(twice.iloc[0], on), f"rows that {on} name, each once")


def _by_rows(both, on, value, rtol, atol):
    allowed = atol + rtol * both.stored.abs()
    with np.errstate(invalid="ignore"):
        share = np.where(both.gap == 0, 0.0, both.gap.abs() / allowed.where(allowed > 0, np.nan).fillna(5e-324))
    worst = int(share.argmax())
    if share[worst] > 1:
        row = both.iloc[worst]
        raise Disagrees(f"{value} at {_name(row, on)}: {_two(row)}, and rounding explains at most {allowed[worst]:.4g}")
    return float(share[worst])


def _by_seeds(stored, both, condition, value, atol, alarm):
    groups = list(both.groupby(condition)) if condition else [((), both)]
    z = norm.isf(alarm / 2 / (len(groups) + 1))
    shares, units = [], []
    for _, rows in groups:
        same = np.logical_and.reduce([stored[name] == rows[name].iloc[0] for name in condition] or [stored.seed >= 0])
        finite = stored[value][same & np.isfinite(stored[value])]
        where = _name(rows.iloc[0], condition) or "all rows"
        if len(finite) < FEWEST:
            fail("stored", f"{len(finite)} finite rows at {where}", f"at least {FEWEST} seeds, or an rtol")
        spread, gap = finite.std(), rows.gap.mean()
        allowed = z * spread * (2 / len(rows)) ** 0.5 + atol
        if abs(gap) > allowed:
            row = rows.loc[rows.gap.abs().idxmax()]
            raise Disagrees(
                f"{value} at {where}, mean of {len(rows)} seeds: stored {rows.stored.mean():.4g}, trained again "
                f"{rows.again.mean():.4g}, and seeds explain at most {allowed:.4g}; furthest is seed = {row.seed:g}: "
                f"{_two(row)}"
            )
        shares.append(abs(gap) / allowed if gap else 0.0)
        units += list((np.sign(rows.gap) * (rows.gap.abs() - atol).clip(lower=0)) / spread) if spread else []
    share = abs(np.mean(units)) / (z * (2 / len(units)) ** 0.5) if units else 0.0
    if share > 1:
        raise Disagrees(
            f"{value}, mean of {len(units)} rows of all conditions: {np.mean(units):+.4g} standard deviations over "
            f"seeds from what is stored, and seeds explain at most {z * (2 / len(units)) ** 0.5:.4g}"
        )
    return float(max([share, *shares]))


def _name(row, on):
    return ", ".join(
        f"{name} = {value:g}" if isinstance(value := row[name], Real) else f"{name} = {value}" for name in on
    )


def _two(row):
    return f"stored {row.stored:.6g}, trained again {row.again:.6g}"

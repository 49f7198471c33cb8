"""The ledger: what the articles claim, how each claim is tested, and the check that its verdict still stands.

``book/claims.yml`` holds a sentence, a verdict and a test for each claim, written before its chapter measures it. A
chapter measures, then calls :func:`check`, which applies the test to the evidence and raises :class:`VerdictChanged`
if the evidence no longer supports the verdict. Nothing here decides a verdict: it holds the book to the one it printed.
"""

import html
import math
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from batchlab import _check

VERDICTS = {"holds": "holds", "holds-if": "holds, if", "refuted": "refuted", "untestable": "untestable"}
CONDITIONS = ("above", "below", "within", "equals")


class VerdictChanged(AssertionError):
    """The measured evidence does not support the verdict in the ledger: mend the measurement or change the verdict."""


@dataclass(frozen=True)
class Statistic:
    """One measured quantity and the condition its whole interval must meet for the verdict to stand."""

    name: str
    means: str
    condition: str  # one of CONDITIONS
    bound: float | tuple[float, float]

    def met(self, low, high):
        """Whether the interval [low, high] lies wholly where the condition asks.

        >>> Statistic("bias", "relative bias", "within", (-0.01, 0.01)).met(-0.0004, 0.0008)
        True
        """
        if self.condition == "above":
            return low > self.bound
        if self.condition == "below":
            return high < self.bound
        lowest, highest = self.bound if self.condition == "within" else (self.bound, self.bound)
        return lowest <= low and high <= highest

    @property
    def requirement(self):
        """The condition in words, e.g. ``above 0.05`` or ``within [-0.01, 0.01]``."""
        if self.condition == "within":
            return f"within [{self.bound[0]:g}, {self.bound[1]:g}]"
        return f"{'exactly' if self.condition == 'equals' else self.condition} {self.bound:g}"


@dataclass(frozen=True)
class Claim:
    """One row of the ledger; ``statistics`` is empty exactly when the verdict is ``untestable``."""

    id: str
    number: int
    articles: tuple[str, ...]
    says: str
    verdict: str
    because: str
    chapter: str
    sources: tuple[str, ...]
    protocols: tuple[str, ...]
    statistics: tuple[Statistic, ...]


def ledger_path():
    """Where the ledger is: in the repository's ``book/``, or beside this module in an installed package."""
    beside = Path(__file__).with_name("claims.yml")
    return beside if beside.exists() else Path(__file__).parents[2] / "book" / "claims.yml"


def load(path=None):
    """Read and validate a ledger; return its claims as ``{id: Claim}``, in the file's order.

    Args:
        path: a YAML file with a top-level list ``claims``; None for the book's own.

    Raises:
        ValueError: a field missing or unknown, a duplicate id, an unknown verdict, a testable claim without a test,
            a statistic without exactly one condition, or a bound that is not finite. The message names the claim.

    >>> len(load())
    66
    """
    path = ledger_path() if path is None else Path(path)
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))["claims"]
    claims = {}
    for entry in entries:
        claim = _claim(entry)
        if claim.id in claims:
            raise ValueError(f"claim {claim.id!r}: this id stands twice in {path.name}")
        claims[claim.id] = claim
    return claims


def _claim(entry):
    where = f"claim {entry.get('id')!r}"
    required = {"id", "number", "articles", "says", "verdict", "because", "chapter", "sources"}
    missing, unknown = required - entry.keys(), entry.keys() - required - {"test"}
    if missing or unknown:
        raise ValueError(f"{where}: missing fields {sorted(missing)}, unknown fields {sorted(unknown)}")
    _check.one_of(f"{where}: verdict", entry["verdict"], list(VERDICTS))
    if (entry["verdict"] == "untestable") == ("test" in entry):
        raise ValueError(f"{where}: a test is required for every verdict but 'untestable', which has none")
    test = entry.get("test", {"protocol": [], "statistics": {}})
    protocols = [test["protocol"]] if isinstance(test["protocol"], str) else test["protocol"]
    for protocol in protocols:
        _check.one_of(f"{where}: protocol", protocol, ["exact", "FE", "TE", "TS", "TT"])
    if "test" in entry and not test["statistics"]:
        raise ValueError(f"{where}: test.statistics is empty: expected at least one")
    return Claim(
        id=entry["id"],
        number=_check.count(f"{where}: number", entry["number"]),
        articles=tuple(entry["articles"]),
        says=entry["says"].strip(),
        verdict=entry["verdict"],
        because=entry["because"].strip(),
        chapter=entry["chapter"],
        sources=tuple(entry["sources"]),
        protocols=tuple(protocols),
        statistics=tuple(_statistic(where, name, s) for name, s in test["statistics"].items()),
    )


def _statistic(where, name, fields):
    where = f"{where}: statistic {name!r}"
    conditions = sorted(fields.keys() - {"means"})
    if len(conditions) != 1 or conditions[0] not in CONDITIONS or "means" not in fields:
        raise ValueError(f"{where}: fields {sorted(fields)}: expected 'means' and exactly one of {CONDITIONS}")
    bound = fields[conditions[0]]
    if conditions[0] == "within":
        low, high = (_check.number(f"{where}: within", b) for b in bound)
        if low > high:
            _check.fail(f"{where}: within", bound, "[low, high] with low <= high")
        bound = (low, high)
    else:
        bound = _check.number(f"{where}: {conditions[0]}", bound)
    return Statistic(name=name, means=fields["means"].strip(), condition=conditions[0], bound=bound)


@cache
def _book():
    return load()


@dataclass(frozen=True)
class Card:
    """What :func:`check` returns: the claim, its evidence, and how a notebook shows the two."""

    claim: Claim
    measured: dict  # statistic name -> {"estimate", "low", "high"}
    note: str

    def _rows(self):
        for s in self.claim.statistics:
            yield s, self.measured[s.name]

    def __repr__(self):
        says = textwrap.fill(self.claim.says, 96, initial_indent="  ", subsequent_indent="  ")
        lines = [f"{self.claim.id}: {VERDICTS[self.claim.verdict].upper()}", says]
        lines += [f"  {s.name}: {_value(s, m)}, required: {s.requirement}" for s, m in self._rows()]
        return "\n".join(lines + ([f"  {self.note}"] if self.note else []))

    def _repr_html_(self):
        c = self.claim
        articles = "article " + c.articles[0] if len(c.articles) == 1 else "articles " + ", ".join(c.articles)
        rows = "".join(
            f"<tr><th scope='row'>{html.escape(s.means)}</th><td>{_value(s, m)}</td><td>{s.requirement}</td></tr>"
            for s, m in self._rows()
        )
        return (
            f"<div class='claim-card claim-{c.verdict}'>"
            f"<p class='claim-head'><code>{c.id}</code> <span class='claim-source'>{articles}</span> "
            f"<strong class='claim-verdict'>{VERDICTS[c.verdict]}</strong></p>"
            f"<p class='claim-says'>{html.escape(c.says)}</p>"
            f"<table><thead><tr><th scope='col'>measured</th><th scope='col'>value</th>"
            f"<th scope='col'>required</th></tr></thead><tbody>{rows}</tbody></table>"
            + (f"<p class='claim-note'>{html.escape(self.note)}</p>" if self.note else "")
            + "</div>"
        )

    def _repr_mimebundle_(self, include=None, exclude=None):
        evidence = {"claim": self.claim.id, "measured": self.measured, "note": self.note}
        return {"text/plain": repr(self), "text/html": self._repr_html_()}, {"batchlab": evidence}


def _value(statistic, m):
    """The measured value in words, with as many digits as it takes to tell the interval's ends apart.

    Only what the ledger calls exact (``equals``) is printed without ``≈``, the sign of what may differ elsewhere.
    """
    if statistic.condition == "equals":
        return f"{m['estimate']:g}"
    if m["low"] == m["high"]:
        return f"≈ {m['estimate']:.4g}"
    digits = next((d for d in range(3, 15) if f"{m['low']:.{d}g}" != f"{m['high']:.{d}g}"), 15)
    estimate, low, high = (f"≈ {m[end]:.{digits}g}" for end in ("estimate", "low", "high"))
    return f"{estimate}, from {low} to {high}"


def check(claim_id, note="", **measured):
    """Hold the ledger's verdict on one claim against measured evidence; return a card for the page.

    Args:
        claim_id: an id of ``book/claims.yml``.
        note: one plain sentence on data, seeds and protocol.
        **measured: every statistic that the claim's test names, as ``name=(estimate, (low, high))``. The interval is
            the 95% one unless the ledger says otherwise; an exact fact has ``low == estimate == high``.

    Returns:
        A :class:`Card`. Its output metadata carries the evidence, from which the ledger's page is made.

    Raises:
        VerdictChanged: some interval does not lie where the test requires.
        ValueError: unknown claim or statistic, a statistic left out, a missing or reversed interval, an estimate
            outside its interval, NaN or infinity.

    >>> card = check("every-step-descends", rising_share_below=(0, (0, 0)), rising_share_above=(1, (0.97, 1)))
    >>> card.claim.verdict
    'refuted'
    """
    claims = _book()
    if claim_id not in claims:
        _check.fail("claim_id", claim_id, "an id of book/claims.yml")
    claim = claims[claim_id]
    names = [s.name for s in claim.statistics]
    if not names:
        _check.fail("claim_id", claim_id, "a testable claim; this one is 'untestable'")
    if sorted(measured) != sorted(names):
        _check.fail("measured", sorted(measured), f"exactly the statistics of {claim_id!r}: {sorted(names)}")
    evidence = {name: _evidence(name, measured[name]) for name in names}
    failed = [
        f"{s.name} = {evidence[s.name]['estimate']:.6g} in [{evidence[s.name]['low']:.6g}, "
        f"{evidence[s.name]['high']:.6g}], required {s.requirement}"
        for s in claim.statistics
        if not s.met(evidence[s.name]["low"], evidence[s.name]["high"])
    ]
    if failed:
        raise VerdictChanged(f"claim {claim_id!r} ({claim.verdict}): " + "; ".join(failed))
    return Card(claim, evidence, note)


def _evidence(name, value):
    accepted = "(estimate, (low, high)), finite, with low <= estimate <= high"
    try:
        estimate, (low, high) = value
        estimate, low, high = float(estimate), float(low), float(high)
    except (TypeError, ValueError):
        _check.fail(name, value, accepted)
    if not all(map(math.isfinite, (estimate, low, high))) or not low <= estimate <= high:
        _check.fail(name, value, accepted)
    return {"estimate": estimate, "low": low, "high": high}

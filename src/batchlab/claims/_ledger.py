"""What a ledger may say: claims, the statistics that decide them, and when each of those was written down."""

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from batchlab import _check

VERDICTS = {"holds": "holds", "holds-if": "holds, if", "refuted": "refuted", "untestable": "untestable"}
CONDITIONS = ("above", "below", "within", "equals")
KINDS = ("registered", "identity", "finding")
HALVES = ("holds", "fails")
FIELDS = {"id", "number", "articles", "says", "verdict", "because", "chapter", "sources"}


@dataclass(frozen=True)
class Statistic:
    """One measured quantity and the condition its whole interval must meet for the verdict to stand."""

    name: str
    means: str
    condition: str  # one of CONDITIONS
    bound: float | tuple[float, float]
    kind: str = "registered"  # one of KINDS
    half: str | None = None  # of a "holds, if": one of HALVES, the half of the verdict that it shows
    varies: str | None = None  # the condition in `because` that it varies
    short: str = ""  # its name on a card
    registered: str | None = None  # the day its text was written down, before it was measured

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

    @property
    def evidence(self):
        """The kind of evidence in words, e.g. ``registered 2026-11-21``."""
        return f"registered {self.registered}" if self.registered else self.kind


@dataclass(frozen=True)
class Claim:
    """One row of the ledger; ``statistics`` is empty exactly when the verdict is ``untestable``."""

    id: str
    number: int
    articles: tuple[str, ...]  # empty: a claim of the book's own
    says: str
    verdict: str
    because: str
    chapter: str
    sources: tuple[str, ...]
    protocols: tuple[str, ...]
    statistics: tuple[Statistic, ...]
    may: bool = False  # the sentence says that something may happen: one honest protocol that shows it is enough
    conditions: tuple[str, ...] = ()  # of a "holds, if": what it depends on, each in the words of `because`
    also: tuple[str, ...] = ()  # labels of sections in other chapters whose measurements bear on it

    @property
    def own(self):
        """Whether the claim is the book's own, not an article's."""
        return not self.articles


def ledger_path():
    """Where the ledger is: in the repository's ``book/``, or beside this package in an installed one."""
    beside = Path(__file__).parents[1] / "claims.yml"
    return beside if beside.exists() else Path(__file__).parents[3] / "book" / "claims.yml"


def load(path=None):
    """Read and validate a ledger; return its claims as ``{id: Claim}``, in the file's order, the book's own last.

    Beside the ledger lies ``registered.csv``: the day on which each registered test was written down, and the SHA-256
    of its text on that day. A registered test without such a row, or whose text is no longer that text, is refused:
    a test that changes after it was registered needs a new name.

    Args:
        path: a YAML file with a top-level list ``claims`` and perhaps ``own``; None for the book's own.

    Raises:
        ValueError: a field missing or unknown, a duplicate id, an unknown verdict, a testable claim without a test,
            a statistic without exactly one condition, a bound that is not finite, a registered test that is not in
            the register or was edited since. The message names the claim.

    >>> sum(not claim.own for claim in load().values())
    66
    """
    path = ledger_path() if path is None else Path(path)
    ledger = yaml.safe_load(path.read_text(encoding="utf-8"))
    days = register(path.with_name("registered.csv"))
    claims = {}
    for part in ("claims", "own"):
        for entry in ledger.get(part, []):
            claim = _claim(entry, days)
            if claim.id in claims:
                raise ValueError(f"claim {claim.id!r}: this id stands twice in {path.name}")
            if claim.own != (part == "own"):
                raise ValueError(f"claim {claim.id!r}: articles {claim.articles}: expected some under 'claims' only")
            claims[claim.id] = claim
    return claims


def register(path):
    """Return what was registered: ``{(claim, statistic): (day, SHA-256 of the test's text)}``, oldest first."""
    if not Path(path).exists():
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    days = {(row["claim"], row["statistic"]): (row["date"], row["sha256"]) for row in rows}
    if len(days) < len(rows):
        raise ValueError(f"{path}: a test stands twice: once registered, its text stays")
    return days


def digest(claim, test, name):
    """Return the SHA-256 of a test's text: its claim, what it measures, under which protocol, against which bound.

    Args:
        claim: the claim's id.
        test: the entry's ``test``, as it stands in the ledger: {"protocol", "statistics": {name: fields}}.
        name: the statistic.
    """
    protocols = [test["protocol"]] if isinstance(test["protocol"], str) else test["protocol"]
    return _digest(claim, protocols, _statistic(f"claim {claim!r}", name, test["statistics"][name]))


def _digest(claim, protocols, statistic):
    text = [claim, statistic.name, " ".join(statistic.means.split()), statistic.condition, statistic.bound, protocols]
    return hashlib.sha256(json.dumps(text, ensure_ascii=False).encode()).hexdigest()


def _claim(entry, days):
    where = f"claim {entry.get('id')!r}"
    missing, unknown = FIELDS - entry.keys(), entry.keys() - FIELDS - {"test", "may", "if", "also"}
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
    statistics = [_statistic(where, name, s) for name, s in test["statistics"].items()]
    for s in statistics:
        halves = HALVES if entry["verdict"] == "holds-if" else (None,)
        _check.one_of(f"{where}: statistic {s.name!r}: half", s.half, halves)
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
        statistics=tuple(_dated(where, entry["id"], protocols, s, days) for s in statistics),
        may=entry.get("may", False),
        conditions=tuple(entry.get("if", ())),
        also=tuple(entry.get("also", ())),
    )


def _statistic(where, name, fields):
    where = f"{where}: statistic {name!r}"
    conditions = sorted(fields.keys() - {"means", "kind", "half", "varies", "short"})
    if len(conditions) != 1 or conditions[0] not in CONDITIONS or not {"means", "kind"} <= fields.keys():
        raise ValueError(f"{where}: fields {sorted(fields)}: expected 'means', 'kind' and exactly one of {CONDITIONS}")
    _check.one_of(f"{where}: kind", fields["kind"], KINDS)
    bound = fields[conditions[0]]
    if conditions[0] == "within":
        low, high = (_check.number(f"{where}: within", b) for b in bound)
        if low > high:
            _check.fail(f"{where}: within", bound, "[low, high] with low <= high")
        bound = (low, high)
    else:
        bound = _check.number(f"{where}: {conditions[0]}", bound)
    return Statistic(
        name=name,
        means=fields["means"].strip(),
        condition=conditions[0],
        bound=bound,
        kind=fields["kind"],
        half=fields.get("half"),
        varies=fields.get("varies"),
        short=fields.get("short", "").strip(),
    )


def _dated(where, claim, protocols, statistic, days):
    """The statistic with the day on which it was registered, if its text is still the text of that day."""
    if statistic.kind != "registered":
        return statistic
    day, sha256 = days.get((claim, statistic.name), (None, None))
    if day is None:
        raise ValueError(f"{where}: statistic {statistic.name!r} is not in registered.csv: run `make register` first")
    if sha256 != _digest(claim, protocols, statistic):
        raise ValueError(
            f"{where}: statistic {statistic.name!r} was edited since it was registered on {day}: give the new test a "
            "new name, and register that"
        )
    return Statistic(**{**vars(statistic), "registered": day})

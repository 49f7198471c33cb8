"""The ledger: what the articles and the book claim, how each claim is tested, and the check that its verdict stands.

``book/claims.yml`` holds a sentence, a verdict and a test for each claim, and ``book/registered.csv`` the day on which
each test was written down, before it was measured. A chapter measures, then calls :func:`check`, which applies the test
to the evidence and raises :class:`VerdictChanged` if the evidence no longer supports the verdict. Nothing here decides
a verdict: it holds the book to the one it printed.

A statistic is of one kind. ``registered``: text and bound were written first, and it could have failed. ``identity``: a
theorem or arithmetic, which checks the program and is no evidence about training. ``finding``: chosen after looking. A
verdict rests on registered statistics; tests/test_ledger.py holds that it does.
"""

import math
from functools import cache

from batchlab import _check
from batchlab.claims._card import Card, value
from batchlab.claims._ledger import CONDITIONS, HALVES, KINDS, VERDICTS, Claim, Statistic, digest, load, register

__all__ = [
    "CONDITIONS",
    "HALVES",
    "KINDS",
    "VERDICTS",
    "Card",
    "Claim",
    "Statistic",
    "VerdictChanged",
    "check",
    "digest",
    "load",
    "register",
    "value",
]


class VerdictChanged(AssertionError):
    """The measured evidence does not support the verdict in the ledger: mend the measurement or change the verdict."""


@cache
def _book():
    return load()


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

    >>> card = check("bgd-global-optimum", stuck_share=(0.2, (0.17, 0.22)), convex_stuck=(0, (0, 0)))
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

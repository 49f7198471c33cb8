"""A claim beside its evidence, as a notebook and the page show them."""

import html
import math
import textwrap
from dataclasses import dataclass

from batchlab.claims._ledger import VERDICTS, Claim


@dataclass(frozen=True)
class Card:
    """What :func:`batchlab.claims.check` returns: the claim, its evidence, and how a notebook shows the two."""

    claim: Claim
    measured: dict  # statistic name -> {"estimate", "low", "high"}
    note: str

    def _rows(self):
        return [(s, self.measured[s.name]) for s in self.claim.statistics]

    @property
    def _deciding(self):
        """The rows that the verdict rests on: the registered ones, one sentence of the card each."""
        rows = [row for row in self._rows() if row[0].kind == "registered"]
        return rows or self._rows()

    @property
    def _kind(self):
        return " and ".join(dict.fromkeys(s.evidence for s, _ in self._deciding))

    @property
    def _if(self):
        """The condition of a "holds, if", in the words of its reason; empty for the other verdicts."""
        return f" Condition: {'; '.join(self.claim.conditions)}." if self.claim.conditions else ""

    def __repr__(self):
        says = textwrap.fill(self.claim.says, 96, initial_indent="  ", subsequent_indent="  ")
        lines = [
            f"{self.claim.id}: {VERDICTS[self.claim.verdict].upper()}",
            says,
            *([f" {self._if}"] if self._if else []),
        ]
        lines += [f"  {s.name} ({s.evidence}): {value(s, m)}, required: {s.requirement}" for s, m in self._rows()]
        return "\n".join(lines + ([f"  {self.note}"] if self.note else []))

    def _repr_html_(self):
        c = self.claim
        numbers = "; ".join(f"{html.escape(s.short or _words(s.name))}: {value(s, m)}" for s, m in self._deciding)
        source = "the book's own" if c.own else ("article " if len(c.articles) == 1 else "articles ")
        rows = "".join(
            f"<tr><th scope='row'>{html.escape(s.means)}</th><td>{value(s, m)}</td><td>{s.requirement}</td>"
            f"<td>{_unbroken(s.evidence)}</td></tr>"
            for s, m in self._rows()
        )
        protocol = f" Protocol: {', '.join(c.protocols)}." if c.protocols else ""
        return (
            f"<details class='claim-card claim-{c.verdict}'><summary>"
            f"<strong class='claim-verdict'>{VERDICTS[c.verdict]}</strong> "
            f"<span class='claim-says'>{html.escape(c.says)}</span>{html.escape(self._if)} "
            f"<span class='claim-numbers'>{numbers[0].upper() + numbers[1:]}.</span> "
            f"<span class='claim-kind'>{_unbroken(self._kind)}</span></summary>"
            f"<p class='claim-because'>{html.escape(c.because)}</p>"
            f"<table><thead><tr><th scope='col'>measured</th><th scope='col'>value</th><th scope='col'>required</th>"
            f"<th scope='col'>evidence</th></tr></thead><tbody>{rows}</tbody></table>"
            f"<p class='claim-note'>{html.escape(self.note)}{protocol} <code>{c.id}</code>, "
            f"{source}{', '.join(c.articles)}.</p></details>"
        )

    def _repr_mimebundle_(self, include=None, exclude=None):
        evidence = {"claim": self.claim.id, "measured": self.measured, "note": self.note}
        return {"text/plain": repr(self), "text/html": self._repr_html_()}, {"batchlab": evidence}


def _words(name):
    return name.replace("_", " ")


def _unbroken(text):
    """Dates that do not break at their hyphens."""
    return text.replace("-", "\N{NON-BREAKING HYPHEN}")


def value(statistic, measured):
    """Return a measured value in words, its interval rounded where its width says, the estimate like its ends.

    Only what the ledger calls exact (``equals``) is printed without ``≈``, the sign of what may differ elsewhere.
    """
    estimate, low, high = (measured[end] for end in ("estimate", "low", "high"))
    if statistic.condition == "equals":
        return f"{estimate:g}"
    if low == high:
        return f"≈ {estimate:.4g}"
    estimate, low, high = (_rounded(x, high - low) for x in (estimate, low, high))
    return f"≈ {estimate} [{low}, {high}]"


def _rounded(x, width):
    """Round to the place of the second digit of ``width``: an interval that is 0.0023 wide is printed to 0.0001.

    >>> _rounded(-0.99912, 0.0023), _rounded(6.134, 0.7), _rounded(1234.4, 90), _rounded(2.1e-7, 1e-7)
    ('-0.9991', '6.13', '1,234', '2.1e-07')
    """
    places = 1 - math.floor(math.log10(width))
    if places > 6:
        digits = max(1, places + (math.floor(math.log10(abs(x))) if x else 0) + 1)
        return f"{x:.{digits - 1}e}"
    return f"{x:,.{max(0, places)}f}"

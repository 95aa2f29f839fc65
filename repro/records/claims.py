"""The paper's claims as orderings of a table's cells, and what measured values say to each."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from repro.protocol import Protocol, Row

Values = dict[str, list[float]]  # row id -> what was measured, one value per seed

SUPPORTED, CONTRADICTED, MIXED, WITHIN_SPREAD, NOT_MEASURED = (
    "supported",
    "contradicted",
    "mixed",
    "within spread",
    "not measured",
)


@dataclass(frozen=True)
class Pair:
    """Two cells, of which the paper has the first above the second.

    upper, lower: Row ids.
    printed: The paper's difference upper - lower; None where a cell has no printed value.
    measured: The measured difference of means; None where a cell was not measured.
    spread: Standard deviation over seeds of such a difference; None where a cell has one seed only.
    """

    upper: str
    lower: str
    printed: float | None
    measured: float | None
    spread: float | None

    @property
    def finding(self) -> str:
        """What the pair says: "supported", "contradicted", "within spread" or "not measured"."""
        if self.measured is None:
            return NOT_MEASURED
        if abs(self.measured) <= (self.spread or 0.0):
            return WITHIN_SPREAD
        return SUPPORTED if self.measured > 0 else CONTRADICTED


@dataclass(frozen=True)
class Claim:
    """One claim of the paper about one table, as pairs of cells."""

    text: str
    pairs: tuple[Pair, ...]

    @property
    def verdict(self) -> str:
        """What the measured pairs say together."""
        return verdict(pair.finding for pair in self.pairs)


def verdict(findings) -> str:
    """Sums findings up: pairs within the spread of seeds speak neither for a claim nor against it."""
    found = {finding for finding in findings if finding != NOT_MEASURED}
    if not found:
        return NOT_MEASURED
    decided = found - {WITHIN_SPREAD}
    if not decided:
        return WITHIN_SPREAD
    return decided.pop() if len(decided) == 1 else MIXED


def _pairs(protocol: Protocol) -> list[tuple[str, list[tuple[Row, Row]]]]:
    """Lists the paper's orderings as pairs (the row that should be higher, the row below it)."""
    rows = [row for row in protocol.rows if row.status == "run"]
    grid = {
        (
            tuple(r.settings["model"]["scales"]),
            r.settings["model"]["merge"],
            r.settings["model"]["extra_supervision"],
        ): r
        for r in rows
    }
    # Rows that differ in anything else (another class, another filter count) do not make a grid.
    if len(grid) < len(rows) or len({(row.dataset, row.metric) for row in rows}) > 1:
        return []
    baseline = [row for key, row in grid.items() if key[1] == "none"]
    cells = {key: row for key, row in grid.items() if key[1] != "none"}
    best = [row for (scales, merge, extra), row in cells.items() if len(scales) == 3 and merge == "attention" and extra]
    claims = [
        ("several scales are better than one", [(row, base) for row in cells.values() for base in baseline]),
        (
            "extra supervision helps",
            [
                (row, cells[scales, merge, False])
                for (scales, merge, extra), row in cells.items()
                if extra and (scales, merge, False) in cells
            ],
        ),
        (
            "attention is at least as good as average and max",
            [
                (row, cells[scales, other, extra])
                for (scales, merge, extra), row in cells.items()
                if merge == "attention"
                for other in ("average", "max")
                if (scales, other, extra) in cells
            ],
        ),
        (
            "attention over three scales with extra supervision is the best",
            [(row, other) for row in best for other in grid.values() if other is not row],
        ),
    ]
    return [(claim, pairs) for claim, pairs in claims if pairs]


def claims(protocol: Protocol, values: Values) -> list[Claim]:
    """Holds measured values against the paper's claims.

    Args:
        protocol: The table.
        values: Percent; rows that were not measured may be absent.
    """

    def pair(upper: Row, lower: Row) -> Pair:
        printed = None if upper.paper is None or lower.paper is None else upper.paper - lower.paper
        a, b = values.get(upper.id), values.get(lower.id)
        measured = statistics.fmean(a) - statistics.fmean(b) if a and b else None
        spread = None
        if a and b and len(a) > 1 and len(b) > 1:
            spread = math.hypot(statistics.stdev(a), statistics.stdev(b))
        return Pair(upper.id, lower.id, printed, measured, spread)

    return [Claim(text, tuple(pair(*rows) for rows in pairs)) for text, pairs in _pairs(protocol)]


def orderings(protocol: Protocol, values: Values) -> list[str]:
    """Counts, for each of the paper's orderings, in how many pairs of cells it was measured, beside the paper's own count."""

    def count(pairs: tuple[Pair, ...], difference: Callable[[Pair], float | None]) -> str:
        known = [d for pair in pairs if (d := difference(pair)) is not None]
        return f"{sum(d >= 0 for d in known)} of {len(known)}"

    lines = []
    for claim in claims(protocol, values):
        measured = count(claim.pairs, lambda pair: pair.measured)
        if not measured.endswith(" of 0"):
            printed = count(claim.pairs, lambda pair: pair.printed)
            lines.append(f"{claim.text}: measured in {measured} pairs of cells, printed in {printed}")
    return lines

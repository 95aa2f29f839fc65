"""The paper's claims as orderings of a table's cells, and what measured values say to each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from repro.protocol import Protocol, Row
from repro.protocol.schema import GROUPS
from repro.records.store import MEASURED, walk
from repro.records.verdict import (
    CONTRADICTED,
    NOT_MEASURED,
    SUPPORTED,
    WITHIN_SPREAD,
    Measured,
    finding,
    measure,
    minus,
    row_of,
    row_values,
    verdict,
)

Values = dict[str, list[float]]  # row id -> what was measured, one value per seed


@dataclass(frozen=True)
class Pair:
    """Two cells, of which the paper has the first above the second.

    upper, lower: Row ids.
    printed: The paper's difference upper - lower; None where a cell has no printed value.
    measured: The measured difference; None where a cell was not measured.
    """

    upper: str
    lower: str
    printed: float | None
    measured: Measured | None

    @property
    def finding(self) -> str:
        """What the pair says: "supported", "contradicted", "within spread" or "not measured"."""
        return finding(self.measured)


@dataclass(frozen=True)
class Claim:
    """One claim of the paper about one table, as pairs of cells; `brief` says it in few words."""

    text: str
    pairs: tuple[Pair, ...]
    brief: str = ""

    @property
    def verdict(self) -> str:
        """What the measured pairs say together."""
        return verdict(pair.finding for pair in self.pairs)

    @property
    def evidence(self) -> str:
        """Counts the pairs by finding, beside the paper's own count."""
        return evidence([pair.finding for pair in self.pairs], [pair.printed for pair in self.pairs])


def evidence(findings: list[str], printed: Iterable[float | None]) -> str:
    """Counts pairs of cells by finding, beside those that the printed values bear out."""
    counted = [
        f"{findings.count(one)} {words}"
        for one, words in (
            (SUPPORTED, "for"),
            (CONTRADICTED, "against"),
            (WITHIN_SPREAD, "within the spread"),
            (NOT_MEASURED, "not measured"),
        )
        if one in findings
    ]
    known = [difference for difference in printed if difference is not None]
    beside = f" (printed: {sum(d > 0 for d in known)} of {len(known)} for)" if known else ""
    return f"{len(findings)} {'pair' if len(findings) == 1 else 'pairs'}: {', '.join(counted)}{beside}"


def is_other_network(row: Row) -> bool:
    """Tells whether a row that runs is no cell of the paper's grid, though its scales and merge may be a cell's: DeepLab-MSc, or one with a domain transform."""
    return any(key in row.settings["model"] for group in GROUPS.values() for key in group)


def _pairs(protocol: Protocol) -> list[tuple[str, str, list[tuple[Row, Row]]]]:
    """Lists the paper's orderings, at length and in brief, as pairs (the row that should be higher, the row below it)."""
    rows = [row for row in protocol.rows if row.status == "run" and not is_other_network(row)]
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
        (
            "several scales are better than one",
            "several scales help",
            [(row, base) for row in cells.values() for base in baseline],
        ),
        (
            "extra supervision helps",
            "extra supervision helps",
            [
                (row, cells[scales, merge, False])
                for (scales, merge, extra), row in cells.items()
                if extra and (scales, merge, False) in cells
            ],
        ),
        (
            "attention is at least as good as average and max",
            "attention leads",
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
            "the paper's best row leads",
            [(row, other) for row in best for other in grid.values() if other is not row],
        ),
    ]
    return [(claim, brief, pairs) for claim, brief, pairs in claims if pairs]


def known_spreads(protocol: Protocol) -> dict[str, float]:
    """Reads the spread over seeds of every row of which records of several seeds are kept with the protocols as they are."""
    kept: dict[str, list[dict]] = {}
    for stored in walk([MEASURED], protocol.name):
        try:
            if not stored.reason and not stored.record["deviates"]:
                kept.setdefault(row_of(stored.record, {protocol.name: protocol}).id, []).append(stored.record)
        except ValueError:
            continue
    cells = {row_id: measure(row_values(protocol.row(row_id), found).values()) for row_id, found in kept.items()}
    return {row_id: cell.spread for row_id, cell in cells.items() if cell and cell.spread is not None}


def claims(protocol: Protocol, values: Values, known: Mapping[str, float] | None = None) -> list[Claim]:
    """Holds measured values against the paper's claims.

    Args:
        protocol: The table.
        values: Percent; rows that were not measured may be absent.
        known: Row id -> its spread over seeds, for rows that were measured with one seed only.
    """

    def cell(row: Row) -> Measured | None:
        found = measure(values.get(row.id, []))
        return found._replace(spread=(known or {}).get(row.id)) if found and found.spread is None else found

    def pair(upper: Row, lower: Row) -> Pair:
        printed = None if upper.paper is None or lower.paper is None else upper.paper - lower.paper
        return Pair(upper.id, lower.id, printed, minus(cell(upper), cell(lower)))

    return [Claim(text, tuple(pair(*rows) for rows in pairs), brief) for text, brief, pairs in _pairs(protocol)]


def orderings(protocol: Protocol, values: Values, known: Mapping[str, float] | None = None) -> list[str]:
    """Says of each of the paper's orderings what was measured; arguments as for `claims`."""
    found = [claim for claim in claims(protocol, values, known) if claim.verdict != NOT_MEASURED]
    return [f"{claim.text}: {claim.verdict}; {claim.evidence}" for claim in found]


def learnt(protocol: Protocol, values: Values, known: Mapping[str, float] | None = None) -> str:
    """Says in one line in how many of the pairs that were measured each of the paper's orderings was found; arguments as for `claims`."""
    counted = []
    for claim in claims(protocol, values, known):
        findings = [pair.finding for pair in claim.pairs if pair.measured is not None]
        if findings:
            counted.append(f"{claim.brief} in {findings.count(SUPPORTED)} of {len(findings)}")
    return ", ".join(counted)

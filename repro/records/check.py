"""Compares records with the paper: `python -m repro.run check [--runs DIR ...]`. Exit code 1 where a cell lies outside its tolerance. Needs no torch.

A record of one of the paper's tables counts where it followed the protocol to the letter: real data, nothing overridden. One that evaluates given weights
(--set solver.max_iter=0 --weights FILE) counts too, under the tolerance for released weights. All others are listed as not comparable.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from repro.protocol import PAPER, Row, load_protocol, load_protocols
from repro.records.store import MEASURED, Record, walk
from repro.records.tables import spread
from repro.records.verdict import (
    SPREADS,
    WAYS,
    Judgement,
    Measured,
    judge_difference,
    judge_value,
    measure,
    minus,
    row_of,
    row_values,
    unfit,
    way_of,
)
from repro.shell import exit_code


@dataclass(frozen=True)
class Comparison:
    """One number of the paper beside what was measured.

    cell: Table and row.
    way: "evaluate" or "retrain".
    judged: The number, or for a printed difference the difference.
    """

    cell: str
    way: str
    judged: Judgement

    def __str__(self) -> str:
        judged, measured = self.judged, self.judged.measured
        printed = f"{judged.low:.2f}" if judged.low == judged.high else f"{judged.low:+.2f} to {judged.high:+.2f}"
        runs = f"{measured.seeds} {'run' if measured.seeds == 1 else 'seeds'}"
        seeds = {None: "", True: "; the paper lies", False: "; the paper does not lie"}[judged.in_spread]
        seeds += f" within mean ± {SPREADS} spread" if seeds else ""
        return (
            f"{'within ' if judged.within else 'OUTSIDE'}  {self.cell} ({WAYS[self.way]}, {runs}): measured {spread(measured)}, paper {printed}, "
            f"off by {judged.distance:+.2f}, tolerance {judged.tolerance:g}{seeds}"
        )


@dataclass
class Report:
    """What a check found.

    compared: One entry per number of the paper for which there are records.
    aside: Of every record or cell that is not compared, what it is and why.
    """

    compared: list[Comparison] = field(default_factory=list)
    aside: list[tuple[str, str]] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Lays the report out, the statement last."""
        outside = sum(not comparison.judged.within for comparison in self.compared)
        counts = Counter(self.aside)
        lines = [str(comparison) for comparison in self.compared]
        lines += ["Not comparable with the paper:"] if counts else []
        lines += [f"  {what}{f' ({n} records)' if n > 1 else ''}: {why}" for (what, why), n in counts.items()]
        if not self.compared:
            return [*lines, "Nothing was compared: no record here is comparable with a number of the paper."]
        total = f"{len(self.compared)} numbers of the paper compared: {len(self.compared) - outside} within, {outside} outside."
        return [*lines, total]


class _Records:
    """The comparable records of some folders by table, row and way, seed by seed."""

    def __init__(self, folders: Iterable[Path], report: Report):
        self.found: dict[tuple[str, str, str], dict[int, Record]] = {}
        protocols = load_protocols()
        for stored in walk(folders):
            table = stored.record.get("table")
            if not stored.reason and table not in protocols:
                report.aside.append((f"{table}, in {stored.out}", "not one of the paper's tables"))
                continue
            try:
                row = None if stored.reason else row_of(stored.record, protocols)
            except ValueError as error:
                stored = stored._replace(reason=str(error))
            if stored.reason:
                report.aside.append((str(stored.path), stored.reason))
                continue
            record = stored.record
            if reason := unfit(record, row, protocols[table]):
                report.aside.append((f"{record['table']}, in {stored.out}", reason))
                continue
            key = record["table"], record["row"], way_of(record)
            self.found.setdefault(key, {}).setdefault(record["seed"], record)

    def cell(self, name: str, row: Row, way: str) -> Measured | None:
        """Sums up the values of a row "TABLE/ROW" by another row's metric."""
        table, _, row_id = name.partition("/")
        return measure(row_values(row, self.found.get((table, row_id, way), {}).values()).values())


def compare(folders: Iterable[Path]) -> Report:
    """Compares every comparable record below some folders with every number of the paper that it bears on.

    Args:
        folders: Each laid out as <table>/<row>-seed<seed>/record.json.
    """
    report = Report()
    records = _Records(folders, report)
    used: set[tuple[str, str]] = set()
    for protocol in map(load_protocol, PAPER):
        for row in protocol.rows:
            source = row.of or f"{protocol.name}/{row.id}"
            for way in WAYS:
                measured = records.cell(source, row, way)
                if measured is None:
                    continue
                cell, tolerance = f"{protocol.name} {row.id}", protocol.tolerance[way]
                if judged := judge_value(row, measured, tolerance):
                    used.add((source, way))
                    report.compared.append(Comparison(cell, way, judged))
                if row.difference:
                    other = row.difference[0]
                    used.add((source, way))
                    judged = judge_difference(row, minus(measured, records.cell(other, row, way)), tolerance)
                    if judged is None:
                        report.aside.append((cell, f"prints a difference from {other}, which has no comparable record"))
                        continue
                    report.compared.append(Comparison(f"{cell} minus {other}", way, judged))
    for table, row_id, way in records.found:
        if (f"{table}/{row_id}", way) not in used:
            report.aside.append((f"{table} {row_id}", "the paper prints no number for it"))
    return report


def default_folders() -> list[Path]:
    """Where records are, unless a command says otherwise: runs/ and the package's own."""
    return [folder for folder in (Path("runs"), MEASURED) if folder.is_dir()]


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 1 where something lies outside, 2 for an error."""
    parser = argparse.ArgumentParser(prog="python -m repro.run check", description=__doc__)
    parser.add_argument(
        "--runs",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="folders of records (default runs/ and protocols/measured/)",
    )
    options = parser.parse_args(arguments)

    def show() -> int:
        folders = options.runs or default_folders()
        missing = [folder for folder in folders if not folder.is_dir()]
        if missing:
            raise FileNotFoundError(f"--runs: {missing[0]} must be a folder; got none there; give the --out of a run")
        report = compare(folders)
        print("\n".join(report.lines()))
        return 0 if all(comparison.judged.within for comparison in report.compared) else 1

    return exit_code(show)

"""Compares records with the paper: `python -m repro.run check [--runs DIR ...]`. Exit code 1 where a cell lies outside its tolerance. Needs no torch.

A record counts where it followed the protocol to the letter: real data, nothing overridden. One that evaluates given weights
(--set solver.max_iter=0 --weights FILE) counts too, under the tolerance for released weights. All others are listed as not comparable.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repro.protocol import PAPER, PROTOCOLS, Protocol, Row, load_protocol, settings_sha256
from repro.records.store import SUBMISSION, read_record
from repro.records.tables import row_value, spread

EVALUATION = {"solver.max_iter", "weights.file"}  # what a run deviates in that evaluates released weights
WAYS = {"evaluate": "released weights", "retrain": "trained"}  # as the protocols' tolerances name them
SPREADS = 2


@dataclass(frozen=True)
class Comparison:
    """One number of the paper beside what was measured.

    cell: Table and row.
    way: "evaluate" or "retrain".
    values: Measured, one per seed, percent; for a printed difference the differences.
    low, high: What is printed, percent; equal but for a printed range.
    tolerance: Percentage points.
    """

    cell: str
    way: str
    values: list[float]
    low: float
    high: float
    tolerance: float

    @property
    def distance(self) -> float:
        """How far the measured mean lies from what is printed, percentage points."""
        mean = statistics.fmean(self.values)
        return mean - min(max(mean, self.low), self.high)

    @property
    def in_spread(self) -> bool | None:
        """Whether the paper lies within the mean and SPREADS standard deviations over seeds; None for one seed."""
        if len(self.values) < 2:
            return None
        return abs(self.distance) <= SPREADS * statistics.stdev(self.values)

    @property
    def within(self) -> bool:
        """Whether the cell agrees: within the tolerance, or (the seeds being that far apart) within the spread."""
        return abs(self.distance) <= self.tolerance or bool(self.in_spread)

    def __str__(self) -> str:
        printed = f"{self.low:.2f}" if self.low == self.high else f"{self.low:+.2f} to {self.high:+.2f}"
        runs = f"{len(self.values)} {'run' if len(self.values) == 1 else 'seeds'}"
        seeds = {None: "", True: "; the paper lies", False: "; the paper does not lie"}[self.in_spread]
        seeds += f" within mean ± {SPREADS} spread" if seeds else ""
        return (
            f"{'within ' if self.within else 'OUTSIDE'}  {self.cell} ({WAYS[self.way]}, {runs}): measured {spread(self.values)}, paper {printed}, "
            f"off by {self.distance:+.2f}, tolerance {self.tolerance:g}{seeds}"
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
        outside = sum(not comparison.within for comparison in self.compared)
        counts = Counter(self.aside)
        lines = [str(comparison) for comparison in self.compared]
        lines += ["Not comparable with the paper:"] if counts else []
        lines += [f"  {what}{f' ({n} records)' if n > 1 else ''}: {why}" for (what, why), n in counts.items()]
        if not self.compared:
            return [*lines, "Nothing was compared: no record here is comparable with a number of the paper."]
        total = f"{len(self.compared)} numbers of the paper compared: {len(self.compared) - outside} within, {outside} outside."
        return [*lines, total]


def way_of(record: dict[str, Any]) -> str:
    """Tells whether a record evaluates given weights or trained its own."""
    return "evaluate" if record["settings"].get("solver", {}).get("max_iter") == 0 else "retrain"


def unfit(record: dict[str, Any], row: Row) -> str:
    """Says why a record is not comparable with the paper, or ""."""
    way = way_of(record)
    if record["synthetic"]:
        return "synthetic data"
    if not row.settings:
        return f"the protocol's row is {row.status} now"
    deviates = set(record["deviates"]) - (EVALUATION if way == "evaluate" else set())
    if deviates:
        return f"deviates from the protocol in {', '.join(sorted(deviates))}"
    settings = row.settings
    if way == "evaluate":
        settings = settings | {"solver": settings["solver"] | {"max_iter": 0}}
    if settings_sha256(settings) != record["provenance"].get("settings_sha256"):
        return "made with other settings than the protocol has now"
    if record["value"] is None:
        return "no score of the server yet" if SUBMISSION in record else "no value"
    return ""


class _Records:
    """The comparable records of some folders by table, row and way, seed by seed."""

    def __init__(self, folders: Iterable[Path], report: Report):
        self.found: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
        protocols: dict[str, Protocol] = {}
        for path in (path for folder in folders for path in sorted(folder.glob("*/*/record.json"))):
            try:
                record = read_record(path)
                if record["table"] not in protocols:
                    protocols[record["table"]] = load_protocol(record["table"])
                row = protocols[record["table"]].row(record["row"])
            except ValueError as error:
                report.aside.append((str(path), str(error)))
                continue
            reason = unfit(record, row)
            if reason:
                report.aside.append((f"{record['table']}, in {path.parents[2]}", reason))
                continue
            key = record["table"], record["row"], way_of(record)
            self.found.setdefault(key, {}).setdefault(record["seed"], record)

    def values(self, name: str, row: Row, way: str) -> dict[int, float]:
        """Reads the values of a row "TABLE/ROW" by another row's metric, by seed."""
        table, _, row_id = name.partition("/")
        return {seed: row_value(row, record) for seed, record in self.found.get((table, row_id, way), {}).items()}


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
                values = records.values(source, row, way)
                if not values:
                    continue
                cell, tolerance = f"{protocol.name} {row.id}", protocol.tolerance[way]
                if row.paper is not None:
                    used.add((source, way))
                    report.compared.append(
                        Comparison(cell, way, list(values.values()), row.paper, row.paper, tolerance)
                    )
                if row.difference:
                    other, low, high = row.difference
                    base = records.values(other, row, way)
                    used.add((source, way))
                    if not base:
                        report.aside.append((cell, f"prints a difference from {other}, which has no comparable record"))
                        continue
                    mean = statistics.fmean(base.values())
                    differences = [value - mean for value in values.values()]
                    report.compared.append(Comparison(f"{cell} minus {other}", way, differences, low, high, tolerance))
    for table, row_id, way in records.found:
        if (f"{table}/{row_id}", way) not in used:
            report.aside.append((f"{table} {row_id}", "the paper prints no number for it"))
    return report


def default_folders() -> list[Path]:
    """Where records are, unless a command says otherwise: runs/ and the package's own."""
    return [folder for folder in (Path("runs"), PROTOCOLS / "measured") if folder.is_dir()]


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
    folders = options.runs or default_folders()
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing:
        print(f"error: --runs: {missing[0]} must be a folder; got none there; give the --out of a run", file=sys.stderr)
        return 2
    report = compare(folders)
    print("\n".join(report.lines()))
    return 0 if all(comparison.within for comparison in report.compared) else 1

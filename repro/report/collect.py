"""Finds what a report can be made from below folders of runs, and says of every other file why it was left out."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from repro.protocol import Protocol, Row
from repro.records.benchmark import read_benchmark
from repro.records.evidence import FILE, read_evidence
from repro.records.own import known_protocols
from repro.records.store import Record, Stored, walk
from repro.records.verdict import row_of, unfit
from repro.report.pictures import Pictures, read_pictures


@dataclass(frozen=True)
class Found:
    """One usable record.

    path: Its file.
    sha256: Of the file.
    record: Its content.
    unfit: Why its value is not comparable with the paper's, or "".
    """

    path: Path
    sha256: str
    record: Record
    unfit: str


@dataclass
class Collection:
    """Everything found.

    protocols: Of the paper's tables, in their order, each stand-in behind its table; then stages; then tables of one's own.
    own: Of the latter the protocol's file, by table.
    records: By (table, row): the records that a cell shows, one per seed.
    figures: By table: what its figures.json holds.
    benchmarks: Content of every benchmark file, with its path.
    evidence: The same of every evidence from a device.
    not_used: (file, why it was left out).
    """

    protocols: dict[str, Protocol]
    own: dict[str, Path] = field(default_factory=dict)
    records: dict[tuple[str, str], list[Found]] = field(default_factory=dict)
    figures: dict[str, Pictures] = field(default_factory=dict)
    benchmarks: list[tuple[Path, dict]] = field(default_factory=list)
    evidence: list[tuple[Path, dict]] = field(default_factory=list)
    not_used: list[tuple[Path, str]] = field(default_factory=list)


def one_line(error: object) -> str:
    """Puts an error's text on one line, of a length that a table can bear."""
    return " ".join(str(error).split())[:300]


def usable(stored: Stored, protocols: dict[str, Protocol]) -> Found:
    """Takes a record that a report can show.

    Raises:
        ValueError: It cannot, and why.
    """
    if stored.reason:
        raise ValueError(stored.reason)
    row = row_of(stored.record, protocols)
    return Found(
        stored.path, stored.sha256, stored.record, unfit(stored.record, row, protocols[stored.record["table"]])
    )


def _origin(found: Found) -> tuple[str, ...]:
    """What records must share to be averaged over seeds."""
    made_from = found.record["provenance"]
    keys = ("settings_sha256", "data_sha256", "weights_sha256", "precision")
    return (json.dumps(found.record["deviates"], sort_keys=True), *(str(made_from.get(key)) for key in keys))


def _preference(group: dict[int, Found]) -> tuple[bool, bool, int]:
    first = next(iter(group.values()))
    return bool(first.unfit), bool(first.record["deviates"]), -len(group)


def _choose(candidates: list[Found]) -> tuple[list[Found], list[tuple[Path, str]]]:
    """Chooses the records of one cell: those comparable with the paper before others, trained ones before released weights, then the most seeds; the rest is listed with its reason."""
    groups: dict[tuple[str, ...], dict[int, Found]] = {}
    left_out: list[tuple[Path, str]] = []
    for found in candidates:
        group = groups.setdefault(_origin(found), {})
        first = group.setdefault(found.record["seed"], found)
        if first is not found:
            same = "an equal copy" if first.sha256 == found.sha256 else "another run of the same row and seed"
            left_out.append((found.path, f"{same}: {first.path} stands for it"))
    ordered = sorted(groups.values(), key=_preference)
    for group in ordered[1:]:
        for found in group.values():
            other = found.record["deviates"] and ", ".join(sorted(found.record["deviates"]))
            reason = f"its cell shows records that do not override {other}" if other else "its cell shows others"
            left_out.append((found.path, f"made from other settings, data, weights or precision: {reason}"))
    return sorted(ordered[0].values(), key=lambda found: found.record["seed"]), left_out


def named_row(protocols: dict[str, Protocol], name: str) -> tuple[Protocol, Row] | None:
    """Finds the row that a view's `of` names, such as "table1/attention3-extra"."""
    table, _, row_id = name.partition("/")
    protocol = protocols.get(table)
    return next(((protocol, row) for row in protocol.rows if row.id == row_id), None) if protocol else None


def _is_rehearsed(benchmark: Path) -> bool:
    """Tells whether a benchmark lies beside the evidence of a rehearsal, whose trials on the CPU measured nothing."""
    try:
        return bool(read_evidence(benchmark.with_name(FILE))["rehearsal"])
    except (FileNotFoundError, ValueError):  # none, or a damaged one, of which the page tells
        return False


def collect(folders: list[Path], kept: Path | None = None) -> Collection:
    """Reads everything below the folders.

    Args:
        folders: Each holds <table>/<row>-seed<seed>/record.json, <table>/figures/figures.json, of a table of one's own <table>/<table>.toml, and
            bench*.json, or bench/*.json, and gpu/evidence.json with its bench*.json, as far as they exist. Where two hold the same, the first stands.
        kept: A folder from which benchmarks and evidence alone are read too.
    """
    protocols, own, left_out = known_protocols(folders)
    found = Collection(protocols, own, not_used=[(path, one_line(reason)) for path, reason in left_out])
    candidates: dict[tuple[str, str], list[Found]] = {}
    for stored in walk(folders):
        try:
            one = usable(stored, found.protocols)
            candidates.setdefault((one.record["table"], one.record["row"]), []).append(one)
        except ValueError as error:
            found.not_used.append((stored.path, one_line(error)))
    for folder in dict.fromkeys(folders):
        for path in sorted(folder.glob("*/figures/figures.json")):
            try:
                left_out: list[tuple[Path, str]] = []
                pictures = read_pictures(path, lambda *what, left_out=left_out: left_out.append(what))
                if pictures.table not in found.protocols:
                    raise ValueError(f"foreign: unknown table {pictures.table!r}")
                if pictures.table in found.figures:
                    raise ValueError(
                        f"the figures of {pictures.table} come from {found.figures[pictures.table].folder}"
                    )
                found.figures[pictures.table] = pictures
                found.not_used += left_out
            except ValueError as error:
                found.not_used.append((path, one_line(error)))
    for folder in dict.fromkeys([*folders, *([kept] if kept else [])]):
        benches = {*folder.glob("bench*.json"), *folder.glob("bench/*.json"), *folder.glob("gpu/bench*.json")}
        for path in sorted(path for path in benches if not _is_rehearsed(path)):
            try:
                found.benchmarks.append((path, read_benchmark(path)))
            except ValueError as error:
                found.not_used.append((path, one_line(error)))
        for path in sorted({*folder.glob(FILE), *folder.glob(f"gpu/{FILE}")}):
            try:
                document = read_evidence(path)
                if document["rehearsal"]:
                    raise ValueError("a rehearsal on the CPU: no evidence from a device")
                found.evidence.append((path, document))
            except ValueError as error:
                found.not_used.append((path, one_line(error)))
    for key, group in candidates.items():
        found.records[key], left_out = _choose(group)
        found.not_used += left_out
    return found

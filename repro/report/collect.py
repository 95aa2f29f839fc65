"""Finds what a report can be made from below folders of runs, and says of every other file why it was left out."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repro.data.pictures import open_picture
from repro.protocol import PAPER, PROTOCOLS, Protocol, Row, load_protocol, settings_sha256
from repro.records.check import unfit
from repro.records.store import FORMAT, SUBMISSION, read_record

BENCH_FORMAT = FIGURES_FORMAT = 1


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
    record: dict[str, Any]
    unfit: str


@dataclass
class Collection:
    """Everything found.

    protocols: Of the paper's tables, in their order, each stand-in behind its table; then stages.
    records: By (table, row): the records that a cell shows, one per seed.
    figures: By table: the folder and content of figures.json.
    benchmarks: Content of every benchmark file, with its path.
    not_used: (file, why it was left out).
    """

    protocols: dict[str, Protocol]
    records: dict[tuple[str, str], list[Found]] = field(default_factory=dict)
    figures: dict[str, tuple[Path, dict]] = field(default_factory=dict)
    benchmarks: list[tuple[Path, dict]] = field(default_factory=list)
    not_used: list[tuple[Path, str]] = field(default_factory=list)


def one_line(error: object) -> str:
    """Puts an error's text on one line, of a length that a table can bear."""
    return " ".join(str(error).split())[:300]


def load_protocols() -> dict[str, Protocol]:
    """Loads every protocol: the paper's order, a stand-in behind its table, what is left at the end."""
    present = {path.stem for path in PROTOCOLS.glob("*.toml")}
    loaded = {name: load_protocol(name) for name in present}
    order = [each for name in [*PAPER, *sorted(present)] if name in present for each in (name, loaded[name].stand_in)]
    return {name: loaded[name] for name in dict.fromkeys(order) if name in loaded}


def read_json(path: Path, kind: str, newest: int) -> dict:
    """Reads a JSON file that carries a format number.

    Raises:
        ValueError: It is damaged, foreign or newer than this program.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"damaged: {one_line(error)}") from error
    version = document.get("format") if isinstance(document, dict) else None
    if type(version) is not int:
        raise ValueError(f"foreign: no {kind}, for it has no format number")
    if version > newest:
        raise ValueError(f"newer: {kind} of format {version}; this program reads {newest}")
    return document


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_matrix(value: object, size: int) -> bool:
    """Tells whether a value is a square matrix of counts."""
    return (
        isinstance(value, list)
        and len(value) == size
        and all(isinstance(line, list) and len(line) == size for line in value)
        and all(type(count) is int and count >= 0 for line in value for count in line)
    )


def _unusable(record: dict[str, Any]) -> str:
    """Names the first part of a record that a report cannot use, or ""."""
    settings, run = record["settings"], record["run"]
    if not all(isinstance(section, dict) for section in settings.values()):
        return "settings"
    names = settings.get("data", {}).get("class_names")
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        return "class_names"
    labelled = SUBMISSION not in record  # a server has the labels of a submission
    checks = {
        "seed": type(record["seed"]) is int,
        "per_class": not labelled or all(_is_number(record["per_class"].get(name)) for name in names),
        "confusion": not labelled or _is_matrix(record["confusion"], len(names)),
        "loss_curve": isinstance(record["loss_curve"], list) and all(_is_number(loss) for loss in record["loss_curve"]),
        "n_images": type(record["n_images"]) is int and record["n_images"] >= 0,
        "run": _is_number(run.get("seconds"))
        and _is_number(run.get("train_seconds"))
        and isinstance(run.get("versions", {}), dict)
        and isinstance(run.get("git", {}), dict),
    }
    return next((name for name, good in checks.items() if not good), "")


def read_usable(path: Path, protocols: dict[str, Protocol]) -> Found:
    """Reads a record that a report can show.

    Raises:
        ValueError: It cannot, and why.
    """
    document = read_json(path, "record of a run", FORMAT)
    try:
        record = read_record(path)
    except ValueError as error:
        reason = str(error).partition("; got ")[2].rpartition("; ")[0]
        raise ValueError(f"damaged: {reason or one_line(error)}") from error
    if not (isinstance(record["table"], str) and isinstance(record["row"], str)):
        raise ValueError("damaged: unusable table or row")
    if wrong := _unusable(record):
        raise ValueError(f"damaged: unusable {wrong}")
    protocol = protocols.get(record["table"])
    row = next((row for row in protocol.rows if row.id == record["row"]), None) if protocol else None
    if row is None or row not in protocol.runnable:
        what = f"table {record['table']!r} has no row {record['row']!r} to run" if protocol else "unknown table"
        raise ValueError(f"foreign: {what}" if protocol else f"foreign: {what} {record['table']!r}")
    unchanged = settings_sha256(row.settings) == record["provenance"].get("settings_sha256")
    if not unchanged and not record["deviates"]:
        raise ValueError(f"made with another {protocol.name}.toml than the present one; measure the row again")
    if document["synthetic"] is not protocol.synthetic:
        raise ValueError(f"damaged: synthetic is {document['synthetic']!r}, its protocol says {protocol.synthetic}")
    return Found(path, hashlib.sha256(path.read_bytes()).hexdigest(), record, unfit(record, row))


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


def row_of(protocols: dict[str, Protocol], name: str) -> tuple[Protocol, Row] | None:
    """Finds the row that a view's `of` names, such as "table1/attention3-extra"."""
    table, _, row_id = name.partition("/")
    protocol = protocols.get(table)
    return next(((protocol, row) for row in protocol.rows if row.id == row_id), None) if protocol else None


def _read_figures(path: Path, protocols: dict[str, Protocol]) -> tuple[str, dict]:
    document = read_json(path, "list of figures", FIGURES_FORMAT)
    if document.get("table") not in protocols:
        raise ValueError(f"foreign: unknown table {document.get('table')!r}")
    for key in ("figures", "attention_by_size"):
        if not isinstance(document.get(key), list) or not all(isinstance(entry, dict) for entry in document[key]):
            raise ValueError(f"damaged: {key} is no list of tables")
    for entry in document["figures"]:
        name = entry.get("file")
        if not isinstance(name, str) or Path(name).name != name or not name.lower().endswith(".png"):
            raise ValueError(f"damaged: a figure's file must be the name of a PNG beside it; got {name!r}")
        try:
            with open_picture(path.parent / name) as picture:
                if picture.format != "PNG":
                    raise ValueError(f"got {picture.format}")
                picture.verify()
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"damaged: {name} is no whole PNG") from error
    for entry in document["attention_by_size"]:
        try:
            scales, bins = entry["scales"], entry["bins"]
            numbers = [
                *scales,
                entry["seed"],
                *(v for b in bins for v in (b["size_min"], b["size_max"], b["n_objects"])),
                *(v for b in bins if b["n_objects"] for v in (*b["mean_weight"], *b["std"])),
            ]
            good = isinstance(entry["row"], str) and all(_is_number(value) for value in numbers)
            good = good and all(len(b["mean_weight"]) == len(b["std"]) == len(scales) for b in bins if b["n_objects"])
        except (KeyError, TypeError):
            good = False
        if not good:
            raise ValueError("damaged: unusable attention_by_size")
    return document["table"], document


def read_benchmark(path: Path) -> dict:
    """Reads a benchmark's JSON.

    Raises:
        ValueError: It is damaged, foreign or of another format.
    """
    document = read_json(path, "benchmark", BENCH_FORMAT)
    try:
        for result in document["results"]:
            numbers = [result[k] for k in ("median_ms", "p20_ms", "p80_ms", "gb_per_s", "share_of_copy", "ratio")]
            texts = [result[k] for k in ("op", "case", "direction", "contestant")]
            if not all(map(_is_number, numbers)) or not all(isinstance(text, str) for text in texts):
                raise TypeError
        for target in document["targets"]:
            if not (_is_number(target["required"]) and _is_number(target["measured"])):
                raise TypeError
            if not all(isinstance(target[k], str) for k in ("op", "case", "direction", "what")):
                raise TypeError
        if not isinstance(document["conditions"], dict) or not _is_number(document["copy_gb_per_s"]):
            raise TypeError
    except (KeyError, TypeError) as error:
        raise ValueError("damaged: unusable results, targets, conditions or copy_gb_per_s") from error
    return document


def collect(folders: list[Path], kept: Path | None = None) -> Collection:
    """Reads everything below the folders.

    Args:
        folders: Each holds <table>/<row>-seed<seed>/record.json, <table>/figures/figures.json and bench*.json, or bench/*.json, as far as they exist.
            Where two hold the same, the first stands.
        kept: A folder from which benchmarks alone are read too.
    """
    found = Collection(load_protocols())
    candidates: dict[tuple[str, str], list[Found]] = {}
    for folder in dict.fromkeys(folders):
        for path in sorted(folder.glob("*/*/record.json")):
            try:
                one = read_usable(path, found.protocols)
                candidates.setdefault((one.record["table"], one.record["row"]), []).append(one)
            except (ValueError, OSError) as error:
                found.not_used.append((path, one_line(error)))
        for path in sorted(folder.glob("*/figures/figures.json")):
            try:
                table, document = _read_figures(path, found.protocols)
                if table in found.figures:
                    raise ValueError(f"the figures of {table} come from {found.figures[table][0]}")
                found.figures[table] = path.parent, document
            except (ValueError, OSError) as error:
                found.not_used.append((path, one_line(error)))
    for folder in dict.fromkeys([*folders, *([kept] if kept else [])]):
        for path in sorted({*folder.glob("bench*.json"), *folder.glob("bench/*.json")}):
            try:
                found.benchmarks.append((path, read_benchmark(path)))
            except (ValueError, OSError) as error:
                found.not_used.append((path, one_line(error)))
    for key, group in candidates.items():
        found.records[key], left_out = _choose(group)
        found.not_used += left_out
    return found

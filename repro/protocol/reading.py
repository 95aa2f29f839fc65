"""Protocols: one TOML file per table of the paper, read strictly: every key is known, none is missing, nothing has a default in code."""

from __future__ import annotations

import copy
import hashlib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from repro.documents import document_bytes
from repro.files import check_name
from repro.protocol.bounds import check_path
from repro.protocol.metric import read_metric
from repro.protocol.schema import (
    GROUPS,
    HEADER,
    NUMBER,
    OPTIONAL,
    ROW_KEYS,
    apply,
    check,
    check_facts,
    kind_name,
    matches,
    suggestion,
)
from repro.protocol.table import Protocol, Row

_PACKAGED = Path(__file__).parents[1] / "protocols"  # where the package is installed from a wheel
PROTOCOLS = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "protocols"
# The paper's tables and its text, in its order. The other files are a table's stand-in and a stage of training.
PAPER = ("table1", "table2", "table3", "table4", "table5", "table6", "table7", "text")
SYNTHETIC_NOTE = "synthetic stand-in, not comparable with the paper's data"


class _Layer(NamedTuple):
    """A file: as it reads, its rows with the numbers as they are written, and its bytes."""

    document: dict[str, Any]
    written: list[dict[str, Any]]
    content: bytes


def parse_override(text: str) -> tuple[str, str, Any]:
    """Parses one `--set section.key=value`; the value is TOML, or a string where it is no TOML.

    Raises:
        ValueError: There is no "section.key=".
    """
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        raise ValueError(f"--set: must be section.key=value; got {text!r}; for example --set solver.max_iter=200")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    return section, key, parsed


def is_shipped(name: str) -> bool:
    """Tells whether this package has a protocol of this name."""
    return (PROTOCOLS / f"{name}.toml").is_file()


def _path(table: str) -> Path:
    if table.endswith(".toml"):
        name = check_name(Path(table).stem, "repro.protocol, a protocol's file")  # records are kept under it
        if is_shipped(name) and not Path(table).resolve().is_relative_to(PROTOCOLS.resolve()):
            raise ValueError(
                f"{table}: a protocol of one's own must have a name of its own; got {name!r}, which this package has; rename the file"
            )
        return Path(table)
    check_path(table, "repro.protocol, a table's name")
    return PROTOCOLS / f"{table}.toml"


def _read(path: Path) -> _Layer:
    if not path.is_file():
        names = sorted(p.stem for p in PROTOCOLS.glob("*.toml"))
        given = path.stem if path.parent == PROTOCOLS else str(path)
        raise ValueError(
            f"repro.protocol: a table must be one of {', '.join(names)} or a .toml file; got {given!r}{suggestion(given, names)}"
        )
    try:
        content = document_bytes(path)
        document = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: must be TOML; got {error}; correct it") from error
    for key, value in document.items():
        if key not in (*HEADER, "common", "row"):
            raise ValueError(
                f"{path.name}: a top-level key must be known; got {key!r}{suggestion(key, (*HEADER, 'common', 'row'))}"
            )
        kind = HEADER.get(key, dict if key == "common" else [dict])
        if not matches(value, kind):
            raise ValueError(f"{path.name}: {key} must be {kind_name(kind)}; got {value!r}; correct it")
    tolerance = document.get("tolerance", {"evaluate": 0, "retrain": 0})
    if set(tolerance) != {"evaluate", "retrain"} or not all(matches(v, NUMBER) and v >= 0 for v in tolerance.values()):
        raise ValueError(
            f"{path.name}: tolerance must be {{ evaluate = POINTS, retrain = POINTS }}; got {tolerance!r}; correct it"
        )
    return _Layer(document, tomllib.loads(content.decode(), parse_float=str).get("row", []), content)


def _layers(path: Path) -> list[_Layer]:
    """Reads a file and those that it extends, the base first."""
    layers, seen = [_read(path)], [path]
    while "extends" in layers[0].document:
        base = _path(layers[0].document["extends"])
        if base in seen:
            raise ValueError(f"{path.name}: extends must not lead back to a file; got {base.stem!r} again; correct it")
        seen.append(base)
        layers.insert(0, _read(base))
    return layers


class _References:
    """The rows of other protocols that a file names, each protocol read once.

    Args:
        reading: The files that are being read, which must not be led back to.
    """

    def __init__(self, reading: tuple[Path, ...]):
        self.reading = reading
        self.read: dict[Path, Protocol] = {}

    def find(self, name: str, where: str, key: str) -> Row:
        """Finds the row that "TABLE/ROW" means, as it stands in its file."""
        table, slash, row_id = name.partition("/")
        if not (table and slash and row_id):
            raise ValueError(f'{where}: {key} must be "TABLE/ROW"; got {name!r}; correct it')
        path = _path(table)
        if path in self.reading:
            raise ValueError(f"{where}: {key} must lead to another file; got {name!r}; correct it")
        if path not in self.read:
            self.read[path] = _load(path, {}, self.reading)
        row = self.read[path].row(row_id)
        if row.status != "run" or row.of:
            got = f"shows {row.of}" if row.of else f"is {row.status}"
            raise ValueError(f"{where}: {key} must be a row that is trained; got {name!r}, which {got}; correct it")
        return row


def _settings(
    layers: list[_Layer], common: dict[str, dict], entry: dict[str, Any], base: Row | None, where: str
) -> dict[str, dict]:
    """Puts a row's own keys over those of the row that it extends, or over [common.*] and the rows of the same id in the extended files."""
    settings = copy.deepcopy(base.settings if base else common)
    namesakes = [row for layer in layers for row in layer.document.get("row", []) if row.get("id") == entry["id"]]
    for row in [entry] if base else namesakes:
        apply(settings, {key: value for key, value in row.items() if key not in ROW_KEYS}, where, ROW_KEYS)
    return settings


def _felt(settings: dict[str, dict], changes: dict[str, dict]) -> dict[str, dict]:
    """Picks the overrides that a row feels: those of keys that only some rows have where it is one of these, or where all of a section or group are given."""
    sections = {
        section: dict(table)
        for section, table in changes.items()
        if section not in OPTIONAL or section in settings or table.keys() == OPTIONAL[section].keys()
    }
    for group in GROUPS.values():
        given = group.keys() & sections.get("model", {})
        if given != group.keys() and not group.keys() & settings["model"]:
            sections["model"] = {key: value for key, value in sections.get("model", {}).items() if key not in given}
    return sections


def _row(
    layers: list[_Layer],
    common: dict[str, dict],
    header: dict[str, Any],
    entry: dict[str, Any],
    printed: str,
    changes: dict[str, dict],
    references: _References,
    where: str,
) -> Row:
    """Resolves one `[[row]]`."""
    check_facts(entry, where)
    status, of = entry.get("status", "run"), entry.get("of", "")
    key = "of" if of else "extends"
    base = references.find(entry[key], where, key) if key in entry else None
    if base and common:
        raise ValueError(
            f"{where}: {key} must not stand beside [common.*], from which such a row takes nothing; got common.{', common.'.join(common)}; drop one"
        )
    settings: dict[str, dict] = {}
    if status == "run":
        settings = copy.deepcopy(base.settings) if of else _settings(layers, common, entry, base, where)
        apply(settings, _felt(settings, changes), "--set")
        check(settings, where)
        if "stage" in settings and settings["stage"]["protocol"] != references.reading[-1].stem:
            references.find("{protocol}/{row}".format(**settings["stage"]), where, "stage")
    class_names = settings["data"]["class_names"] if settings else None
    metric = read_metric(entry.get("metric", header["metric"]), class_names, where)
    difference = None
    if "difference" in entry:
        references.find(entry["difference"]["row"], where, "difference.row")
        difference = (entry["difference"]["row"], *entry["difference"]["between"])
    return Row(
        entry["id"],
        entry.get("paper"),
        settings,
        status,
        entry.get("why", ""),
        metric,
        of,
        difference,
        entry.get("dataset", base.dataset if base else header["dataset"]),
        printed,
    )


def _check_own_stages(name: str, rows: list[Row]) -> None:
    """Raises ValueError unless every stage that is a row of the same file is trained, and leads back to no row."""
    trained = {row.id: row.settings.get("stage") for row in rows if row.status == "run" and not row.of}
    for row_id in trained:
        passed, stage = [row_id], trained[row_id]
        while stage and stage["protocol"] == name:
            if stage["row"] not in trained or stage["row"] in passed:
                raise ValueError(
                    f"{name}.toml, row {row_id!r}: stage must be another row that is trained; got {stage['row']!r}; correct it"
                )
            passed.append(stage["row"])
            stage = trained[stage["row"]]


def _load(path: Path, changes: dict[str, dict], reading: tuple[Path, ...]) -> Protocol:
    layers = _layers(path)
    references = _References((*reading, path))
    common: dict[str, dict] = {}
    header: dict[str, Any] = dict.fromkeys(HEADER, "") | {"tolerance": {}}
    for layer in layers:
        apply(common, layer.document.get("common", {}), path.name)
        header |= {key: layer.document[key] for key in HEADER if key in layer.document}

    rows: list[Row] = []
    entries: list[tuple[dict[str, Any], dict[str, Any]]] = []  # as they read, and with the numbers as they are written
    for layer in layers:
        own = list(zip(layer.document.get("row", []), layer.written, strict=True))
        if own:
            entries = own if layer.document.get("adds_rows") is not True else entries + own
    for entry, written in entries:
        row_id = entry.get("id")
        where = f"{path.name}, row {row_id!r}"
        if (
            not isinstance(row_id, str)
            or not row_id.replace("-", "").replace("_", "").isalnum()
            or row_id in [r.id for r in rows]
        ):
            raise ValueError(
                f"{where}: id must be a unique name of letters, digits, - and _; got {row_id!r}; correct it"
            )
        rows.append(_row(layers, common, header, entry, written.get("paper", ""), changes, references, where))
    _check_own_stages(path.stem, rows)
    if not rows:
        raise ValueError(f"{path.name}: there must be at least one [[row]]; got none; add one")

    sha256 = hashlib.sha256(b"".join(layer.content for layer in reversed(layers)))
    for read in sorted(references.read):
        sha256.update(references.read[read].sha256.encode())
    notes = (SYNTHETIC_NOTE if "synthetic" in common else "", header["note"])
    return Protocol(
        path.stem,
        header["title"],
        read_metric(header["metric"], None, path.name),
        header["source"],
        "; ".join(dict.fromkeys(note for note in notes if note)),
        header["stand_in"],
        sha256.hexdigest(),
        rows,
        {f"{section}.{key}": value for section, table in changes.items() for key, value in table.items()},
        header["dataset"],
        header["tolerance"],
        header["scale_model"] is True or "synthetic" in common,
        header["remark"],
    )


def load_protocol(table: str, overrides: Iterable[str] = ()) -> Protocol:
    """Reads a protocol and resolves every row.

    Args:
        table: A file's stem in protocols/, or a path ending in .toml.
        overrides: `--set` texts; they apply after a row's own keys, to every row but for those without the section (or group of keys of `model`) that is changed:
            one that only some rows have is given to the others where all of its keys are.

    Raises:
        ValueError: The file, a key, a type or a value is wrong; one line, with a suggestion where there is one.
    """
    changes: dict[str, dict] = {}
    for text in overrides:
        section, key, value = parse_override(text)
        changes.setdefault(section, {})[key] = value
    apply({}, changes, "--set")  # names and types are looked at whether or not a row feels them
    return _load(_path(table), changes, ())


def load_protocols() -> dict[str, Protocol]:
    """Loads every protocol: the paper's order, a stand-in behind its table, what is left at the end."""
    present = {path.stem for path in PROTOCOLS.glob("*.toml")}
    loaded = {name: load_protocol(name) for name in present}
    order = [each for name in [*PAPER, *sorted(present)] if name in present for each in (name, loaded[name].stand_in)]
    return {name: loaded[name] for name in dict.fromkeys(order) if name in loaded}

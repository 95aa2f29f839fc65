"""Protocols: one TOML file per table of the paper, read strictly: every key is known, none is missing, nothing has a default in code."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROTOCOLS = Path(__file__).parents[1] / "protocols"

_NUMBER = (int, float)
# Every key of `[common.*]` and of a row, with its type; [x] is a list of x. Names are Caffe's where Caffe has the thing.
SCHEMA: dict[str, dict[str, Any]] = {
    "data": {
        "images": str,  # folder under the data root
        "labels": str,
        "train_list": str,  # list name or path, see repro/data/lists.py
        "num_train": int,  # images that the list must hold
        "val_list": str,
        "num_val": int,
        "class_names": [str],  # in the order of the label values, background first
        "ignore_label": int,
        "obtain": str,  # where the data come from, for the message when they are missing
    },
    "model": {
        "width": _NUMBER,  # of every hidden layer; 1 is the paper's network
        "scales": [_NUMBER],
        "merge": str,  # none, average, max, attention
        "extra_supervision": bool,
        "pool5a": bool,
        "dropout_ratio": _NUMBER,
        "filler": str,  # of the backbone where no weights are loaded
        "filler_gain": _NUMBER,  # multiplies what the filler drew
        "fc8_filler_std": _NUMBER,
        "attention_input": str,
        "attention_layers": int,
        "attention_kernel": int,
        "attention_filters": int,
        "attention_filler_std": _NUMBER,
        "lr_mult": [_NUMBER],  # weight, bias
        "fc8_lr_mult": [_NUMBER],
        "attention_lr_mult": [_NUMBER],
        "decay_mult": [_NUMBER],
    },
    "weights": {"file": str, "obtain": str},
    "transform": {"crop_size": int, "mirror": bool, "mean_bgr": [_NUMBER], "scale_factors": [_NUMBER]},
    "solver": {
        "base_lr": _NUMBER,
        "lr_policy": str,
        "gamma": _NUMBER,
        "stepsize": int,
        "power": _NUMBER,
        "max_iter": int,
        "batch_size": int,
        "iter_size": int,
        "momentum": _NUMBER,
        "weight_decay": _NUMBER,
        "clip_gradients": _NUMBER,  # 0: none
        "snapshot": int,  # iterations between snapshots
        "display": int,  # iterations between log lines
    },
    "test": {"crop_size": int, "batch_size": int},
}
# Only a stand-in has this section: what repro/data/synthetic.py draws.
SYNTHETIC = {"num_train": int, "num_val": int, "size": [int], "seed": int}
# How many values the lists of a fixed length hold.
_LENGTHS = {
    "model": {"lr_mult": 2, "fc8_lr_mult": 2, "attention_lr_mult": 2, "decay_mult": 2},
    "transform": {"mean_bgr": 3},
    "synthetic": {"size": 2},
}
SYNTHETIC_NOTE = "synthetic stand-in, not comparable with the paper's data"
UNFELT = ("solver.snapshot", "solver.display")  # keys that change no number
_HEADER = {"title": str, "source": str, "metric": str, "stand_in": str, "extends": str, "note": str}


@dataclass(frozen=True)
class Row:
    """One cell of a table.

    id: Unique in its table.
    paper: The value as printed, percent; None where the paper has none.
    settings: The row's complete `[common.*]` sections with its own keys applied.
    """

    id: str
    paper: float | None
    settings: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Protocol:
    """One table, resolved.

    name: The file's stem.
    title, metric, source, note: From the header; metric is "mean_iou" or a class name, note what every output must say.
    stand_in: The protocol that runs where no data root is given, or "".
    sha256: Of the file and of the one that it extends.
    rows: In the paper's order.
    overrides: The `--set` keys that were applied.
    """

    name: str
    title: str
    metric: str
    source: str
    note: str
    stand_in: str
    sha256: str
    rows: list[Row]
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def synthetic(self) -> bool:
        """Whether the data are drawn by this package."""
        return "synthetic" in self.rows[0].settings

    def row(self, row_id: str) -> Row:
        """Finds a row.

        Raises:
            ValueError: There is none of this id.
        """
        for row in self.rows:
            if row.id == row_id:
                return row
        raise ValueError(
            f"{self.name}: a row must be one of {', '.join(r.id for r in self.rows)}; got {row_id!r}{_suggestion(row_id, (r.id for r in self.rows))}"
        )


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else "; correct it"


def _matches(value: Any, kind: Any) -> bool:
    if isinstance(kind, list):
        return isinstance(value, list) and all(_matches(v, kind[0]) for v in value)
    return (
        isinstance(value, kind)
        and (kind is bool or not isinstance(value, bool))
        and not (isinstance(value, float) and not math.isfinite(value))
    )


def _kind_name(kind: Any) -> str:
    if isinstance(kind, list):
        return f"a list, each {_kind_name(kind[0])}"
    return {str: "a string", dict: "a table", int: "an integer", bool: "true or false", _NUMBER: "a finite number"}[
        kind
    ]


def _sections(settings: dict) -> dict[str, dict]:
    return SCHEMA | ({"synthetic": SYNTHETIC} if "synthetic" in settings else {})


def _apply(settings: dict[str, dict], changes: dict[str, Any], where: str) -> None:
    """Puts `section -> key -> value` into settings, checking names and types."""
    sections = _sections(settings | changes)
    for section, table in changes.items():
        if section not in sections or not isinstance(table, dict):
            raise ValueError(
                f"{where}: a section must be one of {', '.join(sections)}; got {section!r}{_suggestion(section, sections)}"
            )
        for key, value in table.items():
            known = sections[section]
            if key not in known:
                every = [f"{s}.{k}" for s, keys in sections.items() for k in keys]
                raise ValueError(
                    f"{where}: a key of {section} must be known; got {section}.{key}{_suggestion(f'{section}.{key}', every)}"
                )
            if not _matches(value, known[key]):
                raise ValueError(
                    f"{where}: {section}.{key} must be {_kind_name(known[key])}; got {value!r}; correct it"
                )
            settings.setdefault(section, {})[key] = value


def _check(settings: dict[str, dict], where: str) -> None:
    """Checks that nothing is missing and that the values make sense together."""
    missing = [f"{s}.{k}" for s, keys in _sections(settings).items() for k in keys if k not in settings.get(s, {})]
    if missing:
        raise ValueError(f"{where}: every key must be given; got none for {', '.join(missing)}; add to [common.*]")
    for section, lengths in _LENGTHS.items():
        for key, length in lengths.items():
            if section in settings and len(settings[section][key]) != length:
                raise ValueError(
                    f"{where}: {section}.{key} must have {length} values; got {settings[section][key]}; correct it"
                )
    solver, transform, model = settings["solver"], settings["transform"], settings["model"]
    for key in ("max_iter", "batch_size", "iter_size", "stepsize", "snapshot", "display"):
        if solver[key] < 1:
            raise ValueError(f"{where}: solver.{key} must be at least 1; got {solver[key]}; correct it")
    if solver["lr_policy"] not in ("fixed", "step", "poly"):
        raise ValueError(
            f'{where}: solver.lr_policy must be "fixed", "step" or "poly"; got {solver["lr_policy"]!r}; correct it'
        )
    for section in ("transform", "test"):
        if settings[section]["crop_size"] < 9 or settings[section]["crop_size"] % 8 != 1:
            raise ValueError(
                f"{where}: {section}.crop_size must be of the form 8k+1; got {settings[section]['crop_size']}; correct it"
            )
    if model["extra_supervision"] and 0.5 in model["scales"] and transform["crop_size"] % 16 != 1:
        raise ValueError(
            f"{where}: transform.crop_size must be of the form 16k+1 for labels at 1/16; got {transform['crop_size']}; correct it"
        )
    if settings["test"]["batch_size"] < 1 or not 0 < model["width"] <= 4 or not 0 <= model["dropout_ratio"] < 1:
        raise ValueError(
            f"{where}: test.batch_size >= 1, 0 < model.width <= 4 and 0 <= model.dropout_ratio < 1 must hold; "
            f"got {settings['test']['batch_size']}, {model['width']}, {model['dropout_ratio']}; correct them"
        )


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


def _read(path: Path) -> dict:
    if not path.is_file():
        names = sorted(p.stem for p in PROTOCOLS.glob("*.toml"))
        given = path.stem if path.parent == PROTOCOLS else str(path)
        raise ValueError(
            f"repro.protocol: a table must be one of {', '.join(names)} or a .toml file; got {given!r}{_suggestion(given, names)}"
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: must be TOML; got {error}; correct it") from error


def load_protocol(table: str, overrides: Iterable[str] = ()) -> Protocol:
    """Reads a protocol and resolves every row.

    Args:
        table: A file's stem in protocols/, or a path ending in .toml.
        overrides: `--set` texts; they apply to every row, after the row's own keys.

    Raises:
        ValueError: The file, a key, a type or a value is wrong; one line, with a suggestion where there is one.
    """
    path = Path(table) if table.endswith(".toml") else PROTOCOLS / f"{table}.toml"
    document = _read(path)
    sha256 = hashlib.sha256(path.read_bytes())
    documents = [document]
    if "extends" in document:
        base = PROTOCOLS / f"{document['extends']}.toml"
        documents.insert(0, _read(base))
        sha256.update(base.read_bytes())

    common: dict[str, dict] = {}
    header = dict.fromkeys(_HEADER, "")
    for layer in documents:
        for key, value in layer.items():
            if key not in (*_HEADER, "common", "row"):
                raise ValueError(
                    f"{path.name}: a top-level key must be known; got {key!r}{_suggestion(key, (*_HEADER, 'common', 'row'))}"
                )
            kind = _HEADER.get(key, dict if key == "common" else [dict])
            if not _matches(value, kind):
                raise ValueError(f"{path.name}: {key} must be {_kind_name(kind)}; got {value!r}; correct it")
        _apply(common, layer.get("common", {}), path.name)
        header |= {key: layer[key] for key in _HEADER if key in layer}
    changes: dict[str, dict] = {}
    for text in overrides:
        section, key, value = parse_override(text)
        changes.setdefault(section, {})[key] = value

    rows: list[Row] = []
    for entry in next((d["row"] for d in reversed(documents) if "row" in d), []):
        own = {key: value for key, value in entry.items() if key not in ("id", "paper")}
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
        if not isinstance(entry.get("paper", 0.0), float):
            raise ValueError(
                f"{where}: paper must be the printed number, with its decimals; got {entry['paper']!r}; correct it"
            )
        settings = copy.deepcopy(common)
        _apply(settings, own, where)
        _apply(settings, changes, "--set")
        _check(settings, where)
        if header["metric"] not in ("mean_iou", *settings["data"]["class_names"]):
            raise ValueError(
                f'{where}: metric must be "mean_iou" or a class name; got {header["metric"]!r}; correct it'
            )
        shared = [
            section
            for section in ("data", "synthetic", "weights")
            if rows and settings.get(section) != rows[0].settings.get(section)
        ]
        if shared:
            raise ValueError(
                f"{where}: all rows must share [common.{shared[0]}]; got another one; make a table of its own for the row"
            )
        rows.append(Row(row_id, entry.get("paper"), settings))
    if not rows:
        raise ValueError(f"{path.name}: there must be at least one [[row]]; got none; add one")
    flat = {f"{section}.{key}": value for section, table_ in changes.items() for key, value in table_.items()}
    return Protocol(
        path.stem,
        header["title"],
        header["metric"],
        header["source"],
        "; ".join(
            dict.fromkeys(note for note in (SYNTHETIC_NOTE if "synthetic" in common else "", header["note"]) if note)
        ),
        header["stand_in"],
        sha256.hexdigest(),
        rows,
        flat,
    )


def settings_sha256(settings: dict) -> str:
    """Computes the fingerprint of a row's settings: of everything that may change its result, so not of how often it logs or saves."""
    kept = {
        section: {key: value for key, value in table.items() if f"{section}.{key}" not in UNFELT}
        for section, table in settings.items()
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()

"""The keys of a protocol: their names, types and what must hold among them. repro/protocol/reading.py resolves files along these."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

from repro.protocol.bounds import check_bounds

NUMBER = (int, float)
NAMES = (str, [str])  # one name, or a list of them
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
        "width": NUMBER,  # of every hidden layer; 1 is the paper's network
        "scales": [NUMBER],
        "merge": str,  # none, average, max, attention
        "extra_supervision": bool,
        "pool5a": bool,
        "dropout_ratio": NUMBER,
        "filler": str,  # of the backbone where no weights are loaded
        "filler_gain": NUMBER,  # multiplies what the filler drew
        "fc8_filler_std": NUMBER,
        "attention_input": str,
        "attention_layers": int,
        "attention_kernel": int,
        "attention_filters": int,
        "attention_filler_std": NUMBER,
        "lr_mult": [NUMBER],  # weight, bias
        "fc8_lr_mult": [NUMBER],
        "attention_lr_mult": [NUMBER],
        "decay_mult": [NUMBER],
    },
    "weights": {"file": str, "obtain": str},
    "transform": {"crop_size": int, "mirror": bool, "mean_bgr": [NUMBER], "scale_factors": [NUMBER]},
    "solver": {
        "base_lr": NUMBER,
        "lr_policy": str,
        "gamma": NUMBER,
        "stepsize": int,
        "power": NUMBER,
        "max_iter": int,
        "batch_size": int,
        "iter_size": int,
        "momentum": NUMBER,
        "weight_decay": NUMBER,
        "clip_gradients": NUMBER,  # 0: none
        "snapshot": int,  # iterations between snapshots
        "display": int,  # iterations between log lines
    },
    "test": {"crop_size": int, "batch_size": int},
}
# Sections that only some rows have; a row that has one must give all of its keys.
OPTIONAL: dict[str, dict[str, Any]] = {
    "synthetic": {"num_train": int, "num_val": int, "size": [int], "seed": int},  # what repro/data/synthetic/ draws
    "fill": {  # layers that the weights' file lacks, and how they start
        "layers": [str],  # Caffe's layer names
        "fillers": [str],  # one for each
        "batches": int,  # of training images, for "unit_variance"
    },
    "stage": {"protocol": str, "row": str},  # the row whose trained weights are the initial ones
    "submission": {
        "list": str,
        "num": int,
    },  # unlabelled images whose predictions a server scores, in place of a validation
    "crf": {  # the fully connected CRF after the network; keys are DenseCRFParameter's, see repro/ops/dense_crf.py
        "max_iter": int,  # mean-field iterations
        "pos_w": NUMBER,  # weight of the kernel on positions
        "pos_xy_std": NUMBER,  # its width, pixels
        "bi_w": NUMBER,  # weight of the kernel on positions and colours
        "bi_xy_std": NUMBER,  # its width, pixels
        "bi_rgb_std": NUMBER,  # its width, grey levels
    },
}
# Keys of `model` that only some networks have; a row that has one of a group must give all of it.
GROUPS: dict[str, dict[str, Any]] = {
    "DeepLab-MSc's branches": {
        "msc_filters": int,  # of each branch's first two convolutions, at full width
        "msc_dropout_ratio": NUMBER,
        "msc_filler_std": NUMBER,  # of these two
        "msc_score_filler_std": NUMBER,  # of the third
        "msc_lr_mult": [NUMBER],
    },
    "the domain transform": {
        "dt_num_iter": int,
        "dt_spatial_sigma": NUMBER,  # pixels
        "dt_range_sigma": NUMBER,  # the unit of the edge map
        "dt_min_weight": NUMBER,
        "edge_filler_std": NUMBER,
        "edge_lr_mult": [NUMBER],
    },
}
# Keys of a row beside its settings, see Row in repro/protocol/table.py.
ROW_KEYS = {
    "id": str,
    "paper": float,
    "status": str,
    "why": str,
    "metric": NAMES,
    "of": str,
    "extends": str,
    "difference": dict,
    "dataset": str,
}
HEADER = {
    "title": str,
    "source": str,
    "metric": NAMES,
    "dataset": str,
    "tolerance": dict,
    "stand_in": str,
    "extends": str,
    "adds_rows": bool,  # whether the rows stand below those of the extended file, and not in their place
    "note": str,
    "scale_model": bool,  # whether printed values are of other data or another protocol, and stand beside for their order alone
    "remark": str,
}
# "filler": as model.filler draws the backbone. "unit_variance": the same, then scaled and shifted by repro/models/unit_variance.py.
FILLERS = ("filler", "unit_variance")
STATUS = ("run", "planned", "quoted")
# How many values the lists of a fixed length hold.
_LENGTHS = {
    "model": dict.fromkeys(
        ("lr_mult", "fc8_lr_mult", "attention_lr_mult", "msc_lr_mult", "edge_lr_mult", "decay_mult"), 2
    ),
    "transform": {"mean_bgr": 3},
    "synthetic": {"size": 2},
}


def suggestion(name: str, known: Iterable[str]) -> str:
    """Ends a message with the known name that comes closest, if one does."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else "; correct it"


def matches(value: Any, kind: Any) -> bool:
    """Tells whether a value has the type that the schema gives."""
    if isinstance(kind, list):
        return isinstance(value, list) and all(matches(v, kind[0]) for v in value)
    if kind == NAMES:
        return any(matches(value, one) for one in kind)
    return (
        isinstance(value, kind)
        and (kind is bool or not isinstance(value, bool))
        and not (isinstance(value, float) and not math.isfinite(value))
    )


def kind_name(kind: Any) -> str:
    """Names a type of the schema."""
    if isinstance(kind, list):
        return f"a list, each {kind_name(kind[0])}"
    if kind == NAMES:
        return " or ".join(map(kind_name, kind))
    return {str: "a string", dict: "a table", int: "an integer", bool: "true or false", NUMBER: "a finite number"}[kind]


def _sections(settings: dict) -> dict[str, dict]:
    """Lists the keys of every section that settings have, with all groups of which they have a key."""
    model = dict(SCHEMA["model"])
    for group in GROUPS.values():
        model |= group if group.keys() & settings.get("model", {}) else {}
    return SCHEMA | {"model": model} | {section: keys for section, keys in OPTIONAL.items() if section in settings}


def apply(settings: dict[str, dict], changes: dict[str, Any], where: str, beside: Iterable[str] = ()) -> None:
    """Puts `section -> key -> value` into settings, checking names and types.

    Args:
        settings: Changed in place.
        changes: What to put.
        where: For messages.
        beside: Names that may stand beside the sections; they are not in changes, but a misspelt one shall find its suggestion.

    Raises:
        ValueError: A section or a key is unknown, or a value is of another type.
    """
    sections = _sections(settings | changes)
    sections["model"] = {key: kind for keys in (SCHEMA["model"], *GROUPS.values()) for key, kind in keys.items()}
    for section, table in changes.items():
        if section not in sections or not isinstance(table, dict):
            known = (*beside, *sections)
            raise ValueError(
                f"{where}: a section must be one of {', '.join(sections)}; got {section!r}{suggestion(section, known)}"
            )
        for key, value in table.items():
            known = sections[section]
            if key not in known:
                every = [f"{s}.{k}" for s, keys in sections.items() for k in keys]
                raise ValueError(
                    f"{where}: a key of {section} must be known; got {section}.{key}{suggestion(f'{section}.{key}', every)}"
                )
            if not matches(value, known[key]):
                raise ValueError(f"{where}: {section}.{key} must be {kind_name(known[key])}; got {value!r}; correct it")
            settings.setdefault(section, {})[key] = value


def check(settings: dict[str, dict], where: str) -> None:
    """Checks that nothing is missing and that the values make sense together.

    Raises:
        ValueError: They do not; one line.
    """
    missing = [f"{s}.{k}" for s, keys in _sections(settings).items() for k in keys if k not in settings.get(s, {})]
    if missing:
        raise ValueError(f"{where}: every key must be given; got none for {', '.join(missing)}; add to [common.*]")
    for section, lengths in _LENGTHS.items():
        for key, length in lengths.items():
            if key in settings.get(section, {}) and len(settings[section][key]) != length:
                raise ValueError(
                    f"{where}: {section}.{key} must have {length} values; got {settings[section][key]}; correct it"
                )
    solver, transform, model = settings["solver"], settings["transform"], settings["model"]
    check_bounds(settings, where)
    if solver["lr_policy"] not in ("fixed", "step", "poly"):
        raise ValueError(
            f'{where}: solver.lr_policy must be "fixed", "step" or "poly"; got {solver["lr_policy"]!r}; correct it'
        )
    fill = settings.get("fill", {"layers": [], "fillers": []})
    if len(set(fill["layers"])) != len(fill["layers"]):
        raise ValueError(f"{where}: fill.layers must differ; got {fill['layers']}; name each once")
    if len(fill["layers"]) != len(fill["fillers"]) or not set(fill["fillers"]) <= set(FILLERS):
        raise ValueError(
            f"{where}: fill.fillers must be one of {', '.join(FILLERS)} for each of fill.layers; got {fill['fillers']} for {fill['layers']}; correct it"
        )
    for section in ("transform", "test"):
        if settings[section]["crop_size"] % 8 != 1:
            raise ValueError(
                f"{where}: {section}.crop_size must be of the form 8k+1; got {settings[section]['crop_size']}; correct it"
            )
    if model["extra_supervision"] and 0.5 in model["scales"] and transform["crop_size"] % 16 != 1:
        raise ValueError(
            f"{where}: transform.crop_size must be of the form 16k+1 for labels at 1/16; got {transform['crop_size']}; correct it"
        )


def check_facts(row: dict[str, Any], where: str) -> None:
    """Checks the keys of a row that are no settings.

    Raises:
        ValueError: They do not fit together; one line.
    """
    for key, value in row.items():
        if key in ROW_KEYS and key not in ("id", "paper") and not matches(value, ROW_KEYS[key]):
            raise ValueError(f"{where}: {key} must be {kind_name(ROW_KEYS[key])}; got {value!r}; correct it")
    if not isinstance(row.get("paper", 0.0), float):
        raise ValueError(
            f"{where}: paper must be the printed number, with its decimals; got {row['paper']!r}; correct it"
        )
    status = row.get("status", "run")
    if status not in STATUS:
        raise ValueError(
            f"{where}: status must be one of {', '.join(STATUS)}; got {status!r}{suggestion(status, STATUS)}"
        )
    if status != "run" and not row.get("why"):
        what = "what is missing" if status == "planned" else "whose number it is"
        raise ValueError(f"{where}: a {status} row must say why; got nothing; state {what} in `why`")
    if status == "quoted" and "paper" not in row:
        raise ValueError(f"{where}: a quoted row must have a number; got none; give `paper`")
    own = [key for key in row if key not in ROW_KEYS or key in ("of", "extends", "difference")]
    if status != "run" and own:
        raise ValueError(f"{where}: a {status} row must have no settings; got {', '.join(own)}; drop them")
    if "of" in row and own != ["of"] and set(own) - {"of", "difference"}:
        raise ValueError(
            f"{where}: a row that shows another's records must have no settings; got {', '.join(k for k in own if k != 'of')}; drop them"
        )
    difference = row.get("difference", {"row": "", "between": [0, 0]})
    between = difference.get("between")
    if (
        set(difference) != {"row", "between"}
        or not matches(difference["row"], str)
        or not matches(between, [NUMBER])
        or len(between) != 2
        or between[0] > between[1]
    ):
        raise ValueError(
            f'{where}: difference must be {{ row = "TABLE/ROW", between = [low, high] }}; got {difference!r}; correct it'
        )

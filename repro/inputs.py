"""What a run needs from outside: its images and its weights, found and checked before anything is trained."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import caffe_weights

from .data import synthetic
from .data.lists import Item, check_items, fingerprint, read_items
from .protocol import Protocol, Row
from .records import write_json
from .weights import load_caffemodel

BUNDLED_WEIGHTS = Path(caffe_weights.__file__).parent


@dataclass
class Inputs:
    """The data and weights of a run.

    train, val: The lists.
    data_sha256: Of both lists with every file's size.
    weights: The caffemodel, or None for chance.
    weights_sha256: Of the file, or None.
    deviates: What differs from the protocol.
    """

    train: list[Item]
    val: list[Item]
    data_sha256: str
    weights: Path | None
    weights_sha256: str | None
    deviates: dict[str, Any] = field(default_factory=dict)


def cache_folder() -> Path:
    """Where synthetic data are kept: REPRO_CACHE, else the user's cache folder."""
    base = os.environ.get("REPRO_CACHE")
    return (
        Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attention-to-scale"
    )


def expected_files(row: Row, data_root: Path | None) -> str:
    """Says in one line which files a row needs, where, and how they are obtained."""
    data, weights = row.settings["data"], row.settings["weights"]
    root = data_root if data_root is not None else "DIR"
    return (
        f"expected under {root}: {data['images']}/, {data['labels']}/ and the lists {data['train_list']}.txt ({data['num_train']}) and {data['val_list']}.txt "
        f"({data['num_val']}) in ImageSets/ or list/ [{data['obtain']}]; expected for --weights: {weights['file']} [{weights['obtain']}; addresses in caffe_weights/sources.toml]"
    )


def find_weights(row: Row, data_root: Path | None, given: str | None) -> Path | None:
    """Finds the initial weights: the file given, none where "none" is given, else the protocol's file under the data root or in this package.

    Raises:
        FileNotFoundError: It is nowhere; the message says what is expected.
    """
    if given == "none":
        return None
    name = row.settings["weights"]["file"]
    places = [Path(given)] if given else [*([data_root / name] if data_root else []), BUNDLED_WEIGHTS / name]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"weights: {' or '.join(map(str, places))} must exist; got no such file; {expected_files(row, data_root)}"
    )


def read_lists(row: Row, data_root: Path, subset: bool) -> tuple[list[Item], list[Item], dict[str, int]]:
    """Reads both lists and compares their counts with the protocol's.

    Returns:
        The training and validation items, and the counts that differ (only where a subset is declared).

    Raises:
        FileNotFoundError: A list or a listed file is missing; the message says what is expected.
        ValueError: A list is malformed, or its count differs and no subset was declared.
    """
    data = row.settings["data"]
    deviates: dict[str, int] = {}
    lists: list[list[Item]] = []
    for which in ("train", "val"):
        try:
            items = read_items(data_root, data[f"{which}_list"], data["images"], data["labels"])
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; {expected_files(row, data_root)}") from error
        if len(items) != data[f"num_{which}"]:
            if not subset:
                raise ValueError(
                    f"{data[f'{which}_list']}: must list {data[f'num_{which}']} images as the protocol says; got {len(items)}; add --subset to declare a subset, "
                    "which the record and the table will state"
                )
            deviates[f"data.num_{which}"] = len(items)
        unlabelled = [item.name for item in items if item.label is None]
        if unlabelled:
            raise ValueError(
                f"{data[f'{which}_list']}: every image must have a label; got {len(unlabelled)} without, the first {unlabelled[0]}; use a list with labels"
            )
        lists.append(items)
    return lists[0], lists[1], deviates


def check_once(items: list[Item], data_sha256: str, row: Row, out: Path, workers: int) -> None:
    """Decodes every image and label, unless the same files already passed for this output folder."""
    marker = out / "data_checked.json"
    data = row.settings["data"]
    state = {"data_sha256": data_sha256, "num_classes": len(data["class_names"]), "ignore_label": data["ignore_label"]}
    try:
        if json.loads(marker.read_text(encoding="utf-8")) == state:
            return
    except (OSError, ValueError):
        pass
    check_items(items, len(data["class_names"]), data["ignore_label"], workers=max(workers, 1))
    write_json(marker, state)


def prepare(
    protocol: Protocol, row: Row, data_root: Path | None, weights: str | None, subset: bool, out: Path, workers: int
) -> Inputs:
    """Finds and checks everything that the rows of a protocol read; they share their data and weights.

    Raises:
        FileNotFoundError, ValueError: Something is missing or unusable; nothing was trained.
    """
    if data_root is None and not protocol.synthetic:
        raise FileNotFoundError(f"{protocol.name}: --data-root must be given; got none; {expected_files(row, None)}")
    weights_path = find_weights(row, data_root, weights)
    if data_root is None:
        drawn = row.settings["synthetic"]
        data_root = synthetic.write_dataset(
            cache_folder() / "person-part-synthetic",
            drawn["num_train"],
            drawn["num_val"],
            tuple(drawn["size"]),
            drawn["seed"],
            workers=os.cpu_count() or 1,
        )
    train, val, deviates = read_lists(row, data_root, subset)
    data_sha256 = hashlib.sha256((fingerprint(train) + fingerprint(val)).encode()).hexdigest()
    check_once(train + val, data_sha256, row, out, workers)
    if weights == "none":
        deviates["weights"] = "none"
        sha256 = None
    else:
        sha256 = caffe_weights.sha256(weights_path)
        if weights_path.name != Path(row.settings["weights"]["file"]).name:
            deviates["weights.file"] = weights_path.name
    return Inputs(train, val, data_sha256, weights_path, sha256, deviates)


def load_weights(network, path: Path | None) -> str:
    """Copies the initial weights into a network; says what happened, in one line."""
    if path is None:
        return "no weights loaded: the backbone starts from its filler"
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        in_file = caffe_weights.read_caffemodel(path).with_blobs()
        # Another task's classifier under our name, such as ImageNet's 1000 classes: the protocol's fc8 starts from its filler.
        foreign = "fc8" in in_file and in_file["fc8"].blobs[0].shape[0] != network.net.fc8.out_channels
        report = load_caffemodel(network, path, skip=("fc8",) if foreign else ())
    filled = report.absent_in_file + report.skipped
    kept = f"; the filler stays in {', '.join(filled)}" if filled else ""
    return f"{path.name} ({report.format}): {len(report.used)} layers loaded{kept}"

"""What a run needs from outside: its images and its weights, found and checked before anything is trained."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import caffe_weights
from repro.data.fingerprint import data_fingerprint
from repro.data.lists import Item, check_items, read_items
from repro.data.synthetic.cache import draw_data
from repro.files import write_json
from repro.models.weights import load_caffemodel
from repro.protocol import Protocol, Row

BUNDLED_WEIGHTS = Path(caffe_weights.__file__).parent


@dataclass
class Inputs:
    """The data and weights of a run.

    train: The training list; empty where nothing is trained.
    val: The list that the trained network is tried on; without labels for a submission.
    data_sha256: Of both lists and every file's bytes.
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


def dataset_root(data_root: Path, dataset: str, several: bool) -> Path:
    """Finds a data set's folder: of that name below a common root, or the root itself where a run needs no other data set.

    Args:
        data_root: As given.
        dataset: The row's: "person_part", "voc2012", "coco", or "" where the protocol names none.
        several: Whether the run needs other data sets too.
    """
    below = data_root / dataset
    return below if several or below.is_dir() else data_root


def tested_list(settings: dict[str, dict]) -> tuple[str, int, str | None]:
    """Names the list that the trained network is tried on, how many images it must hold, and the folder of its labels (None for a submission)."""
    data = settings["data"]
    if "submission" in settings:
        return settings["submission"]["list"], settings["submission"]["num"], None
    return data["val_list"], data["num_val"], data["labels"]


def expected_files(row: Row, data_root: Path | None) -> str:
    """Says in one line which files a row needs, where, and how they are obtained."""
    data, weights = row.settings["data"], row.settings["weights"]
    root = data_root if data_root is not None else "DIR"
    tested, num_tested, _ = tested_list(row.settings)
    return (
        f"expected under {root}: {data['images']}/, {data['labels']}/ and the lists {data['train_list']}.txt ({data['num_train']}) and {tested}.txt "
        f"({num_tested}) in ImageSets/ or list/ [{data['obtain']}]; expected for --weights: {weights['file']} [{weights['obtain']}; addresses in caffe_weights/sources.toml]"
    )


def find_weights(row: Row, roots: list[Path], given: str | None) -> Path | None:
    """Finds the initial weights: the file given, none where "none" is given, else the protocol's file under a data root or in this package.

    Args:
        row: Of a protocol.
        roots: The data set's folder and those above it in which to look.
        given: As --weights.

    Raises:
        FileNotFoundError: It is nowhere; the message says what is expected.
    """
    if given == "none":
        return None
    name = row.settings["weights"]["file"]
    places = [Path(given)] if given else [*(root / name for root in roots), BUNDLED_WEIGHTS / name]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"weights: {' or '.join(map(str, places))} must exist; got no such file; {expected_files(row, roots[0] if roots else None)}"
    )


def read_lists(row: Row, data_root: Path, subset: bool) -> tuple[list[Item], list[Item], dict[str, int]]:
    """Reads both lists and compares their counts with the protocol's.

    Returns:
        The training items (none where nothing is trained), those that the network is tried on (without labels for a submission), and the counts
        that differ (only where a subset is declared).

    Raises:
        FileNotFoundError: A list or a listed file is missing; the message says what is expected.
        ValueError: A list is malformed, or its count differs and no subset was declared.
    """
    data = row.settings["data"]
    deviates: dict[str, int] = {}

    def read(name: str, number: int, labels: str | None, key: str) -> list[Item]:
        try:
            items = read_items(data_root, name, data["images"], labels)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; {expected_files(row, data_root)}") from error
        if len(items) != number:
            if not subset:
                raise ValueError(
                    f"{name}: must list {number} images as the protocol says; got {len(items)}; add --subset to declare a subset, "
                    "which the record and the table will state"
                )
            deviates[key] = len(items)
        if labels is None:
            return [item._replace(label=None) for item in items]
        unlabelled = [item.name for item in items if item.label is None]
        if unlabelled:
            raise ValueError(
                f"{name}: every image must have a label; got {len(unlabelled)} without, the first {unlabelled[0]}; use a list with labels"
            )
        return items

    train: list[Item] = []
    if row.settings["solver"]["max_iter"] > 0:
        train = read(data["train_list"], data["num_train"], data["labels"], "data.num_train")
    tested = read(*tested_list(row.settings), "submission.num" if "submission" in row.settings else "data.num_val")
    return train, tested, deviates


def check_once(items: list[Item], data_sha256: str, row: Row, out: Path, workers: int) -> None:
    """Decodes every image and label, unless the same files already passed for this output folder."""
    marker = out / f"data_checked-{data_sha256[:16]}.json"
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
    protocol: Protocol,
    row: Row,
    data_root: Path | None,
    weights: str | None,
    subset: bool,
    out: Path,
    workers: int,
    several: bool = False,
) -> Inputs:
    """Finds and checks everything that a row reads, and all rows of the same `source_key`.

    Args:
        protocol, row: Which row.
        data_root: As for `dataset_root`, or None for synthetic data.
        weights: As --weights. Where the row's weights come from a stage they are left open, to be put in by `after_stage`.
        subset: Whether the lists may be shorter than the protocol's.
        out: Where to remember which data were checked.
        workers: Threads.
        several: As for `dataset_root`.

    Raises:
        FileNotFoundError, ValueError: Something is missing or unusable; nothing was trained.
    """
    if data_root is None and "synthetic" not in row.settings:
        raise FileNotFoundError(f"{protocol.name}: --data-root must be given; got none; {expected_files(row, None)}")
    staged = stage_of(row) is not None
    roots = [data_root] if data_root is not None else []
    if data_root is not None and several and not (data_root / row.dataset).is_dir():
        raise FileNotFoundError(
            f"{data_root / row.dataset}: must be the folder of this data set, for {protocol.name} {row.id}; got no such folder; {expected_files(row, data_root / row.dataset)}"
        )
    if data_root is not None:
        data_root = dataset_root(data_root, row.dataset, several)
        roots = list(dict.fromkeys([data_root, *roots]))
    weights_path = None if staged else find_weights(row, roots, weights)
    if data_root is None:
        data_root = draw_data(row.settings)
    train, val, deviates = read_lists(row, data_root, subset)
    data_sha256 = data_fingerprint(train, val, out / "data_read.json")
    check_once(train + val, data_sha256, row, out, workers)
    sha256 = None
    if weights_path is None:
        deviates |= {} if staged else {"weights": "none"}
    else:
        sha256 = caffe_weights.sha256(weights_path)
        if weights_path.name != Path(row.settings["weights"]["file"]).name:
            deviates["weights.file"] = weights_path.name
    return Inputs(train, val, data_sha256, weights_path, sha256, deviates)


def stage_of(row: Row) -> dict[str, str] | None:
    """Names the protocol and row whose trained weights a row starts from, or None; a row that is only evaluated starts from nothing."""
    return row.settings.get("stage") if row.settings["solver"]["max_iter"] > 0 else None


def source_key(row: Row) -> str:
    """Names what a row reads: rows of the same name share their inputs."""
    settings = row.settings
    own = {key: settings[key] for key in ("data", "weights", "synthetic", "submission") if key in settings}
    return json.dumps([row.dataset, stage_of(row), settings["solver"]["max_iter"] > 0, own], sort_keys=True)


def after_stage(inputs: Inputs, weights: Path, deviates: dict[str, Any]) -> Inputs:
    """Puts the weights that a stage trained into the inputs of a row; what the stage deviates in, the row does.

    Args:
        inputs: As `prepare` made them.
        weights: The stage's .caffemodel.
        deviates: Of the stage's record.
    """
    inherited = {f"stage.{key}": value for key, value in deviates.items()}
    return replace(
        inputs,
        weights=weights,
        weights_sha256=caffe_weights.sha256(weights),
        deviates=inputs.deviates | inherited,
    )


def load_weights(network, path: Path | None, complete: bool = False) -> str:
    """Copies the initial weights into a network; says what happened, in one line.

    Args:
        network: The network.
        path: The caffemodel, or None for chance.
        complete: Whether every layer must come from the file, because nothing will be trained.

    Raises:
        ValueError: The file does not fit.
    """
    if path is None:
        if complete:
            raise ValueError(
                "weights: an evaluation (solver.max_iter = 0) needs trained weights; got none; give them as --weights"
            )
        return "no weights loaded: the backbone starts from its filler"
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        in_file = caffe_weights.read_caffemodel(path).with_blobs()
        # Another task's classifier under our name, such as ImageNet's 1000 classes: the protocol's fc8 starts from its filler.
        foreign = "fc8" in in_file and in_file["fc8"].blobs[0].shape[0] != network.net.fc8.out_channels
        report = load_caffemodel(network, path, skip=("fc8",) if foreign else ())
    filled = report.absent_in_file + report.skipped
    if filled and complete:
        raise ValueError(
            f"{path}: must have every layer of a network that is only evaluated (solver.max_iter = 0); got none that fits for {', '.join(filled)}; give its trained weights"
        )
    kept = f"; the filler stays in {', '.join(filled)}" if filled else ""
    return f"{path.name} ({report.format}): {len(report.used)} layers loaded{kept}"

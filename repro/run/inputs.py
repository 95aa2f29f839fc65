"""What a run needs from outside: its images and its weights, found and checked before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import caffe_weights
from caffe_weights.files.checksum import known_sources
from repro.data.fingerprint import data_fingerprint
from repro.data.lists import Item, check_items, read_items
from repro.data.synthetic.cache import draw_data
from repro.files import write_json
from repro.models.weights import load_caffemodel
from repro.protocol import Row
from repro.run.options import Options
from repro.run.plan import Job
from repro.run.stage import stage_of

READ = "data_read.json"  # in the output folder: which bytes were read already
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

    def after_stage(self, weights: Path, deviates: dict[str, Any]) -> Inputs:
        """Puts in the weights that a stage trained; what the stage deviates in, the row does.

        Args:
            weights: The stage's .caffemodel.
            deviates: Of the stage's record.
        """
        inherited = {f"stage.{key}": value for key, value in deviates.items()}
        own = self.deviates | inherited
        return replace(self, weights=weights, weights_sha256=caffe_weights.sha256(weights), deviates=own)


@dataclass(frozen=True)
class Given:
    """What a command says of data and weights.

    data_root: A data set's folder, or one that holds several; None for synthetic data.
    weights: As --weights.
    subset: Whether the lists may be shorter than the protocol's.
    several: Whether the command's rows need several data sets.
    """

    data_root: Path | None = None
    weights: str | None = None
    subset: bool = False
    several: bool = False


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


def missing(message: str, row: Row, data_root: Path | None) -> FileNotFoundError:
    """Makes the error of a missing file: one line, and notes that say which files a row needs, where, and how they are obtained."""
    error = FileNotFoundError(message)
    for note in expected_files(row, data_root):
        error.add_note(note)
    return error


def expected_files(row: Row, data_root: Path | None) -> list[str]:
    """Says in a few lines which files a row needs, where they are expected, and how they are obtained."""
    data, weights = row.settings["data"], row.settings["weights"]
    root = data_root if data_root is not None else "DIR"
    tested, num_tested, _ = tested_list(row.settings)
    known = known_sources().get(weights["file"])
    return [
        f"images and labels: {root}/{data['images']}/ and {root}/{data['labels']}/",
        f"lists: {data['train_list']}.txt ({data['num_train']} images) and {tested}.txt ({num_tested}) in {root}/ImageSets/ or {root}/list/",
        f"obtained: {data['obtain']}",
        f"weights: {root}/{weights['file']}, or --weights FILE",
        f"obtained: {weights['obtain']}" + (f"; {known.url}" if known else ""),
    ]


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
    raise missing(
        f"weights: {' or '.join(map(str, places))} must exist; got no such file; give one as --weights",
        row,
        roots[0] if roots else None,
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
            raise missing(str(error), row, data_root) from error
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


def check_once(items: list[Item], data_sha256: str, row: Row, options: Options) -> None:
    """Decodes every image and label, unless the same files already passed for this output folder."""
    marker = options.out / f"data_checked-{data_sha256[:16]}.json"
    data = row.settings["data"]
    state = {"data_sha256": data_sha256, "num_classes": len(data["class_names"]), "ignore_label": data["ignore_label"]}
    try:
        if json.loads(marker.read_text(encoding="utf-8")) == state:
            return
    except (OSError, ValueError):
        pass
    check_items(items, len(data["class_names"]), data["ignore_label"], workers=max(options.compute.workers, 1))
    write_json(marker, state)


def find(job: Job, given: Given) -> Inputs:
    """Finds what a row reads: lists, images, labels and weights must be there; none is decoded, nothing is drawn or written.

    Args:
        job: Of which row. Where its weights come from a stage they are left open, to be put in by `Inputs.after_stage`.
        given: What the command says.

    Returns:
        The inputs without fingerprints; of synthetic data the lists are still empty.

    Raises:
        FileNotFoundError, ValueError: Something is missing or unusable.
    """
    row, data_root = job.row, given.data_root
    if data_root is None and "synthetic" not in row.settings:
        raise missing(f"{job.protocol.name}: --data-root must be given; got none; name the data's folder", row, None)
    roots = [data_root] if data_root is not None else []
    if data_root is not None and given.several and not (data_root / row.dataset).is_dir():
        place = data_root / row.dataset
        raise missing(
            f"{place}: must be the folder of this data set, for {job.protocol.name} {row.id}; got no such folder; put it there",
            row,
            place,
        )
    if data_root is not None:
        data_root = dataset_root(data_root, row.dataset, given.several)
        roots = list(dict.fromkeys([data_root, *roots]))
    staged = stage_of(row) is not None
    weights = None if staged else find_weights(row, roots, given.weights)
    train, val, deviates = read_lists(row, data_root, given.subset) if data_root is not None else ([], [], {})
    if weights is None:
        deviates |= {} if staged else {"weights": "none"}
    elif weights.name != Path(row.settings["weights"]["file"]).name:
        deviates["weights.file"] = weights.name
    return Inputs(train, val, "", weights, None, deviates)


def prepare(job: Job, given: Given, options: Options) -> Inputs:
    """Finds and checks everything that a row reads, and all rows of the same `source_key`; synthetic data are drawn.

    Args:
        job: As for `find`.
        given: What the command says.
        options: How to run; its output folder remembers which data were checked.

    Raises:
        FileNotFoundError, ValueError: Something is missing or unusable; nothing was trained.
    """
    found = find(job, given)
    if given.data_root is None:
        train, val, deviates = read_lists(job.row, draw_data(job.row.settings), given.subset)
        found = replace(found, train=train, val=val, deviates=found.deviates | deviates)
    data_sha256 = data_fingerprint(found.train, found.val, options.out / READ)
    check_once(found.train + found.val, data_sha256, job.row, options)
    weights_sha256 = caffe_weights.sha256(found.weights) if found.weights else None
    return replace(found, data_sha256=data_sha256, weights_sha256=weights_sha256)


def source_key(row: Row) -> str:
    """Names what a row reads: rows of the same name share their inputs."""
    settings = row.settings
    own = {key: settings[key] for key in ("data", "weights", "synthetic", "submission") if key in settings}
    return json.dumps([row.dataset, stage_of(row), settings["solver"]["max_iter"] > 0, own], sort_keys=True)


def filled_layers(row: Row) -> dict[str, str]:
    """Lists the layers that the weights' file lacks, each with its filler; none where a row starts from a stage, which trained them."""
    fill = row.settings.get("fill")
    return {} if fill is None or stage_of(row) else dict(zip(fill["layers"], fill["fillers"], strict=True))


def load_weights(network, path: Path | None, complete: bool = False, fill: Collection[str] = ()) -> str:
    """Copies the initial weights into a network; says what happened, in one line.

    Args:
        network: The network.
        path: The caffemodel, or None for chance.
        complete: Whether every layer must come from the file, because nothing will be trained.
        fill: Layers that the file lacks, which keep their filler.

    Raises:
        ValueError: The file does not fit.
    """
    if path is None:
        if complete:
            raise ValueError(
                "weights: an evaluation (solver.max_iter = 0) needs trained weights; got none; give them as --weights"
            )
        if unknown := sorted(set(fill) - set(network.convolutions())):
            raise ValueError(
                f"fill: layers must be the network's; got {' '.join(unknown)}; choose from {' '.join(network.convolutions())}"
            )
        return "no weights loaded: the backbone starts from its filler"
    in_file = caffe_weights.read_caffemodel(path).with_blobs()
    # Another task's classifier under our name, such as ImageNet's 1000 classes: the protocol's fc8 starts from its filler.
    foreign = "fc8" in in_file and in_file["fc8"].blobs[0].shape[0] != network.net.fc8.out_channels
    report = load_caffemodel(network, path, skip=("fc8",) if foreign else (), fill=fill)
    filled = report.absent_in_file + report.skipped
    if filled and complete:
        unused = f" (the file also has {', '.join(report.absent_in_model)})" if report.absent_in_model else ""
        raise ValueError(
            f"{path}: must have every layer of a network that is only evaluated (solver.max_iter = 0); got none that fits for {', '.join(filled)}{unused}; give its trained weights"
        )
    return report.line()

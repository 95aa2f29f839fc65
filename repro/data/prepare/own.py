"""Own data: a folder of images and a folder of labels, laid out as the protocols expect them, with a protocol to edit."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from repro.data.lists import read_lines
from repro.data.pictures import SUFFIXES
from repro.data.prepare.check import check_dataset
from repro.data.prepare.convert import (
    IMAGES,
    claim,
    convert,
    id_of,
    make_job,
    read_ids,
    require_apart,
    require_files,
)
from repro.data.transforms import read_label
from repro.files import write_text

LABELS = "Labels"
IGNORE = 255
PROTOCOL = "own.toml"
_TOML = """\
# Own data: the baseline and the paper's best network, with the settings of table 3 but for what is stated here.
# Edit what should differ (protocols/README.md lists the keys), and run
#   python -m repro.run {path} --data-root {root} --weights vgg16_20M.caffemodel
# or with `--weights none` from chance.
extends = "table3"
title = "Own data"
source = "own data"
dataset = ""
tolerance = {{ evaluate = 0.5, retrain = 1.0 }}  # percentage points, of rows that state `paper`

[common.data]
images = "{images}"
labels = "{labels}"
train_list = "train"
num_train = {num_train}
val_list = "val"
num_val = {num_val}
class_names = {class_names}
ignore_label = {ignore}
obtain = "prepared by python -m repro.data own"

[common.solver]
max_iter = 6000  # of batch_size images each; about 17 passes over table 3's training list
stepsize = 2000  # a third of max_iter
batch_size = 30

[[row]]
id = "baseline"
model.scales = [1]
model.merge = "none"
model.extra_supervision = false

[[row]]
id = "attention3-extra"
model.scales = [1, 0.75, 0.5]
model.merge = "attention"
model.extra_supervision = true
"""


def parse_classes(text: str) -> list[str]:
    """Reads the classes' names.

    Args:
        text: Names parted by commas, or a file with one name a line.

    Returns:
        2 .. 255 names, in the order of the label values.

    Raises:
        ValueError: There are fewer or more, one is empty, or one comes twice.
    """
    if os.path.exists(text):
        names = [line.strip() for _, line in read_lines(Path(text))]
    else:
        names = [name.strip() for name in text.split(",")]
    wrong = [name for name in names if not name or not name.isprintable() or names.count(name) > 1]
    if wrong or not 2 <= len(names) <= IGNORE:
        got = f"{wrong[0]!r}" if wrong else f"{len(names)} of them"
        raise ValueError(
            f"--classes: must be 2 .. {IGNORE} different names, background first, or a file of them; got {got}; correct it"
        )
    return names


def make_label(num_classes: int, source: Path) -> np.ndarray:
    """Reads a label and checks its values.

    Args:
        num_classes: Class ids are 0 .. num_classes - 1, or 255.
        source: The file.

    Returns:
        (H, W) uint8.

    Raises:
        FileNotFoundError, ValueError: As `read_label`; also if a class id is out of range.
    """
    label = read_label(source)
    wrong = label[(label >= num_classes) & (label != IGNORE)]
    if wrong.size:
        raise ValueError(
            f"{source}: class ids must be 0 .. {num_classes - 1} or {IGNORE} (ignored); got {wrong.max()} in {wrong.size} pixels; "
            "correct the label or the number of classes"
        )
    return label


def find_pairs(images: Path, labels: Path) -> dict[str, tuple[Path, Path]]:
    """Finds every image of a folder, and its label by its name.

    Args:
        images: The images; other files, hidden ones and folders are passed over.
        labels: PNGs, named as the images but for the suffix.

    Returns:
        The image and the label of each id, by the ids' order; the label may be missing.

    Raises:
        FileNotFoundError: There is no such folder, or no image in it.
        ValueError: Two images have one id, or a name cannot be one.
    """
    for folder, option in ((images, "--images"), (labels, "--labels")):
        if not folder.is_dir():
            raise FileNotFoundError(f"{option}: {folder} must be a folder; got no such folder; correct the path")
    pairs: dict[str, tuple[Path, Path]] = {}
    for path in sorted(images.iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        name = id_of(path.name, f"--images: {images}")
        if name in pairs:
            raise ValueError(
                f"--images: {images} must hold images of different names without suffix; got {path.name!r} beside "
                f"{pairs[name][0].name!r}; rename one"
            )
        pairs[name] = (path, labels / f"{path.stem}.png")
    if not pairs:
        raise FileNotFoundError(
            f"--images: {images} must hold images; got none of {', '.join(SUFFIXES)}; correct the path"
        )
    return dict(sorted(pairs.items()))


def split(names: Sequence[str], val_share: float, seed: int) -> dict[str, list[str]]:
    """Draws what is trained on and what is validated on.

    Args:
        names: The ids.
        val_share: Of them to validate on; at least one image is left to each side.
        seed: 0 .. 2**32 - 1; NumPy's RandomState, whose stream is frozen, makes the same split everywhere.

    Raises:
        ValueError: There are fewer than two, or the share or the seed is out of range.
    """
    if len(names) < 2:
        raise ValueError(f"--images: must be two or more, to train and to validate on; got {len(names)}; add some")
    if not 0 < val_share < 1:
        raise ValueError(f"--val-share: must lie between 0 and 1; got {val_share}; correct it")
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed: must be 0 .. {2**32 - 1}; got {seed}; choose a seed of 32 bits")
    count = min(max(1, round(val_share * len(names))), len(names) - 1)
    chosen = set(np.random.RandomState(seed).permutation(len(names))[:count].tolist())
    return {
        "train": [name for place, name in enumerate(names) if place not in chosen],
        "val": [name for place, name in enumerate(names) if place in chosen],
    }


def prepare_own(
    images: Path,
    labels: Path,
    class_names: Sequence[str],
    out: Path,
    lists: dict[str, Path | None],
    val_share: float,
    seed: int,
    workers: int,
) -> tuple[list[str], list[str]]:
    """Makes JPEGImages, Labels, the lists train and val, and a protocol; then looks it all over.

    Args:
        images: The images, linked into `out` where possible.
        labels: Their labels.
        class_names: As `parse_classes` returns them.
        out: The folder to make.
        lists: Files of ids for "train" and "val", both or none.
        val_share, seed: As for `split`, where there are no lists.
        workers: Processes.

    Returns:
        Lines that report what was made, and what `check_dataset` finds wrong.

    Raises:
        FileNotFoundError, ValueError: Something is missing or broken; the file is named.
    """
    pairs = find_pairs(images, labels)
    if (lists["train"] is None) != (lists["val"] is None):
        got = next(name for name, file in lists.items() if file is not None)
        raise ValueError(f"--train-list, --val-list: must be given both or not at all; got --{got}-list; give both")
    if lists["train"] is None:
        listed = split(list(pairs), val_share, seed)
        how = f"drawn from {len(pairs)} sorted ids with seed {seed}"
    else:
        listed, how = {name: read_ids(file) for name, file in lists.items()}, "as listed"
    require_apart(listed)
    every = [name for ids in listed.values() for name in ids]
    unknown = [name for name in every if name not in pairs]
    if unknown:
        raise FileNotFoundError(
            f"--images: {images} must hold every listed image; got none for {len(unknown)}, such as {unknown[0]}; complete it"
        )
    jobs = [make_job(pairs[name][0], out, LABELS, name, pairs[name][1]) for name in every]
    require_files([job.source for job in jobs], f"labels of {images}")
    claim(out, {"dataset": "own", "labels": ", ".join(class_names)})
    convert(jobs, partial(make_label, len(class_names)), workers, "own")
    for name, ids in listed.items():
        write_text(out / "ImageSets" / f"{name}.txt", "".join(f"{i}\n" for i in ids))

    counts = {name: len(ids) for name, ids in listed.items()}
    place = (out, IMAGES, LABELS, counts, class_names, IGNORE, workers, out / "contact_sheet.png")
    findings = check_dataset(*place)
    path = out / PROTOCOL
    report = [f"{name}: {len(ids)} images, {how}" for name, ids in listed.items()] + findings.report[len(listed) :]
    if path.exists():
        report.append(f"{path}: there already, left as it is")
    else:
        text = _TOML.format(
            path=shlex.quote(str(path)),
            root=shlex.quote(str(out)),
            images=IMAGES,
            labels=LABELS,
            num_train=counts["train"],
            num_val=counts["val"],
            class_names=json.dumps(list(class_names), ensure_ascii=False),
            ignore=IGNORE,
        )
        write_text(path, text)
        report.append(f"{path}: a protocol to edit, with the command that runs it")
    return report, findings.problems

"""PASCAL VOC 2012 with SBD's labels, laid out and listed as DeepLab has it."""

from pathlib import Path

import numpy as np

from repro.data.prepare.convert import (
    IMAGES,
    claim,
    convert,
    count_line,
    find_folder,
    find_photo,
    make_job,
    read_ids,
    require_apart,
    require_files,
)
from repro.data.prepare.mat import dense_integers, read_mat
from repro.data.transforms import read_label
from repro.files import write_text

CLASS_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
LABELS = "SegmentationClassAug"
# Lengths of DeepLab's own list files.
EXPECTED = {"train": 1464, "train_aug": 10582, "trainval_aug": 12031, "val": 1449, "test": 1456}


def derive_lists(train: list[str], val: list[str], sbd: list[str]) -> dict[str, list[str]]:
    """Derives DeepLab's lists of ids from the official ones.

    Args:
        train: VOC 2012's segmentation train.
        val: VOC 2012's segmentation val.
        sbd: SBD's train and val together.

    Returns:
        train, val, train_aug (VOC train and SBD without VOC val) and trainval_aug (train_aug and VOC val), each sorted by
        id, which is the order of DeepLab's list files.
    """
    lists = {"train": set(train), "val": set(val), "train_aug": (set(train) | set(sbd)) - set(val)}
    lists["trainval_aug"] = lists["train_aug"] | lists["val"]
    return {name: sorted(ids) for name, ids in lists.items()}


def read_sbd_label(path: Path) -> np.ndarray:
    """Reads a class label of SBD's `cls` folder.

    Args:
        path: a .mat file with `GTcls.Segmentation`.

    Returns:
        (H, W) uint8, 0 .. 20; SBD has no ignored pixels.

    Raises:
        ValueError: the file does not load, has another content, or holds other classes.
    """
    label = read_mat(path, "GTcls", "SBD's GTcls.Segmentation", lambda found: found[0, 0]["Segmentation"])
    must = f"{path}: Segmentation must be (height, width) class ids 0 .. 20; got {{}}; replace the file"
    try:
        label = dense_integers(label)
    except ValueError as error:
        raise ValueError(must.format(error)) from error
    if label.max() >= len(CLASS_NAMES) or label.min() < 0:
        raise ValueError(must.format(f"shape {label.shape}, values {label.min()} .. {label.max()}"))
    return np.ascontiguousarray(label, np.uint8)


def make_label(source: Path) -> np.ndarray:
    """Makes a label of VOC's index PNG or SBD's .mat.

    Args:
        source: the file.

    Returns:
        (H, W) uint8: 0 .. 20, and 255 (ignored) in VOC's labels.

    Raises:
        FileNotFoundError, ValueError: as `read_label` and `read_sbd_label`; also if a class id is out of range.
    """
    if source.suffix == ".mat":
        return read_sbd_label(source)
    label = read_label(source)
    wrong = label[(label >= len(CLASS_NAMES)) & (label != 255)]
    if wrong.size:
        raise ValueError(f"{source}: class ids must be 0 .. 20 or 255; got {wrong.max()}; use VOC's SegmentationClass")
    return label


def prepare_voc(voc: Path, sbd: Path, out: Path, workers: int) -> list[str]:
    """Makes JPEGImages, SegmentationClassAug and DeepLab's five lists of the official distributions.

    The label of an image that VOC 2012 segments is VOC's own, with its ignored borders; SBD's labels serve the others.

    Args:
        voc: VOC 2012, trainval and (for the test list) test.
        sbd: SBD (`benchmark_RELEASE`).
        out: the folder to make; images are linked into it where possible.
        workers: processes.

    Returns:
        Lines that report what was made and which counts differ from DeepLab's.

    Raises:
        FileNotFoundError, ValueError: a distribution is incomplete, a file is broken, or sizes differ; the file is named.

    Paper: section 4, "PASCAL VOC 2012"; the extra annotations are those of Hariharan et al.
    """
    sets = "ImageSets/Segmentation"
    voc = find_folder(voc, ("", "VOC2012", "VOCdevkit/VOC2012"), f"{sets}/train.txt", "PASCAL VOC 2012")
    sbd = find_folder(sbd, ("", "dataset", "benchmark_RELEASE/dataset"), "cls", "SBD (benchmark_RELEASE)")
    train, val = (read_ids(voc / sets / f"{name}.txt") for name in ("train", "val"))
    lists = derive_lists(train, val, read_ids(sbd / "train.txt") + read_ids(sbd / "val.txt"))
    has_test = (voc / sets / "test.txt").exists()
    tests = sorted(read_ids(voc / sets / "test.txt")) if has_test else []

    own = {*train, *val}
    require_apart(lists | {"test": tests})
    photos = {name: find_photo(voc / IMAGES, name) for name in [*lists["trainval_aug"], *tests]}
    jobs = [
        make_job(
            photos[name],
            out,
            LABELS,
            name,
            voc / "SegmentationClass" / f"{name}.png" if name in own else sbd / "cls" / f"{name}.mat",
        )
        for name in lists["trainval_aug"]
    ]
    jobs += [make_job(photos[name], out, None, name) for name in tests]
    image_lines = {job.image_out.stem: f"/{IMAGES}/{job.image_out.name}" for job in jobs}
    require_files([file for job in jobs for file in (job.image, job.source) if file is not None], "VOC 2012 and SBD")
    claim(out, {"dataset": "voc", "labels": "VOC 2012, else SBD"})
    convert(jobs, make_label, workers, "voc")

    for name, ids in lists.items():
        lines = (f"{image_lines[i]} /{LABELS}/{i}.png\n" for i in ids)
        write_text(out / "list" / f"{name}.txt", "".join(lines))
    if has_test:
        write_text(out / "list" / "test.txt", "".join(f"{image_lines[i]}\n" for i in tests))
    report = [count_line(name, len(ids), EXPECTED[name]) for name, ids in lists.items()]
    report.append(
        count_line("test", len(tests), EXPECTED["test"])
        if has_test
        else f"test: not made, for {voc / sets / 'test.txt'} is missing (it comes with VOC's test archive)"
    )
    return [*report, f"labels: {len(own)} of VOC 2012, {len(lists['trainval_aug']) - len(own)} of SBD"]

"""Lists of images and labels: finding, reading and checking them before anything is trained."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from repro.data.transforms import read_image_bgr, read_label

# Where data sets keep their lists: ids by themselves, PASCAL VOC, DeepLab's `list` folders, or beside the image folders.
LIST_PLACES = ("ImageSets/{}.txt", "ImageSets/Segmentation/{}.txt", "list/{}.txt", "lists/{}.txt", "{}.txt")
IMAGE_SUFFIXES = (".jpg", ".png")


class Item(NamedTuple):
    """An image and its label; the name is the image's file name without its suffix, the label is None in test lists."""

    name: str
    image: Path
    label: Path | None


def find_list(root: Path, list_name: str) -> Path:
    """Finds a list file.

    Args:
        root: the data set's folder.
        list_name: a name such as "train_aug", looked up in LIST_PLACES under root, or a path that ends in .txt, absolute, or
            relative to root or to the working folder.

    Returns:
        The first of those files that exists.

    Raises:
        FileNotFoundError: none exists; all places are named.
    """
    is_path = list_name.endswith(".txt")
    candidates = (
        [root / list_name, Path(list_name)] if is_path else [root / place.format(list_name) for place in LIST_PLACES]
    )
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    places = ", ".join(map(str, dict.fromkeys(candidates)))
    raise FileNotFoundError(
        f"list {list_name}: one of {places} must exist; got none of them; put the list there or give its path ending in .txt"
    )


def _is_path(column: str) -> bool:
    return "/" in column or column.lower().endswith((".jpg", ".jpeg", ".png"))


def parse_line(root: Path, line: str, images: str, labels: str | None) -> Item | None:
    """Makes an item of one line; None where it is neither an id, nor an image, nor an image and a label."""
    columns = line.split()
    if len(columns) == 1 and not _is_path(columns[0]):
        name = columns[0]
        candidates = [root / images / f"{name}{suffix}" for suffix in IMAGE_SUFFIXES]
        image = next((path for path in candidates if path.is_file()), candidates[0])
        return Item(name, image, None if labels is None else root / labels / f"{name}.png")
    if len(columns) > 2 or not all(map(_is_path, columns)):
        return None
    # Caffe: the root folder is put before the line as it is, so lines start with a slash that does not mean the file system's root.
    paths = [root / column.lstrip("/") for column in columns]
    return Item(paths[0].stem, paths[0], paths[1] if len(paths) == 2 else None)


def read_items(root: Path, list_name: str, images: str, labels: str | None) -> list[Item]:
    """Reads a list of ids, or of DeepLab's pairs `/JPEGImages/x.jpg /SegmentationClassAug/x.png`, and sees that the files exist.

    Args:
        root: the data set's folder.
        list_name: as for `find_list`.
        images: folder of the images of a list of ids, under root; files end in .jpg or else .png.
        labels: folder of the labels (.png) of a list of ids, under root; None for test sets, which have none.

    Returns:
        The items in the list's order; lines without a second path have no label.

    Raises:
        FileNotFoundError: the list or some of its files are missing; their number and the first three are named.
        ValueError: the list is empty or is not text, a line has another form, or a name comes twice.

    Caffe: `ImageSegDataLayer::DataLayerSetUp` (src/caffe/layers/image_seg_data_layer.cpp) reads pairs.
    """
    root = Path(root)
    path = find_list(root, list_name)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: list must be UTF-8 text; got {error.reason} at byte {error.start}; save it as text"
        ) from error
    items: list[Item] = []
    line_of: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        item = parse_line(root, line, images, labels)
        if item is None:
            raise ValueError(
                f"{path}:{number}: a line must be an id or '/image [/label]'; got {line.strip()[:80]!r}; correct the line"
            )
        if item.name in line_of:
            raise ValueError(
                f"{path}:{number}: names must differ; got {item.name!r} again, first in line {line_of[item.name]}; remove one"
            )
        line_of[item.name] = number
        items.append(item)
    if not items:
        raise ValueError(f"{path}: list must name at least one image; got none; fill the list")
    files = [file for item in items for file in (item.image, item.label) if file is not None]
    missing = [file for file in files if not file.is_file()]
    if missing:
        first = ", ".join(map(str, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise FileNotFoundError(
            f"{path}: every listed file must exist; got {len(missing)} of {len(files)} missing: {first}; complete the data folder"
        )
    return items


def read_item(item: Item) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads an item's files.

    Args:
        item: the item.

    Returns:
        image (H, W, 3) uint8, BGR; label (H, W) uint8, or None where the item has none.

    Raises:
        FileNotFoundError, ValueError: as `read_image_bgr` and `read_label`; also ValueError if the two differ in size.

    Caffe: `ImageSegDataLayer::load_batch` (src/caffe/layers/image_seg_data_layer.cpp).
    """
    image = read_image_bgr(item.image)
    if item.label is None:
        return image, None
    label = read_label(item.label)
    if label.shape != image.shape[:2]:
        raise ValueError(
            f"{item.label}: label must have its image's (height, width) {image.shape[:2]}; got {label.shape}; pair the right files"
        )
    return image, label


def _fault(num_classes: int, ignore_label: int, item: Item) -> Exception | None:
    """Reads an item and returns what is wrong with it, if anything."""
    try:
        _, label = read_item(item)
    except (FileNotFoundError, ValueError) as error:
        return error
    if label is not None and label.max() >= num_classes:
        wrong = label[(label >= num_classes) & (label != ignore_label)]
        if wrong.size:
            return ValueError(
                f"{item.label}: class ids must be 0 .. {num_classes - 1} or {ignore_label} (ignored); got {wrong.max()} in "
                f"{wrong.size} pixels; correct the label or the number of classes"
            )
    return None


def check_items(
    items: Sequence[Item], num_classes: int, ignore_label: int, workers: int, progress: bool = True
) -> None:
    """Decodes every image and label once, so that a broken file is found before training and not in the middle of it.

    Works in threads: decoding leaves Python's lock alone, nothing is started that could stay behind, and Ctrl-C ends it at once.

    Args:
        items: what will be read.
        num_classes: class ids are 0 .. num_classes - 1.
        ignore_label: the one further label that is allowed.
        workers: number of threads; 0 counts as 1.
        progress: whether a bar is shown on stderr, where that is a terminal.

    Raises:
        ValueError: some items are unusable; their number and what is wrong with the first of them, in one line.
    """
    executor = ThreadPoolExecutor(max_workers=max(workers, 1), thread_name_prefix="check_items")
    try:
        results = executor.map(partial(_fault, num_classes, ignore_label), items)
        bar = tqdm(results, "checking images and labels", len(items), disable=None if progress else True, leave=False)
        faults = [fault for fault in bar if fault is not None]
    finally:
        executor.shutdown(cancel_futures=True)
    if faults:
        raise ValueError(
            f"data: all {len(items)} items must be usable; got {len(faults)} that are not, the first: {faults[0]}"
        )


def fingerprint(items: Sequence[Item]) -> str:
    """Names a data set cheaply: SHA-256 over each item's name and its files' sizes in bytes, in the list's order.

    The files are not read: another order, another list or a file of another length gives another fingerprint, an edit that keeps the
    length does not. The folder plays no part.

    Args:
        items: the items.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for item in items:
        label_bytes = "-" if item.label is None else item.label.stat().st_size
        digest.update(f"{item.name}\t{item.image.stat().st_size}\t{label_bytes}\n".encode())
    return digest.hexdigest()

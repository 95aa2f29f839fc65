"""Lists of images and labels: finding, reading and checking them before anything is trained."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from repro.data.pictures import SUFFIXES, find_picture, size_error, stem_of
from repro.data.pool import without_signals
from repro.data.transforms import read_image_bgr, read_label
from repro.files import check_name, read_bytes

# Where data sets keep their lists: ids by themselves, PASCAL VOC, DeepLab's `list` folders, or beside the image folders.
LIST_PLACES = ("ImageSets/{}.txt", "ImageSets/Segmentation/{}.txt", "list/{}.txt", "lists/{}.txt", "{}.txt")
MAX_LIST_BYTES = 64 * 2**20  # a hundred times DeepLab's longest
_MAX_LINE = 4096  # characters; a path has no more


class Item(NamedTuple):
    """An image and its label; the name is the image's file name without its suffix, the label is None in test lists."""

    name: str
    image: Path
    label: Path | None


def _candidates(root: Path, list_name: str) -> list[Path]:
    if list_name.endswith(".txt"):
        return [root / list_name, Path(list_name)]
    return [root / place.format(list_name) for place in LIST_PLACES]


def is_list(root: Path, list_name: str) -> bool:
    """Tells whether `find_list` would find a list."""
    return any(map(os.path.exists, _candidates(root, list_name)))


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
    candidates = _candidates(root, list_name)
    for candidate in candidates:
        if os.path.exists(candidate):  # `read_lines` says what is wrong with a FIFO or a folder.
            return candidate
    places = ", ".join(map(str, dict.fromkeys(candidates)))
    raise FileNotFoundError(
        f"list {list_name}: one of {places} must exist; got none of them; put the list there or give its path ending in .txt"
    )


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Reads a list's lines.

    Args:
        path: The file.

    Returns:
        The number and text of every line that is not blank.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no regular file, too large, no UTF-8 text, has a line without end, or nothing but blank lines.
    """
    content = read_bytes(path, MAX_LIST_BYTES, "list", "complete the data folder")
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: list must be UTF-8 text; got {error.reason} at byte {error.start}; save it as text"
        ) from error
    for number, line in enumerate(lines, start=1):
        if len(line) > _MAX_LINE:
            raise ValueError(
                f"{path}:{number}: a line must have at most {_MAX_LINE} characters; got {len(line)}; correct the line"
            )
    found = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise ValueError(f"{path}: list must name at least one image; got none; fill the list")
    return found


def _is_path(column: str) -> bool:
    return "/" in column or column.lower().endswith(SUFFIXES)


def parse_line(root: Path, line: str, images: str, labels: str | None, where: str) -> Item:
    """Makes an item of one line: an id, with or without its image's suffix, or an image, or an image and a label.

    Args:
        root: the data set's folder.
        line: the line.
        images: folder of the images of ids, under root; an id's file is found by `find_picture`.
        labels: folder of the labels (.png) of ids, under root, or None.
        where: where the line stands, for messages.

    Raises:
        ValueError: the line is nothing of this, or the name is none that `check_name` allows.

    Caffe: the root folder is put before the line as it is, so lines start with a slash that does not mean the file system's root.
    """
    columns = line.split()
    if "\\" in line:
        raise ValueError(
            f"{where}: a line must have / between folders; got {line.strip()[:80]!r}; write / for every backslash"
        )
    if len(columns) > 2 or (len(columns) == 2 and not all(map(_is_path, columns))):
        raise ValueError(
            f"{where}: a line must be an id or '/image [/label]'; got {line.strip()[:80]!r}; correct the line"
        )
    first = columns[0]
    paths = [root / column.lstrip("/") for column in columns]
    if len(columns) == 1 and "/" not in first and not (_is_path(first) and os.path.isfile(paths[0])):
        name = check_name(stem_of(first), where)
        image = find_picture(root / images, name) or root / images / f"{name}{SUFFIXES[0]}"
        return Item(name, image, None if labels is None else root / labels / f"{name}.png")
    name = check_name(paths[0].stem, where)
    return Item(name, paths[0], paths[1] if len(paths) == 2 else None)


def missing_advice(root: Path, path: Path) -> str:
    """Says what to do about a listed file that is missing under the root."""
    absolute = Path("/") / os.path.relpath(path, root)
    if os.path.isfile(absolute):
        return f"name {absolute} as it lies below {root}, for that folder is put before every line"
    return "complete the data folder"


def read_items(root: Path, list_name: str, images: str, labels: str | None) -> list[Item]:
    """Reads a list of ids, or of DeepLab's pairs `/JPEGImages/x.jpg /SegmentationClassAug/x.png`, and sees that the files exist.

    Args:
        root: the data set's folder.
        list_name: as for `find_list`.
        images: folder of the images of a list of ids, under root; files are found by `find_picture`.
        labels: folder of the labels (.png) of a list of ids, under root; None for test sets, which have none.

    Returns:
        The items in the list's order; lines without a second path have no label.

    Raises:
        FileNotFoundError: the list or some of its files are missing; their number and the first three are named.
        ValueError: as `read_lines` and `parse_line`; also if a name comes twice.

    Caffe: `ImageSegDataLayer::DataLayerSetUp` (src/caffe/layers/image_seg_data_layer.cpp) reads pairs.
    """
    root = Path(root)
    path = find_list(root, list_name)
    items: list[Item] = []
    line_of: dict[str, int] = {}
    for number, line in read_lines(path):
        item = parse_line(root, line, images, labels, f"{path}:{number}")
        if item.name in line_of:
            raise ValueError(
                f"{path}:{number}: names must differ; got {item.name!r} again, first in line {line_of[item.name]}; remove one"
            )
        line_of[item.name] = number
        items.append(item)
    files = [file for item in items for file in (item.image, item.label) if file is not None]
    missing = [file for file in files if not os.path.isfile(file)]
    if missing:
        first = ", ".join(map(str, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise FileNotFoundError(
            f"{path}: every listed file must exist; got {len(missing)} of {len(files)} missing: {first}; {missing_advice(root, missing[0])}"
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
        raise size_error(item.image, str(item.label), image.shape[:2], label.shape)
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
        # Ctrl-C within `submit` may leave a lock of the executor's taken, for which its threads, and then we, would wait for ever.
        with without_signals():
            results = executor.map(partial(_fault, num_classes, ignore_label), items)
        bar = tqdm(results, "checking images and labels", len(items), disable=None if progress else True, leave=False)
        faults = [fault for fault in bar if fault is not None]
    finally:
        executor.shutdown(cancel_futures=True)
    if faults:
        raise ValueError(
            f"data: all {len(items)} items must be usable; got {len(faults)} that are not, the first: {faults[0]}"
        )

"""Looking a data set over: lists, files, sizes, class ids, how often each class occurs, and a picture to look at."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from caffe_weights.files.atomic import replacing
from repro.data.lists import Item, find_list, missing_advice, parse_line, read_item, read_lines
from repro.data.palette import voc_palette
from repro.data.prepare.convert import count_line, shared_images

TILE = (150, 200)  # (height, width) of a picture on the contact sheet
COLUMNS = 6
NUM_TILES = 24
_CAPTION = 14


@dataclass
class Survey:
    """What looking at one item gave: what is wrong with it, or else how many pixels its label has of each value (None: no label)."""

    fault: str | None = None
    histogram: np.ndarray | None = None


@dataclass
class Findings:
    """What is said of a data set: lines to read, and lines that each name something wrong."""

    report: list[str]
    problems: list[str]


def read_list(root: Path, list_name: str, images: str, labels: str) -> tuple[list[Item], list[str]]:
    """Reads a list as training does, but goes on past what is wrong in it.

    Args:
        root: the data set's folder.
        list_name: as for `find_list`.
        images: folder of the images of a list of ids.
        labels: folder of its labels.

    Returns:
        The items whose files exist, and one line for each thing that is wrong.
    """
    try:
        path = find_list(root, list_name)
        lines = read_lines(path)
    except (FileNotFoundError, ValueError) as error:
        return [], [str(error)]
    items, problems, names = [], [], set()
    for number, line in lines:
        try:
            item = parse_line(root, line, images, labels, f"{path}:{number}")
        except ValueError as error:
            problems.append(str(error))
            continue
        if item.name in names:
            problems.append(f"{path}:{number}: names must differ; got {item.name!r} again; remove one")
            continue
        names.add(item.name)
        missing = [file for file in (item.image, item.label) if file is not None and not os.path.isfile(file)]
        problems += [
            f"{file}: must exist; got no such file (line {number} of {path}); {missing_advice(root, file)}"
            for file in missing
        ]
        if not missing:
            items.append(item)
    return items, problems


def _survey(num_classes: int, ignore_label: int, item: Item) -> Survey:
    try:
        _, label = read_item(item)
    except (FileNotFoundError, ValueError) as error:
        return Survey(fault=str(error))
    if label is None:
        return Survey()
    histogram = np.bincount(label.ravel(), minlength=256)
    wrong = [value for value in np.flatnonzero(histogram).tolist() if value >= num_classes and value != ignore_label]
    if wrong:
        return Survey(
            f"{item.label}: class ids must be 0 .. {num_classes - 1} or {ignore_label} (ignored); got {wrong[-1]} and "
            f"{int(histogram[wrong].sum())} such pixels; correct the label or the number of classes"
        )
    return Survey(histogram=histogram)


def histogram_lines(histograms: Sequence[np.ndarray], class_names: Sequence[str], ignore_label: int) -> list[str]:
    """Lays out how often each class occurs.

    Args:
        histograms: pixels of each value, (256,) int64, one array per label.
        class_names: names of the classes 0, 1, ...
        ignore_label: the value that is ignored.

    Returns:
        A header and a line per class: pixels, their share of the pixels that count, and the images that show the class.
    """
    table = np.stack(histograms)
    pixels, images = table.sum(0), (table > 0).sum(0)
    valued = max(int(pixels[: len(class_names)].sum()), 1)
    lines = [f"{'class':>5}  {'name':<16}{'pixels':>14}{'share %':>10}{'images':>9}"]
    for index, name in enumerate(class_names):
        lines.append(
            f"{index:>5}  {name:<16}{pixels[index]:>14}{100 * pixels[index] / valued:>10.3f}{images[index]:>9}"
        )
    return [*lines, f"{ignore_label:>5}  {'(ignored)':<16}{pixels[ignore_label]:>14}{'-':>10}{images[ignore_label]:>9}"]


def draw_tile(item: Item, ignore_label: int) -> Image.Image:
    """Draws an item for the contact sheet: the image, its label laid over in VOC's colours, ignored pixels white, its name.

    Args:
        item: an item that can be read.
        ignore_label: the value that is ignored.

    Returns:
        A picture of TILE pixels and a caption.
    """
    bgr, label = read_item(item)
    picture = Image.fromarray(np.ascontiguousarray(bgr[..., ::-1]))
    picture.thumbnail((TILE[1], TILE[0]))
    pixels = np.asarray(picture, dtype=np.uint16)
    if label is not None:
        small = np.asarray(Image.fromarray(label).resize(picture.size, Image.Resampling.NEAREST))
        colours = np.asarray(voc_palette(), np.uint16).reshape(256, 3)
        colours[ignore_label] = 255
        pixels = np.where((small == 0)[..., None], pixels, (pixels + 2 * colours[small]) // 3)
    tile = Image.new("RGB", (TILE[1], TILE[0] + _CAPTION), "black")
    tile.paste(Image.fromarray(pixels.astype(np.uint8)), (0, 0))
    ImageDraw.Draw(tile).text((2, TILE[0] + 1), item.name[-32:], fill="white")
    return tile


def write_contact_sheet(path: Path, items: Sequence[Item], ignore_label: int) -> None:
    """Writes a PNG with NUM_TILES of the items, evenly spread over them.

    Args:
        path: the file to write.
        items: at least one item that can be read.
        ignore_label: the value that is ignored.
    """
    places = np.unique(np.linspace(0, len(items) - 1, NUM_TILES).round().astype(int))
    height, width = TILE[0] + _CAPTION, TILE[1]
    sheet = Image.new("RGB", (width * min(COLUMNS, len(places)), height * -(-len(places) // COLUMNS)), "black")
    for number, place in enumerate(places.tolist()):
        row, column = divmod(number, COLUMNS)
        sheet.paste(draw_tile(items[place], ignore_label), (column * width, row * height))
    with replacing(path) as part:
        sheet.save(part, format="PNG")


def check_dataset(
    root: Path,
    images: str,
    labels: str,
    lists: Mapping[str, int | None],
    class_names: Sequence[str],
    ignore_label: int,
    workers: int,
    sheet: Path,
    subset: bool = False,
) -> Findings:
    """Looks over all items of some lists of a data set and goes on past what is wrong.

    Args:
        root: the data set's folder.
        images: folder of the images, under root.
        labels: folder of the labels, under root.
        lists: names of lists, as for `find_list`, with the number of images each should have, or None.
        class_names: names of the classes 0, 1, ...
        ignore_label: the one further label that is allowed.
        workers: threads that decode.
        sheet: where the contact sheet is written, if any item can be read.
        subset: whether lists may have other lengths than expected, which is then only said.

    Returns:
        The findings; nothing is wrong where `problems` is empty.

    Raises:
        FileNotFoundError, ValueError: the contact sheet cannot be written there.
    """
    findings = Findings([], [])
    every: dict[Item, None] = {}
    names: dict[str, list[str]] = {}
    for list_name, expected in lists.items():
        items, problems = read_list(root, list_name, images, labels)
        unlabelled = sum(item.label is None for item in items)
        line = count_line(list_name, len(items), expected)
        findings.report.append(line + (f", {unlabelled} of them without label" if unlabelled else ""))
        findings.problems += problems
        if expected not in (None, len(items)) and not subset:
            findings.problems.append(line)
        every.update(dict.fromkeys(items))
        names[list_name] = [item.name for item in items]
    findings.problems += shared_images(names)
    items = list(every)
    work = partial(_survey, len(class_names), ignore_label)
    executor = ThreadPoolExecutor(max(workers, 1))
    try:
        surveys = list(tqdm(executor.map(work, items), "checking", len(items), unit="image", disable=None, leave=False))
    finally:
        executor.shutdown(cancel_futures=True)
    findings.problems += [survey.fault for survey in surveys if survey.fault is not None]
    usable = [item for item, survey in zip(items, surveys, strict=True) if survey.fault is None]
    findings.report.append(f"images read: {len(items)}, of which usable: {len(usable)}")
    histograms = [survey.histogram for survey in surveys if survey.histogram is not None]
    if histograms:
        findings.report += histogram_lines(histograms, class_names, ignore_label)
    if usable:
        write_contact_sheet(sheet, usable, ignore_label)
        findings.report.append(f"contact sheet: {sheet}")
    return findings

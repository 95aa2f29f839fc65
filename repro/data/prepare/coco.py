"""MS-COCO 2014's instances as label maps of 80 classes and background."""

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from repro.data.lists import read_lines
from repro.data.pictures import MAX_PIXELS, SUFFIXES
from repro.data.prepare.coco_masks import checked_segmentation, draw, mask_api
from repro.data.prepare.convert import claim, convert, count_line, id_of, make_job, require_apart, require_files
from repro.files import read_bytes, write_text

MAX_JSON_BYTES = 2 * 2**30  # six times the largest of COCO's own
# COCO's categories by id; class k is the k-th of them, background is 0.
CATEGORIES = {
    **dict(enumerate(("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"), 1)),
    **{10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench"},
    **dict(enumerate(("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"), 16)),
    **{27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis"},
    **dict(enumerate(("snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard"), 36)),
    **{42: "surfboard", 43: "tennis racket", 44: "bottle"},
    **dict(enumerate(("wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich"), 46)),
    **dict(enumerate(("orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"), 55)),
    **{64: "potted plant", 65: "bed", 67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse"},
    **dict(enumerate(("remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink"), 75)),
    **{82: "refrigerator", 84: "book", 85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear"},
    **{89: "hair drier", 90: "toothbrush"},
}
CLASS_NAMES = ("background", *CATEGORIES.values())
CLASS_OF = {category: index for index, category in enumerate(CATEGORIES, start=1)}
LABELS = "SegmentationClass"
EXPECTED = {"train": 10000, "val": 1500}  # Paper: section 4.


class Instances(NamedTuple):
    """What an instance file holds.

    Args:
        images: Sorted by id; `id`, `height`, `width` and `file_name` are checked.
        of_image: The annotations of each image id, in the file's order; their `segmentation` is as `checked_segmentation` returns it.
        dropped: How many polygons were dropped for having fewer than three corners.
    """

    images: list[dict[str, Any]]
    of_image: dict[int, list[dict[str, Any]]]
    dropped: int


def _short(value: Any) -> str:
    return ascii(value)[:80]


def _checked_image(path: Path, image: dict[str, Any]) -> dict[str, Any]:
    """Checks an entry of `images`; sizes such as 640.0 become whole.

    Raises:
        KeyError, TypeError: It is no such entry.
        ValueError: Its id, name or size is unusable.
    """
    where = f"{path}: image {_short(image['id'])}"
    if type(image["id"]) is not int or not isinstance(image["file_name"], str):
        got = f"{_short(image['id'])} and {_short(image['file_name'])}"
        raise ValueError(f"{where}: id must be a whole number and file_name text; got {got}; correct it")
    size = (image["height"], image["width"])
    whole = all(type(side) in (int, float) and side == side // 1 and side >= 1 for side in size)
    if not whole or size[0] * size[1] > MAX_PIXELS:
        got = f"{_short(size[0])} and {_short(size[1])}"
        raise ValueError(
            f"{where}: height and width must be whole numbers from 1 on, of at most {MAX_PIXELS} pixels; got {got}; correct it"
        )
    return image | {"height": int(size[0]), "width": int(size[1])}


def read_instances(path: Path) -> Instances:
    """Reads and checks an instance file.

    Args:
        path: COCO's instances_*.json.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no instance file, has no annotations, or an entry is unusable: an image without a size, an annotation that is empty, of an
            unknown category or image, or not within its image.
    """
    advice = "give COCO's instances_*.json"
    content = read_bytes(path, MAX_JSON_BYTES, "annotations", advice)
    try:
        document = json.loads(content.decode())
        images = sorted((_checked_image(path, image) for image in document["images"]), key=lambda image: image["id"])
        annotations = document["annotations"]
        names = {category["id"]: category["name"] for category in document["categories"]}
        ids = [(annotation["image_id"], annotation["category_id"]) for annotation in annotations]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, RecursionError) as error:
        got = " ".join(f"{type(error).__name__} {error}".split())
        raise ValueError(f"{path}: must be a COCO instance file; got {got}; {advice}") from error
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    if not annotations or len(sizes) < len(images):
        got = "none" if not annotations else "an image id twice"
        raise ValueError(f"{path}: must hold annotations of distinct images; got {got}; {advice}")
    foreign = [(i, name) for i, name in names.items() if CATEGORIES.get(i) != name]
    if foreign:
        raise ValueError(
            f"{path}: categories must be COCO's 80; got category {_short(foreign[0][0])} {_short(foreign[0][1])}; correct it"
        )

    of_image, dropped = defaultdict(list), 0
    for annotation, (image, category) in zip(annotations, ids, strict=True):
        where = f"{path}: annotation {_short(annotation.get('id'))} of image {_short(image)}"
        if type(category) is not int or category not in CLASS_OF:
            raise ValueError(f"{where}: category must be one of COCO's 80; got {_short(category)}; correct it")
        if type(image) is not int or image not in sizes:
            raise ValueError(f"{where}: image must be listed; got an unknown id; correct it")
        try:
            region, few = checked_segmentation(annotation.get("segmentation"), sizes[image])
        except ValueError as error:
            raise ValueError(f"{where}: {error}; correct it") from error
        dropped += few
        of_image[image].append(annotation | {"segmentation": region})
    return Instances(images, of_image, dropped)


def make_label(source: tuple[tuple[int, int], list[dict[str, Any]]]) -> np.ndarray:
    """Draws an image's annotations into a label map.

    Crowd regions count as their class and are drawn first. Then come the single objects, from the largest area to the
    smallest, each over what is there, so that of two that overlap the smaller one is seen; equal areas in the file's order.

    Args:
        source: the image's (height, width) and its annotations, as in `Instances`.

    Returns:
        (H, W) uint8, 0 .. 80 as CLASS_NAMES; all background where there is no annotation.

    Paper: no rule is printed; this one is inferred, its masks are pycocotools'.
    """
    size, annotations = source
    drawn = []
    for annotation in annotations:
        mask = draw(annotation["segmentation"], size)
        drawn.append((not annotation.get("iscrowd"), -int(mask.sum()), CLASS_OF[annotation["category_id"]], mask))
    label = np.zeros(size, np.uint8)
    for _, _, index, mask in sorted(drawn, key=lambda entry: entry[:2]):
        label[mask] = index
    return label


def draw_subset(count: int, total: int, seed: int) -> list[int]:
    """Draws places in a sorted list at random.

    Args:
        count: how many.
        total: the list's length.
        seed: 0 .. 2**32 - 1; NumPy's RandomState, whose stream is frozen, makes the same subset everywhere.

    Returns:
        The places, ascending.

    Raises:
        ValueError: there are fewer than `count`, or the seed is out of range.
    """
    if not 1 <= count <= total:
        raise ValueError(f"--count: must be 1 .. {total}, the images of the file; got {count}; correct it")
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed: must be 0 .. {2**32 - 1}; got {seed}; choose a seed of 32 bits")
    return sorted(np.random.RandomState(seed).permutation(total)[:count].tolist())


def _find_image(folder: Path, file_name: str, where: str) -> Path:
    """Finds an image: by its bare name in the folder, as COCO has it, or else by the whole of its name below it; returns the former where there is none."""
    below = Path(file_name)
    if below.suffix.lower() not in SUFFIXES or below.is_absolute() or ".." in below.parts:
        raise ValueError(
            f"{where}: must be an image ({', '.join(SUFFIXES)}) below --images; got {_short(file_name)}; correct it"
        )
    whole, bare = folder / below, folder / below.name
    return whole if not os.path.isfile(bare) and os.path.isfile(whole) else bare


def prepare_coco(
    annotations: Path, images: Path, out: Path, list_name: str, count: int | None, seed: int, workers: int
) -> list[str]:
    """Makes JPEGImages, SegmentationClass and one list of ids; train and val go into the same folder.

    Args:
        annotations: COCO's instances_*.json.
        images: the folder of its images.
        out: the folder to make; images are linked into it where possible.
        list_name: name of the list, "train" or "val".
        count: how many images are drawn at random from the sorted ids; None takes all.
        seed: of the draw.
        workers: processes.

    Returns:
        Lines that report what was made, the draw's seed, and whether the count differs from the paper's.

    Raises:
        FileNotFoundError, ValueError: something is missing or broken; the file and the annotation are named.
        RuntimeError: pycocotools is not installed.

    Paper: section 4, 10000 images of train and 1500 of val at random; the ids are unpublished.
    """
    mask_api()
    every, of_image, dropped = read_instances(annotations)
    chosen = every if count is None else [every[place] for place in draw_subset(count, len(every), seed)]
    jobs, file_of = [], {}
    for image in chosen:
        where = f"{annotations}: file_name of image {image['id']}"
        file = _find_image(images, image["file_name"], where)
        name = id_of(file.name, where)
        if name in file_of:
            raise ValueError(
                f"{where}: images must have different names without suffix; got {file.name!r} beside {file_of[name]!r}; rename one"
            )
        file_of[name] = file.name
        source = ((image["height"], image["width"]), of_image.get(image["id"], []))
        jobs.append(make_job(file, out, LABELS, name, source))
    require_files([job.image for job in jobs], f"images of {annotations}")
    others = {path.stem: [line.strip() for _, line in read_lines(path)] for path in (out / "ImageSets").glob("*.txt")}
    require_apart(others | {list_name: list(file_of)})
    claim(out, {"dataset": "coco", "labels": "crowds first, then larger before smaller"})
    convert(jobs, make_label, workers, "coco")
    write_text(out / "ImageSets" / f"{list_name}.txt", "".join(f"{name}\n" for name in file_of))

    drawn = [entry for image in chosen for entry in of_image.get(image["id"], [])]
    empty = sum(not of_image.get(image["id"]) for image in chosen)
    report = [
        count_line(list_name, len(jobs), EXPECTED.get(list_name)),
        f"{list_name}: "
        + (f"drawn from {len(every)} sorted ids with seed {seed}" if count else "all images of the file"),
        f"{list_name}: {len(drawn)} annotations, {sum(bool(a.get('iscrowd')) for a in drawn)} of them crowds; {empty} images without any",
    ]
    return report + ([f"{annotations}: {dropped} polygons of fewer than three corners left out"] if dropped else [])

"""MS-COCO 2014's instances as label maps of 80 classes and background."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from repro.data.prepare.convert import Job, claim, convert, count_line, require_files
from repro.files import write_text

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
IMAGES, LABELS = "JPEGImages", "SegmentationClass"
EXPECTED = {"train": 10000, "val": 1500}  # Paper: section 4.


def _mask_api() -> Any:
    """Imports pycocotools' masks."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise RuntimeError(
            f"coco: pycocotools must be installed; got {error}; pip install pycocotools (the extra `coco`)"
        ) from error
    return mask


def _where(path: Path, annotation: dict[str, Any]) -> str:
    return f"{path}: annotation {annotation.get('id')} of image {annotation.get('image_id')}"


def read_instances(path: Path) -> tuple[list[dict[str, Any]], dict[int, list[dict[str, Any]]], int]:
    """Reads and checks an instance file.

    Args:
        path: COCO's instances_*.json.

    Returns:
        The images, sorted by id; the annotations of each image id, in the file's order; and how many polygons were
        dropped from them for having fewer than three corners.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no instance file, has no annotations, or an annotation is empty, of an unknown category or image.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        images = sorted(document["images"], key=lambda image: image["id"])
        sizes = {image["id"]: (image["height"], image["width"], image["file_name"]) for image in images}
        annotations = document["annotations"]
        names = {category["id"]: category["name"] for category in document["categories"]}
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path}: annotations must exist; got no such file; give COCO's instances_*.json"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        got = " ".join(f"{type(error).__name__} {error}".split())
        raise ValueError(f"{path}: must be a COCO instance file; got {got}; give COCO's instances_*.json") from error
    if not annotations or len(sizes) < len(images):
        got = "none" if not annotations else "an image id twice"
        raise ValueError(f"{path}: must hold annotations of distinct images; got {got}; give COCO's instances_*.json")
    foreign = sorted(names.items() - CATEGORIES.items())
    if foreign:
        raise ValueError(
            f"{path}: categories must be COCO's 80; got category {foreign[0][0]} {foreign[0][1]!r}; correct it"
        )

    of_image, dropped = defaultdict(list), 0
    for annotation in annotations:
        category, segmentation = annotation.get("category_id"), annotation.get("segmentation")
        if category not in CLASS_OF:
            raise ValueError(
                f"{_where(path, annotation)}: category must be one of COCO's 80; got {category}; correct it"
            )
        if annotation.get("image_id") not in sizes:
            raise ValueError(f"{_where(path, annotation)}: image must be listed; got an unknown id; correct it")
        if isinstance(segmentation, list):
            # pycocotools takes a polygon of two corners for a box.
            polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
            dropped += len(segmentation) - len(polygons)
            annotation["segmentation"] = segmentation = polygons
        if not segmentation or (isinstance(segmentation, dict) and not segmentation.get("counts")):
            raise ValueError(f"{_where(path, annotation)}: segmentation must not be empty; got no region; correct it")
        of_image[annotation["image_id"]].append(annotation)
    return images, of_image, dropped


def make_label(source: tuple[Path, tuple[int, int], list[dict[str, Any]]]) -> np.ndarray:
    """Draws an image's annotations into a label map.

    Crowd regions count as their class and are drawn first. Then come the single objects, from the largest area to the
    smallest, each over what is there, so that of two that overlap the smaller one is seen; equal areas in the file's order.

    Args:
        source: the instance file (for messages), the image's (height, width), and its annotations.

    Returns:
        (H, W) uint8, 0 .. 80 as CLASS_NAMES; all background where there is no annotation.

    Raises:
        ValueError: an annotation cannot be drawn, or has a mask of another size.

    Paper: no rule is printed; this one is inferred, its masks are pycocotools'.
    """
    path, size, annotations = source
    api = _mask_api()
    drawn = []
    for annotation in annotations:
        segmentation = annotation["segmentation"]
        try:
            compressed = isinstance(segmentation, dict) and isinstance(segmentation["counts"], (str, bytes))
            runs = segmentation if compressed else api.frPyObjects(segmentation, *size)
            mask = api.decode(api.merge(runs) if isinstance(runs, list) else runs).astype(bool)
        except Exception as error:  # pycocotools raises plain Exception, TypeError, ValueError and more.
            got = " ".join(f"{type(error).__name__} {error}".split())
            raise ValueError(f"{_where(path, annotation)}: must be polygons or runs; got {got}; correct it") from error
        if mask.shape != size:
            raise ValueError(
                f"{_where(path, annotation)}: mask must have its image's size {size}; got {mask.shape}; correct it"
            )
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
    _mask_api()
    every, of_image, dropped = read_instances(annotations)
    chosen = every if count is None else [every[place] for place in draw_subset(count, len(every), seed)]
    jobs = []
    for image in chosen:
        name = Path(image["file_name"]).name
        source = (annotations, (image["height"], image["width"]), of_image.get(image["id"], []))
        jobs.append(Job(images / name, out / IMAGES / name, out / LABELS / f"{Path(name).stem}.png", source))
    require_files([job.image for job in jobs], f"images of {annotations}")
    claim(out, {"dataset": "coco", "labels": "crowds first, then larger before smaller"})
    convert(jobs, make_label, workers, "coco")
    write_text(out / "ImageSets" / f"{list_name}.txt", "".join(f"{job.label_out.stem}\n" for job in jobs))

    drawn = [entry for image in chosen for entry in of_image.get(image["id"], [])]
    empty = sum(not of_image.get(image["id"]) for image in chosen)
    report = [
        count_line(list_name, len(jobs), EXPECTED.get(list_name)),
        f"{list_name}: "
        + (f"drawn from {len(every)} sorted ids with seed {seed}" if count else "all images of the file"),
        f"{list_name}: {len(drawn)} annotations, {sum(bool(a.get('iscrowd')) for a in drawn)} of them crowds; {empty} images without any",
    ]
    return report + ([f"{annotations}: {dropped} polygons of fewer than three corners left out"] if dropped else [])

"""PASCAL-Person-Part: VOC 2010 images with the parts of PASCAL-Part merged to the paper's six."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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

CLASS_NAMES = ("background", "head", "torso", "upper arms", "lower arms", "upper legs", "lower legs")
LABELS = "SegmentationPart"
EXPECTED = {"train": 1716, "val": 1817}  # Paper: section 4.
# All names that PASCAL-Part gives to parts of persons; l and r in front are left and right.
PARTS = {
    "head": ("head", "hair", "lear", "rear", "lebrow", "rebrow", "leye", "reye", "nose", "mouth"),
    "torso": ("torso", "neck"),
    "upper arms": ("luarm", "ruarm"),
    "lower arms": ("llarm", "rlarm", "lhand", "rhand"),
    "upper legs": ("luleg", "ruleg"),
    "lower legs": ("llleg", "rlleg", "lfoot", "rfoot"),
}
CLASS_OF = {part: CLASS_NAMES.index(name) for name, parts in PARTS.items() for part in parts}


def _parts_of_persons(annotation: Any) -> list[tuple[str, Any]]:
    persons = [found for found in np.atleast_1d(annotation.objects) if getattr(found, "class") == "person"]
    return [(str(part.part_name), np.atleast_2d(part.mask)) for found in persons for part in np.atleast_1d(found.parts)]


def read_parts(path: Path) -> np.ndarray | None:
    """Merges the parts of all persons in one annotation of PASCAL-Part.

    Objects are drawn in the file's order and an object's parts in the file's order, each over what is there: the last part
    wins where parts overlap. Pixels of a person that belong to no part stay background.

    Args:
        path: a .mat file with `anno.objects`, each with `class` and `parts`, each with `part_name` and `mask`.

    Returns:
        (H, W) uint8, 0 .. 6 as CLASS_NAMES; None where no person has parts.

    Raises:
        ValueError: the file does not load, has another content, or names an unknown part of a person.
    """
    what = "PASCAL-Part's anno.objects.parts"
    parts = read_mat(path, "anno", what, _parts_of_persons, squeeze_me=True, struct_as_record=False)
    if not parts:
        return None
    label = None
    for name, mask in parts:
        if name not in CLASS_OF:
            raise ValueError(
                f"{path}: a person's parts must be among the 24 of PASCAL-Part; got {name!r}; replace the file"
            )
        try:
            mask = dense_integers(mask)
        except ValueError as error:
            raise ValueError(
                f"{path}: the mask of {name} must be a matrix of 0 and 1; got {error}; replace the file"
            ) from error
        label = np.zeros(mask.shape, np.uint8) if label is None else label
        if mask.shape != label.shape:
            raise ValueError(
                f"{path}: all masks must have one size; got {mask.shape} beside {label.shape}; replace the file"
            )
        label[mask != 0] = CLASS_OF[name]
    return label if label.any() else None


def parse_class_order(text: str) -> tuple[int, ...]:
    """Reads the order that ready-made labels have their classes in.

    Args:
        text: names of the classes 1 .. 6 of those labels, such as "head,torso,lower_arms,upper_arms,lower_legs,upper_legs".

    Returns:
        Our class ids in that order.

    Raises:
        ValueError: it does not name each part once.
    """
    names = [name.strip().lower().replace("_", " ").replace("-", " ") for name in text.split(",")]
    if sorted(names) != sorted(CLASS_NAMES[1:]):
        every = ",".join(name.replace(" ", "_") for name in CLASS_NAMES[1:])
        raise ValueError(
            f"--class-order: must name each of {every} once; got {text!r}; put these names in the labels' order"
        )
    return tuple(CLASS_NAMES.index(name) for name in names)


def read_index_png(path: Path, class_order: Sequence[int]) -> np.ndarray | None:
    """Reads a ready-made label and brings its classes into our order.

    Args:
        path: an index PNG, 0 background, 1 .. 6 parts, 255 ignored.
        class_order: our class ids of its classes 1 .. 6.

    Returns:
        (H, W) uint8, 0 .. 6 as CLASS_NAMES and 255; None where it shows no part.

    Raises:
        FileNotFoundError, ValueError: as `read_label`; also if a class id is out of range.
    """
    label = read_label(path)
    wrong = label[(label > len(class_order)) & (label != 255)]
    if wrong.size:
        raise ValueError(f"{path}: class ids must be 0 .. 6 or 255; got {wrong.max()}; give labels of person parts")
    table = np.arange(256, dtype=np.uint8)
    table[1 : 1 + len(class_order)] = class_order
    return table[label] if ((label > 0) & (label != 255)).any() else None


def make_label(source: tuple[Path, tuple[int, ...]]) -> np.ndarray | None:
    """Makes a label of a PASCAL-Part annotation or of a ready-made index PNG, by the file's suffix."""
    path, class_order = source
    return read_parts(path) if path.suffix == ".mat" else read_index_png(path, class_order)


def prepare_person_part(
    voc2010: Path,
    sources: Path,
    out: Path,
    class_order: tuple[int, ...] | None,
    lists: dict[str, Path | None],
    workers: int,
) -> list[str]:
    """Makes JPEGImages, SegmentationPart and the lists train and val.

    Split rule: without list files, VOC 2010's own train and val (ImageSets/Main), of which the images stay that have an
    annotation with at least one part of a person. Listed images without persons' parts are left out and counted.

    Args:
        voc2010: VOC 2010.
        sources: PASCAL-Part's Annotations_Part or, with a class order, a folder of index PNGs.
        out: the folder to make; images are linked into it where possible.
        class_order: our class ids of the index PNGs' classes 1 .. 6; None for PASCAL-Part.
        lists: a file of ids for "train" and "val" each, or None for the split rule.
        workers: processes.

    Returns:
        Lines that report what was made and which counts differ from the paper's.

    Raises:
        FileNotFoundError, ValueError: a distribution is incomplete, a file is broken, or sizes differ; the file is named.

    Paper: section 4, 1716 images to train on and 1817 to validate. The split rule is inferred: the id lists in circulation
        keep VOC's train and val apart.
    """
    suffix = ".mat" if class_order is None else ".png"
    voc2010 = find_folder(voc2010, ("", "VOC2010", "VOCdevkit/VOC2010"), IMAGES, "PASCAL VOC 2010")
    if not any(sources.glob(f"*{suffix}")):
        raise FileNotFoundError(
            f"{sources}: must hold annotations; got no *{suffix} there; give the folder with these files"
        )
    if sources.resolve() == (out / LABELS).resolve():
        raise ValueError(f"{sources}: must not be what is written; got it as --out's {LABELS}; name another folder")
    listed = {name: read_ids(file or voc2010 / "ImageSets" / "Main" / f"{name}.txt") for name, file in lists.items()}
    require_apart(listed)

    report, jobs = [], {}
    for name, ids in listed.items():
        if lists[name] is None:
            ids = [i for i in ids if (sources / f"{i}{suffix}").is_file()]
            report.append(f"{name}: {len(ids)} of VOC 2010's {len(listed[name])} images are annotated")
        jobs[name] = [
            make_job(find_photo(voc2010 / IMAGES, i), out, LABELS, i, (sources / f"{i}{suffix}", class_order))
            for i in ids
        ]
    every = [*jobs["train"], *jobs["val"]]
    require_files([file for job in every for file in (job.image, job.source[0])], "VOC 2010 and its parts")
    origin = "PASCAL-Part" if class_order is None else f"index PNGs, {','.join(CLASS_NAMES[i] for i in class_order)}"
    claim(out, {"dataset": "person-part", "labels": origin})
    made = dict(zip(every, convert(every, make_label, workers, "person-part"), strict=True))

    for name, split in jobs.items():
        kept = [job.label_out.stem for job in split if made[job]]
        left_out = [job.label_out.stem for job in split if not made[job]]
        write_text(out / "ImageSets" / f"{name}.txt", "".join(f"{i}\n" for i in kept))
        report.append(count_line(name, len(kept), EXPECTED[name]))
        if left_out:
            first = ", ".join(left_out[:3]) + (", ..." if len(left_out) > 3 else "")
            report.append(
                f"{name}: {len(left_out)} annotated images show no part of a person and are left out: {first}"
            )
    return report

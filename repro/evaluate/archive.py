"""What the PASCAL VOC server scores: label maps of the test images in one archive.

The VOC 2012 development kit, section 5.3, has every image as an index PNG of its own size (0 background, 1..20 the classes), below
results/VOC2012/Segmentation/ in one tar, tgz or tar.gz. Its folder names the competition: comp6_test_cls, because SBD's labels, MS-COCO and the
ImageNet classifier are data beyond VOC's own (comp5).
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import caffe_weights
from caffe_weights.files.atomic import replacing
from repro.data.lists import Item
from repro.data.palette import write_label
from repro.data.pictures import load_picture
from repro.evaluate.labels import Labelled
from repro.files import write_json

FOLDER = Path("results/VOC2012/Segmentation/comp6_test_cls")
_STAMP = "submission.json"  # beside the label maps: which run they are of


def _finished(path: Path) -> bool:
    """Tells whether a label map is there and whole: one of a killed program is either whole or absent, one that a disk lost may not be."""
    try:
        return load_picture(path).mode == "P"
    except (FileNotFoundError, ValueError):
        return False


def unfinished(folders: Collection[Path], items: Iterable[Item], identity: str) -> list[Item]:
    """Lists the images whose label maps are still to be made in one folder or another, and claims the folders for one run.

    Args:
        folders: The row's, and that of its label maps before the CRF.
        items: The test list.
        identity: Names the run.

    Raises:
        ValueError: A folder holds label maps of another run.
    """
    for folder in folders:
        _claim(folder, identity)
    return [item for item in items if not all(_finished(folder / FOLDER / f"{item.name}.png") for folder in folders)]


def _claim(folder: Path, identity: str) -> None:
    """Names the run whose label maps a folder holds; raises ValueError where they are another's."""
    stamp = folder / _STAMP
    if stamp.exists():
        try:
            found = json.loads(stamp.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if found != {"identity": identity}:
            raise ValueError(
                f"{folder / FOLDER}: must hold label maps of this very run; got those of another (settings, data, weights or seed differ); "
                "delete the folder, or choose another --out"
            )
    else:
        write_json(stamp, {"identity": identity})
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)


def write_label_maps(
    batches: Iterator[list[Labelled]],
    folder: Path,
    before_crf: Path | None = None,
    progress: Callable[[int], None] = lambda images: None,
) -> None:
    """Writes label maps as index PNGs with VOC's palette, each whole or not at all.

    Args:
        batches: As `repro.evaluate.labels.label_maps` yields them.
        folder: Of the labels.
        before_crf: Of the labels before the CRF; None where the row has none.
        progress: Called with the number of images just written; what it raises ends the writing.
    """
    for batch in batches:
        for image, *maps in batch:
            for labels, place in zip(maps, (folder, before_crf), strict=True):
                if place is not None:
                    write_label(place / FOLDER / f"{image.item.name}.png", labels.cpu().numpy().astype(np.uint8))
        progress(len(batch))


def write_archive(folder: Path, items: Iterable[Item], path: Path) -> dict[str, Any]:
    """Packs the label maps of a list; equal label maps give equal bytes.

    Args:
        folder: Of the label maps.
        items: The test list.
        path: The archive's, in the row's folder.

    Returns:
        The record's `submission`.
    """
    with (
        replacing(path) as part,
        open(part, "wb") as file,
        # Neither the time nor the name of the file goes into gzip's header.
        gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for image in sorted(item.name for item in items):
            content = (folder / FOLDER / f"{image}.png").read_bytes()
            entry = tarfile.TarInfo(f"{FOLDER.as_posix()}/{image}.png")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return {"archive": path.name, "sha256": caffe_weights.sha256(path), "score": None}

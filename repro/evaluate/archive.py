"""What the PASCAL VOC server scores: label maps of the test images in one archive, and the score that a person brings back.

The VOC 2012 development kit, section 5.3, has every image as an index PNG of its own size (0 background, 1..20 the classes), below
results/VOC2012/Segmentation/ in one tar, tgz or tar.gz. Its folder names the competition: comp6_test_cls, because SBD's labels, MS-COCO and the
ImageNet classifier are data beyond VOC's own (comp5).
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import caffe_weights
from caffe_weights.atomic import replacing
from repro.data.lists import Item
from repro.data.palette import write_label
from repro.data.pictures import load_picture
from repro.files import write_json
from repro.records.store import SUBMISSION, read_record, record_path, write_record
from repro.shell import exit_code

FOLDER = Path("results/VOC2012/Segmentation/comp6_test_cls")
_STAMP = "submission.json"  # beside the label maps: which run they are of


def _finished(path: Path) -> bool:
    """Tells whether a label map is there and whole: one of a killed program is either whole or absent, one that a disk lost may not be."""
    try:
        return load_picture(path).mode == "P"
    except (FileNotFoundError, ValueError):
        return False


def unfinished(folder: Path, items: Iterable[Item], identity: str) -> list[Item]:
    """Lists the images whose label maps are still to be made, and claims the folder for one run.

    Args:
        folder: The row's.
        items: The test list.
        identity: Names the run.

    Raises:
        ValueError: The folder holds label maps of another run.
    """
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
    return [item for item in items if not _finished(folder / FOLDER / f"{item.name}.png")]


def write_label_maps(
    batches: Iterator[list[tuple[Item, torch.Tensor, torch.Tensor | None]]],
    folder: Path,
    progress: Callable[[int], None] = lambda images: None,
) -> None:
    """Writes label maps as index PNGs with VOC's palette, each whole or not at all.

    Args:
        batches: As `repro.evaluate.label_maps` yields them.
        folder: The row's.
        progress: Called with the number of images just written; what it raises ends the writing.
    """
    for batch in batches:
        for item, prediction, _ in batch:
            write_label(folder / FOLDER / f"{item.name}.png", prediction.cpu().numpy().astype(np.uint8))
        progress(len(batch))


def write_archive(folder: Path, items: Iterable[Item], name: str) -> dict[str, Any]:
    """Packs the label maps of a list; equal label maps give equal bytes.

    Args:
        folder: The row's.
        items: The test list.
        name: Of the archive, which is put into `folder`.

    Returns:
        The record's `submission`.
    """
    path = folder / name
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
    return {"archive": name, "sha256": caffe_weights.sha256(path), "score": None}


def enter_score(
    out: Path, table: str, row: str, seed: int, value: float, source: str, replace: bool = False
) -> tuple[Path, dict[str, Any]]:
    """Puts the server's score of an archive, as a person read it, into the row's record.

    Args:
        out: The runs' folder.
        table, row, seed: Which record.
        value: Mean IoU, percent.
        source: Where the score can be seen, such as the server's address of the result.
        replace: Whether a score that is already there may be replaced.

    Returns:
        The record's file and its content.

    Raises:
        FileNotFoundError: There is no such record.
        ValueError: The value is no percentage, the source is empty, the record has no archive or already a score, or the archive is no longer
            the one that was recorded.
    """
    path = record_path(out, table, row, seed)
    where = f"score {table} {row}"
    if not 0 <= value <= 100:
        raise ValueError(f"{where}: the value must be a percentage, 0..100; got {value}; correct it")
    if not source.strip():
        raise ValueError(
            f"{where}: --source must say where the score can be seen; got nothing; give the server's address of it"
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: must be the record of a submission; got no such file; run {table} --row {row} first"
        )
    record = read_record(path)
    if SUBMISSION not in record:
        raise ValueError(
            f"{path}: must be the record of a submission; got one whose value was measured; enter no score for it"
        )
    submission = record[SUBMISSION]
    if submission["score"] is not None and not replace:
        raise ValueError(
            f"{path}: must have no score yet; got {submission['score']['value']} from {submission['score']['source']}; add --replace to correct it"
        )
    archive = path.parent / submission["archive"]
    if archive.exists() and caffe_weights.sha256(archive) != submission["sha256"]:
        raise ValueError(
            f"{archive}: must be the archive that was recorded; got other bytes; delete the record and run the row again"
        )
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    record |= {
        "value": float(value),
        SUBMISSION: submission | {"score": {"value": float(value), "source": source.strip(), "entered": day}},
    }
    write_record(path, record)
    return path, record


def main(arguments: list[str] | None = None) -> int:
    """Runs `python -m repro.run score`; returns its exit code: 0, or 2 for an error."""
    parser = argparse.ArgumentParser(
        prog="python -m repro.run score", description="Enters the VOC server's score of a submission into its record."
    )
    parser.add_argument("table", metavar="TABLE")
    parser.add_argument("row", metavar="ROW")
    parser.add_argument("value", metavar="VALUE", type=float, help="mean IoU, percent, as the server states it")
    parser.add_argument("--source", required=True, metavar="URL", help="where the score can be seen")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the run (default 1)")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="the run's --out (default runs/)")
    parser.add_argument("--replace", action="store_true", help="correct a score that was entered before")
    given = parser.parse_args(arguments)

    def enter() -> None:
        path, record = enter_score(
            given.out, given.table, given.row, given.seed, given.value, given.source, given.replace
        )
        score = record[SUBMISSION]["score"]
        print(f"{path}: {score['value']:.2f} entered on {score['entered']}, source: {score['source']}")

    return exit_code(enter)

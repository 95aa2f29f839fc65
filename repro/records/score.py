"""The score that a person brings back from the VOC server: `python -m repro.run score`. Needs no torch."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Any

import caffe_weights
from repro.records.store import BEFORE_CRF, SUBMISSION, read_record, record_path, write_record
from repro.shell import exit_code


def enter_score(
    out: Path,
    table: str,
    row: str,
    seed: int,
    value: float,
    source: str,
    replace: bool = False,
    before_crf: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """Puts the server's score of an archive, as a person read it, into the row's record.

    Args:
        out: The runs' folder.
        table, row, seed: Which record.
        value: Mean IoU, percent.
        source: Where the score can be seen, such as the server's address of the result.
        replace: Whether a score that is already there may be replaced.
        before_crf: Whether it is that of the labels before the CRF, which have an archive of their own.

    Returns:
        The record's file and its content.

    Raises:
        FileNotFoundError: There is no such record.
        ValueError: The value is no percentage, the source is empty, the record has no such archive or already a score, or the archive is no
            longer the one that was recorded.
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
    if before_crf and BEFORE_CRF not in record:
        raise ValueError(f"{path}: must be of a row with a CRF for --before-crf; got one without; leave it out")
    result = record[BEFORE_CRF] if before_crf else record
    submission = result[SUBMISSION]
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
    result |= {
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
    parser.add_argument(
        "--before-crf", action="store_true", help="the score is that of the archive of labels before the CRF"
    )
    given = parser.parse_args(arguments)

    def enter() -> None:
        path, record = enter_score(
            given.out,
            given.table,
            given.row,
            given.seed,
            given.value,
            given.source,
            given.replace,
            given.before_crf,
        )
        score = (record[BEFORE_CRF] if given.before_crf else record)[SUBMISSION]["score"]
        print(f"{path}: {score['value']:.2f} entered on {score['entered']}, source: {score['source']}")

    return exit_code(enter)

"""Records: one JSON file per measured row, with everything that a reader needs to trust or repeat its number."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
import re
import subprocess
from pathlib import Path
from typing import Any

from repro.files import write_json

FORMAT = 1
# What must be in a record; a reader refuses a file that lacks any of it.
KEYS = (
    "format",
    "table",
    "row",
    "seed",
    "value",  # percent
    "paper",
    "per_class",  # IoU in percent by class name
    "confusion",  # rows = labels, columns = predictions, pixels
    "n_images",
    "loss_curve",
    "deviates",  # --set keys, a declared subset, other weights: what sets this run apart from its protocol
    "synthetic",
    "note",
    "settings",
    "provenance",  # fingerprints of protocol, settings, data and weights; a function of what ran, not of when
    "run",  # where and when: machine, versions, seconds
)
# Only a row that writes an archive for a server has it: {"archive": its path from the record's folder, "sha256", "score": null, or
# {"value", "source", "entered": day} as a person entered it}. Until then `value` is null.
SUBMISSION = "submission"


def record_path(out: Path, table: str, row: str, seed: int) -> Path:
    """Says where a row's record lies under the output folder."""
    return out / table / f"{row}-seed{seed}" / "record.json"


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes a record.

    Raises:
        ValueError: It has not exactly the keys of a record.
    """
    if set(record) - {SUBMISSION} != set(KEYS):
        different = sorted((set(record) - {SUBMISSION}) ^ set(KEYS))
        raise ValueError(
            f"{path}: a record must have exactly the known keys; got a difference in {different}; correct the writer"
        )
    write_json(path, record)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _check_submission(record: dict[str, Any]) -> None:
    """Raises ValueError unless the record's archive and the score entered for it are well-formed, and its value is the score."""
    submission = record[SUBMISSION]
    if not isinstance(submission, dict) or set(submission) != {"archive", "sha256", "score"}:
        raise ValueError("submission is no table of archive, sha256, score")
    score = submission["score"]
    entered = isinstance(score, dict) and set(score) == {"value", "source", "entered"} and _is_number(score["value"])
    if not (score is None or entered) or record["value"] != (score["value"] if score else None):
        raise ValueError("value is not the score entered")


def read_record(path: Path) -> dict[str, Any]:
    """Reads a record.

    Raises:
        ValueError: The file is damaged, foreign or of another format.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or record.get("format") != FORMAT or set(record) - {SUBMISSION} != set(KEYS):
            raise ValueError(f"no record of format {FORMAT}")
        if SUBMISSION in record:
            _check_submission(record)
        elif not _is_number(record["value"]):
            raise ValueError("value is no number")
        tables = [
            key
            for key in ("per_class", "deviates", "settings", "provenance", "run")
            if not isinstance(record[key], dict)
        ]
        if tables or not isinstance(record["run"].get("seconds"), int | float):
            raise ValueError(f"no table in {', '.join(tables)}" if tables else "no run.seconds")
        return record
    except (ValueError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path}: must be a record of a run; got {reason}; delete it to measure the row again"
        ) from error


@functools.cache
def git_state() -> dict[str, Any]:
    """Finds this checkout's commit and whether tracked files differ from it; of an installed wheel the commit that its version names.

    Asked once, when a program starts: what changes on disk afterwards is not what runs.

    Returns:
        "commit" and "dirty", nulls where neither is known.
    """
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str | None:
        try:
            return subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    if (root / ".git").exists():
        status = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}
    try:
        named = re.search(r"\+g([0-9a-f]+)(\.dirty)?$", importlib.metadata.version("attention-to-scale"))
    except importlib.metadata.PackageNotFoundError:
        named = None
    return {"commit": named[1], "dirty": named[2] is not None} if named else {"commit": None, "dirty": None}

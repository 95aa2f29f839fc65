"""Records: one JSON file per measured row, with everything that a reader needs to trust or repeat its number; their one writer, schema and reader."""

from __future__ import annotations

import functools
import glob
import hashlib
import importlib.metadata
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from repro.documents import document_bytes, is_number, parse_json
from repro.files import write_json
from repro.protocol import MEAN_IOU, PROTOCOLS, Metric, read_metric, settings_sha256

FORMAT = 1
MEASURED = PROTOCOLS / "measured"  # the records that are kept with the protocols
MOST_CLASSES = 256  # labels are uint8
# Only a row that writes an archive for a server has it: {"archive": its path from the record's folder, "sha256", "score": null, or
# {"value", "source", "entered": day} as a person entered it}. Until then `value` is null.
SUBMISSION = "submission"
RECORD = "record.json"  # in the folder of a row
# Only a row with a CRF has it: value, per_class, confusion and, of a row that writes an archive, submission, as they were before the CRF.
BEFORE_CRF = "before_crf"
Record = dict[str, Any]


def _is_percent(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 100


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_plain(value: Any) -> bool:
    """Tells whether a value is what a protocol's key or a --set may hold: a number, text, a switch, or a list of such."""
    return all(map(_is_plain, value)) if isinstance(value, list) else isinstance(value, str | int | float)


def _is_table(value: Any, entry: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(entry, value.values()))


def _is_fact(value: Any) -> bool:
    return value is None or _is_plain(value)


def _is_run(run: Any) -> bool:
    facts = dict(run) if isinstance(run, dict) else {}
    times = [facts.pop(key, None) for key in ("seconds", "train_seconds")]
    tables = [facts.pop(key, {}) for key in ("versions", "git")]
    resumed_under = facts.pop("resumed_under", {})  # circumstances that changed between sittings, each with its values
    return (
        all(is_number(time) and time >= 0 for time in times)
        and times[1] <= times[0]
        and all(_is_table(table, _is_fact) for table in tables)
        and _is_table(resumed_under, _is_plain)
        and _is_table(facts, _is_fact)
    )


def class_names(record: Record) -> list[str]:
    """Reads the classes that a record's row tells apart."""
    return record["settings"]["data"]["class_names"]


def metric_of(record: Record) -> Metric:
    """Reads by which metric a record's value was computed; an early record states none."""
    stated = record["provenance"].get("metric", MEAN_IOU)
    return stated if isinstance(stated, str) else tuple(stated)


def _has_class_names(settings: Any) -> bool:
    if not _is_table(settings, lambda section: _is_table(section, _is_plain)):
        return False
    names = settings.get("data", {}).get("class_names")
    return (
        isinstance(names, list)
        and 0 < len(names) <= MOST_CLASSES
        and all(isinstance(name, str) for name in names)
        and len(set(names)) == len(names)
    )


# What must be in a record, and what it must be; a reader refuses a file that lacks any of it.
SCHEMA: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "format": (f"{FORMAT}", lambda value: value == FORMAT),
    "table": ("text", lambda value: isinstance(value, str)),
    "row": ("text", lambda value: isinstance(value, str)),
    "seed": ("a count", _is_count),
    "value": ("a percentage, or null", lambda value: value is None or _is_percent(value)),
    "paper": ("a number, or null", lambda value: value is None or is_number(value)),
    # IoU by class name
    "per_class": ("a table of percentages", lambda value: _is_table(value, _is_percent)),
    # rows = labels, columns = predictions, pixels
    "confusion": (
        "a square of counts",
        lambda value: (
            isinstance(value, list)
            and all(isinstance(line, list) and len(line) == len(value) and all(map(_is_count, line)) for line in value)
        ),
    ),
    "n_images": ("a count", _is_count),
    "loss_curve": ("a list of numbers", lambda value: isinstance(value, list) and all(map(is_number, value))),
    # --set keys, a declared subset, other weights: what sets this run apart from its protocol
    "deviates": ("a table of plain values", lambda value: _is_table(value, _is_plain)),
    "synthetic": ("true or false", lambda value: isinstance(value, bool)),
    "note": ("text", lambda value: isinstance(value, str)),
    "settings": (f"sections of plain values, with 1 to {MOST_CLASSES} different data.class_names", _has_class_names),
    # fingerprints of protocol, settings, data and weights; a function of what ran, not of when
    "provenance": ("a table of plain values", lambda value: _is_table(value, _is_fact)),
    # where and when: machine, versions, seconds
    "run": ("a table of facts with seconds and, at most as many, train_seconds", _is_run),
}


class Stored(NamedTuple):
    """A record's file.

    path: The file.
    record: What it holds; {} where it cannot be used.
    sha256: Of the file; "" where it cannot be used.
    reason: Why it cannot be used, or "".
    """

    path: Path
    record: Record
    sha256: str
    reason: str

    @property
    def out(self) -> Path:
        """The run's --out folder."""
        return self.path.parents[2]


def record_path(out: Path, table: str, row: str, seed: int) -> Path:
    """Says where a row's record lies under the output folder."""
    return out / table / f"{row}-seed{seed}" / RECORD


def write_record(path: Path, record: Record) -> None:
    """Writes a record.

    Raises:
        ValueError: It has not exactly the keys of a record, or a reader would refuse it.
    """
    if different := sorted((set(record) - {SUBMISSION, BEFORE_CRF}) ^ set(SCHEMA)):
        raise ValueError(
            f"{path}: a record must have exactly the known keys; got a difference in {different}; correct the writer"
        )
    if reason := _problem(record):
        raise ValueError(f"{path}: a record must be one that its reader takes; got {reason}; correct the writer")
    write_json(path, record)


def _submission_problem(result: dict[str, Any]) -> str:
    """Says what is wrong with a result's archive, with the score entered for it, or with a value that is not the score."""
    submission = result[SUBMISSION]
    if not isinstance(submission, dict) or set(submission) != {"archive", "sha256", "score"}:
        return "submission is no table of archive, sha256, score"
    if not (isinstance(submission["archive"], str) and isinstance(submission["sha256"], str)):
        return "submission.archive and submission.sha256 must be text"
    score = submission["score"]
    entered = isinstance(score, dict) and set(score) == {"value", "source", "entered"} and _is_percent(score["value"])
    entered = entered and isinstance(score["source"], str) and isinstance(score["entered"], str)
    if not (score is None or entered) or result["value"] != (score["value"] if score else None):
        return "value is not the score entered"
    return ""


def _result_problem(result: dict[str, Any], names: list[str]) -> str:
    """Says what is wrong with a result of the right keys and types, or "": a record's own, or that before the CRF."""
    if SUBMISSION in result:
        return _submission_problem(result)
    if result["value"] is None:
        return "value is no number"
    if set(result["per_class"]) != set(names):
        return "per_class must have the classes of settings.data.class_names"
    if len(result["confusion"]) != len(names):
        return "confusion must have the classes of settings.data.class_names"
    return ""


def _before_crf_problem(record: Record) -> str:
    """Says what is wrong with the result before the CRF, which a record has where its row has a CRF, or ""."""
    if (BEFORE_CRF in record) != ("crf" in record["settings"]):
        return f"{BEFORE_CRF} must be there where settings.crf is, and only there"
    if BEFORE_CRF not in record:
        return ""
    before = record[BEFORE_CRF]
    keys = {"value", "per_class", "confusion", *({SUBMISSION} & set(record))}
    if not isinstance(before, dict) or set(before) != keys:
        return f"{BEFORE_CRF} is no table of {', '.join(sorted(keys))}"
    for key in keys - {SUBMISSION}:
        what, fits = SCHEMA[key]
        if not fits(before[key]):
            return f"{BEFORE_CRF}.{key} must be {what}"
    problem = _result_problem(before, class_names(record))
    return f"{BEFORE_CRF}: {problem}" if problem else ""


def _problem(record: Record) -> str:
    """Says what is wrong with a record of the right keys, or ""."""
    for key, (what, fits) in SCHEMA.items():
        if not fits(record[key]):
            return f"{key} must be {what}"
    if record["provenance"].get("settings_sha256") != settings_sha256(record["settings"]):
        return "settings are not those of provenance.settings_sha256"
    try:
        read_metric(record["provenance"].get("metric", MEAN_IOU), class_names(record), "provenance")
    except ValueError as error:
        return str(error)
    return _result_problem(record, class_names(record)) or _before_crf_problem(record)


def read_document(path: Path, kind: str, newest: int) -> tuple[dict[str, Any], str]:
    """Reads a JSON file that carries a format number, and its SHA-256.

    Raises:
        ValueError: It is damaged, foreign or newer than this program; the reason alone.
    """
    try:
        data = document_bytes(path)
        document = parse_json(data)
    except ValueError as error:
        raise ValueError(f"damaged: {error}") from error
    version = document.get("format") if isinstance(document, dict) else None
    if type(version) is not int:
        raise ValueError(f"foreign: no {kind}, for it has no format number")
    if version > newest:
        raise ValueError(f"newer: {kind} of format {version}; this program reads {newest}")
    return document, hashlib.sha256(data).hexdigest()


def _read(path: Path) -> tuple[Record, str]:
    record, sha256 = read_document(path, "record of a run", FORMAT)
    if different := sorted((set(record) - {SUBMISSION, BEFORE_CRF}) ^ set(SCHEMA)):
        raise ValueError(f"damaged: its keys are not a record's, a difference in {', '.join(different)[:100]}")
    if reason := _problem(record):
        raise ValueError(f"damaged: {reason}")
    return record, sha256


def read_record(path: Path) -> Record:
    """Reads a record.

    Raises:
        ValueError: The file is damaged, foreign or newer than this program.
    """
    try:
        return _read(path)[0]
    except ValueError as error:
        raise ValueError(
            f"{path}: must be a record of a run; got {error}; delete it to measure the row again"
        ) from error


def read_recorded(folder: Path) -> Record:
    """Reads the record in the folder of a row.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged, foreign or newer than this program.
    """
    path = folder / RECORD
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: must be the folder of a recorded row; got no {RECORD} in it; give one such as runs/table1/attention3-extra-seed1"
        )
    return read_record(path)


def walk(folders: Iterable[Path], table: str | None = None) -> Iterator[Stored]:
    """Goes over every record below some folders, each with its content or with the reason why it cannot be used.

    Args:
        folders: The --out folders of runs; one that is named twice is walked once.
        table: Only this table's; None for all.
    """
    for folder in dict.fromkeys(folders):
        for path in sorted(folder.glob(f"{'*' if table is None else glob.escape(table)}/*/{RECORD}")):
            try:
                yield Stored(path, *_read(path), "")
            except ValueError as error:
                yield Stored(path, {}, "", str(error))


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

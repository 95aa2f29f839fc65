"""What a run left behind: its records with their networks, and the validation images that they were measured on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from repro.data.fingerprint import data_fingerprint
from repro.data.lists import Item, read_items
from repro.data.synthetic.cache import draw_data
from repro.records.store import SUBMISSION, Record, walk

DATASET_FOLDERS = ("person_part", "voc2012", "coco")  # of a data root that holds several sets


class Recorded(NamedTuple):
    """A row that was run: its record.json, what it says, and the file's SHA-256."""

    path: Path
    record: Record
    sha256: str

    @property
    def key(self) -> str:
        """Names the run in its table: `<row>-seed<seed>`."""
        return self.path.parent.name

    @property
    def model(self) -> dict[str, Any]:
        """The row's network."""
        return self.record["settings"]["model"]

    @property
    def drawn(self) -> bool:
        """Whether pictures of it show more than its labels: several scales, or a CRF."""
        return self.model["merge"] != "none" or "crf" in self.record["settings"]

    @property
    def snapshot(self) -> Path:
        """The file of its trained parameters."""
        return self.path.parent / "snapshot.pt"

    @property
    def note(self) -> str:
        """Says what must be said beside its pictures: the record's own note, and what sets it apart from its protocol; "" for nothing."""
        keys = ", ".join(sorted(self.record["deviates"]))
        return "; ".join(
            note for note in (self.record["note"], keys and f"deviates from the protocol in {keys}") if note
        )


def joint_note(runs: Sequence[Recorded]) -> str:
    """Joins the notes of several runs, each once."""
    return "; ".join(dict.fromkeys(one.note for one in runs if one.note))


def tables_of(run: Path) -> tuple[Path, list[str]]:
    """Finds the tables of a run.

    Args:
        run: The --out folder of repro.run, or one table's folder in it.

    Returns:
        The --out folder and the names of the tables that have records.

    Raises:
        FileNotFoundError: There is no record.
    """
    if any(walk([run.resolve().parent], run.resolve().name)):
        return run.resolve().parent, [run.resolve().name]
    tables = sorted({stored.path.parents[1].name for stored in walk([run])})
    if not tables:
        raise FileNotFoundError(
            f"{run}: must hold records of a run; got none; run `python -m repro.run table1 --out {run}` first"
        )
    return run, tables


def read_records(out: Path, table: str, log: Callable[[str], None]) -> list[Recorded]:
    """Reads a table's records that were measured on labelled images, by row and seed; says which files cannot be used.

    Args:
        out: The --out folder.
        table: The table's name.
        log: Where to say so.
    """
    found = []
    for path, record, sha256, reason in walk([out], table):
        if reason:
            log(f"not used: {path}: {reason}")
        elif SUBMISSION not in record:
            found.append(Recorded(path, record, sha256))
    return sorted(found, key=lambda one: (one.record["row"], one.record["seed"]))


def _data_sha256(root: Path, data: dict[str, Any]) -> tuple[str, list[Item]]:
    train, val = (read_items(root, data[f"{which}_list"], data["images"], data["labels"]) for which in ("train", "val"))
    return data_fingerprint(train, val), val


def validation_items(recorded: Recorded, data_root: Path | None) -> list[Item]:
    """Finds the very validation images that a record was measured on, by their fingerprint; synthetic ones are drawn again.

    Args:
        recorded: The record.
        data_root: The data set's folder, or one that holds person_part/, voc2012/ or coco/; None for synthetic data.

    Raises:
        FileNotFoundError: No data root was given, or there are no such lists or files in it.
        ValueError: The data are not the record's.
    """
    settings, expected = recorded.record["settings"], recorded.record["provenance"]["data_sha256"]
    if recorded.record["synthetic"] and data_root is None:
        data_root = draw_data(settings)
    if data_root is None:
        raise FileNotFoundError(
            f"{recorded.path}: its validation images must be at hand; got no --data-root; give the folder that the run was given"
        )
    missing: FileNotFoundError | None = None
    for root in (data_root, *(data_root / name for name in DATASET_FOLDERS if (data_root / name).is_dir())):
        try:
            sha256, items = _data_sha256(root, settings["data"])
        except FileNotFoundError as error:
            missing = missing or error
            continue
        if sha256 == expected:
            return items
        missing = None
        break
    if missing is not None:
        raise missing
    raise ValueError(
        f"{data_root}: must hold the images of {recorded.path}; got other lists or files; give the folder that the run was given"
    )

"""A stage: a row whose trained weights other rows start from, such as the pre-training on MS-COCO."""

from __future__ import annotations

from pathlib import Path

from repro.models.weights import save_caffemodel
from repro.protocol import Row
from repro.records.store import record_path
from repro.solver.snapshot import trained_network


def stage_of(row: Row) -> dict[str, str] | None:
    """Names the protocol and row whose trained weights a row starts from, or None; a row that is only evaluated starts from nothing."""
    return row.settings.get("stage") if row.settings["solver"]["max_iter"] > 0 else None


def stage_weights(record: dict, out: Path) -> Path:
    """Makes a .caffemodel of what a recorded row trained, for the rows that start from it; an earlier one is taken as it is.

    Args:
        record: The row's.
        out: The output folder.

    Returns:
        The file, beside the row's record.

    Raises:
        FileNotFoundError, ValueError: There is neither a .caffemodel nor a snapshot of this very run.
    """
    table, row, seed = record["table"], record["row"], record["seed"]
    folder = record_path(out, table, row, seed).parent
    path = folder / f"{table}-{row}-seed{seed}.caffemodel"
    if not path.exists():
        save_caffemodel(trained_network(record, folder / "snapshot.pt"), path, f"{table} {row}")
    return path

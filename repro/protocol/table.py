"""One table of the paper as its protocol states it, resolved: rows with all their settings."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from repro.protocol.metric import MEAN_IOU, Metric
from repro.protocol.schema import suggestion

UNFELT = ("solver.snapshot", "solver.display")  # keys that change no number


@dataclass(frozen=True)
class Row:
    """One cell of a table.

    id: Unique in its table.
    paper: The value as printed, percent; None where the paper has none.
    settings: The row's complete `[common.*]` sections with its own keys applied; empty unless the status is "run".
    status: "run"; "planned": the package cannot run it yet; or "quoted": another method's printed number, never run.
    why: What is missing (planned), whose number it is (quoted), or what the paper says beside the number or in place of one.
    metric: "mean_iou", a class name, or the names of the classes whose mean it is.
    of: "table1/attention3-extra": the row whose records this cell shows, which is not trained again; "" for a row of its own.
    difference: The row from which the paper prints a difference, and the printed range; None where it prints a value.
    dataset: The data set's folder under a common data root: "person_part", "voc2012" or "coco".
    printed: `paper` with the digits of the file.
    """

    id: str
    paper: float | None
    settings: dict[str, dict[str, Any]]
    status: str = "run"
    why: str = ""
    metric: Metric = MEAN_IOU
    of: str = ""
    difference: tuple[str, float, float] | None = None
    dataset: str = ""
    printed: str = ""


@dataclass(frozen=True)
class Protocol:
    """One table, resolved.

    name: The file's stem.
    title, metric, source, note: From the header; metric is as a row's, note what every output must say.
    stand_in: The protocol that runs where no data root is given, or "".
    sha256: Of the file and of those that it takes rows or settings from.
    rows: In the paper's order.
    overrides: The `--set` keys that were applied.
    dataset: As of the rows that name none.
    tolerance: How far from the paper a measured value may lie, percentage points: "evaluate" released weights, "retrain".
    scale_model: Whether data or protocol are others than those of the printed values, which then stand beside for their order alone.
    remark: From the header: what a reader of the table must know, and no other output needs to say.
    """

    name: str
    title: str
    metric: Metric
    source: str
    note: str
    stand_in: str
    sha256: str
    rows: list[Row]
    overrides: dict[str, Any] = field(default_factory=dict)
    dataset: str = ""
    tolerance: dict[str, float] = field(default_factory=dict)
    scale_model: bool = False
    remark: str = ""

    @property
    def synthetic(self) -> bool:
        """Whether the data are drawn by this package."""
        return any("synthetic" in row.settings for row in self.rows)

    @property
    def view(self) -> bool:
        """Whether every row shows another table's records."""
        return all(row.of for row in self.rows)

    @property
    def printed(self) -> bool:
        """Whether a row has a number of the paper to stand beside."""
        return any(row.printed or row.difference for row in self.rows)

    @property
    def runnable(self) -> list[Row]:
        """The rows that are trained under this table's name."""
        return [row for row in self.rows if row.status == "run" and not row.of]

    def row(self, row_id: str) -> Row:
        """Finds a row.

        Raises:
            ValueError: There is none of this id.
        """
        for row in self.rows:
            if row.id == row_id:
                return row
        raise ValueError(
            f"{self.name}: a row must be one of {', '.join(r.id for r in self.rows)}; got {row_id!r}{suggestion(row_id, (r.id for r in self.rows))}"
        )


def training_settings(settings: dict) -> dict:
    """Leaves out what is done with trained scores alone: rows that differ in nothing else are trained alike."""
    return {section: table for section, table in settings.items() if section != "crf"}


def settings_sha256(settings: dict) -> str:
    """Computes the fingerprint of a row's settings: of everything that may change its result, so not of how often it logs or saves."""
    kept = {
        section: {key: value for key, value in table.items() if f"{section}.{key}" not in UNFELT}
        for section, table in settings.items()
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()

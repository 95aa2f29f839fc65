"""Studies: what is kept of the records of many regimes of one protocol, the rule that chooses among them, and their one reader. Needs no torch.

A study's folder holds study.toml (question, rule of choice, what was found), trials.json (what is kept of the runs' records), and where the question asks for them cost.json and
branches.json (of repro.bench.regime).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from repro.documents import document_bytes, parse_json
from repro.files import write_text
from repro.protocol import Protocol, load_protocol
from repro.records.store import Record, read_document, walk
from repro.records.verdict import measure

FORMAT = 1
TEXT, TRIALS = "study.toml", "trials.json"
KEYS = {"title", "protocol", "rows", "question", "rule", "cost_limit", "found"}
# What a trial may change, as (section, key); the trial of a study's table names them in this order.
CHANGES = (
    ("solver", "base_lr"),
    ("solver", "max_iter"),
    ("solver", "stepsize"),
    ("solver", "batch_size"),
    ("transform", "crop_size"),
)


class Regime(NamedTuple):
    """What a trial changes, and one row of the table."""

    base_lr: float
    max_iter: int
    stepsize: int
    batch_size: int
    crop_size: int

    @property
    def shape(self) -> tuple[int, int]:
        """Crop and batch, by which an iteration costs."""
        return self.crop_size, self.batch_size


class Study(NamedTuple):
    """A study's folder, read.

    text: Of study.toml.
    trials: Of trials.json.
    costs: What an iteration costs, by crop and batch: processor time, ms, where it was measured, else its input's positions.
    cost, branches: The whole documents of repro.bench.regime; None where there is no such file.
    """

    text: dict[str, Any]
    trials: list[dict[str, Any]]
    costs: dict[tuple[int, int], float]
    cost: dict[str, Any] | None
    branches: dict[str, Any] | None

    @property
    def protocol(self) -> Protocol:
        """The protocol whose regime is studied, as it is now."""
        return load_protocol(self.text["protocol"])

    def values(self, regime: Regime, seeds: Iterable[int] = (1,)) -> dict[str, list[float]]:
        """Lists the IoU of a regime's rows, percent, by row."""
        found: dict[str, list[float]] = {}
        for trial in self.trials:
            if regime_of(trial) == regime and trial["seed"] in seeds:
                found.setdefault(trial["row"], []).append(trial["value"])
        return found

    def relative_cost(self, regime: Regime) -> float:
        """Computes what a regime's training costs, of the first trial's."""
        first = regime_of(self.trials[0])
        return self.costs[regime.shape] * regime.max_iter / (self.costs[first.shape] * first.max_iter)

    def mean(self, regime: Regime) -> float | None:
        """Computes the mean IoU of the study's rows, seed 1; None where one is missing."""
        values = self.values(regime)
        return (
            measure(values[row][0] for row in self.text["rows"]).mean
            if values.keys() >= set(self.text["rows"])
            else None
        )

    @property
    def regimes(self) -> list[Regime]:
        """Every regime, in the order of the trials."""
        return list(dict.fromkeys(map(regime_of, self.trials)))

    @property
    def chosen(self) -> Regime:
        """The regime that the rule chooses."""
        within = [one for one in self.regimes if self.mean(one) and self.relative_cost(one) <= self.text["cost_limit"]]
        return max(within, key=self.mean)


def regime_of(trial: dict[str, Any]) -> Regime:
    """Reads the regime of a trial."""
    return Regime(*(trial["regime"][key] for key in Regime._fields))


def compact(record: Record) -> dict[str, Any]:
    """Keeps of a record what a study's tables and its reader need."""
    run = record["run"]
    return {
        "row": record["row"],
        "seed": record["seed"],
        "value": record["value"],
        "regime": {key: record["settings"][section][key] for section, key in CHANGES},
        "settings_sha256": record["provenance"]["settings_sha256"],
        "commit": run["git"]["commit"],
        "device_name": run["device_name"],
        "threads": run["threads"],
        "torch": run["versions"]["torch"],
        "finished": run["finished"],
    }


def add(folder: Path, runs: list[Path]) -> None:
    """Keeps what is needed of the records of some runs: of the study's protocol and rows; those known already are passed over.

    Raises:
        ValueError: A record is damaged.
    """
    text = _read_text(folder)
    path = folder / TRIALS
    trials = parse_json(document_bytes(path))["trials"] if path.exists() else []
    for stored in walk(runs, text["protocol"]):
        if stored.reason:
            raise ValueError(f"{stored.path}: must be a record of a run; got {stored.reason}; remove it")
        if stored.record["row"] in text["rows"] and (trial := compact(stored.record)) not in trials:
            trials.append(trial)
    lines = ",\n".join(f"  {json.dumps(trial, sort_keys=True, allow_nan=False)}" for trial in trials)
    write_text(path, f'{{"format": {FORMAT}, "trials": [\n{lines}\n]}}\n')


def _read_text(folder: Path) -> dict[str, Any]:
    try:
        text = tomllib.loads(document_bytes(folder / TEXT).decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / TEXT}: must be TOML; got {error}; correct it") from error
    if different := sorted(KEYS ^ set(text)):
        raise ValueError(
            f"{folder / TEXT}: must have exactly the known keys; got a difference in {', '.join(different)}; correct it"
        )
    return text


def read_study(folder: Path) -> Study:
    """Reads a study's folder.

    Raises:
        ValueError: A file is damaged, foreign or newer than this program, the trials are missing, or the files do not fit together.
    """
    text = _read_text(folder)
    trials = _read(folder / TRIALS)["trials"]
    cost, branches = (
        _read(path) if (path := folder / name).exists() else None for name in ("cost.json", "branches.json")
    )
    shapes = {regime_of(trial).shape for trial in trials}
    costs: dict[tuple[int, int], float] = {(crop, batch): batch * crop**2 for crop, batch in shapes}
    if cost is not None:
        costs = {(one["crop_size"], one["batch_size"]): one["cpu_ms"] for one in cost["results"]}
    looked_at = {one["settings_sha256"] for one in branches["results"]} if branches else set()
    if branches and len({regime_of(trial) for trial in trials if trial["settings_sha256"] in looked_at}) != 1:
        raise ValueError(
            f"{folder / 'branches.json'}: must be of rows of one regime that was tried; got rows of none, or of several; measure them with repro.bench.regime branches"
        )
    if unknown := sorted(shapes - costs.keys()):
        raise ValueError(
            f"{folder / 'cost.json'}: must have the cost of every crop and batch that was tried; got none of {unknown}; measure them with repro.bench.regime cost"
        )
    return Study(text, trials, costs, cost, branches)


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_document(path, "part of a study", FORMAT)[0]
    except ValueError as error:
        raise ValueError(f"{path}: must be part of a study; got {error}; measure it again") from error

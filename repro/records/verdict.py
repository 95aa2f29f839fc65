"""The judge: values, mean and spread, difference from the paper or from another row, and what a difference says."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from repro.protocol import Protocol, Row, metric_classes, metric_value, settings_sha256
from repro.records.store import BEFORE_CRF, SUBMISSION, Record, metric_of

EVALUATION = {"solver.max_iter", "weights.file"}  # what a run deviates in that evaluates released weights
WAYS = {"evaluate": "released weights", "retrain": "trained"}  # as the protocols' tolerances name them
SPREADS = 2
# How a number stands to the paper's.
WITHIN, IN_SPREAD, ABOVE, BELOW, NOT_COMPARABLE = "within", "in spread", "above", "below", "not comparable"
# What a difference says to a claim.
SUPPORTED, CONTRADICTED, MIXED, WITHIN_SPREAD, NOT_MEASURED = (
    "supported",
    "contradicted",
    "mixed",
    "within spread",
    "not measured",
)


class Measured(NamedTuple):
    """One cell, or a difference of two.

    mean: Percent, or percentage points.
    spread: Standard deviation over seeds, or of such a difference; None where a cell has one seed.
    seeds: How many.
    """

    mean: float
    spread: float | None
    seeds: int


@dataclass(frozen=True)
class Judgement:
    """A measured number beside what the paper prints.

    measured: The number, or the difference where a difference is printed.
    low, high: What is printed; equal but for a printed range.
    tolerance: Percentage points.
    """

    measured: Measured
    low: float
    high: float
    tolerance: float

    @property
    def distance(self) -> float:
        """How far the mean lies from what is printed, percentage points; 0 inside a printed range."""
        return self.measured.mean - min(max(self.measured.mean, self.low), self.high)

    @property
    def in_spread(self) -> bool | None:
        """Whether the paper lies within the mean and SPREADS standard deviations over seeds; None for one seed."""
        return None if self.measured.spread is None else abs(self.distance) <= SPREADS * self.measured.spread

    @property
    def mark(self) -> str:
        """The verdict: within the tolerance, else (the seeds being that far apart) within their spread, else above or below."""
        if abs(self.distance) <= self.tolerance:
            return WITHIN
        if self.in_spread:
            return IN_SPREAD
        return ABOVE if self.distance > 0 else BELOW

    @property
    def within(self) -> bool:
        """Whether the number agrees with the paper's."""
        return self.mark in (WITHIN, IN_SPREAD)


def way_of(record: Record) -> str:
    """Tells whether a record evaluates given weights or trained its own."""
    return "evaluate" if record["settings"].get("solver", {}).get("max_iter") == 0 else "retrain"


def row_of(record: Record, protocols: Mapping[str, Protocol]) -> Row:
    """Finds the row that a record is of.

    Raises:
        ValueError: There is none, or the record was not made with the protocol as it is; the reason alone.
    """
    protocol = protocols.get(record["table"])
    if protocol is None:
        raise ValueError(f"foreign: unknown table {record['table']!r}")
    row = next((row for row in protocol.runnable if row.id == record["row"]), None)
    if row is None:
        raise ValueError(f"foreign: table {record['table']!r} has no row {record['row']!r} to run")
    if not record["deviates"] and record["provenance"]["settings_sha256"] != settings_sha256(row.settings):
        raise ValueError(f"made with another {protocol.name}.toml than the present one; measure the row again")
    if record["synthetic"] is not protocol.synthetic:
        raise ValueError(f"damaged: synthetic is {record['synthetic']!r}, its protocol says {protocol.synthetic}")
    per_class = record["per_class"]
    lacking = [name for name in metric_classes(row.metric, per_class) if name not in per_class]
    if SUBMISSION not in record and lacking:
        raise ValueError(f"damaged: per_class has no {', '.join(lacking)}")
    return row


def unfit(record: Record, row: Row, protocol: Protocol) -> str:
    """Says why a record of a row is not comparable with the paper, or ""."""
    way = way_of(record)
    if record["synthetic"]:
        return "synthetic data"
    if protocol.scale_model:
        return "a scale model, under a reduced protocol"
    deviates = set(record["deviates"]) - (EVALUATION if way == "evaluate" else set())
    if deviates:
        return f"deviates from the protocol in {', '.join(sorted(deviates))}"
    settings = row.settings
    if way == "evaluate":
        settings = settings | {"solver": settings["solver"] | {"max_iter": 0}}
    if settings_sha256(settings) != record["provenance"]["settings_sha256"]:
        return "made with other settings than the protocol has now"
    if record["value"] is None:
        return "no score of the server yet"
    return ""


def row_value(row: Row, record: Mapping[str, Any]) -> float | None:
    """Reads a row's value from a record of its own or of the row that it shows; None where there is none (yet)."""
    return record["value"] if row.metric == metric_of(record) else metric_value(row.metric, record["per_class"])


def value_before_crf(row: Row, record: Record) -> float | None:
    """Reads a row's value before the CRF, as `row_value` does; None where the record's row has no CRF too."""
    return row_value(row, record | record[BEFORE_CRF]) if BEFORE_CRF in record else None


def row_values(row: Row, records: Iterable[Record], value: Callable = row_value) -> dict[int, float]:
    """Lists a row's measured values by seed, or those that another `value` than `row_value` reads, such as `value_before_crf`."""
    found = {record["seed"]: value(row, record) for record in records}
    return {seed: value for seed, value in found.items() if value is not None}


def measure(values: Iterable[float]) -> Measured | None:
    """Sums up a cell's values over seeds; None where there are none."""
    values = list(values)
    if not values:
        return None
    return Measured(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def minus(upper: Measured | None, lower: Measured | None) -> Measured | None:
    """Subtracts one cell from another; None where one was not measured."""
    if upper is None or lower is None:
        return None
    known = upper.spread is not None and lower.spread is not None
    spread = math.hypot(upper.spread, lower.spread) if known else None
    return Measured(upper.mean - lower.mean, spread, upper.seeds)


def judge_value(row: Row, measured: Measured | None, tolerance: float) -> Judgement | None:
    """Holds a row's cell against its printed value; None where none is printed, or it was not measured."""
    if row.paper is None or measured is None:
        return None
    return Judgement(measured, row.paper, row.paper, tolerance)


def judge_difference(row: Row, difference: Measured | None, tolerance: float) -> Judgement | None:
    """Holds a row's difference from the row that `row.difference` names against the printed one; None where none is printed, or it was not measured."""
    if not row.difference or difference is None:
        return None
    return Judgement(difference, *sorted(row.difference[1:]), tolerance)


def finding(difference: Measured | None) -> str:
    """Says what a difference that should be above 0 says: a tie, or one within the spread, speaks neither for a claim nor against it."""
    if difference is None:
        return NOT_MEASURED
    if abs(difference.mean) <= (difference.spread or 0.0):
        return WITHIN_SPREAD
    return SUPPORTED if difference.mean > 0 else CONTRADICTED


def verdict(findings: Iterable[str]) -> str:
    """Sums findings up: pairs within the spread of seeds speak neither for a claim nor against it."""
    found = set(findings) - {NOT_MEASURED}
    if not found:
        return NOT_MEASURED
    decided = found - {WITHIN_SPREAD}
    if not decided:
        return WITHIN_SPREAD
    return decided.pop() if len(decided) == 1 else MIXED

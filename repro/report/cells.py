"""What every cell of a table shows, and how the paper lays the table out."""

from __future__ import annotations

import statistics
from typing import Any

from repro.protocol import Protocol, Row
from repro.records.check import SPREADS, way_of
from repro.records.tables import row_value
from repro.report.collect import Collection, Found, row_of
from repro.report.provenance import commands

MERGES = {"none": "Single scale", "max": "Max-pooling", "average": "Average-pooling", "attention": "Attention"}
# A cell's mark: how its difference stands to the protocol's tolerance.
WITHIN, IN_SPREAD, ABOVE, BELOW, NOT_COMPARABLE = "within", "in spread", "above", "below", "not comparable"


def scale_set(scales: list[float]) -> str:
    """Writes a set of scales as the paper does."""
    return "{" + ", ".join(f"{scale:g}" for scale in scales) + "}"


def mean_and_spread(values: list[float]) -> tuple[float, float | None]:
    """Computes the mean, and the standard deviation where there are several values."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def mark_of(difference: float, spread: float | None, tolerance: float) -> str:
    """Marks a difference from the paper: within the tolerance, else within two spreads of the seeds, else above or below."""
    if abs(difference) <= tolerance:
        return WITHIN
    if spread is not None and abs(difference) <= SPREADS * spread:
        return IN_SPREAD
    return ABOVE if difference > 0 else BELOW


def _values(row: Row, records: list[Found]) -> dict[int, float]:
    known = [found for found in records if row.metric == "mean_iou" or row.metric in found.record["per_class"]]
    values = {found.record["seed"]: row_value(row, found.record) for found in known}
    return {seed: value for seed, value in values.items() if value is not None}


def _difference(row: Row, values: dict[int, float], collection: Collection) -> dict[str, Any]:
    """Compares a row whose printed number is a difference from another row."""
    name, low, high = row.difference
    base = row_of(collection.protocols, name)
    found = collection.records.get(tuple(name.split("/", 1)), [])
    base_values = _values(base[1], found) if base else {}
    measured = statistics.fmean(values.values()) - statistics.fmean(base_values.values()) if base_values else None
    return {"row": name, "low": low, "high": high, "measured": measured if values else None}


def cell(protocol: Protocol, row: Row, collection: Collection, typed: str) -> dict[str, Any]:
    """Collects what one cell shows.

    Args:
        protocol: The table.
        row: The cell.
        collection: What was found.
        typed: The table's name on the command line.
    """
    owner = row_of(collection.protocols, row.of) if row.of else (protocol, row)
    key = (owner[0].name, owner[1].id) if owner else ("", "")
    records = collection.records.get(key, [])
    values = _values(row, records)
    unfit = next((found.unfit for found in records if found.unfit), "")
    overrides = records[0].record["deviates"] if unfit else {}
    way = way_of(records[0].record) if records else "retrain"
    result: dict[str, Any] = {
        "row": row.id,
        "state": row.status,
        "of": row.of,
        "metric": row.metric,
        "dataset": row.dataset,
        "paper": row.paper,
        "printed": row.printed or None,
        "why": row.why,
        "values": {str(seed): value for seed, value in values.items()},
        "records": [f"{key[0]}/{key[1]}/{found.record['seed']}" for found in records],
        "overrides": {name: overrides[name] for name in sorted(overrides)},
        "comparable": bool(records) and not unfit,
        "unfit": unfit,
        "way": way,
        "mean": None,
        "spread": None,
        "difference": None,
        "from": None,
        "tolerance": protocol.tolerance.get(way),
        "mark": "",
        "command": [],
    }
    if row.status != "run":
        return result
    seeds = [found.record["seed"] for found in records]
    own_name = typed if key[0] == protocol.name else key[0]
    result["command"] = commands(owner[0], key[1], seeds, own_name, [found.record for found in records])
    result["state"] = "measured" if values else "awaiting score" if records else "not run"
    if not values:
        return result
    mean, spread = result["mean"], result["spread"] = mean_and_spread(list(values.values()))
    difference = mean - row.paper if row.paper is not None else None
    if row.difference:
        result["from"] = _difference(row, values, collection)
        if row.paper is None and (measured := result["from"]["measured"]) is not None:
            low, high = sorted((result["from"]["low"], result["from"]["high"]))
            difference = min(measured - low, 0.0) + max(measured - high, 0.0)  # 0 inside the printed range
    result["difference"] = difference
    if difference is not None:
        tolerance = result["tolerance"]
        comparable = result["comparable"] and tolerance is not None
        result["mark"] = mark_of(difference, spread, tolerance) if comparable else NOT_COMPARABLE
    return result


def layout(protocol: Protocol) -> dict[str, Any]:
    """Says how the paper lays a table out.

    Returns:
        `kind`: "grid" (scale sets x merges x extra supervision), "classes" (one row of a network's classes) or "list"; for a grid also `baseline` (row id or None)
        and `blocks`, one per scale set: its `scales` and `lines`, each a `merge` and the ids of its cells without and with extra supervision (None where there is none).
    """
    rows = protocol.rows
    if protocol.view and len({row.of for row in rows}) == 1 and len(rows) > 1:
        return {"kind": "classes"}
    if any(row.status != "run" or row.difference for row in rows):
        return {"kind": "list"}
    places: dict[tuple[str, str, bool], str] = {}
    for row in rows:
        model = row.settings["model"]
        place = scale_set(model["scales"]), model["merge"], model["extra_supervision"]
        if place in places:
            return {"kind": "list"}
        places[place] = row.id
    single = [row_id for (_, merge, _), row_id in places.items() if merge == "none"]
    if len(single) > 1 or len(rows) == len(single):
        return {"kind": "list"}
    blocks = []
    for scales in dict.fromkeys(scales for scales, merge, _ in places if merge != "none"):
        merges = dict.fromkeys(merge for other, merge, _ in places if other == scales and merge != "none")
        lines = [
            {
                "merge": MERGES.get(merge, merge),
                "cells": [places.get((scales, merge, False)), places.get((scales, merge, True))],
            }
            for merge in merges
        ]
        blocks.append({"scales": scales, "lines": lines})
    return {"kind": "grid", "baseline": single[0] if single else None, "blocks": blocks}

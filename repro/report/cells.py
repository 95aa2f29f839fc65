"""What every cell of a table shows, and how the paper lays the table out."""

from __future__ import annotations

from typing import Any

from repro.protocol import Protocol, Row, plain_metric
from repro.records.verdict import (
    NOT_COMPARABLE,
    Measured,
    judge_difference,
    judge_value,
    measure,
    minus,
    row_values,
    value_before_crf,
    way_of,
)
from repro.report.collect import Collection, named_row
from repro.report.provenance import commands

MERGES = {"none": "Single scale", "max": "Max-pooling", "average": "Average-pooling", "attention": "Attention"}


def scale_set(scales: list[float]) -> str:
    """Writes a set of scales as the paper does."""
    return "{" + ", ".join(f"{scale:g}" for scale in scales) + "}"


def _difference(row: Row, measured: Measured, collection: Collection) -> Measured | None:
    """Subtracts from a cell the row from which the paper prints its difference."""
    found = collection.records.get(tuple(row.difference[0].split("/", 1)), [])
    return minus(measured, measure(row_values(row, (one.record for one in found)).values()))


def cell(protocol: Protocol, row: Row, collection: Collection, typed: str) -> dict[str, Any]:
    """Collects what one cell shows.

    Args:
        protocol: The table.
        row: The cell.
        collection: What was found.
        typed: The table's name, or its file, on the command line.
    """
    owner = named_row(collection.protocols, row.of) if row.of else (protocol, row)
    key = (owner[0].name, owner[1].id) if owner else ("", "")
    records = collection.records.get(key, [])
    values = row_values(row, (found.record for found in records))
    unfit = next((found.unfit for found in records if found.unfit), "")
    overrides = records[0].record["deviates"] if unfit else {}
    way = way_of(records[0].record) if records else "retrain"
    result: dict[str, Any] = {
        "row": row.id,
        "state": row.status,
        "of": row.of,
        "metric": plain_metric(row.metric),
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
        "before_crf": None,
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
    before = measure(row_values(row, (found.record for found in records), value_before_crf).values())
    result["before_crf"] = before and {"mean": before.mean, "spread": before.spread}
    measured = measure(values.values())
    result["mean"], result["spread"] = measured.mean, measured.spread
    difference = None
    if row.difference:
        difference = _difference(row, measured, collection)
        low, high = row.difference[1:]
        result["from"] = {
            "row": row.difference[0],
            "low": low,
            "high": high,
            "measured": difference and difference.mean,
        }
    tolerance = result["tolerance"]
    # A file of one's own may state no tolerance: then there is a difference, and no verdict on it.
    limit = 0.0 if tolerance is None else tolerance
    judged = judge_difference(row, difference, limit) if row.paper is None else judge_value(row, measured, limit)
    if judged and not protocol.scale_model:  # its distance from a value of other data means nothing
        result["difference"] = judged.distance
        if not result["comparable"]:
            result["mark"] = NOT_COMPARABLE
        elif tolerance is not None:
            result["mark"] = judged.mark
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

"""What records hold beside their value: classes, confusion, curves and speed, ready to be drawn."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

from repro.documents import is_number
from repro.protocol import Protocol, Row
from repro.records.store import class_names
from repro.records.verdict import measure, row_values
from repro.report.collect import Collection, Found
from repro.solver.lr_policy import learning_rate

POINTS = 150  # of a drawn loss curve
# Paper: section 4.2: "about 21 hours" of fine-tuning on a Tesla K40, 350 ms per PASCAL image at test.
PAPER_TRAINING_HOURS, PAPER_TEST_MS, PAPER_DEVICE = 21.0, 350.0, "Tesla K40"


def headline(protocol: Protocol, collection: Collection) -> tuple[Row, Row | None] | None:
    """Chooses the rows whose classes are drawn: of those measured the one printed highest, or where nothing is printed measured highest, and the baseline.

    Returns:
        (row, single-scale row or None where it is the same or not measured); None where nothing was measured on labels of our own.
    """
    rows = [row for row in protocol.runnable if _labelled(collection.records.get((protocol.name, row.id), []))]
    if not rows:
        return None
    if any(row.paper is not None for row in rows):
        best = max(rows, key=lambda row: -math.inf if row.paper is None else row.paper)
    else:
        best = max(rows, key=lambda row: _mean(row, collection.records[protocol.name, row.id]))
    single = [row for row in rows if row.settings["model"]["merge"] == "none" and row.dataset == best.dataset]
    return best, single[0] if single and single[0] is not best else None


def _mean(row: Row, records: list[Found]) -> float:
    return statistics.fmean(row_values(row, (found.record for found in records)).values())


def _labelled(records: list[Found]) -> bool:
    return bool(records) and all(found.record["confusion"] for found in records)


def classes(protocol: Protocol, row: Row, base: Row | None, collection: Collection, stands_for: str) -> dict[str, Any]:
    """Collects IoU by class of two rows, with the paper's own numbers where a table prints them.

    Args:
        protocol: The rows'.
        row, base: From `headline`.
        collection: What was found.
        stands_for: The table whose printed classes belong to it.
    """
    names = class_names(collection.records[protocol.name, row.id][0].record)
    series = []
    for each in (base, row):
        if each is None or class_names(collection.records[protocol.name, each.id][0].record) != names:
            continue
        found = [one.record["per_class"] for one in collection.records[protocol.name, each.id]]
        columns = [measure(record[name] for record in found) for name in names]
        series.append(
            {
                "row": each.id,
                "seeds": len(found),
                "mean": [column.mean for column in columns],
                "spread": [column.spread for column in columns],
            }
        )
    printed = {
        cell.metric: cell.paper
        for view in collection.protocols.values()
        for cell in view.rows
        if cell.of == f"{stands_for}/{row.id}" and cell.metric in names and cell.paper is not None
    }
    return {"classes": names, "series": series, "printed": printed}


def confusion(protocol: Protocol, row: Row, collection: Collection) -> dict[str, Any]:
    """Sums a row's confusion matrices over seeds; each label's line as shares of its pixels (None where the label has none)."""
    records = collection.records[protocol.name, row.id]
    found = [one.record["confusion"] for one in records]
    summed = [[sum(counts) for counts in zip(*lines, strict=True)] for lines in zip(*found, strict=True)]
    shares = [[count / sum(line) if sum(line) else None for count in line] for line in summed]
    return {"row": row.id, "classes": class_names(records[0].record), "seeds": len(found), "shares": shares}


def curves(found: list[Found]) -> dict[str, Any] | None:
    """Reduces loss curves to means of equal stretches of iterations, and gives the learning rate at the start of each; None where nothing was trained."""
    length = min(len(one.record["loss_curve"]) for one in found)
    if length == 0:
        return None
    count = min(length, POINTS)
    edges = [round(i * length / count) for i in range(count + 1)]
    solver = found[0].record["settings"].get("solver", {})
    try:
        rates = [learning_rate(solver, start) for start in edges[:-1]]
    except (KeyError, TypeError, ValueError, ArithmeticError):
        rates = []
    if not all(map(is_number, rates)):  # of an override that no run took
        rates = []
    losses = {
        str(one.record["seed"]): [statistics.fmean(one.record["loss_curve"][a:b]) for a, b in itertools.pairwise(edges)]
        for one in found
    }
    return {"iterations": length, "starts": edges[:-1], "loss": losses, "learning_rate": rates}


def speed(row_id: str, found: list[Found]) -> dict[str, Any]:
    """Computes the mean time of training and testing one row, beside which the paper's figures stand."""
    runs = [one.record["run"] for one in found]
    trained = []
    for one in found:
        solver = one.record["settings"].get("solver", {})
        sizes = [solver.get(key) for key in ("batch_size", "iter_size")]
        per_iteration = math.prod(sizes) if all(type(size) is int and 0 < size < 2**31 for size in sizes) else 0
        rate = len(one.record["loss_curve"]) * per_iteration / max(one.record["run"]["train_seconds"], 1e-9)
        if rate and one.record["run"]["train_seconds"]:
            trained.append(rate)
    tested = [
        1000 * (one.record["run"]["seconds"] - one.record["run"]["train_seconds"]) / one.record["n_images"]
        for one in found
        if one.record["n_images"]
    ]
    return {
        "row": row_id,
        "device": ", ".join(
            dict.fromkeys(f"{run.get('device_name', '?')}, {run.get('threads', '?')} threads" for run in runs)
        ),
        "train_seconds": statistics.fmean(run["train_seconds"] for run in runs),
        "train_images_per_second": statistics.fmean(trained) if trained else None,
        "test_ms_per_image": statistics.fmean(tested) if tested else None,
    }

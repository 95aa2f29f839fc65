"""The data behind the report: one JSON document, from which page and figures are made."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from typing import Any
from urllib.parse import quote

from repro.protocol import Protocol
from repro.records.claims import Claim, claims, known_spreads
from repro.records.object_size import lead_verdict, leads, size_claim
from repro.records.tables import values_name
from repro.records.verdict import IN_SPREAD, NOT_COMPARABLE, NOT_MEASURED, WITHIN, verdict
from repro.report.cells import cell, layout
from repro.report.collect import Collection, Found
from repro.report.device import evidence
from repro.report.measurements import (
    PAPER_DEVICE,
    PAPER_TEST_MS,
    PAPER_TRAINING_HOURS,
    classes,
    confusion,
    curves,
    headline,
    speed,
)
from repro.report.provenance import code_notes, differences_from_caffe, rulings
from repro.version import __version__

FORMAT = 1
PACKAGE = Path(__file__).parents[1]


def href(path: Path, out: Path) -> str:
    """Writes the address of a file as a page in `out` links it."""
    return quote(os.fsencode(os.path.relpath(path, out)))


def printable(text: object) -> str:
    """Writes a path, or a text with one, so that any file can hold it: bytes that are no UTF-8 as \\xff."""
    return str(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _claim(claim: Claim, table: str, kind: str) -> dict[str, Any]:
    pairs = [
        {
            "upper": pair.upper,
            "lower": pair.lower,
            "printed": pair.printed,
            "measured": pair.measured and pair.measured.mean,
            "spread": pair.measured and pair.measured.spread,
            "finding": pair.finding,
        }
        for pair in claim.pairs
    ]
    facts = {"verdict": claim.verdict, "evidence": claim.evidence, "pairs": pairs}
    return {"text": claim.text, "table": table, "kind": kind} | facts


def _table_claims(
    protocol: Protocol, own: bool, cells: list[dict[str, Any]], figures: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """Holds a table's cells against the paper's claims; cells of one set of overrides only, so that pairs differ in nothing else."""
    sets: dict[str, dict[str, list[float]]] = {}
    for each in cells:
        if each["values"]:
            key = json.dumps(each["overrides"], sort_keys=True)
            sets.setdefault(key, {})[each["row"]] = list(each["values"].values())
    chosen = max(sets, key=lambda key: (key == "{}", len(sets[key])), default="{}")
    known = known_spreads(protocol) if chosen == "{}" else {}
    outside = "own" if own else "synthetic" if protocol.synthetic else "scale model" if protocol.scale_model else ""
    kind = outside or ("overridden" if chosen != "{}" else "paper")
    found = [_claim(claim, protocol.name, kind) for claim in claims(protocol, sets.get(chosen, {}), known)]
    if figures and figures["attention_by_size"] and not figures["stale"]:
        plain = all(not each["overrides"] for each in cells)
        kind = outside or ("paper" if plain else "overridden")
        found.append(_claim(size_claim(figures["attention_by_size"]), protocol.name, kind))
    return found


def _attention(
    protocol: Protocol, cells: list[dict[str, Any]], figures: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Says which scale leads on small objects and on large ones in the rows with attention that were measured; None where there are none."""
    labelled = [row for row in protocol.runnable if "submission" not in row.settings]
    rows = {row.id for row in labelled if row.settings["model"]["merge"] == "attention"}
    if not any(cell["values"] and cell["row"] in rows for cell in cells):
        return None
    found = leads(figures["attention_by_size"]) if figures and not figures["stale"] else {}
    more = "" if protocol.synthetic else " --data-root DIR"
    missing = "" if found else f"python -m repro.visualize --run DIR --table {protocol.name}{more}"
    return {
        "verdict": lead_verdict(found),
        "weights": {row: str(lead) for row, lead in found.items()},
        "command": missing,
    }


def _provenance(protocol: Protocol, collection: Collection, out: Path) -> dict[str, Any]:
    """Collects the origin of a table's records: what all share once, what differs by record."""
    entries = []
    for row in protocol.rows:
        for found in collection.records.get((protocol.name, row.id), []):
            record, made_from, run = found.record, found.record["provenance"], found.record["run"]
            git = run.get("git", {})
            facts = {
                "commit": f"{git.get('commit') or 'unknown'}{' with changes' if git.get('dirty') else ''}",
                "versions": ", ".join(f"{name} {version}" for name, version in sorted(run.get("versions", {}).items())),
                "device": f"{run.get('device', '?')}: {run.get('device_name', '?')}, {run.get('threads', '?')} threads",
                "precision": made_from.get("precision"),
                "operators": made_from.get("backend"),
                "initial weights": made_from.get("weights"),
                "weights sha256": made_from.get("weights_sha256"),
                "data sha256": made_from.get("data_sha256"),
                "protocol sha256": made_from.get("protocol_sha256"),
                "images tested": record["n_images"],
                "settings sha256": made_from.get("settings_sha256"),
                "overrides": ", ".join(f"{k} = {json.dumps(v)}" for k, v in sorted(record["deviates"].items())),
                "finished": run.get("finished"),
            }
            entries.append(
                {
                    "row": row.id,
                    "seed": record["seed"],
                    "value": record["value"],
                    "href": href(found.path, out),
                    "record_sha256": found.sha256,
                    "facts": {key: None if value is None else str(value) for key, value in facts.items()},
                }
            )
    names = list(entries[0]["facts"]) if entries else []
    shared = {
        name: entries[0]["facts"][name] for name in names if len({entry["facts"][name] for entry in entries}) == 1
    }
    shared = {name: value for name, value in shared.items() if value}
    for entry in entries:
        entry["facts"] = {name: value for name, value in entry["facts"].items() if name not in shared and value}
    return {"shared": shared, "records": entries}


def _figures(protocol: Protocol, collection: Collection, out: Path) -> dict[str, Any] | None:
    if protocol.name not in collection.figures:
        return None
    found = collection.figures[protocol.name]
    present = {
        one.sha256 for (table, _), group in collection.records.items() if table == protocol.name for one in group
    }
    return {
        "rule": found.rule,
        "note": found.note,
        "synthetic": found.synthetic,
        "stale": sorted(row for row, sha256 in found.records.items() if sha256 not in present),
        "figures": [
            {key: value for key, value in figure.items() if key != "file"}
            | {"href": href(found.folder / figure["file"], out)}
            for figure in found.figures
        ],
        "attention_by_size": found.attention_by_size,
    }


def _table(protocol: Protocol, collection: Collection, stands_for: str, out: Path) -> dict[str, Any]:
    name, own = stands_for or protocol.name, protocol.name in collection.own
    typed = printable(collection.own[protocol.name]) if own else name
    cells = [cell(protocol, row, collection, typed) for row in protocol.rows]
    measured = [each for each in cells if each["values"]]
    comparable = [each for each in measured if each["mark"] not in ("", NOT_COMPARABLE)]
    differences = [abs(each["difference"]) for each in comparable or measured if each["difference"] is not None]
    shown = headline(protocol, collection)
    groups = {row.id: collection.records.get((protocol.name, row.id), []) for row in protocol.rows}
    groups = {row_id: found for row_id, found in groups.items() if found}
    speeds = [speed(row_id, found) for row_id, found in groups.items()]
    figures = _figures(protocol, collection, out)
    return {
        "name": protocol.name,
        "stands_for": stands_for,
        "own": own,
        "title": protocol.title,
        "source": protocol.source,
        "metric": values_name(protocol),
        "note": "; ".join(text for text in (protocol.note, protocol.remark) if text),
        "synthetic": protocol.synthetic,
        "scale_model": protocol.scale_model,
        "tolerance": protocol.tolerance,
        "layout": layout(protocol),
        # Beside a scale model printed values stand for their order, and there is no difference.
        "columns": [
            *(["printed"] if protocol.printed else []),
            "measured",
            *(["difference"] if protocol.printed and not protocol.scale_model else []),
        ],
        "counts": {
            "cells": len(cells),
            "to_run": sum(each["state"] not in ("planned", "quoted") for each in cells),
            "measured": len(measured),
            "planned": sum(each["state"] == "planned" for each in cells),
            "quoted": sum(each["state"] == "quoted" for each in cells),
            "comparable": len(comparable),
            "within": sum(each["mark"] in (WITHIN, IN_SPREAD) for each in comparable),
        },
        "mean_absolute_difference": statistics.fmean(differences) if differences else None,
        "seeds": sorted({int(seed) for each in measured for seed in each["values"]}),
        "cells": cells,
        "attention": _attention(protocol, cells, figures),
        "claims": _table_claims(protocol, own, cells, figures),
        "classes": classes(protocol, *shown, collection, name) if shown else None,
        "confusion": confusion(protocol, shown[0], collection) if shown else None,
        "curves": {row_id: drawn for row_id, found in groups.items() if (drawn := curves(found))},
        "speed": speeds,
        "devices": list(dict.fromkeys(one["device"] for one in speeds)),
        "provenance": _provenance(protocol, collection, out),
        "figures": figures,
    }


def _claims(tables: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Puts every claim's tables together; the verdict is that on the paper's own data and protocol."""
    every = [claim for table in tables for claim in table["claims"]]
    result = []
    for text in dict.fromkeys(claim["text"] for claim in every):
        same = [claim for claim in every if claim["text"] == text]
        findings = [pair["finding"] for claim in same if claim["kind"] == "paper" for pair in claim["pairs"]]
        result.append(
            {
                "text": text,
                "verdict": verdict(findings),
                # What was measured on drawn pictures comes last.
                "tables": sorted(
                    (c for c in same if c["verdict"] != NOT_MEASURED), key=lambda c: c["kind"] == "synthetic"
                ),
            }
        )
    return result


def _notices(tables: list[dict[str, Any]], records: list[Found]) -> list[dict[str, str]]:
    """Says in plain words what a reader must know before any number."""
    notices = []
    drawn = sum(bool(found.record["synthetic"]) for found in records)
    if drawn:
        names = ", ".join(table["name"] for table in tables if table["synthetic"] and table["counts"]["measured"])
        notices.append(
            {
                "kind": "synthetic",
                "text": f"{drawn} of {len(records)} records (table {names}) were measured on pictures that this package draws, "
                "not on the paper's data. Their values cannot be compared with the printed ones; only orderings among them mean anything.",
            }
        )
    reduced = [
        (table["name"], len(table["provenance"]["records"]), table["note"])
        for table in tables
        if table["scale_model"] and not table["synthetic"] and table["provenance"]["records"]
    ]
    if reduced:
        listed = "; ".join(f"{name} ({count}): {note}" for name, count, note in reduced)
        count = sum(count for _, count, _ in reduced)
        notices.append({"kind": "scale model", "text": f"{count} of {len(records)} records, of {listed}."})
    overrides: dict[str, int] = {}
    for found in records:
        for key, value in found.record["deviates"].items() if found.unfit else ():
            text = f"{key} = {json.dumps(value)}"
            overrides[text] = overrides.get(text, 0) + 1
    if overrides:
        count = sum(bool(found.record["deviates"] and found.unfit) for found in records)
        listed = "; ".join(f"{text} ({n})" for text, n in sorted(overrides.items()))
        printed = any(table["counts"]["measured"] and "printed" in table["columns"] for table in tables)
        marked = "Their cells are marked" + (" and not compared with the paper." if printed else ".")
        notices.append(
            {
                "kind": "overridden",
                "text": f"{count} of {len(records)} records depart from their protocol: {listed}. {marked}",
            }
        )
    return notices


def build(collection: Collection, out: Path) -> dict[str, Any]:
    """Builds the document.

    Args:
        collection: What was found.
        out: The folder that the page will stand in, from which its links lead.
    """
    stands_for = {
        p.stand_in: name for name, p in reversed(collection.protocols.items()) if p.stand_in not in ("", name)
    }
    tables = [
        _table(protocol, collection, stands_for.get(name, ""), out) for name, protocol in collection.protocols.items()
    ]
    shown = [found for group in collection.records.values() for found in group]
    return {
        "format": FORMAT,
        "version": __version__,
        "notices": _notices(tables, shown),
        "records": len(shown),
        "claims": _claims(tables),
        "tables": tables,
        "paper_speed": {
            "training_hours": PAPER_TRAINING_HOURS,
            "test_ms_per_image": PAPER_TEST_MS,
            "device": PAPER_DEVICE,
        },
        "benchmarks": [
            {"href": href(path, out), "name": printable(path.stem)}
            | {key: document.get(key) for key in ("quick", "conditions", "copy_gb_per_s", "results", "targets")}
            for path, document in collection.benchmarks
        ],
        "evidence": [evidence(document, href(path, out)) for path, document in collection.evidence],
        "rulings": rulings(),
        "rulings_in_code": code_notes(PACKAGE, "Paper:", "inferred"),
        "differences_from_caffe": differences_from_caffe(),
        "deviations_in_code": code_notes(PACKAGE, "Deviates:"),
        "not_used": [{"file": printable(path), "reason": printable(reason)} for path, reason in collection.not_used],
    }

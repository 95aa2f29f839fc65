"""From records to the table beside the paper's, and to which of the paper's orderings the measured values show."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from .protocol import Protocol, Row

Records = dict[str, list[dict[str, Any]]]  # row id -> its records, one per seed


def spread(values: list[float]) -> str:
    """Writes a mean, with the standard deviation over seeds where there are several."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def table_lines(protocol: Protocol, records: Records) -> list[list[str]]:
    """Lays the table out: a header, then one line per row of the protocol."""
    lines = [["row", "scales", "merge", "extra", "paper", "measured", "difference", "seconds"]]
    for row in protocol.rows:
        model = row.settings["model"]
        found = records.get(row.id, [])
        values = [record["value"] for record in found]
        difference = f"{statistics.fmean(values) - row.paper:+.2f}" if values and row.paper is not None else "-"
        scales = "{" + ", ".join(f"{s:g}" for s in model["scales"]) + "}"
        seconds = f"{statistics.fmean(r['run']['seconds'] for r in found):.0f}" if found else "-"
        paper = "-" if row.paper is None else f"{row.paper:.2f}"
        lines.append(
            [
                row.id,
                scales,
                model["merge"],
                "w/" if model["extra_supervision"] else "w/o",
                paper,
                spread(values),
                difference,
                seconds,
            ]
        )
    return lines


def notes(protocol: Protocol, records: Records) -> list[str]:
    """Says what a reader of the table must know: stand-in data, seeds, deviations from the protocol."""
    every = [record for found in records.values() for record in found]
    result = [protocol.note] if protocol.note else []
    seeds = sorted({record["seed"] for record in every})
    if len(seeds) > 1:
        result.append(f"mean ± standard deviation over seeds {', '.join(map(str, seeds))}")
    deviations = sorted({f"{key} = {value}" for record in every for key, value in record["deviates"].items()})
    result += [f"deviates from the protocol: {text}" for text in deviations]
    return result


def _claims(protocol: Protocol) -> list[tuple[str, list[tuple[Row, Row]]]]:
    """Lists the paper's orderings as pairs (the row that should be higher, the row below it)."""
    grid = {
        (
            tuple(r.settings["model"]["scales"]),
            r.settings["model"]["merge"],
            r.settings["model"]["extra_supervision"],
        ): r
        for r in protocol.rows
    }
    baseline = [row for key, row in grid.items() if key[1] == "none"]
    cells = {key: row for key, row in grid.items() if key[1] != "none"}
    best = [row for (scales, merge, extra), row in cells.items() if len(scales) == 3 and merge == "attention" and extra]
    claims = [
        ("several scales are better than one", [(row, base) for row in cells.values() for base in baseline]),
        (
            "extra supervision helps",
            [
                (row, cells[scales, merge, False])
                for (scales, merge, extra), row in cells.items()
                if extra and (scales, merge, False) in cells
            ],
        ),
        (
            "attention is at least as good as average and max",
            [
                (row, cells[scales, other, extra])
                for (scales, merge, extra), row in cells.items()
                if merge == "attention"
                for other in ("average", "max")
                if (scales, other, extra) in cells
            ],
        ),
        (
            "attention over three scales with extra supervision is the best",
            [(row, other) for row in best for other in grid.values() if other is not row],
        ),
    ]
    return [(claim, pairs) for claim, pairs in claims if pairs]


def orderings(protocol: Protocol, records: Records) -> list[str]:
    """Counts, for each of the paper's orderings, in how many pairs of cells it was measured, beside the paper's own count."""
    means = {row_id: statistics.fmean(r["value"] for r in found) for row_id, found in records.items() if found}

    def count(pairs: list[tuple[Row, Row]], value: Callable[[Row], float | None]) -> str:
        known = [(value(a), value(b)) for a, b in pairs if value(a) is not None and value(b) is not None]
        return f"{sum(a >= b for a, b in known)} of {len(known)}"

    lines = []
    for claim, pairs in _claims(protocol):
        measured = count(pairs, lambda row: means.get(row.id))
        if not measured.endswith(" of 0"):
            lines.append(
                f"{claim}: measured in {measured} pairs of cells, printed in {count(pairs, lambda row: row.paper)}"
            )
    return lines


def metric_name(protocol: Protocol) -> str:
    """Names what the table's values are."""
    return "mean IoU" if protocol.metric == "mean_iou" else f"IoU of {protocol.metric}"


def per_class_line(record: dict[str, Any]) -> str:
    """Lists the IoU of every class of one record, percent."""
    return ", ".join(f"{name} {value:.2f}" for name, value in record["per_class"].items())


def as_text(protocol: Protocol, records: Records) -> str:
    """Renders the table for a terminal."""
    lines = table_lines(protocol, records)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    body = [
        "  ".join(
            cell.ljust(w) if i < 4 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    body.insert(1, "-" * max(len(line) for line in body))
    head = [
        f"{protocol.title} ({metric_name(protocol)}, percent; paper: {protocol.source})",
        *(f"NOTE: {note}" for note in notes(protocol, records)),
        "",
    ]
    found = orderings(protocol, records)
    return (
        "\n".join(head + body + (["", "The paper's orderings:", *(f"  {line}" for line in found)] if found else []))
        + "\n"
    )


def as_markdown(protocol: Protocol, records: Records) -> str:
    """Renders the table for README and other Markdown."""
    lines = table_lines(protocol, records)
    align = [":--"] * 4 + ["--:"] * 4
    body = ["| " + " | ".join(line) + " |" for line in [lines[0], align, *lines[1:]]]
    head = [
        f"**{protocol.title}** ({metric_name(protocol)}, percent; paper: {protocol.source})",
        "",
        *(f"*{note}*" for note in notes(protocol, records)),
        "",
    ]
    found = orderings(protocol, records)
    return (
        "\n".join(head + body + (["", "The paper's orderings:", "", *(f"- {line}" for line in found)] if found else []))
        + "\n"
    )

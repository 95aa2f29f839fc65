"""From records to the table beside the paper's, and to which of the paper's orderings the measured values show."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from repro.protocol import Protocol, Row, metric_name
from repro.records.claims import Values, known_spreads, learnt, orderings
from repro.records.store import BEFORE_CRF, SUBMISSION
from repro.records.verdict import Measured, judge_value, measure, minus, row_values, value_before_crf

Records = dict[str, list[dict[str, Any]]]  # row id -> its records, one per seed


def spread(cell: Measured | None) -> str:
    """Writes a mean, with the standard deviation over seeds where there are several."""
    if cell is None:
        return "-"
    return f"{cell.mean:.2f}" + (f" ± {cell.spread:.2f}" if cell.spread is not None else "")


def records_of(protocol: Protocol, every: dict[str, Records]) -> Records:
    """Picks out what a table shows.

    Args:
        protocol: The table.
        every: Table -> row id -> records.

    Returns:
        The records of each row under its id, also where they are another table's; those from which a printed difference is taken under "TABLE/ROW".
    """
    places = {row.id: row.of or f"{protocol.name}/{row.id}" for row in protocol.rows}
    places |= {row.difference[0]: row.difference[0] for row in protocol.rows if row.difference}
    found: Records = {}
    for key, place in places.items():
        table, _, row_id = place.partition("/")
        if records := every.get(table, {}).get(row_id):
            found[key] = records
    return found


def _cell(row: Row, records: Records, key: str = "") -> Measured | None:
    """Sums up what was measured of a row; with `key` of another row, by this row's metric."""
    return measure(row_values(row, records.get(key or row.id, [])).values())


def _printed(row: Row) -> str:
    """Writes what the paper prints: a value, and in brackets a difference from another row."""
    parts = [row.printed] if row.printed else []
    if row.difference:
        low, high = (f"{end:+.1f}" for end in row.difference[1:])
        parts.append(f"({low})" if low == high else f"({low} to {high})")
    return " ".join(parts) or "-"


def _measured(row: Row, records: Records) -> str:
    """Writes what was measured, or why there is nothing."""
    if row.status != "run":
        return row.status
    cell = _cell(row, records)
    if cell is None and records.get(row.id):
        return "no score yet"
    difference = minus(cell, _cell(row, records, row.difference[0])) if row.difference else None
    return spread(cell) + (f" ({difference.mean:+.2f})" if difference else "")


def _before_crf(row: Row, records: Records) -> str:
    """Writes what was measured before the CRF."""
    return spread(measure(row_values(row, records.get(row.id, []), value_before_crf).values()))


def _difference(row: Row, records: Records) -> str:
    """Writes how far a row's mean lies from the printed value."""
    judged = judge_value(row, _cell(row, records), 0.0)
    return f"{judged.distance:+.2f}" if judged else "-"


def table_lines(protocol: Protocol, records: Records) -> list[list[str]]:
    """Lays the table out: a header, then one line per row of the protocol, also of those that do not run.

    A scale model's data or protocol are others than the paper's: beside it the paper's values stand for their order, and there is no difference. A table of which the
    paper prints nothing has neither. Where a row has a CRF, what was measured before it stands beside what was measured after it.

    Args:
        protocol: The table.
        records: As of `records_of`.
    """
    printed, compared = protocol.printed, protocol.printed and not protocol.scale_model
    crf = any("crf" in row.settings for row in protocol.rows)
    head = [
        "row",
        "scales",
        "merge",
        "extra",
        *(["paper"] if printed else []),
        *(["before CRF"] if crf else []),
        "measured",
    ]
    lines = [[*head, *(["difference"] if compared else []), "seconds"]]
    for row in protocol.rows:
        model = row.settings.get("model")
        found = records.get(row.id, [])
        lines.append(
            [
                row.id,
                "{" + ", ".join(f"{s:g}" for s in model["scales"]) + "}" if model else "-",
                model["merge"] if model else "-",
                ("w/" if model["extra_supervision"] else "w/o") if model else "-",
                *([_printed(row)] if printed else []),
                *([_before_crf(row, records)] if crf else []),
                _measured(row, records),
                *([_difference(row, records)] if compared else []),
                f"{statistics.fmean(r['run']['seconds'] for r in found):.0f}" if found else "-",
            ]
        )
    return lines


def remarks(protocol: Protocol) -> list[str]:
    """Says of every row that is no plain measurement what it is: planned, quoted, shown from elsewhere, or printed otherwise than as a value."""
    lines = []
    for row in protocol.rows:
        facts = [row.status] if row.status != "run" else []
        facts += [f"the record of {row.of}"] if row.of and not protocol.view else []
        facts += [f"in brackets: difference from {row.difference[0]}"] if row.difference else []
        if facts or row.why:
            lines.append(row.id + (f" ({'; '.join(facts)})" if facts else "") + (f": {row.why}" if row.why else ""))
    return lines


def notes(protocol: Protocol, records: Records) -> list[str]:
    """Says what a reader of the table must know: stand-in data, seeds, deviations from the protocol."""
    every = [record for found in records.values() for record in found]
    result = [protocol.note] if protocol.note else []
    if protocol.scale_model and protocol.printed:
        result.append("the paper's values, of other data, stand beside for their order alone")
    result += [protocol.remark] if protocol.remark else []
    if protocol.view:
        rows = {row.of for row in protocol.rows}
        shown = rows if len(rows) == 1 else {of.partition("/")[0] for of in rows}
        result.append(f"shows the records of {', '.join(sorted(shown))}; nothing is trained for it")
    seeds = sorted({record["seed"] for record in every})
    if len(seeds) > 1:
        result.append(f"mean ± standard deviation over seeds {', '.join(map(str, seeds))}")
    deviations = sorted({f"{key} = {value}" for record in every for key, value in record["deviates"].items()})
    result += [f"deviates from the protocol: {text}" for text in deviations]
    changes = {
        f"resumed under other circumstances: {record['row']}, seed {record['seed']}: {key}: {', then '.join(values)}"
        for record in every
        for key, values in record["run"].get("resumed_under", {}).items()
    }
    result += sorted(changes)
    results = [result for record in every for result in (record, record.get(BEFORE_CRF, {}))]
    scores = [score for result in results if (score := result.get(SUBMISSION, {}).get("score"))]
    result += sorted({f"scored by a server, entered by hand from {score['source']}" for score in scores})
    return result


def values_name(protocol: Protocol) -> str:
    """Names what the table's values are."""
    if len({row.metric for row in protocol.rows}) > 1:
        return "IoU by class and their mean"
    return metric_name(protocol.metric)


def _caption(protocol: Protocol) -> str:
    """Says what the table's values are, and where the paper's are from."""
    source = f"; paper: {protocol.source}" if protocol.printed else ""
    return f"({values_name(protocol)}, percent{source})"


def per_class_line(record: dict[str, Any]) -> str:
    """Lists the IoU of every class of one record, percent."""
    return ", ".join(f"{name} {value:.2f}" for name, value in record["per_class"].items())


def _values(protocol: Protocol, records: Records) -> tuple[Values, dict[str, float]]:
    """Lists what was measured of every row, and the known spreads of records that follow the protocol."""
    values = {row.id: list(row_values(row, records.get(row.id, [])).values()) for row in protocol.rows}
    own = not any(record["deviates"] for found in records.values() for record in found)
    return values, known_spreads(protocol) if own else {}


def learnt_line(tables: Iterable[tuple[Protocol, Records]]) -> str:
    """Says in one line what tables say to the paper's orderings; "" where they say nothing."""
    said = [(protocol.name, learnt(protocol, *_values(protocol, records))) for protocol, records in tables]
    return "; ".join(f"{name}: {text}" for name, text in said if text)


def _lists(protocol: Protocol, records: Records) -> list[tuple[str, list[str]]]:
    """Collects the lists that follow the table, with their titles; none is empty."""
    ordered = orderings(protocol, *_values(protocol, records))
    lists = [("About the rows:", remarks(protocol)), ("The paper's orderings:", ordered)]
    return [(title, found) for title, found in lists if found]


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
        f"{protocol.title} {_caption(protocol)}",
        *(f"NOTE: {note}" for note in notes(protocol, records)),
        "",
    ]
    for title, found in _lists(protocol, records):
        body += ["", title, *(f"  {line}" for line in found)]
    return "\n".join(head + body) + "\n"


def as_markdown(protocol: Protocol, records: Records) -> str:
    """Renders the table for README and other Markdown."""
    lines = table_lines(protocol, records)
    align = [":--"] * 4 + ["--:"] * (len(lines[0]) - 4)
    body = ["| " + " | ".join(line) + " |" for line in [lines[0], align, *lines[1:]]]
    head = [
        f"**{protocol.title}** {_caption(protocol)}",
        "",
        *(f"*{note}*" for note in notes(protocol, records)),
        "",
    ]
    for title, found in _lists(protocol, records):
        body += ["", title, "", *(f"- {line}" for line in found)]
    return "\n".join(head + body) + "\n"

"""A resolved protocol as one TOML file that needs no other: what is kept beside the records of a table of one's own."""

from __future__ import annotations

import json
from typing import Any

from repro.protocol.table import Protocol, Row

KEPT = "# Kept by repro.run beside the records that were made with it: every row with all its settings. Edit the protocol that was run, not this file."


def _value(value: Any) -> str:
    """Writes a string, a number, a switch, a list of such, or a table of them."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(entry)}" for key, entry in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    # JSON's strings are TOML's, but for the one control character that JSON lets stand as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _lines(facts: dict[str, Any]) -> list[str]:
    return [f"{key} = {_value(value)}" for key, value in facts.items() if value not in ("", {}) and value is not False]


def _row(row: Row, protocol: Protocol) -> list[str]:
    facts: dict[str, Any] = {"id": row.id}
    facts |= {"status": row.status} if row.status != "run" else {}
    facts |= {"why": row.why, "of": row.of}
    facts |= {"metric": row.metric} if row.metric != protocol.metric else {}
    facts |= {"dataset": row.dataset} if row.dataset != protocol.dataset else {}
    if row.difference:
        facts["difference"] = {"row": row.difference[0], "between": list(row.difference[1:])}
    lines = ["", "[[row]]", *_lines(facts)]
    lines += [f"paper = {row.printed}"] if row.printed else []  # with its digits
    for section, table in () if row.of else row.settings.items():
        lines += [f"[row.{section}]", *(f"{key} = {_value(value)}" for key, value in table.items())]
    return lines


def as_toml(protocol: Protocol) -> str:
    """Writes a protocol so that `load_protocol` reads the same rows, whatever became of the files that it extends.

    Args:
        protocol: Without overrides.
    """
    keys = ("title", "source", "metric", "dataset", "tolerance", "stand_in", "note", "scale_model", "remark")
    lines = [KEPT, *_lines({key: getattr(protocol, key) for key in keys})]
    for row in protocol.rows:
        lines += _row(row, protocol)
    return "\n".join(lines) + "\n"

"""README's tables, written from the records."""

from __future__ import annotations

from pathlib import Path

from ..protocol import PAPER, PROTOCOLS, Protocol, load_protocol, settings_sha256
from ..records import read_record
from ..tables import Records, as_markdown, records_of

MEASURED = PROTOCOLS / "measured"
BEGIN, END = "<!-- tables: written by repro.report, do not edit -->", "<!-- end of tables -->"


def read_runs(folders: list[Path]) -> list[tuple[Protocol, Records]]:
    """Reads every record below folders, by protocol; a view comes with the records that it shows.

    Raises:
        ValueError: A record is damaged, or was not made with the protocol as it is now.
    """
    every: dict[str, Records] = {}
    for path in sorted(path for folder in folders for path in folder.glob("*/*/record.json")):
        record = read_record(path)
        protocol = load_protocol(record["table"])
        unchanged = settings_sha256(protocol.row(record["row"]).settings) == record["provenance"]["settings_sha256"]
        if not unchanged and not record["deviates"]:
            raise ValueError(
                f"{path}: must have been made with {protocol.name}.toml as it is; got other settings; measure the row again"
            )
        every.setdefault(record["table"], {}).setdefault(record["row"], []).append(record)
    tables = []
    for name in sorted({*every, *PAPER}):
        protocol = load_protocol(name)
        records = records_of(protocol, every)
        if any(row.id in records for row in protocol.rows):
            tables.append((protocol, records))
    return tables


def tables_block(folders: list[Path]) -> str:
    """Renders README's block of tables."""
    parts = [as_markdown(protocol, records) for protocol, records in read_runs(folders)]
    return "\n".join([BEGIN, "", *(parts or ["Nothing has been measured yet.\n"]), END])


def replace_block(text: str, block: str) -> str:
    """Puts a block of tables in the place of the one in a text.

    Raises:
        ValueError: The text has no such place.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(
            f"repro.report: the file must hold the lines {BEGIN!r} and {END!r}; got none; add them where the tables shall stand"
        )
    return head + block + tail

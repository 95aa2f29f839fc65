"""Turns records into the tables of README: `python -m repro.report --write README.md`; `--check README.md` fails where they are stale. Needs no torch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .protocol import PROTOCOLS, Protocol, load_protocol, settings_sha256
from .records import read_record
from .tables import Records, as_markdown

MEASURED = PROTOCOLS / "measured"
BEGIN, END = "<!-- tables: written by repro.report, do not edit -->", "<!-- end of tables -->"


def read_runs(folder: Path) -> list[tuple[Protocol, Records]]:
    """Reads every record below a folder, by protocol.

    Raises:
        ValueError: A record is damaged, or was not made with the protocol as it is now.
    """
    tables: dict[str, tuple[Protocol, Records]] = {}
    for path in sorted(folder.glob("*/*/record.json")):
        record = read_record(path)
        protocol, records = tables.setdefault(record["table"], (load_protocol(record["table"]), {}))
        unchanged = settings_sha256(protocol.row(record["row"]).settings) == record["provenance"]["settings_sha256"]
        if not unchanged and not record["deviates"]:
            raise ValueError(
                f"{path}: must have been made with {protocol.name}.toml as it is; got other settings; measure the row again"
            )
        records.setdefault(record["row"], []).append(record)
    return [tables[name] for name in sorted(tables)]


def tables_block(folder: Path) -> str:
    """Renders README's block of tables."""
    parts = [as_markdown(protocol, records) for protocol, records in read_runs(folder)]
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


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit code: 0, 1 where --check found stale tables, 2 for an error."""
    parser = argparse.ArgumentParser(prog="python -m repro.report", description=__doc__)
    parser.add_argument(
        "--runs", type=Path, default=MEASURED, metavar="DIR", help="folder of records (default protocols/measured/)"
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--write", type=Path, metavar="FILE", help="renew the tables in this Markdown file")
    target.add_argument("--check", type=Path, metavar="FILE", help="fail where the tables in this file are stale")
    options = parser.parse_args(arguments)
    path = options.write or options.check
    try:
        text = path.read_text(encoding="utf-8")
        renewed = replace_block(text, tables_block(options.runs))
        if options.write:
            path.write_text(renewed, encoding="utf-8")
        elif renewed != text:
            print(f"{path}: its tables are stale; run python -m repro.report --write {path}", file=sys.stderr)
            return 1
    except (ValueError, OSError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

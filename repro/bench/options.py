"""What the programs that time one row of a protocol are asked."""

from __future__ import annotations

import argparse


def row_parser(program: str, description: str | None, row: str) -> argparse.ArgumentParser:
    """Makes the parser of such a program: table, row, overrides, threads and device.

    Args:
        program: Its module.
        description: For --help.
        row: Of table 3, where none is named.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=description)
    parser.add_argument("table", nargs="?", default="table3", help="a protocol (default table3)")
    parser.add_argument("row", nargs="?", default=row, help=f"its row (default {row})")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides of the protocol")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of the network on the CPU (default 2)")
    parser.add_argument("--device", default="auto", help="auto (the default), cpu, cuda or cuda:N")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    return parser

"""The reproduction report: what was measured, beside what was printed, as one HTML page and the same in Markdown. `--write` and `--check` renew and check README's tables. Needs no torch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from repro.files import write_text
from repro.records.store import MEASURED, walk
from repro.report.collect import collect
from repro.report.data import build
from repro.report.page import write
from repro.report.readme import replace_block, tables_block
from repro.shell import exit_code

RUNS = Path("runs")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m repro.report", description=__doc__)
    parser.add_argument(
        "--runs",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="folders of records (default: runs/ where it holds records, else protocols/measured/; --write and --check: the latter)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=RUNS / "report",
        metavar="DIR",
        help="where report.html, report.md, report.json and figures/ go (default runs/report/)",
    )
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--write", type=Path, metavar="FILE", help="renew the tables in this Markdown file")
    target.add_argument("--check", type=Path, metavar="FILE", help="fail where the tables in this file are stale")
    return parser.parse_args(arguments)


def renew(path: Path, runs: list[Path], check: bool) -> int:
    """Writes a Markdown file's tables, or checks them; returns the exit code."""
    text = path.read_text(encoding="utf-8")
    renewed = replace_block(text, tables_block(runs))
    if check and renewed != text:
        print(f"{path}: its tables are stale; run python -m repro.report --write {path}", file=sys.stderr)
        return 1
    if not check:
        write_text(path, renewed)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit code: 0, 1 where --check found stale tables, 2 for an error."""
    options = parse_arguments(arguments)
    return exit_code(lambda: report(options))


def report(options: argparse.Namespace) -> int:
    """Does what the command line asks; returns the exit code."""
    if path := options.write or options.check:
        return renew(path, options.runs or [MEASURED], check=options.check is not None)
    runs = options.runs or [RUNS if any(walk([RUNS])) else MEASURED]
    if missing := [run for run in runs if not run.is_dir()]:
        raise FileNotFoundError(
            f"--runs: must be folders; got {', '.join(map(str, missing))}, which is none; give the --out of a run"
        )
    data = build(collect(runs, MEASURED), options.out)
    write(data, runs, options.out)
    left_out = f"; {len(data['not_used'])} files not used, see there" if data["not_used"] else ""
    print(f"{options.out / 'report.html'}: {data['records']} records{left_out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

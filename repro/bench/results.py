"""What a run of the benchmark leaves behind: JSON, CSV, a table for people and a plot."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repro.files import json_text, write_together
from repro.records.benchmark import read_benchmark

LONGEST_NAME = 60  # of the chosen ops and cases in a file's name

# Of one contestant in one direction of one case.
COLUMNS = (
    "op",
    "case",
    "direction",
    "contestant",
    "median_ms",  # on CUDA of the device's time alone
    "p20_ms",
    "p80_ms",
    "called_ms",  # on CUDA the median of what the caller waits, launches included; null on the CPU
    "least_ms",  # of our operator: what allocating and writing its results takes, and the exponentials that it needs
    "repeats",
    "extra_bytes",  # peak of torch's allocator beyond inputs and results
    "resident_bytes",  # a bound on the same: growth of the resident set; null on CUDA
    "launches",  # kernels on the device; null on the CPU
    "ideal_bytes",
    "gb_per_s",  # ideal_bytes by the median
    "share_of_copy",  # may exceed 1 where the data stay in a cache, which the copy's do not
    "error",
    "ratio",  # median of the faster eager layout by this median
)


def file_stem(conditions: dict[str, Any], quick: bool, chosen: Sequence[str] = (), compiles: bool = True) -> str:
    """Names a result by its conditions: bench-cpu-amd-epyc-2threads-torch2.13.

    Args:
        conditions: Of the run.
        quick: Whether it was one.
        chosen: The ops and cases that the command line names; none means all. Runs of different ones have different names.
        compiles: Whether torch.compile competed; that a quick run leaves it out goes without saying.
    """
    kind = conditions["device"].partition(":")[0]
    slug = re.sub(r"[^a-z0-9]+", "-", conditions["device_name"].lower()).strip("-")
    torch_version = ".".join(re.findall(r"\d+", conditions["versions"]["torch"])[:2])
    parts = [
        "bench",
        kind,
        slug,
        *([f"{conditions['threads']}threads"] if kind == "cpu" else []),
        f"torch{torch_version}",
    ]
    parts += [] if conditions["dtype"] == "float32" else [conditions["dtype"]]
    parts += [] if compiles or quick else ["no-compile"]
    names = "-".join(sorted(set(chosen)))
    if len(names) > LONGEST_NAME:
        names = f"{len(set(chosen))}-chosen-{hashlib.sha256(names.encode()).hexdigest()[:12]}"
    return "-".join(parts + [names] * bool(names) + ["quick"] * quick)


def with_ratios(group: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds to the results of one case and direction how much faster each is than the faster eager layout; without one there is nothing to compare with."""
    eager = [r["median_ms"] for r in group if r["contestant"] in ("eager", "eager-nchw")]
    return [r | {"ratio": min(eager) / r["median_ms"]} for r in group] if eager else []


def unfinished(folder: Path, stem: str, conditions: dict[str, Any]) -> dict[str, Any] | None:
    """Reads what an interrupted run of the same conditions left, so that it goes on; None where there is none, or where it was finished.

    Args:
        folder, stem: As for `write`.
        conditions: Of this run. The load of the machine may have been another.
    """
    with contextlib.suppress(FileNotFoundError, ValueError):
        document = read_benchmark(folder / f"{stem}.json")
        before, now = (
            {k: v for k, v in c.items() if k != "load_average"} for c in (document["conditions"], conditions)
        )
        if before == now and isinstance(document.get("left_out"), list):  # a finished run says when it finished
            return document
    return None


def write(folder: Path, stem: str, document: dict[str, Any]) -> list[Path]:
    """Writes a run as <stem>.json and its results as <stem>.csv; returns their paths."""
    paths = [folder / f"{stem}.json", folder / f"{stem}.csv"]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(document["results"])
    write_together({paths[0]: json_text(document), paths[1]: text.getvalue()})
    return paths


def _groups(results: list[dict[str, Any]]):
    for key, group in itertools.groupby(results, key=lambda r: (r["op"], r["case"], r["direction"])):
        yield key, {r["contestant"]: r for r in group}


def as_text(results: list[dict[str, Any]]) -> str:
    """Renders a table, a line for each direction of each case: milliseconds of every contestant, then ours in detail."""
    head = ("op", "case", "direction", "eager", "nchw", "compile", "ours", "p20..p80", "called", "least", "ratio")
    head += ("extra MB", "of eager", "GB/s", "of copy")
    rows = [head]
    for key, group in _groups(results):
        ours = group.get("ours")
        if ours is None:  # it disagreed, or failed; the list of those left out says how
            continue
        times = [
            f"{group[name]['median_ms']:.3f}" if name in group else "-"
            for name in ("eager", "eager-nchw", "compile", "ours")
        ]
        spread = f"{ours['p20_ms']:.3f}..{ours['p80_ms']:.3f}"
        extra = [
            f"{ours['extra_bytes'] / 1e6:.2f}",
            f"{group['eager']['extra_bytes'] / 1e6:.2f}" if "eager" in group else "-",
        ]
        rate = [f"{ours['gb_per_s']:.2f}", f"{ours['share_of_copy']:.0%}"]
        others = ["-" if ours[key] is None else f"{ours[key]:.3f}" for key in ("called_ms", "least_ms")]
        rows.append((*key, *times, spread, *others, f"{ours['ratio']:.2f}", *extra, *rate))
    widths = [max(len(row[n]) for row in rows) for n in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(w) if n < 3 else cell.rjust(w) for n, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def plot(path: Path, document: dict[str, Any]) -> None:
    """Draws every ratio to the faster eager layout, and our share of the copy's bandwidth, as bars."""
    from repro.charts.bars import bench_bars  # matplotlib, which a measuring machine need not have
    from repro.charts.style import LIGHT, save_png

    conditions = document["conditions"]
    title = (
        f"{conditions['device_name']}, {conditions['threads']} threads, torch {conditions['versions']['torch']}, {conditions['dtype']}, "
        f"copy {document['copy_gb_per_s']:.1f} GB/s{', quick' if document['quick'] else ''}"
    )
    save_png(bench_bars(document["results"], ("ratio", "share_of_copy"), title, LIGHT), path)

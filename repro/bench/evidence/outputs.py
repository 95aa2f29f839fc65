"""What is kept of the files that tools and programs leave: pytest, compute-sanitizer, ncu, the benchmark and a run."""

from __future__ import annotations

import csv
import itertools
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from repro.bench.evidence.kernels import METRICS
from repro.records.benchmark import read_benchmark
from repro.records.store import MEASURED, read_record, record_path

DEMO_ROW = "attention3"
MOST_LISTED = 50
MOST_BYTES = 12 * 2**20  # of one result file
_ERROR = re.compile(
    r"^========= (?!ERROR SUMMARY|COMPUTE-SANITIZER|RACECHECK SUMMARY|LEAK SUMMARY)(\S.*)$", re.MULTILINE
)
_SUMMARY = re.compile(r"SUMMARY: (\d+) (?:error|hazard)", re.MULTILINE)


class Failed(Exception):
    """What a step left speaks against the installation. `found` is kept all the same."""

    def __init__(self, reason: str, found: dict[str, Any]):
        super().__init__(reason)
        self.found = found


def keep(source: Path, target: Path) -> None:
    """Copies a result; of one that is too large, the end."""
    data = source.read_bytes()
    target.write_bytes(data if len(data) <= MOST_BYTES else data[-MOST_BYTES:])


def read_json(path: Path) -> dict[str, Any]:
    """Reads what a step of ours found, as far as it came."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def junit(source: Path, target: Path) -> dict[str, Any]:
    """Counts tests; lists what failed and why tests were skipped."""
    if not source.is_file():
        return {}
    keep(source, target)
    cases = list(ElementTree.parse(source).getroot().iter("testcase"))
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped: dict[str, int] = {}
    for case in cases:
        if (skip := case.find("skipped")) is not None:
            reason = skip.get("message", "")[:200]
            skipped[reason] = skipped.get(reason, 0) + 1
    names = [f"{case.get('classname')}::{case.get('name')}" for case in bad[:MOST_LISTED]]
    passed = len(cases) - len(bad) - sum(skipped.values())
    found = {"passed": passed, "failed": len(bad), "skipped": skipped, "failures": names}
    if not passed and not bad:
        raise Failed("no test ran", found)
    return found


def sanitizer(source: Path, target: Path) -> dict[str, Any]:
    """Counts what compute-sanitizer says of our kernels, and of others'.

    Raises:
        Failed: Of ours there is something, or it did not come to its summary.
    """
    if not source.is_file():
        return {}
    text = source.read_text(encoding="utf-8", errors="replace")
    with open(target, "ab") as file:
        file.write(f"# {source.stem}\n{text[-(MOST_BYTES // 4) :]}\n".encode())
    # A report is a line at the margin, then indented lines that name the kernel, up to the next line at the margin.
    starts = [match.start() for match in _ERROR.finditer(text)] + [len(text)]
    reports = [text[begin:end] for begin, end in itertools.pairwise(starts)]
    reports = [
        report for report in reports if re.search(r"^=========\s+at ", report, re.MULTILINE) or "hazard" in report
    ]
    # Host frames name our launchers, whoever's kernel it was.
    ours = [report for report in reports if "repro::" in re.split("host backtrace|Host Frame", report)[0]]
    summaries = [int(number) for number in _SUMMARY.findall(text)]
    found = {
        "of_our_kernels": len(ours),
        "of_others": len(reports) - len(ours),
        "summary": sum(summaries) if summaries else None,
        "first": [" ".join(report.split())[:300] for report in ours[:5]],
    }
    if ours:
        raise Failed(f"{len(ours)} errors in our kernels, the first: {found['first'][0]}", found)
    if not summaries:
        raise Failed("compute-sanitizer wrote no summary", found)
    return found


def bench(source: Path, target: Path) -> dict[str, Any]:
    """Keeps the benchmark's file; counts its targets and says who was left out."""
    files = sorted(source.glob("bench*.json"))
    if not files:
        return {}
    document = read_benchmark(files[-1])
    keep(files[-1], target)
    missed = [t for t in document["targets"] if not t["reached"]]
    left_out = [entry for entry in document["left_out"] if "op" in entry]
    return {
        "file": target.name,
        "results": len(document["results"]),
        "copy_gb_per_s": document["copy_gb_per_s"],
        "finished": "finished" in document["conditions"],
        "targets": len(document["targets"]),
        "missed": [" ".join((t["op"], t["case"], t["direction"], t["what"])) for t in missed],
        "left_out": [f"{e['contestant']} {e['op']} {e['case']}: {e['reason']}"[:300] for e in left_out[:MOST_LISTED]],
    }


def ncu(source: Path, target: Path) -> dict[str, Any]:
    """Reads ncu's table: of every kernel its metrics, with their units.

    Raises:
        Failed: It holds no kernel, as where ncu may not read the counters.
    """
    if not source.is_file():
        return {}
    keep(source, target)
    lines = source.read_text(encoding="utf-8", errors="replace").splitlines()
    table = list(csv.reader(line for line in lines if line.startswith('"')))
    if len(table) < 3:
        said = next((line for line in lines if "==ERROR==" in line), "no kernel in its table")
        raise Failed(" ".join(said.split())[:300], {})
    head, units, *rows = table  # the raw page has a row of units below its head
    kernels = []
    for row in rows:
        values = dict(zip(head, row, strict=False))
        measured = {
            metric: f"{values[metric]} {unit}".strip()
            for metric, unit in zip(head, units, strict=False)
            if metric in METRICS and metric in values
        }
        kernels.append({"kernel": values.get("Kernel Name", "")[:200]} | measured)
    return {"kernels": kernels[:MOST_LISTED]}


def demo(source: Path) -> dict[str, Any]:
    """Reads the demo row's record, beside the one that was measured on the CPU."""
    path = record_path(source, "demo", DEMO_ROW, 1)
    if not path.is_file():
        return {}
    record, kept = read_record(path), record_path(MEASURED, "demo", DEMO_ROW, 1)
    found = {
        "value": record["value"],
        "seconds": record["run"]["seconds"],
        "train_seconds": record["run"]["train_seconds"],
        "last_loss": record["loss_curve"][-1],
        "device_name": record["run"]["device_name"],
    }
    if kept.is_file():
        found["value_kept"] = read_record(kept)["value"]
    return found


def keeps_up(steps: list[dict[str, Any]]) -> dict[str, bool]:
    """Says for every precision whether the fastest data stream makes a batch in less than a training step takes; nothing where either was not measured."""
    found = {step["name"]: step["found"] for step in steps}
    streams = found.get("loader", {}).get("streams", [])
    timed = found.get("speed", {}).get("precisions", {})
    if not streams:
        return {}
    fastest = max(stream["images_per_second"] for stream in streams)
    return {
        precision: fastest >= one["images_per_second"]
        for precision, one in timed.items()
        if one.get("state") == "timed"
    }

"""Measures the ops against eager PyTorch and torch.compile at the paper's sizes; a contestant must agree with float64 before it is timed."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from repro import ops
from repro.bench import results, targets
from repro.bench.agreement import TOLERANCE
from repro.bench.cases import OPS, select
from repro.bench.measure import Session, measure
from repro.bench.timing import Clock, copy_bandwidth, settle_malloc
from repro.device import choose_device, processor_name
from repro.records import benchmark
from repro.records.store import git_state
from repro.shell import check_writable, exit_code, log

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCE}
THREADS = 2  # the targets' number
REPEATS, BUDGET = 50, 15.0  # timed calls of each contestant, and seconds for all of them in one direction of one case
QUICK_REPEATS, QUICK_BUDGET = 5, 2.0
BUSY = 0.5  # load average before the start
EXIT_NOT_MEASURED = 1


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m repro.bench", description=__doc__)
    parser.add_argument("--op", action="append", default=[], metavar="OP", help=f"only this op: {', '.join(OPS)}")
    parser.add_argument(
        "--case", action="append", default=[], metavar="NAME", help="only this case, e.g. table3-train-3"
    )
    parser.add_argument("--device", default="auto", help="auto (the default), cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=THREADS, metavar="N", help=f"on the CPU (default {THREADS})")
    parser.add_argument("--dtype", default="float32", choices=tuple(DTYPES), help="of the maps (default float32)")
    parser.add_argument("--quick", action="store_true", help="few repeats, and no torch.compile: a trial, no evidence")
    parser.add_argument("--no-compile", action="store_true", help="all repeats, but no torch.compile")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bench"), metavar="DIR", help="JSON, CSV and plot (default runs/bench/)"
    )
    parser.add_argument("--plot", action="store_true", help="draw the ratios as a PNG too")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    return parser.parse_args(arguments)


def device_name(device: torch.device) -> str:
    """Names the hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor_name()


def describe(device: torch.device, dtype: str, repeats: int) -> dict[str, Any]:
    """Lists the conditions of a run."""
    return {
        "device": "cpu" if device.type == "cpu" else f"cuda:{torch.cuda.current_device()}",
        "device_name": device_name(device),
        "cores": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda},
        "system": platform.platform(),
        "git": git_state(),
        "dtype": dtype,
        "tolerance": TOLERANCE[DTYPES[dtype]],
        "repeats": repeats,
    }


def run(options: argparse.Namespace) -> int:
    """Does what the command line asks; returns the exit code. What is measured is written after every direction of every case."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler would announce each start and stop on stderr
    git_state()
    cases = select(options.op, options.case)
    if options.threads < 1:
        raise ValueError(f"--threads: must be at least 1; got {options.threads}; use {THREADS} to compare with targets")
    if ops.backend() != "kernels":
        raise ValueError("REPRO_REFERENCE: must not be 1 in a benchmark of the kernels; got 1; unset it")
    device = choose_device(options.device, "fp32")
    check_writable(options.out)
    torch.set_num_threads(options.threads)
    settle_malloc()
    repeats, budget = (QUICK_REPEATS, QUICK_BUDGET) if options.quick else (REPEATS, BUDGET)
    conditions = describe(device, options.dtype, repeats)
    if device.type == "cpu" and conditions["load_average"] > BUSY:
        log(
            f"the machine is busy (load average {conditions['load_average']:.1f}): every op's threads wait for each other, so ratios flatter whoever "
            "runs fewer ops; measure in a quiet minute"
        )
    stem = results.file_stem(conditions, options.quick, [*options.op, *options.case], not options.no_compile)
    before = results.unfinished(options.out, stem, conditions)
    clock = Clock(device)
    session = Session(
        clock,
        DTYPES[options.dtype],
        before["copy_gb_per_s"] * 1e9 if before else copy_bandwidth(clock, repeats),
        repeats,
        budget,
        compiles=not (options.quick or options.no_compile),
        left_out=before["left_out"] if before else [],
    )
    if not session.compiles and not before:
        session.left_out.append({"contestant": "compile", "reason": "--quick" if options.quick else "--no-compile"})
    found: list[dict[str, Any]] = before["results"] if before else []

    def write() -> tuple[dict[str, Any], list[Path]]:
        document = {
            "format": benchmark.FORMAT,
            "quick": options.quick,
            "conditions": conditions,
            "copy_gb_per_s": session.copy_bandwidth / 1e9,
            "results": found,
            "targets": targets.evaluate(found, conditions),
            "left_out": session.left_out,
        }
        return document, results.write(options.out, stem, document)

    done = {tuple(entry.get(key) for key in ("op", "case", "direction")) for entry in [*found, *session.left_out]}
    todo = [(case, direction) for case in cases for direction in case.directions]
    said: set[str] = set()
    for n, (case, direction) in enumerate(todo, start=1):
        if (case.op, case.name, direction) in done:
            continue
        log(f"[{n}/{len(todo)}] {case.op} {case.name} {direction}")
        known = len(session.left_out)
        found += measure(case, direction, session)
        write()
        if session.compiles:
            torch.compiler.reset()  # each case compiles anew, however many came before
        for entry in session.left_out[known:]:
            names = {"compile": "torch.compile", "opencv": "OpenCV"}
            line = f"{names.get(entry['contestant'], entry['contestant'])} is left out: {entry['reason']}"
            if line not in said:
                log(line)
            said.add(line)
    conditions["finished"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    document, paths = write()
    if options.plot and found:
        paths.append(options.out / f"{stem}.png")
        results.plot(paths[-1], document)
    print(
        f"{conditions['device_name']}, {conditions['threads']} threads, torch {torch.__version__}, {options.dtype}, "
        f"copy {document['copy_gb_per_s']:.1f} GB/s; medians in ms; {'few repeats: a trial' if options.quick else f'up to {repeats} repeats'}\n"
    )
    print(results.as_text(found))
    print(targets.as_text(document["targets"]), end="")
    print("written: " + ", ".join(map(str, paths)))
    wrong = [entry for entry in session.left_out if entry["contestant"] == "ours"]
    for entry in wrong:
        print(f"error: not measured: {entry['reason']}", file=sys.stderr)
    return EXIT_NOT_MEASURED if wrong else 0


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit code: 0, 1 where a kernel of ours could not be measured, for example since it disagrees with the reference, 2 for an error."""
    options = parse_arguments(arguments)
    return exit_code(lambda: run(options), options.traceback, "the same command goes on with the next case")


if __name__ == "__main__":
    sys.exit(main())

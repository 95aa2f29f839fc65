"""Measures the ops against eager PyTorch and torch.compile at the paper's sizes; every contestant must agree with float64 before anything is timed."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from repro import ops
from repro.bench import results, targets
from repro.bench.agreement import TOLERANCE, Disagreement
from repro.bench.cases import OPS, select
from repro.bench.measure import Session, measure
from repro.bench.timing import Clock, copy_bandwidth, settle_malloc
from repro.device import choose_device
from repro.records import benchmark
from repro.records.store import git_state
from repro.shell import check_writable, exit_code, log, one_line

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCE}
THREADS = 2  # the targets' number
REPEATS, BUDGET = 50, 15.0  # timed calls of each contestant, and seconds for all of them in one direction of one case
QUICK_REPEATS, QUICK_BUDGET = 5, 2.0
BUSY = 0.5  # load average before the start
EXIT_DISAGREEMENT = 1


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
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


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


def run(options: argparse.Namespace) -> None:
    """Does what the command line asks."""
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
    clock = Clock(device)
    session = Session(
        clock, DTYPES[options.dtype], copy_bandwidth(clock, repeats), repeats, budget, compiles=not options.quick
    )
    if options.quick:
        session.left_out.append({"contestant": "compile", "reason": "--quick"})

    found: list[dict[str, Any]] = []
    said: set[str] = set()
    todo = [(case, direction) for case in cases for direction in case.directions]
    terminal = sys.stderr.isatty()
    for n, (case, direction) in enumerate(tqdm(todo, unit="case", disable=not terminal), start=1):
        if not terminal:
            log(f"[{n}/{len(todo)}] {case.op} {case.name} {direction}")
        known = len(session.left_out)
        found += measure(case, direction, session)
        if session.compiles:
            torch.compiler.reset()  # each case compiles anew, however many came before
        for entry in session.left_out[known:]:
            names = {"compile": "torch.compile", "opencv": "OpenCV"}
            line = f"{names[entry['contestant']]} is left out: {entry['reason']}"
            if line not in said:
                log(line)
            said.add(line)
    conditions["finished"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    document = {
        "format": benchmark.FORMAT,
        "quick": options.quick,
        "conditions": conditions,
        "copy_gb_per_s": session.copy_bandwidth / 1e9,
        "results": found,
        "targets": targets.evaluate(found, conditions),
        "left_out": session.left_out,
    }
    stem = results.file_stem(conditions, options.quick, partial=bool(options.op or options.case))
    paths = results.write(options.out, stem, document)
    if options.plot:
        paths.append(options.out / f"{stem}.png")
        results.plot(paths[-1], document)
    print(
        f"{conditions['device_name']}, {conditions['threads']} threads, torch {torch.__version__}, {options.dtype}, "
        f"copy {document['copy_gb_per_s']:.1f} GB/s; medians in ms; {'few repeats: a trial' if options.quick else f'up to {repeats} repeats'}\n"
    )
    print(results.as_text(found))
    print(targets.as_text(document["targets"]), end="")
    print("written: " + ", ".join(map(str, paths)))


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit code: 0, 1 where a contestant disagrees with the reference, 2 for an error."""
    options = parse_arguments(arguments)

    def call() -> int:
        try:
            run(options)
        except Disagreement as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            return EXIT_DISAGREEMENT
        return 0

    return exit_code(call, options.traceback, "nothing was written")


if __name__ == "__main__":
    sys.exit(main())

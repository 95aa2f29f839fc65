"""Proves an installation on its own GPU, and keeps the evidence: every step is a process with a limit of its own, what it found is written at once, and a failure is noted and passed over.

Needs the checkout, PyTorch and NumPy; a step that needs more says so and is left out. Without a GPU, or with --device cpu, it is a rehearsal: small, and evidence of nothing.
"""

from __future__ import annotations

import argparse
import datetime
import difflib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from repro.bench.evidence import outputs
from repro.bench.evidence.process import GRACE, Ended, run
from repro.bench.evidence.steps import STEPS, Setting, Step, find_tool
from repro.files import write_json
from repro.records.evidence import FAILED, FILE, FORMAT, LEFT_OUT, PASSED, TIMED_OUT, read_evidence
from repro.records.store import git_state
from repro.shell import check_writable, exit_code, log

ROOT = Path(__file__).parents[3]
BUDGET = 1450.0  # seconds: under 25 minutes
LEAST = 5.0  # seconds that a step must have left
PATIENCE = 4.0  # a rehearsal's steps have that many times their limits: its machine has few cores, and they do other things too
LOG_BYTES = 512 * 1024  # of one step in log.txt
PROBE = "import json, torch; c = torch.cuda; print(json.dumps([c.get_device_name(n) for n in range(c.device_count())]))"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m repro.bench.evidence", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), metavar="DIR", help="results (default runs/gpu/)")
    parser.add_argument(
        "--budget", type=float, default=BUDGET, metavar="SECONDS", help=f"for all steps together (default {BUDGET:.0f})"
    )
    parser.add_argument(
        "--steps",
        default="",
        metavar="A,B",
        help=f"these only, added to what --out holds: {', '.join(s.name for s in STEPS)}",
    )
    parser.add_argument("--device", default="auto", help="auto (the default), cuda, cuda:N, or cpu for a rehearsal")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    return parser.parse_args(arguments)


def chosen_steps(names: str) -> list[Step]:
    """Finds the steps that --steps names, in their own order.

    Raises:
        ValueError: One is unknown.
    """
    known = [step.name for step in STEPS]
    asked = [name for name in names.split(",") if name]
    for name in asked:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "choose among these"
            raise ValueError(f"--steps: must be of {', '.join(known)}; got {name!r}; {hint}")
    return [step for step in STEPS if not asked or step.name in asked]


def device_names() -> list[str]:
    """Names the CUDA devices, asked in a process of its own: this one shall hold none of their memory."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else []


def choose_device(name: str, names: list[str]) -> tuple[str, str]:
    """Resolves --device; returns the device and what it is called.

    Raises:
        ValueError: There is no such device.
    """
    if name == "auto":
        name = "cuda" if names else "cpu"
    if name == "cpu":
        return name, "cpu"
    found = re.fullmatch(r"cuda(?::(\d+))?", name)
    index = int(found[1] or 0) if found else 0
    if not found or index >= len(names):
        raise ValueError(
            f"--device: must be auto, cpu, or a CUDA device that torch sees; got {name!r} of {len(names)}; use cpu for a rehearsal"
        )
    return name, names[index]


def missing_module(output: str) -> str | None:
    """Finds the package of others whose absence ended a process."""
    last = output.rstrip().rpartition("\n")[2]
    found = re.search(r"No module named '?([A-Za-z_]\w*)", last)
    return found[1] if found and found[1] not in ("repro", "caffe_weights") else None


def judge(step: Step, ended: Ended, setting: Setting) -> tuple[str, str, dict[str, Any]]:
    """Says how a step went: its state, the reason where it is not "passed", and what it found."""
    state, reason = PASSED, ""
    if ended.code is None:
        state, reason = TIMED_OUT, f"stopped after {ended.seconds:.0f} s"
    elif ended.code and (missing := missing_module(ended.output)):
        state, reason = LEFT_OUT, f"needs {missing}"
    elif ended.code:
        last = " ".join(ended.output.split())[-300:]
        state, reason = FAILED, f"exit code {ended.code}: {last}"
    try:
        return state, reason, step.read(setting)
    except outputs.Failed as error:
        return (FAILED, str(error), error.found) if state == PASSED else (state, f"{reason}; {error}", error.found)
    except Exception as error:  # whatever a tool left, the other steps run
        unread = f"its results cannot be read: {' '.join(str(error).split())[:300]}"
        return (FAILED, unread, {}) if state == PASSED else (state, f"{reason}; {unread}", {})


def carry_out(step: Step, setting: Setting, left: float) -> tuple[str, str, dict[str, Any], float]:
    """Runs a step within what is left of the budget, seconds; returns its state, reason, findings and seconds."""
    if step.cuda and setting.rehearsal:
        return LEFT_OUT, "no CUDA device", {}, 0.0
    if step.tool and find_tool(step.tool) is None:
        return LEFT_OUT, f"needs {step.tool}", {}, 0.0
    if left < LEAST:
        return LEFT_OUT, "the budget is spent", {}, 0.0
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "KINETO_LOG_LEVEL": "6", "PYTHONUNBUFFERED": "1"}
    environment.setdefault("MAX_JOBS", str(os.cpu_count() or 1))
    if step.tool == "compute-sanitizer":
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = (
            "1"  # every tensor is its own allocation, so that overruns are seen
        )
    limit = min(step.limit * (PATIENCE if setting.rehearsal else 1.0), left)
    ended = run(step.command(setting), limit, ROOT, environment, setting.scratch / f"{step.name}.log")
    with open(setting.out / "log.txt", "ab") as file:
        tail = ended.output.encode()[-LOG_BYTES:]
        file.write(f"# {step.name}: exit code {ended.code}, {ended.seconds:.1f} s\n".encode() + tail + b"\n")
    return *judge(step, ended, setting), ended.seconds


def earlier(out: Path, rehearsal: bool, redone: list[Step]) -> list[dict[str, Any]]:
    """Reads the steps that an earlier part left, without those that are done again.

    Raises:
        ValueError: The folder holds what cannot be added to.
    """
    path = out / FILE
    if not path.exists():
        return []
    try:
        document = read_evidence(path)
    except ValueError as error:
        raise ValueError(f"--out: {path} must be evidence; got {error}; choose another folder") from error
    if document["rehearsal"] != rehearsal:
        raise ValueError(
            f"--out: {path} must be of the same kind; got a rehearsal beside evidence; choose another folder"
        )
    return [step for step in document["steps"] if step["name"] not in {one.name for one in redone}]


def summary(document: dict[str, Any]) -> str:
    """Renders a line for every step."""
    lines = ["A rehearsal on the CPU: it tries the steps, and is evidence of nothing."] if document["rehearsal"] else []
    for step in document["steps"]:
        lines.append(
            f"{step['state']:9}  {step['name']:13}  {step['seconds']:6.1f} s  {step['reason'] or step['what']}"
        )
    for precision, enough in document["loader_keeps_up"].items():
        lines.append(f"the data stream {'keeps up' if enough else 'does not keep up'} with training in {precision}")
    return "\n".join(lines)


def gather(options: argparse.Namespace) -> int:
    """Does what the command line asks; returns the exit code."""
    end = time.monotonic() + options.budget
    if not (ROOT / "setup.py").is_file():
        raise ValueError(f"evidence: must run from a checkout, whose kernels it builds; got {ROOT}; start it there")
    steps = chosen_steps(options.steps)
    device, name = choose_device(options.device, [] if options.device == "cpu" else device_names())
    check_writable(options.out)
    done = earlier(options.out, device == "cpu", steps)
    if not done:
        (options.out / "log.txt").unlink(missing_ok=True)
        (options.out / "sanitizer.txt").unlink(missing_ok=True)
    order = [step.name for step in STEPS]
    with tempfile.TemporaryDirectory() as scratch:
        setting = Setting(options.out.resolve(), Path(scratch), device)
        for step in steps:
            log(f"{step.name}: {step.what}")
            for kept in ("json", "xml", "csv"):  # of an earlier time: beside what this time finds it would lie
                (options.out / f"{step.name}.{kept}").unlink(missing_ok=True)
            state, reason, found, seconds = carry_out(step, setting, end - time.monotonic() - GRACE)
            log(f"  {state}{': ' * bool(reason)}{reason}")
            one = {"name": step.name, "what": step.what, "state": state, "reason": reason, "seconds": round(seconds, 1)}
            finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            done.append(
                one | {"device_name": name, "finished": finished, "commit": git_state()["commit"], "found": found}
            )
            done.sort(key=lambda entry: order.index(entry["name"]))
            document = {"format": FORMAT, "rehearsal": setting.rehearsal, "steps": done}
            document["loader_keeps_up"] = outputs.keeps_up(done)
            write_json(options.out / FILE, document)
    print(summary(document))
    bad = [entry for entry in document["steps"] if entry["state"] in (FAILED, TIMED_OUT)]
    return int(bool(bad) or (setting.rehearsal and options.device != "cpu"))


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit code: 0, 1 where a step failed or there is no CUDA device, 2 for an error."""
    options = parse_arguments(arguments)
    return exit_code(lambda: gather(options), options.traceback, "what was done is written; --steps does the rest")


if __name__ == "__main__":
    sys.exit(main())

"""The steps, in their order: what each runs, for how long at most, and what is kept of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro.bench.evidence import outputs
from repro.bench.evidence.kernels import METRICS, NAMES
from repro.bench.evidence.machine import find_tool
from repro.bench.targets import target_cases

MODULE = "repro.bench.evidence"
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")


@dataclass(frozen=True)
class Setting:
    """Where the steps work.

    out: Folder of the results.
    scratch: Folder of all else; gone afterwards.
    device: "cuda", "cuda:N" or "cpu", which is a rehearsal.
    """

    out: Path
    scratch: Path
    device: str

    @property
    def rehearsal(self) -> bool:
        """Whether no GPU is meant."""
        return self.device == "cpu"

    def module(self, name: str, *arguments: str) -> list[str]:
        """Makes the command of a module, on the device."""
        return [sys.executable, "-m", name, *arguments, "--device", self.device]


@dataclass(frozen=True)
class Step:
    """One step.

    name: For --steps.
    what: In a few words.
    limit: Seconds at most.
    command: What is run.
    read: What evidence.json keeps of it; run after the process, also where that failed. Raises outputs.Failed where what it left speaks against the installation.
    cuda: Whether it says nothing without a CUDA device.
    tool: A program of the CUDA toolkit that it needs, or "".
    """

    name: str
    what: str
    limit: float
    command: Callable[[Setting], list[str]]
    read: Callable[[Setting], dict[str, Any]]
    cuda: bool = False
    tool: str = ""


def _own(name: str, what: str, limit: float, module: str, *arguments: str) -> Step:
    """Makes a step of this package's own, which writes what it found as JSON."""

    def result(setting: Setting) -> Path:
        return setting.scratch / f"{name}.json"

    return Step(
        name,
        what,
        limit,
        lambda setting: setting.module(f"{MODULE}.{module}", *arguments, "--result", str(result(setting))),
        lambda setting: outputs.read_json(result(setting)),
    )


def _sanitizer(tool: str) -> Step:
    """Makes a step of compute-sanitizer.

    No filter of kernels: what an unwatched kernel of torch wrote, initcheck would take for unwritten. What is said of others' kernels is counted apart.
    """

    def report(setting: Setting) -> Path:
        return setting.scratch / f"{tool}.txt"

    def command(setting: Setting) -> list[str]:
        options = ["--tool", tool, "--log-file", str(report(setting)), "--target-processes", "all"]
        options += ["--report-api-errors", "no"] if tool == "memcheck" else []  # torch tries calls that may fail
        return [find_tool("compute-sanitizer") or "", *options, *setting.module(f"{MODULE}.calls")]

    def read(setting: Setting) -> dict[str, Any]:
        return outputs.sanitizer(report(setting), setting.out / "sanitizer.txt")

    return Step(tool, f"compute-sanitizer, {tool}: two dozen calls", 100, command, read, True, "compute-sanitizer")


def _bench(name: str, what: str, limit: float, chosen: bool, *arguments: str) -> Step:
    def command(setting: Setting) -> list[str]:
        cases = ["--op", "confusion_matrix", "--case", "table1-test-513", "--quick"]
        if not setting.rehearsal:
            pairs = sorted(target_cases()) if chosen else []
            cases = [word for op in sorted({op for op, _ in pairs}) for word in ("--op", op)]
            cases += [word for case in sorted({case for _, case in pairs}) for word in ("--case", case)]
        return setting.module("repro.bench", *cases, *arguments, "--out", str(setting.scratch / name))

    return Step(
        name, what, limit, command, lambda setting: outputs.bench(setting.scratch / name, setting.out / f"{name}.json")
    )


def _demo(precision: str) -> Step:
    def command(setting: Setting) -> list[str]:
        small = [
            "solver.max_iter=2",
            "synthetic.num_train=6",
            "synthetic.num_val=2",
            "data.num_train=6",
            "data.num_val=2",
        ]
        sets = [word for one in small for word in ("--set", one)] if setting.rehearsal else []
        out = str(setting.scratch / f"demo-{precision}")
        return setting.module(
            "repro.run", "demo", "--row", outputs.DEMO_ROW, "--precision", precision, "--out", out, *sets
        )

    read = lambda setting: outputs.demo(setting.scratch / f"demo-{precision}")  # noqa: E731
    return Step(f"demo-{precision}", f"row {outputs.DEMO_ROW} of the demo in {precision}", 150, command, read)


def _tests(setting: Setting) -> list[str]:
    chosen = ["tests/test_confusion_matrix.py", "-k", "by_hand"] if setting.rehearsal else ["-m", "gpu"]
    junit = f"--junitxml={setting.scratch / 'tests.xml'}"
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--maxfail=50", junit, *chosen]


def _ncu(setting: Setting) -> list[str]:
    kernels = "regex:" + "|".join(f"^{name}$" for name in NAMES)
    options = ["--csv", "--page", "raw", "--log-file", str(setting.scratch / "ncu.csv"), "--kernel-name", kernels]
    return [find_tool("ncu") or "", *options, "--metrics", ",".join(METRICS), *setting.module(f"{MODULE}.kernels")]


STEPS = (
    _own("versions", "versions, devices and topology", 60, "machine"),
    Step(
        "build",
        "the extension, in place",
        420,
        lambda setting: [sys.executable, "setup.py", "build_ext", "--inplace"],
        lambda setting: {},
    ),
    _own("smoke", "every operator, four types, against the CPU's; twice; one graph", 120, "smoke"),
    _own("training", "one step at full width in fp32, tf32 and bf16", 180, "training", "agree"),
    Step("tests", "the tests that need a GPU", 300, _tests, lambda setting: outputs.junit(setting.scratch / "tests.xml", setting.out / "tests.xml")),
    *map(_sanitizer, SANITIZERS),
    _bench("bench-fp32", "the benchmark, float32, all cases without torch.compile", 300, False, "--no-compile"),
    _bench("bench-bf16", "the benchmark, bfloat16, the targets' cases", 120, True, "--dtype", "bfloat16", "--no-compile"),
    _bench("bench-compile", "the benchmark with torch.compile, the targets' cases", 150, True),
    Step(
        "ncu", "four kernels under ncu", 120, _ncu,
        lambda setting: outputs.ncu(setting.scratch / "ncu.csv", setting.out / "ncu.csv"), True, "ncu",
    ),
    _own("speed", "timed training at full width, its options, memory and the hottest kernels", 300, "training", "speed"),
    _demo("fp32"),
    _demo("bf16"),
    _own("loader", "batches a second of the data stream at table 3's shapes", 120, "loader"),
)  # fmt: skip

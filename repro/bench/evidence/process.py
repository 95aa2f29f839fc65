"""One step's process: its output, its time and its end, also where it must be stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

GRACE = 10.0  # seconds from an interrupt, after which pytest still writes what it has, to the kill


class Ended(NamedTuple):
    """How a process ended.

    code: Its exit code; None where it was stopped at its limit.
    seconds: That it took.
    output: Its stdout and stderr together.
    """

    code: int | None
    seconds: float
    output: str


def run(command: Sequence[str], limit: float, folder: Path, environment: Mapping[str, str], log: Path) -> Ended:
    """Runs a command and everything it starts, in a session of its own.

    Args:
        command: Program and arguments.
        limit: Seconds after which it is interrupted, and after GRACE more killed.
        folder: Where it runs.
        environment: All of its variables.
        log: File of its output, which grows while it runs.
    """
    started = time.monotonic()
    with open(log, "wb") as file:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_hear_interrupts,
            )
        except OSError as error:
            return Ended(127, 0.0, f"{command[0]}: {error.strerror}")
        code: int | None = None
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            _stop(process)
        except BaseException:  # Ctrl-C of the whole program
            _stop(process)
            raise
    return Ended(code, time.monotonic() - started, log.read_text(encoding="utf-8", errors="replace"))


def _hear_interrupts() -> None:
    """Undoes what a shell does to a program in the background, whose children would pass over the interrupt at their limit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _stop(process: subprocess.Popen) -> None:
    for number, patience in ((signal.SIGINT, GRACE), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)

"""What every program of this package does: its log lines, its stdout, its exit code, and a look at its output folder."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def log(text: str) -> None:
    """Writes a progress line to stderr, above a progress bar if there is one."""
    tqdm = sys.modules.get("tqdm")  # who has not imported it has drawn no bar: not every machine that measures has it
    if tqdm is None:
        print(text, file=sys.stderr)
    else:
        tqdm.tqdm.write(text, file=sys.stderr)


def one_line(error: BaseException) -> str:
    """Writes an error as one line."""
    return " ".join(str(error).split())


def exit_code(
    call: Callable[[], int | None], show_traceback: bool = False, interrupted: str = "nothing was lost"
) -> int:
    """Runs a program to its end.

    Args:
        call: The program; returns its exit code, or None for 0.
        show_traceback: Whether an error shows where it comes from.
        interrupted: What to say after Ctrl-C.

    Returns:
        What `call` returned; 2 after an error, which is one line on stderr and its notes (`add_note`) below; 130 where it was interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that has no "±" shows "\xb1": a table that took hours is never lost to its encoding.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        return call() or 0
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        return 130
    except Exception as error:
        if show_traceback:
            traceback.print_exc()
        # These are our messages; any other kind is named, for its text alone says little.
        ours = isinstance(error, (ValueError, RuntimeError, OSError)) and not isinstance(error, RecursionError)
        kind = "" if ours else f"{type(error).__name__}: "
        print(f"error: {kind}{one_line(error)}", file=sys.stderr)
        for note in getattr(error, "__notes__", []):  # what is too long for the line, such as where a file is obtained
            print(f"  {note}", file=sys.stderr)
        return 2


def check_writable(out: Path) -> None:
    """Raises RuntimeError unless files can be made in the output folder, which is made where it is missing."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".writable-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise RuntimeError(
            f"--out: {out} must be a folder that can be written; got {error.strerror}; choose another --out"
        ) from error

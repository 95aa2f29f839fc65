"""A program under attack: run in a process of its own, and watched for tracebacks, hangs, and files where none belong."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import multiprocessing
import os
import sys
from pathlib import Path
from typing import NamedTuple

from repro.__main__ import PROGRAMS

LIMIT_S = 120
# Where each program says that it was asked for something else than it can do.
REFUSALS = ("error: ", "usage: ", "caffe_weights: ")
# One process imports everything once; each case is a fork of it, so that none sees what another did.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["attack", *(module for module, _ in PROGRAMS.values())])


class Ending(NamedTuple):
    """How a program ended: its exit code and what it wrote."""

    code: int
    out: str
    err: str


def _call(program: str, arguments: list[str], folder: str) -> None:
    """What the forked process does; its streams are files."""
    os.chdir(folder)
    os.environ["REPRO_CACHE"] = f"{folder}/cache"
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    faulthandler.enable()
    code = importlib.import_module(PROGRAMS[program][0]).main(arguments)
    sys.stdout.flush()
    sys.exit(code)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Lists the size and the time of every file below a folder."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with contextlib.suppress(FileNotFoundError):
                entry = os.lstat(f"{parent}/{name}")
                directory = os.path.isdir(f"{parent}/{name}")
                found[f"{parent}/{name}"] = (0, 0) if directory else (entry.st_size, entry.st_mtime_ns)
    return found


def attack(folder: Path, program: str, arguments: list[str], inputs: Path | None = None) -> Ending:
    """Runs a program, which may only write below folder/out.

    Args:
        folder: The case's own.
        program: A name of repro.__main__.PROGRAMS.
        arguments: Its own; paths absolute, or relative to folder/work.
        inputs: What other cases read too, and no case may change.

    Returns:
        How it ended: within the time, with an exit code of its own and no traceback, refusals in one line; and nothing but folder/out changed.
    """
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    (folder / "out").mkdir(exist_ok=True)

    def watched():
        places = [place for place in (folder, inputs) if place is not None]
        mine = (str(work / "std"), str(work / "cache"), str(folder / "out"))
        return {k: v for place in places for k, v in listing(place).items() if not k.startswith(mine)}

    before = watched()
    process = _CONTEXT.Process(target=_call, args=(program, arguments, str(work)))
    process.start()
    process.join(LIMIT_S)
    hung = process.is_alive()
    if hung:
        process.kill()
        process.join()
    out, err = ((work / name).read_text(errors="replace") for name in ("stdout", "stderr"))
    ending = Ending(process.exitcode, out, err)
    assert not hung, f"hangs: {program} {arguments}\n{err[-2000:]}"
    assert "Traceback" not in err, f"{program} {arguments}\n{err[-3000:]}"
    assert ending.code in (0, 1, 2), f"{program} {arguments}: exit code {ending.code}\n{err[-2000:]}"
    if ending.code == 2:
        refusals = [line for line in err.splitlines() if line.startswith(REFUSALS)]
        assert len(refusals) == 1, f"{program} {arguments}\n{err[-2000:]}"
    assert watched() == before, f"{program} {arguments}: files outside --out changed"
    left = [path for path in listing(folder / "out") if path.endswith((".tmp", ".part"))]
    assert not left, f"{program} {arguments}: {left}"
    return ending

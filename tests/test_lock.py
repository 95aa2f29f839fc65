"""One process at a time in a row's folder."""

import os
import signal
import subprocess
import sys

import pytest

from repro.run.lock import locked

HOLD = "import sys, time; from pathlib import Path; from repro.run.lock import locked\nwith locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "table1" / "baseline-seed1"


def other_process(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_nothing_is_left_behind(folder):
    for _ in range(2):
        with locked(folder):
            assert [path.name for path in folder.iterdir()] == ["lock"]
    assert list(folder.iterdir()) == []


def test_a_second_process_is_told_who_is_at_work(folder):
    process = other_process(folder)
    try:
        with (
            pytest.raises(
                RuntimeError,
                match=rf"^.*baseline-seed1: one process at a time must be at work here; got another, process {process.pid} on ",
            ),
            locked(folder),
        ):
            pass
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_killed_process_holds_nothing(folder):
    process = other_process(folder)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with locked(folder):
        assert str(os.getpid()) in (folder / "lock").read_text()

"""One row on several processes, one of which is killed at a random moment, again and again: the run goes on from its snapshot and ends with the record of one that nobody disturbed."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import Processes, new_store, program
from tiny import run_command

from repro.run import __main__ as run_module

KILLS = 20


class Lives:
    """A small run on several processes: `whole` is its record, `killed` the folder of one that will be disturbed."""

    def __init__(self, folder, count, monkeypatch, workers=0, iterations=100):
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.setenv("PYTHONPATH", str(Path(run_module.__file__).parents[1]))
        settings = [f"solver.max_iter={iterations}", "solver.stepsize=20", "solver.snapshot=2", "solver.display=40"]
        settings += ["solver.batch_size=4", "model.width=0.015625"]
        command = [*run_command(folder), "--row", "max2", *(part for text in settings for part in ("--set", text))]
        command += ["--workers", str(workers)]
        self.count, self.folder = count, folder
        self.out = folder / "killed"
        self.log = folder / "log"
        self.command = [*command, "--out", str(self.out)]
        undisturbed = Processes(count, folder / "whole.log", program, *command)
        assert undisturbed.end() == [0] * count, undisturbed.said()
        self.whole = record(folder / "out")
        self.moments = random.Random(count)
        self._store = new_store()

    def start(self):
        return Processes(self.count, self.log, program, *self.command, store=self._store)

    def written(self):
        """Says when the snapshot was last written."""
        path = self.out / "tiny" / "max2-seed1" / "snapshot.pt"
        return path.stat().st_mtime_ns if path.exists() else 0

    def wait_for_snapshot(self, before, alive):
        while self.written() == before and alive():
            time.sleep(0.001)
        time.sleep(self.moments.uniform(0, 0.1))

    def ends_as_if_nothing_had_been(self, starts):
        assert record(self.out) == self.whole
        begun = [int(text) for text in re.findall(r"Starting at iteration (\d+) ", self.log.read_text())]
        assert begun[0] == 0
        assert begun == sorted(begun)
        assert len(set(begun)) > max(1, starts // 2)


def record(out):
    """Reads the one record below a folder, without what differs from machine to machine; None before there is one."""
    found = [json.loads(path.read_text()) for path in out.glob("*/*/record.json")]
    return found[0] | {"run": found[0]["run"]["world_size"]} if found else None


def survives(lives, kills):
    """Kills one process after another, and gives the command again."""
    for _ in range(kills):
        before, said = lives.written(), len(lives.log.read_text()) if lives.log.exists() else 0
        processes = lives.start()
        lives.wait_for_snapshot(before, processes.alive)
        victim = lives.moments.randrange(lives.count)
        processes.send(victim, signal.SIGKILL)
        codes = processes.end()  # the others end by themselves
        assert codes == [-signal.SIGKILL if rank == victim else 2 for rank in range(lives.count)], processes.said()
        (told,) = [line for line in processes.said()[said:].splitlines() if line.startswith("error: ")]
        assert re.fullmatch(
            rf"error: torchrun: all {lives.count} processes must live and reach each other until the end; got .*; "
            "where one was lost, the same command goes on from the last snapshot, with torchrun's --max-restarts by itself",
            told,
        )
        assert record(lives.out) is None
    processes = lives.start()
    assert processes.end() == [0] * lives.count, processes.said()
    lives.ends_as_if_nothing_had_been(kills)


def is_asked_to_stop(lives, number):
    """Asks one process to stop: all save, and stop."""
    before, said = lives.written(), len(lives.log.read_text()) if lives.log.exists() else 0
    processes = lives.start()
    lives.wait_for_snapshot(before, processes.alive)
    processes.send(lives.count - 1, number)
    assert processes.end() == [130] * lives.count, processes.said()
    told = [line for line in processes.said()[said:].splitlines() if line.startswith(("error: ", "interrupted"))]
    assert told == ["interrupted; the same command goes on from the last snapshot"]


def test_a_run_survives_the_loss_of_a_process(tmp_path, monkeypatch):
    lives = Lives(tmp_path, 3, monkeypatch, iterations=24)
    is_asked_to_stop(lives, signal.SIGTERM)
    survives(lives, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "workers"), [(2, 0), (3, 0), (2, 1)])
def test_a_run_survives_the_loss_of_twenty_processes(count, workers, tmp_path, monkeypatch):
    lives = Lives(tmp_path, count, monkeypatch, workers)
    is_asked_to_stop(lives, signal.SIGINT)
    survives(lives, KILLS)


def is_restarted(lives, kills):
    """Has torchrun start the command, and kills one of its processes again and again: it starts all anew by itself."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(lives.count)]
    command += ["--max-restarts", str(kills), "--monitor-interval", "0.1", "-m", "repro.run", *lives.command]
    with open(lives.log, "w") as log:
        torchrun = subprocess.Popen(command, stdout=log, stderr=log)
    killed = 0
    while killed < kills and torchrun.poll() is None:
        before = lives.written()
        lives.wait_for_snapshot(before, lambda: torchrun.poll() is None)
        workers = children(torchrun.pid)
        if workers:
            os.kill(lives.moments.choice(workers), signal.SIGKILL)
            killed += 1
        while set(workers) & set(children(torchrun.pid)):
            time.sleep(0.01)
    assert torchrun.wait(600) == 0, lives.log.read_text()
    assert killed == kills
    lives.ends_as_if_nothing_had_been(kills)


def children(parent):
    """Lists the processes that another one started and that are still at work."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, ppid, *_ = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(ppid) == parent and state not in "ZX":
            found.append(int(path.parent.name))
    return found


def test_torchrun_restarts_a_run_from_its_last_snapshot(tmp_path, monkeypatch):
    is_restarted(Lives(tmp_path, 2, monkeypatch, iterations=24), 1)


@pytest.mark.slow
def test_torchrun_restarts_a_run_twenty_times(tmp_path, monkeypatch):
    is_restarted(Lives(tmp_path, 2, monkeypatch), KILLS)

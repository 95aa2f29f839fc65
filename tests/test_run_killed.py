"""A run that is killed with SIGKILL again and again, at random moments, ends with the record of one that nobody disturbed, bit for bit."""

import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from tiny import main, run_command

from repro.run import __main__ as run_module

KILLS = 20
WORKERS = (0, 1, 2)


def documents(out):
    """Reads all records below a folder, without what differs from machine to machine and from day to day."""
    found = {path.parent.name: json.loads(path.read_text()) for path in out.glob("*/*/record.json")}
    return {name: record | {"run": None} for name, record in found.items()}


class Lives:
    """A small run that is started, ended by a signal at a random moment after its next snapshot, and started again, in the same folder."""

    def __init__(self, folder, workers, monkeypatch):
        settings = ["solver.max_iter=200", "solver.stepsize=100", "solver.snapshot=2", "solver.display=100"]
        command = [*run_command(folder), "--row", "max2", *(part for text in settings for part in ("--set", text))]
        assert main(command) == 0
        self.whole = documents(folder / "out")
        self.out, self.log = folder / "killed", folder / "log"
        self.snapshot = self.out / "tiny" / "max2-seed1" / "snapshot.pt"
        self._command = [*command, "--out", str(self.out), "--workers", str(workers)]
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.setenv("PYTHONPATH", str(Path(run_module.__file__).parents[1]))  # the server knows no other path
        self._context = multiprocessing.get_context("forkserver")  # imports the program once, then starts it in no time
        self._context.set_forkserver_preload(["__main__", "repro.run.__main__", __name__])
        self._moments = random.Random(workers)

    def start(self):
        process = self._context.Process(target=in_its_own_session, args=(self._command, str(self.log)))
        process.start()
        return process

    def end(self, number):
        """Starts it, and sends it a signal after it has gone on from where the last life ended."""

        def written():
            return self.snapshot.stat().st_mtime_ns if self.snapshot.exists() else 0

        before = written()
        process = self.start()
        while written() == before and process.is_alive():
            time.sleep(0.001)
        time.sleep(self._moments.uniform(0, 0.04))
        os.kill(process.pid, number)
        process.join(60)
        assert process.exitcode == (-signal.SIGKILL if number == signal.SIGKILL else 130), self.log.read_text()
        assert not documents(self.out)
        deadline = time.monotonic() + 20
        while of_session(process.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert of_session(process.pid) == []  # its workers have ended with it


def in_its_own_session(command, log):
    """Runs the program so that all it starts can be found by its process id; what it says on stderr is added to a file."""
    os.setsid()
    multiprocessing.process._parent_process = None  # as a program of its own, which is nobody's worker
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    sys.exit(run_module.main(command))


def of_session(leader):
    """Lists the processes of a session that are still at work."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session, *_ = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(session) == leader and state not in "ZX":
            found.append(int(path.parent.name))
    return found


def ends_as_if_nothing_had_been(lives, starts):
    """Lets the run come to its end."""
    process = lives.start()
    process.join()
    assert documents(lives.out) == lives.whole
    begun = [int(text) for text in re.findall(r"Starting at iteration (\d+) ", lives.log.read_text())]
    assert begun[0] == 0
    assert begun == sorted(set(begun))
    assert len(begun) == starts + 1


def test_a_small_run_survives_twenty_kills(tmp_path, monkeypatch):
    lives = Lives(tmp_path, 0, monkeypatch)
    for _ in range(KILLS):
        lives.end(signal.SIGKILL)
    ends_as_if_nothing_had_been(lives, KILLS)


@pytest.mark.slow
@pytest.mark.parametrize("workers", WORKERS)
def test_a_small_run_survives_twenty_signals(tmp_path, monkeypatch, workers):
    """SIGKILL, SIGTERM and SIGINT in turn; with data workers, which end too."""
    lives = Lives(tmp_path, workers, monkeypatch)
    for life in range(KILLS):
        lives.end((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[life % 3])
    ends_as_if_nothing_had_been(lives, KILLS)


def test_a_run_whose_data_worker_is_killed_says_so_and_goes_on(tmp_path, monkeypatch):
    lives = Lives(tmp_path, 1, monkeypatch)
    process = lives.start()
    while not lives.snapshot.exists() and process.is_alive():
        time.sleep(0.001)
    (worker,) = (number for number in of_session(process.pid) if number != process.pid)
    os.kill(worker, signal.SIGKILL)
    process.join(60)
    assert process.exitcode == 2
    (told,) = (line for line in lives.log.read_text().splitlines() if line.startswith("error: "))
    assert told.startswith("error: ImageSegData: data workers must stay alive and hand their batches over; got ")
    process = lives.start()
    process.join()
    assert documents(lives.out) == lives.whole


def test_of_two_runs_in_one_folder_the_second_is_told(tmp_path, monkeypatch):
    lives = Lives(tmp_path, 0, monkeypatch)
    first = lives.start()
    while not lives.snapshot.exists() and first.is_alive():
        time.sleep(0.001)
    second = lives.start()
    second.join(60)
    assert second.exitcode == 2
    assert f"got another, process {first.pid} on " in lives.log.read_text()
    first.join()
    assert documents(lives.out) == lives.whole


@pytest.mark.data
def test_real_images_survive_twenty_kills(data_root, tmp_path):
    root = data_root / "voc12_subset"
    if not (root / "ImageSets" / "val.txt").is_file():
        pytest.skip(f"needs {root}, photos of PASCAL VOC 2012 with DeepLab's labels and lists")
    ids = (root / "ImageSets" / "val.txt").read_text().split()
    (tmp_path / "val.txt").write_text("\n".join(ids[:60]) + "\n")
    settings = {
        "model.width": 0.125,
        "transform.crop_size": 129,
        "solver.batch_size": 6,
        "solver.max_iter": 300,
        "solver.stepsize": 100,
        "solver.snapshot": 10,
        "solver.display": 10,
        "data.val_list": tmp_path / "val.txt",
    }
    command = [sys.executable, "-m", "repro.run", "table3", "--data-root", str(root), "--subset", "--weights", "none"]
    command += ["--device", "cpu", "--workers", "1"]
    for row in ("baseline", "average3", "attention3"):
        command += ["--row", row]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(run_module.__file__).parents[1])}

    def start(out, log):
        return subprocess.Popen(
            [*command, "--out", str(out)],
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=environment,
            start_new_session=True,
        )

    began = time.monotonic()
    with open(tmp_path / "whole.log", "w") as log:
        assert start(tmp_path / "whole", log).wait() == 0
    whole_seconds = time.monotonic() - began
    print(f"\nuninterrupted: {whole_seconds:.0f} s", flush=True)
    moments = random.Random(1)
    interrupted = Counter()
    began = time.monotonic()
    for life in range(1, 200):
        with open(tmp_path / "killed.log", "w+") as log:
            process = start(tmp_path / "killed", log)
            # Long enough, now and then, for the start of the program and a whole test, which begins anew in every life.
            delay = moments.uniform(0.5, max(15, whole_seconds / 12))
            try:
                assert process.wait(delay) == 0
                break
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            log.seek(0)
            said = [line.strip() for line in log]
        last = said[-1] if said else "start"
        interrupted[last.split()[0] if not last.startswith("Iteration 300,") else "test"] += 1
        print(f"life {life}: killed after {delay:.1f} s, {last}", flush=True)
    print(
        f"killed {sum(interrupted.values())} times in {time.monotonic() - began:.0f} s: {dict(interrupted)}", flush=True
    )
    assert sum(interrupted.values()) >= KILLS
    whole, killed = documents(tmp_path / "whole"), documents(tmp_path / "killed")
    assert set(whole) == {"baseline-seed1", "average3-seed1", "attention3-seed1"}
    assert killed == whole
    for name, record in whole.items():
        print(
            f"{name}: mean IoU {record['value']:.4f}, loss {record['loss_curve'][0]:.4f} to {record['loss_curve'][-1]:.4f}: the same record"
        )

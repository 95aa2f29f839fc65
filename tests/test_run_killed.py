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


def documents(out):
    """Reads all records below a folder, without what differs from machine to machine and from day to day."""
    found = {path.parent.name: json.loads(path.read_text()) for path in out.glob("*/*/record.json")}
    return {name: record | {"run": None} for name, record in found.items()}


def test_a_small_run_survives_twenty_kills(tmp_path, monkeypatch, capfd):
    settings = ["solver.max_iter=200", "solver.stepsize=100", "solver.snapshot=2", "solver.display=100"]
    command = [*run_command(tmp_path), "--row", "max2", *(part for text in settings for part in ("--set", text))]
    assert main(command) == 0
    whole = documents(tmp_path / "out")
    command = [*command, "--out", str(tmp_path / "killed")]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(run_module.__file__).parents[1]))  # the server knows no other path
    context = multiprocessing.get_context("forkserver")  # imports the program once, then starts it in no time
    context.set_forkserver_preload(["__main__", "repro.run"])
    snapshot = tmp_path / "killed" / "tiny" / "max2-seed1" / "snapshot.pt"
    moments = random.Random(1)

    def start():
        process = context.Process(target=run_module.main, args=(command,))
        process.start()
        return process

    def written():
        return snapshot.stat().st_mtime_ns if snapshot.exists() else 0

    for _ in range(KILLS):
        before = written()
        process = start()
        while written() == before and process.is_alive():  # until it has gone on from where the last one was
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.04))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not documents(tmp_path / "killed")
    process = start()
    process.join()
    assert documents(tmp_path / "killed") == whole
    starts = [int(text) for text in re.findall(r"Starting at iteration (\d+) ", capfd.readouterr().err)]
    assert starts[:2] == [0, 0]  # the undisturbed run, and the first that was killed
    assert starts[2:] == sorted(starts[2:])
    assert len(set(starts[2:])) == KILLS


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

"""ImageSegData's worker processes: the same batches, and whatever befalls a worker is one line, never a wait."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_stream import assert_same, items, stream, take

from repro.data.lists import read_item
from repro.data.stream import _outlive_one_sigterm, workers_that_fit

ROOT = Path(__file__).parents[1]
LOST = r"^ImageSegData: data workers must stay alive and hand their batches over; got {}; use fewer workers or give more \(shared\) memory$"


@pytest.fixture
def two_cpus():
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPUs, to have two worker processes")


def test_workers_give_the_same_batches_and_go_with_the_iterator(two_cpus):
    state = torch.get_rng_state()
    batches = iter(stream("train_scale", workers=2, start_batch=3))
    assert_same(take(batches, 9), "train_scale", slice(3, None))
    assert len(multiprocessing.active_children()) == 2
    assert torch.equal(torch.get_rng_state(), state)
    del batches
    assert multiprocessing.active_children() == []


def test_more_workers_than_cpus_are_not_started():
    batches = iter(stream(workers=1000))
    next(batches)
    assert len(multiprocessing.active_children()) == len(os.sched_getaffinity(0))


def test_workers_outlive_the_first_sigterm_of_their_group_and_no_second(two_cpus):
    batches = iter(stream(workers=2))
    next(batches)
    next(batches)  # the other worker's: now both have started
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
    time.sleep(0.3)
    next(batches)
    assert all(worker.is_alive() for worker in workers)
    del batches
    assert multiprocessing.active_children() == []
    before = signal.getsignal(signal.SIGTERM)
    try:
        _outlive_one_sigterm(0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_worker_that_dies_is_one_line_and_ends_the_others(tmp_path, monkeypatch, two_cpus):
    def dies_once(item):
        try:
            (tmp_path / "first").mkdir()
        except FileExistsError:
            time.sleep(1)
            return read_item(items()[0])  # The second worker lives on.
        time.sleep(0.3)  # Let the parent finish starting the two.
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("repro.data.stream.read_item", dies_once)
    message = r"^ImageSegData: data workers must stay alive and hand their batches over; got DataLoader worker [^\n]+; use fewer workers or give more \(shared\) memory$"
    with pytest.raises(RuntimeError, match=message) as caught:
        take(iter(stream(workers=2)), 3)
    assert multiprocessing.active_children() == []  # While the exception is still held:
    assert caught.value.__context__ is None


def test_a_worker_that_dies_during_an_iteration_is_told_by_the_next_batch(monkeypatch, two_cpus):
    """DataLoader's own handler would raise wherever the program just is, in DataLoader's words."""
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(stream(workers=2))
    take(batches, 2)
    assert signal.getsignal(signal.SIGCHLD) is before
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)
    time.sleep(0.5)  # Here training would be interrupted.
    with pytest.raises(RuntimeError, match=LOST.format("[^\\n]+")):
        take(batches, 9)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    "error", [RuntimeError("unable to allocate\nshared memory"), OSError(24, "Too many open files")]
)
def test_what_a_worker_cannot_hand_over_reaches_the_parent(monkeypatch, error):
    def dumps(batch):
        raise error

    monkeypatch.setattr("repro.data.stream.ForkingPickler", SimpleNamespace(dumps=dumps))
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=LOST.format(re.escape(" ".join(str(error).split())))):
        next(iter(stream(workers=1)))
    assert time.monotonic() - began < 20
    assert multiprocessing.active_children() == []


Space = namedtuple("Space", "f_bavail f_frsize")
MIB = 2**20


@pytest.mark.parametrize(
    ("free", "workers", "fit"),
    [
        (64, 15, 0),
        (64, 0, 0),
        (120, 15, 0),
        (121, 15, 1),
        (120 + 80, 15, 1),
        (121 + 80, 2, 2),
        (10**6, 15, 15),
        (0, 1, 0),
    ],
)
def test_workers_must_fit_into_the_shared_memory(monkeypatch, capsys, free, workers, fit):
    """Of table 3's batches, 30 x 321 x 321, each takes 38.3 MiB; each worker makes two ahead and one is in use."""
    batch_bytes = 30 * 321 * 321 * 13
    monkeypatch.setattr("repro.data.stream.os.statvfs", lambda path: Space(free * 256, 4096))
    assert workers_that_fit(workers, 40 * MIB) == fit
    told = capsys.readouterr().err
    if fit == workers:
        assert told == ""
        return
    needed = (1 + 2 * workers) * 40 + 1
    assert told == (
        f"ImageSegData: {workers} data workers need {needed} MiB of shared memory; got {free} MiB in /dev/shm; "
        f"{fit or 'none'} work ahead (docker: --shm-size)\n"
    )
    assert batch_bytes < 40 * MIB


def test_a_system_without_that_folder_is_not_asked(monkeypatch, tmp_path):
    monkeypatch.setattr("repro.data.stream.SHARED_MEMORY", tmp_path / "none")
    assert workers_that_fit(15, 10**12) == 15


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from test_stream import stream, take
from repro.data import stream as module
from repro.shell import exit_code
if sys.argv[2] == "unlooked":  # as where others fill the shared memory after the look
    module.workers_that_fit = lambda workers, batch_bytes: workers
sys.exit(exit_code(lambda: take(stream(workers=1, batch_size=int(sys.argv[3])), 6) and 0))
"""


@pytest.mark.parametrize(
    ("shm", "look", "batch_size", "code", "told"),
    [
        ("64k", "look", 2, 0, r"1 data workers need 1 MiB of shared memory; got 0 MiB in /dev/shm; none work ahead"),
        ("8m", "look", 60, 0, r"1 data workers need \d+ MiB of shared memory; got 8 MiB in /dev/shm; none work ahead"),
        (
            "8m",
            "unlooked",
            60,
            2,
            r"error: ImageSegData: data workers .* got (unable to allocate|DataLoader worker).*; use",
        ),
        ("8m", "look", 2, 0, ""),
    ],
)
def test_a_small_shared_memory_is_told_and_never_waited_for(shm, look, batch_size, code, told):
    mount = f'mount -t tmpfs -o size={shm} tmpfs /dev/shm && exec "$@"'
    unshare = ["unshare", "-m", "sh", "-c", mount, "sh"]
    try:
        subprocess.run([*unshare, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs unshare and the right to mount, to give a program a small /dev/shm")
    arguments = [sys.executable, "-c", PROGRAM, str(ROOT / "tests"), look, str(batch_size)]
    done = subprocess.run(
        [*unshare, *arguments], capture_output=True, text=True, timeout=60, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == code, done.stderr
    assert re.search(told, done.stderr), done.stderr
    if not told:
        assert done.stderr == ""

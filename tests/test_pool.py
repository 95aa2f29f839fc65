"""Work in processes: its order, its signals, its ends. That nothing outlives the program is tested by those who use it."""

import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from threading import Timer

import pytest

from repro.data.pool import interruptible, work_through

OURS = {signal.SIGINT, signal.SIGTERM}


def blocked(_):
    return signal.pthread_sigmask(signal.SIG_BLOCK, ()), os.getpid()


def fail_at(index):
    if index == 3:
        raise ValueError("three")
    time.sleep(0 if index < 3 else 60)
    return index


def slowly(index):
    time.sleep(0.05 * index)
    return index


def run(work, jobs, workers, chunk=1, **more):
    return list(work_through(work, jobs, workers, chunk, "testing", "thing", **more))


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs(workers, capsys):
    assert run(str, range(10), workers, chunk=3, done=5) == [str(n) for n in range(10)]
    assert "15/15" in capsys.readouterr().err
    assert multiprocessing.active_children() == []


def test_few_jobs_are_done_here():
    assert {pid for _, pid in run(blocked, range(8), 4, chunk=8)} == {os.getpid()}


def test_workers_leave_the_signals_of_a_group_to_the_parent():
    """From their first moment: they would die, or write a traceback, while they still import."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    results = run(blocked, range(8), 2)
    assert all(mask >= OURS and pid != os.getpid() for mask, pid in results)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_an_exception_ends_the_others_at_once():
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"^three$"):
        run(fail_at, range(8), 2)
    assert time.monotonic() - began < 30
    assert multiprocessing.active_children() == []


def test_whoever_lets_go_ends_the_workers():
    results = work_through(fail_at, range(8), 2, 1, "testing", "thing")
    assert next(results) == 0
    results.close()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("number", sorted(OURS))
def test_interruptible(number):
    seen = []
    before = signal.signal(number, lambda *_: seen.append("handled"))
    try:
        with pytest.raises(KeyboardInterrupt), interruptible():
            signal.raise_signal(number)
        os.kill(os.getpid(), number)
        assert seen == ["handled"]
    finally:
        signal.signal(number, before)


def test_ctrl_c_is_quiet_also_where_the_pool_sees_its_dead_workers_first(monkeypatch):
    """An exception in the pool's own thread would be a warning, and so an error."""
    shutdown = ProcessPoolExecutor.shutdown

    def late(pool, *arguments, **options):
        time.sleep(0.3)
        shutdown(pool, *arguments, **options)

    monkeypatch.setattr(ProcessPoolExecutor, "shutdown", late)
    results = work_through(slowly, range(1000), 2, 1, "testing", "thing")
    assert next(results) == 0
    Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with interruptible(), pytest.raises(KeyboardInterrupt):
        list(results)

"""Work in processes that end with this one, however it ends."""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from threading import Thread, current_thread, main_thread
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
_OURS = (
    signal.SIGINT,
    signal.SIGTERM,
)  # What a terminal or a service sends to all processes of a group: the parent decides.


def work_through(
    work: Callable[[Any], T], jobs: Sequence[Any], workers: int, chunk: int, what: str, unit: str, done: int = 0
) -> Iterator[T]:
    """Does jobs in parallel, with a progress bar on stderr.

    An exception, Ctrl-C and whoever lets the iterator go end the workers at once; SIGKILL of this process ends them too.

    Args:
        work: A function that can be pickled.
        jobs: Its arguments.
        workers: Processes; 1 works in this one, as does a number of jobs that is not worth a second.
        chunk: Jobs that a worker takes at once.
        what: The bar's title.
        unit: What is counted.
        done: Jobs that were done before, for the bar.

    Yields:
        The results in the order of the jobs.

    Raises:
        RuntimeError: A worker was killed.
        Exception: What `work` raised first.
    """
    # A log gets a line every five seconds, a terminal a smooth bar.
    interval = 0.1 if sys.stderr.isatty() else 5.0
    bar = partial(
        tqdm, total=done + len(jobs), initial=done, desc=what, unit=unit, mininterval=interval, file=sys.stderr
    )
    workers = min(workers, -(-len(jobs) // chunk))
    if workers <= 1:
        yield from bar(map(work, jobs))
        return
    before, ours = set(active_children()), set()
    # Not forked: the caller may run torch's threads.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker)
    try:
        with without_signals():
            # Starts the workers. Not pool.map, which cancels its futures when it is closed: the pool's thread, which finds the workers killed, may then fail on them.
            futures = deque(pool.submit(_all, work, jobs[n : n + chunk]) for n in range(0, len(jobs), chunk))
            ours = set(active_children()) - before
        yield from bar(_results(futures))
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"{what}: all worker processes must live; got one that was killed; use fewer --workers"
        ) from error
    finally:
        for child in ours:
            child.kill()  # They write files whole or not at all, and this is the end of the work, or of everything.
        pool.shutdown(cancel_futures=True)


def _all(work: Callable[[Any], T], jobs: Sequence[Any]) -> list[T]:
    return [work(job) for job in jobs]


def _results(futures: deque[Future[list[T]]]) -> Iterator[T]:
    while futures:
        yield from futures.popleft().result()


@contextmanager
def without_signals() -> Iterator[None]:
    """Blocks the signals that ask to stop, in this thread and in the processes that are started meanwhile, which keep it so; they come afterwards."""
    # Another thread, such as a BLAS's, may take a signal that this one blocks; Python would then run its handler here all the same.
    waiting: list[int] = []
    main = current_thread() is main_thread()
    handlers = {n: signal.signal(n, lambda number, _: waiting.append(number)) for n in _OURS} if main else {}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in waiting:
            signal.raise_signal(number)


@contextmanager
def interruptible() -> Iterator[None]:
    """Lets SIGINT and SIGTERM raise KeyboardInterrupt at once, for work that has nothing to save, whatever the program does with them otherwise."""
    if current_thread() is not main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.default_int_handler) for number in _OURS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start_worker() -> None:
    """Lets a worker end with its parent, also where that is killed."""

    def end_with_parent() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=end_with_parent, daemon=True).start()

"""Timing several contestants in one run.

They take turns, so that what disturbs the machine disturbs all alike. On the CPU a contestant's call is timed right after another call of its own that is not timed: no contestant
pays for a cache that another one filled.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from repro.bench.cases import CPU_THREADS

WARM_UP = 3  # calls of each contestant that are not timed
CYCLES_PER_SECOND = 2e9  # about the fastest clock of a GPU: on a slower one the device sleeps longer
SHORTEST_SLEEP, LONGEST_SLEEP = 100e-6, 20e-3  # seconds; queueing a call takes no longer than the call as called


class Timing(NamedTuple):
    """Of one contestant: seconds, and the number of timed calls.

    median, p20, p80: Of the time that the device works.
    called: Median of the time that the caller waits; None on the CPU, where it is the same.
    """

    median: float
    p20: float
    p80: float
    repeats: int
    called: float | None = None


class OnHost:
    """A call that runs on the CPU, whatever the device of the others: on as many threads as the CPU's own targets are meant for."""

    def __init__(self, call: Callable[[], object]):
        self._call = call

    def __call__(self) -> object:
        threads = torch.get_num_threads()
        torch.set_num_threads(CPU_THREADS)
        try:
            return self._call()
        finally:
            torch.set_num_threads(threads)


class Clock:
    """Times one call on a device.

    On CUDA a call is timed twice, each time with a cold L2 cache: twice its size has been read (what a write leaves there, the call would have to
    write back). As called: by the host, from an idle device to an idle device, with all that Python and the launches cost. On the device: by events
    around kernels that were all queued while the device slept, so that it waits for no launch between them; a call that itself waits for the device,
    as one of data-dependent shape does, still shows its gaps. A call OnHost is timed as on the CPU.

    Args:
        device: CPU: the wall clock is all.
    """

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == "cuda":
            size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
            self._flush = torch.zeros(size // 4, device=device)
            self._sum = torch.zeros((), device=device)

    def seconds(self, call: Callable[[], object]) -> tuple[float, float | None]:
        """Times a call: on the device, and on CUDA as called (see Timing)."""
        if self.on_host(call):
            return _host_seconds(call), None

        def and_wait() -> None:
            call()
            torch.cuda.synchronize(self.device)

        self._cool()
        torch.cuda.synchronize(self.device)
        called = _host_seconds(and_wait)
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._cool()
        torch.cuda._sleep(int(CYCLES_PER_SECOND * min(LONGEST_SLEEP, SHORTEST_SLEEP + called)))
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3, called

    def on_host(self, call: Callable[[], object]) -> bool:
        """Says whether a call is the CPU's work, so that the wall clock is all."""
        return self.device.type != "cuda" or isinstance(call, OnHost)

    def _cool(self) -> None:
        torch.sum(self._flush, dim=0, out=self._sum)


def _host_seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def settle_malloc() -> None:
    """Brings glibc's malloc into the state of a long-running program, so that no case depends on those before it.

    Its threshold for blocks that are mapped, and so filled by page faults, in every call rises with the largest block freed, up to 32 MiB.
    """
    torch.empty(31 * 2**20, dtype=torch.int8)


def take_turns(
    clock: Clock, contestants: dict[str, Sequence[Callable[[], object]]], repeats: int, budget: float
) -> dict[str, Timing]:
    """Times every contestant once a round (see `rounds`), and reduces its times (see `summarise`)."""
    return {name: summarise(values) for name, values in rounds(clock, contestants, repeats, budget).items()}


def rounds(
    clock: Clock, contestants: dict[str, Sequence[Callable[[], object]]], repeats: int, budget: float
) -> dict[str, list[tuple[float, float | None]]]:
    """Times every contestant once a round, in an order drawn anew each round; lists each one's times, by round.

    Args:
        clock: Of the device.
        contestants: By name: the same call over one or several sets of inputs, which are used in turn.
        repeats: Rounds at most.
        budget: Rounds end early where they would take longer than this, seconds; 5 are timed in any case.
    """
    for calls in contestants.values():
        for n in range(WARM_UP):
            clock.seconds(calls[n % len(calls)])
    order = random.Random(0)
    seconds: dict[str, list[tuple[float, float | None]]] = {name: [] for name in contestants}
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + budget
        for n in range(repeats):
            if n >= 5 and time.perf_counter() > end:
                break
            for name in order.sample(list(contestants), len(contestants)):
                calls = contestants[name]
                call = calls[n % len(calls)]
                if clock.on_host(call):
                    call()
                seconds[name].append(clock.seconds(call))
    finally:
        gc.enable()
    return seconds


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> tuple[float, float, float]:
    """Compares two contestants round by round: what slows the machine for a while slows both, and falls out of their ratio.

    Args:
        numerator, denominator: Times of the two in the same rounds.

    Returns:
        The median of the rounds' ratios, and an interval that covers the true median with at least 95 % (of order statistics: the sign test's); the whole range where the rounds
        are too few for that.
    """
    ratios = sorted(a / b for a, b in zip(numerator, denominator, strict=True))
    n, low, tail = len(ratios), 0, 2.0 ** -len(ratios)
    while (tail := tail + math.comb(n, low + 1) / 2**n) <= 0.025:
        low += 1
    return statistics.median(ratios), ratios[low], ratios[n - 1 - low]


def summarise(seconds: Sequence[tuple[float, float | None]]) -> Timing:
    """Reduces times, on the device and as called, to their medians, and the former to their 20th and 80th percentile too."""
    own, called = [one for one, _ in seconds], [one for _, one in seconds if one is not None]
    p20, _, _, p80 = statistics.quantiles(own, n=5, method="inclusive")
    return Timing(statistics.median(own), p20, p80, len(own), statistics.median(called) if called else None)


def copy_bandwidth(clock: Clock, repeats: int) -> float:
    """Measures a copy of 256 MiB within the device, bytes read and bytes written per second."""
    source = torch.ones(2**26, device=clock.device)
    target = torch.empty_like(source)
    (timing,) = take_turns(clock, {"copy": [lambda: target.copy_(source)]}, repeats, budget=20.0).values()
    return 2 * source.nbytes / timing.median

"""Timing several contestants in one run.

They take turns, so that what disturbs the machine disturbs all alike. On the CPU a contestant's call is timed right after another call of its own that is not timed: no contestant
pays for a cache that another one filled.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

WARM_UP = 3  # calls of each contestant that are not timed


class Timing(NamedTuple):
    """Of one contestant: seconds, and the number of timed calls."""

    median: float
    p20: float
    p80: float
    repeats: int


class Clock:
    """Times one call on a device.

    Args:
        device: CPU: the wall clock. CUDA: events, after a write of twice the L2 cache's size has flushed it.
    """

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == "cuda":
            size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
            self._flush = torch.empty(size, dtype=torch.int8, device=device)

    def seconds(self, call: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._flush.zero_()
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3


def settle_malloc() -> None:
    """Brings glibc's malloc into the state of a long-running program, so that no case depends on those before it.

    Its threshold for blocks that are mapped, and so filled by page faults, in every call rises with the largest block freed, up to 32 MiB.
    """
    torch.empty(31 * 2**20, dtype=torch.int8)


def take_turns(
    clock: Clock, contestants: dict[str, Sequence[Callable[[], object]]], repeats: int, budget: float
) -> dict[str, Timing]:
    """Times every contestant once a round, in an order drawn anew each round.

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
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
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
                if clock.device.type == "cpu":
                    call()
                seconds[name].append(clock.seconds(call))
    finally:
        gc.enable()
    return {name: summarise(values) for name, values in seconds.items()}


def summarise(seconds: Sequence[float]) -> Timing:
    """Reduces times to their median and their 20th and 80th percentile."""
    p20, _, _, p80 = statistics.quantiles(seconds, n=5, method="inclusive")
    return Timing(statistics.median(seconds), p20, p80, len(seconds))


def copy_bandwidth(clock: Clock, repeats: int) -> float:
    """Measures a copy of 256 MiB within the device, bytes read and bytes written per second."""
    source = torch.ones(2**26, device=clock.device)
    target = torch.empty_like(source)
    (timing,) = take_turns(clock, {"copy": [lambda: target.copy_(source)]}, repeats, budget=20.0).values()
    return 2 * source.nbytes / timing.median

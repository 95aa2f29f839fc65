"""Peak memory of one call beyond its inputs and results, exactly, on the CPU and on CUDA."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch._C._profiler import _EventType  # the public profiler sums allocations by operator; a peak needs their order
from torch.autograd.profiler import profile

Call = Callable[[], list[torch.Tensor]]


def _storages(results: list[torch.Tensor]) -> dict[int, int]:
    """Maps the address of every storage to its size in bytes."""
    return {r.untyped_storage().data_ptr(): r.untyped_storage().nbytes() for r in results}


def _events(tree: list) -> Iterator[Any]:
    for event in tree:
        yield event
        yield from _events(event.children)


def allocated_cpu(call: Call) -> int:
    """Measures the peak of what torch's CPU allocator holds beyond the inputs and results of a call.

    Args:
        call: Run once, after it has run before.

    Returns:
        Bytes asked for, exactly: the largest sum of blocks that were alive together, without those that the results live in. Blocks that a pool's
        worker thread or malloc itself gave are not seen; `resident` bounds them.
    """
    gc.collect()
    with profile(profile_memory=True) as profiler:
        results = call()
    tree = profiler.kineto_results.experimental_event_tree()
    blocks = sorted((e for e in _events(tree) if e.tag == _EventType.Allocation), key=lambda e: e.start_time_ns)
    return peak([(e.extra_fields.ptr, e.extra_fields.alloc_size) for e in blocks], set(_storages(results)))


def peak(blocks: Sequence[tuple[int, int]], kept: set[int]) -> int:
    """Finds the largest sum of blocks that were alive together.

    Args:
        blocks: (address, bytes) of every block in the order of time: bytes above 0 where it was taken, below 0 where it was given back.
        kept: Addresses of the results: the last block taken at each is not counted. (Earlier ones there were temporaries.)

    Returns:
        Bytes. Blocks that were taken before the first entry and given back later count for nothing.
    """
    last = {address: n for n, (address, size) in enumerate(blocks) if size > 0}
    alive: dict[int, int] = {}
    now = largest = 0
    for n, (address, size) in enumerate(blocks):
        if size < 0:
            now -= alive.pop(address, 0)
        elif not (address in kept and last[address] == n):
            alive[address] = size
            now += size
        largest = max(largest, now)
    return largest


def _status(key: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def resident(call: Call) -> int | None:
    """Bounds the same from above and from outside: by how much the process's resident set grows during a call, less the results.

    This sees every allocator and every thread. It is a bound, for malloc may spread blocks over more pages than were ever needed together; a result that
    was not there yet at the peak makes it smaller.

    Returns:
        Bytes, to some kilobytes, or None where the system cannot tell (no Linux with glibc, or /proc/self/clear_refs is closed).
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        return None
    gc.collect()
    libc.malloc_trim(0)  # free pages go back, so that their use counts as growth
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")  # resets VmHWM
    except OSError:
        return None
    before = _status("VmRSS:")
    results = call()
    return max(0, _status("VmHWM:") - before - sum(_storages(results).values()))


def allocated_cuda(call: Call) -> int:
    """Measures the peak of torch's CUDA allocator beyond the inputs and results of a call; bytes, in its blocks of 512."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = call()
    torch.cuda.synchronize()
    grown = torch.cuda.max_memory_allocated() - before
    return max(0, grown - sum(-(-size // 512) * 512 for size in _storages(results).values()))


def launches(call: Call) -> int:
    """Counts the kernels that a call starts on the CUDA device; copies and fills are counted too."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    ) as profiler:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiler.events())

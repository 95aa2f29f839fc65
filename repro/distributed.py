"""The processes that torchrun starts for one command: which of them this one is, and what they tell each other.

A command that torchrun did not start is one process: every function here then returns at once what that process has.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
# As it closes its connections, gloo may wait for ever in torch 2.6 and 2.7: in 6 of 30 starts of three processes that did nothing else, and in none of 129 with 2.8.
_MAY_HANG = torch.__version__ < "2.8"
_ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# A process may wait for long, such as for the first one, which looks all data through. One that has died is noticed at once by whoever waits in gloo: its connections close.
_PATIENCE = timedelta(days=1)
_GRACE = 30.0  # seconds in which a process notices by itself that another one failed; torchrun's own, between asking a process to end and killing it


def launched() -> bool:
    """Tells whether torchrun, or whoever sets its variables, started this process."""
    return all(name in os.environ for name in _ENVIRONMENT)


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Numbers this process among all, from 0; 0 writes snapshots, records and all that is printed."""
    return dist.get_rank() if _joined() else 0


def world_size() -> int:
    """Counts the processes."""
    return dist.get_world_size() if _joined() else 1


def local_rank() -> int:
    """Numbers this process among those of its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _joined() else 0


def local_world_size() -> int:
    """Counts the processes of this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _joined() else 1


def share(count: int, rank: int, world_size: int) -> slice:
    """Cuts out a process's share of things in their order; shares differ by one at most.

    Args:
        count: Of the things.
        rank, world_size: The process, and how many there are.
    """
    return slice(count * rank // world_size, count * (rank + 1) // world_size)


def own_device(name: str) -> str:
    """Gives every process of a machine its own GPU.

    Args:
        name: As --device.

    Returns:
        "cuda:<local rank>" for "cuda", and for "auto" where there are GPUs; any other name as it is.

    Raises:
        ValueError: One GPU is named for several processes.
    """
    if not _joined():
        return name
    if name.startswith("cuda:") and local_world_size() > 1:
        raise ValueError(
            f"--device: must be auto, cpu or cuda where torchrun starts several processes on a machine; got {name} for {local_world_size()}; use --device cuda"
        )
    return f"cuda:{local_rank()}" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else name


def listen_only() -> None:
    """Silences every process but the first: log lines, bars and tables are wanted once."""
    if launched() and os.environ["RANK"] != "0":
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # for as long as the process lives


def _fresh(store: dist.Store, rank: int, world_size: int) -> dist.Store:
    """Agrees on a part of the store that no earlier processes have used.

    torchrun may keep its store when it starts all processes anew, with what the killed ones left in it: addresses at which nobody answers any more. It numbers the starts of
    each machine, but a machine that comes later counts from 0. So each process asks under a name of its own, and the first one answers, which alone knows the number.
    """
    if rank > 0:
        name = uuid.uuid4().hex
        store.set(f"ask {rank}", name)
        start = store.get(f"answer {name}").decode()  # waits for it
        store.set(f"known {start} {rank}", "")
        return dist.PrefixStore(f"start {start}", store)
    start = store.add("starts", 1)
    missing = set(range(1, world_size))
    while missing:
        for other in missing:
            if store.check([f"ask {other}"]):  # or an earlier process's question, whose answer nobody reads
                store.set(f"answer {store.get(f'ask {other}').decode()}", str(start))
        missing = {other for other in missing if not store.check([f"known {start} {other}"])}
        time.sleep(0.01 if missing else 0)
    return dist.PrefixStore(f"start {start}", store)


@contextmanager
def _ending_with_the_others(store: dist.Store) -> Iterator[None]:
    """Ends this process some time after another one said that it failed, should gloo or NCCL leave it waiting."""
    done = threading.Event()

    def watch() -> None:
        try:
            while not store.check(["failed"]):
                if done.wait(1):
                    return
        except RuntimeError:
            pass  # the store was the lost process's own
        if not done.wait(_GRACE):
            os._exit(2)  # the first one has told why

    watcher = threading.Thread(target=watch, name="others", daemon=True)
    watcher.start()
    yield  # after an error the watcher goes on: whatever tells of it may still wait for others
    done.set()
    watcher.join()


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Joins the processes of a command, where torchrun started it; of a failure one of them tells, the one that failed first.

    Tensors on a GPU go through NCCL, others, such as what the processes agree about between two iterations, through gloo, which does not wait for a GPU.

    Args:
        device: As --device.
    """
    if not launched():
        yield
        return
    try:
        store, number, count = next(dist.rendezvous("env://", timeout=_PATIENCE))
        store = _fresh(store, number, count)
        backend = "cpu:gloo,cuda:nccl" if device != "cpu" and torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=_PATIENCE)
    except BaseException:
        sys.stderr = sys.__stderr__  # nobody else can tell of it
        raise
    try:
        with _ending_with_the_others(store):
            yield
    except BaseException:
        # Whoever only lost another process to its error comes later, and says nothing.
        try:
            first = store.add("failed", 1) == 1
        except RuntimeError:  # the store was the lost process's own
            first = True
        sys.stderr = sys.__stderr__ if first else open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        raise
    if not _MAY_HANG:
        dist.destroy_process_group()


def end_at_once(code: int) -> None:
    """Ends a process that is still connected, before a destructor waits for the others: it failed, or `_MAY_HANG`."""
    if _joined():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextmanager
def _together() -> Iterator[None]:
    """Names what gloo and NCCL say where a process is lost."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"torchrun: all {world_size()} processes must live and reach each other until the end; got {' '.join(str(error).split())[:200]}; "
            "where one was lost, the same command goes on from the last snapshot, with torchrun's --max-restarts by itself"
        ) from error


def total(tensor: torch.Tensor) -> torch.Tensor:
    """Sums a tensor over all processes, in place, without waiting for a GPU.

    Args:
        tensor: Of the same shape in every process; dense.

    Returns:
        The tensor.

    Raises:
        RuntimeError: A process was lost; so for the functions below.
    """
    if world_size() > 1:
        with _together():
            dist.all_reduce(tensor)
    return tensor


def any_of(flag: bool) -> bool:
    """Tells whether a flag is set in any process: what one is asked for, all do."""
    return bool(total(torch.tensor(int(flag)))) if world_size() > 1 else flag


def wait_for_all() -> None:
    """Waits until every process has come here."""
    any_of(False)


def from_main(call: Callable[[], T]) -> T:
    """Calls a function in the first process, and returns its result in all; where it raises an exception, all end."""
    if world_size() == 1:
        return call()
    box = [call() if rank() == 0 else None]
    with _together():
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def broadcast(tensors: Iterable[torch.Tensor]) -> None:
    """Gives all processes the first one's values, in place."""
    if world_size() > 1:
        with _together():
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)


class GradientSum:
    """Sums gradients over all processes while the backward pass goes on.

    Each parameter's gradient is summed by itself as soon as it is there. torch's DistributedDataParallel would average, where Caffe's batch is one sum; and it joins
    gradients in buckets that it arranges anew after a process's first iteration: a resumed run would add in another order than one that nobody stopped.

    Args:
        parameters: Those that are not kept fixed, the same in every process.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter]):
        self._last = False
        self._works: list[dist.Work] = []
        if world_size() > 1:
            for parameter in parameters:
                parameter.register_post_accumulate_grad_hook(self._begin)

    def _begin(self, parameter: torch.nn.Parameter) -> None:
        if self._last:
            with _together():
                self._works.append(dist.all_reduce(parameter.grad, async_op=True))

    @contextmanager
    def of_iteration(self, last: bool) -> Iterator[None]:
        """Puts the sums where the gradients are, around the backward pass of one batch.

        Args:
            last: Whether it is the last of the iteration; the gradients of those before stay with their process until then.
        """
        self._last = last
        yield
        with _together():
            for work in self._works:
                work.wait()  # of a GPU's sum the stream waits, not the program
        self._works.clear()

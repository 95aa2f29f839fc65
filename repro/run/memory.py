"""Whether a run fits into memory, found out before it starts."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch

from repro.device import Compute
from repro.distributed import local_world_size, world_size
from repro.run.cost import is_fixed, layers_of, meta_network
from repro.run.plan import Job

_FLOAT = 4  # bytes
_GIB = 2**30


def crf_elements(settings: dict[str, dict]) -> int:
    """Counts the numbers that the CRF after the network holds at the very least, 0 without one: a batch's enlarged scores, and of one image the
    log-probabilities, their estimate and the result. What its lattices take depends on the image and comes to it."""
    if "crf" not in settings:
        return 0
    test = settings["test"]
    return (test["batch_size"] + 3) * len(settings["data"]["class_names"]) * test["crop_size"] ** 2


def least_bytes(settings: dict[str, dict], workers: int = 0) -> int:
    """Counts the bytes that a row needs at the very least; what it really needs may be twice as much.

    Training keeps the output of every convolution that is not kept fixed, after its ReLU, for the backward pass, and with a domain transform the enlarged scores
    and the filtered ones; a test holds a layer's input and output at a time, and beside the network the CRFs of as many workers. Parameters, gradients and
    momentum come to it.

    Args:
        settings: The row's.
        workers: Threads that run the CRF beside the network; 0 runs it between two batches.
    """
    solver, test, crop = settings["solver"], settings["test"], settings["transform"]["crop_size"]
    parameters = 3 * sum(parameter.numel() for parameter in meta_network(settings).parameters())
    trained = 0
    if solver["max_iter"] > 0:
        kept = [layer.elements for layer in layers_of(settings, crop) if not is_fixed(settings, layer.name)]
        filtered = 2 * len(settings["data"]["class_names"]) * crop**2 if "dt_num_iter" in settings["model"] else 0
        trained = -(-solver["batch_size"] // world_size()) * (sum(kept) + filtered)
    network = test["batch_size"] * 2 * max(layer.elements for layer in layers_of(settings, test["crop_size"]))
    refined = crf_elements(settings)
    tested = network + workers * refined if workers else max(network, refined)
    return _FLOAT * (parameters + max(trained, tested))


def available_bytes(device: torch.device) -> int | None:
    """Finds how many bytes a device can give: a GPU's memory; the machine's, or the container's where that is less. None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        found = min(found, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return found


def check_memory(jobs: list[Job], compute: Compute) -> None:
    """Refuses rows that cannot fit into memory, before the first is trained.

    Raises:
        ValueError: One cannot; the message says what to change.
    """
    available = available_bytes(compute.device)
    for job in {job.key[:2]: job for job in jobs}.values():
        settings = job.row.settings
        # The processes of a machine share its memory, and have a GPU each.
        needed = least_bytes(settings, compute.workers) * (1 if compute.device.type == "cuda" else local_world_size())
        if available is not None and needed > available:
            solver = settings["solver"]
            fewer = f"; of the CRF --workers {compute.workers} may be fewer" if "crf" in settings else ""
            raise ValueError(
                f"{job.protocol.name} {job.row.id}: it must fit into {available / _GIB:.1f} GiB of memory; got at least {needed / _GIB:.1f} GiB for "
                f"solver.batch_size {solver['batch_size']} of transform.crop_size {settings['transform']['crop_size']}, test.batch_size "
                f"{settings['test']['batch_size']} of test.crop_size {settings['test']['crop_size']}; lower the batch size, and raise "
                "solver.iter_size by the same factor for the same gradients" + fewer
            )

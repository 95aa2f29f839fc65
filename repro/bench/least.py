"""The least that a call could do: what shows whether a target can be reached at all on a machine."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable

import torch

from repro.bench.agreement import Inputs
from repro.bench.cases import FORWARD, Case

_LEAST_FOR_HUGE_PAGES = 4 << 20  # bytes, as csrc/shared/huge_pages.h has it


def empty_like_ours(result: torch.Tensor) -> torch.Tensor:
    """Allocates a result as the operators do: on the CPU with huge pages asked for where it is large."""
    made = torch.empty_like(result)
    if made.is_cpu and sys.platform == "linux" and made.nbytes >= _LEAST_FOR_HUGE_PAGES:
        begin = -(-made.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (made.data_ptr() + made.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - begin
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
    return made


def least_work(
    case: Case, direction: str, inputs: Inputs, results: list[torch.Tensor]
) -> Callable[[], list[torch.Tensor]]:
    """Makes a call that allocates an op's results as it does and writes each once, and takes the exponentials that the op needs.

    A result of the size of an input that the op reads is that input copied; another one is filled. The gradient of a loss is torch.exp of the scores: one exponential for each
    is what a softmax takes. What else the op reads, adds and multiplies is left out.

    Args:
        case: The case.
        direction: One of the case's.
        inputs: As our operator has them.
        results: What it gave: shapes, types and layouts.
    """
    takes_softmax = case.op == "segmentation_loss"
    sources = [*inputs.leaves(), *([] if direction == FORWARD or inputs.gradient is None else [inputs.gradient])]
    matching = [next((s.detach() for s in sources if s.shape == r.shape and s.dtype == r.dtype), None) for r in results]
    kept = [torch.empty_like(inputs.maps[0])] if takes_softmax and len(results) == 1 else []

    def call() -> list[torch.Tensor]:
        for scratch in kept:  # the loss alone keeps no exponential: they go into memory that is there
            torch.exp(inputs.maps[0].detach(), out=scratch)
        made = [empty_like_ours(result) for result in results]
        for result, source in zip(made, matching, strict=True):
            if source is None:
                result.fill_(0)
            elif takes_softmax:
                torch.exp(source, out=result)
            else:
                result.copy_(source)
        return made

    return call

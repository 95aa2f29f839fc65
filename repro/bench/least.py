"""The least that a call could do: what shows whether a target can be reached at all on a machine."""

from __future__ import annotations

from collections.abc import Callable

import torch

from repro.bench.agreement import Inputs
from repro.bench.cases import FORWARD, Case


def least_work(
    case: Case, direction: str, inputs: Inputs, results: list[torch.Tensor]
) -> Callable[[], list[torch.Tensor]]:
    """Makes a call that allocates an op's results and writes each once, and takes the exponentials that the op needs.

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
        made = [torch.empty_like(result) for result in results]
        for result, source in zip(made, matching, strict=True):
            if source is None:
                result.fill_(0)
            elif takes_softmax:
                torch.exp(source, out=result)
            else:
                result.copy_(source)
        return made

    return call

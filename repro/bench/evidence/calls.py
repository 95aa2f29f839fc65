"""Small calls of every operator, forward and backward: the smoke step compares them with the CPU's, and the sanitizers watch them.

Inputs are drawn on the CPU and copied to the device: what initcheck then takes for unwritten, nobody wrote.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from repro import ops

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CLASSES = 21
FINE, SIZES, IMAGE = (9, 7), ((9, 7), (7, 5), (5, 4)), (65, 49)


class Call(NamedTuple):
    """One call.

    name: Of the operator, and what is particular.
    inputs: On the CPU.
    run: Of the inputs, on any device; gives the results.
    differentiable: How many of the inputs, from the first on, have a gradient.
    """

    name: str
    inputs: list[torch.Tensor]
    run: Callable[..., Sequence[torch.Tensor | None]]
    differentiable: int = 0


def calls(dtype: torch.dtype) -> list[Call]:
    """Makes the calls of one element type; what has none of its own is called for float32 alone."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, std: float = 3.0) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * std).to(dtype)

    def labels(*shape: int) -> torch.Tensor:
        drawn = torch.randint(CLASSES + 1, shape, generator=generator, dtype=torch.uint8)
        return torch.where(drawn == CLASSES, 255, drawn).to(torch.uint8)

    maps = [normal(2, CLASSES, *size) for size in SIZES]
    logits = normal(2, 3, 7, 5)
    made = [
        Call("interp enlarged", [maps[0]], lambda x: [ops.interp(x, IMAGE)], 1),
        Call("interp shrunk", [normal(2, 3, *IMAGE)], lambda x: [ops.interp(x, (17, 13))], 1),
        Call("interp of features", [normal(1, 64, *SIZES[1])], lambda x: [ops.interp(x, FINE)], 1),
        Call("merge_scores attention", [*maps, logits], lambda *t: ops.merge_scores(t[:3], t[3]), 4),
        Call("merge_scores average", maps, lambda *t: ops.merge_scores(t, mode="average"), 3),
        Call("merge_scores max", maps, lambda *t: ops.merge_scores(t, mode="max"), 3),
        Call(
            "predict attention", [*maps, logits], lambda *t: ops.predict(t[:3], t[3], size=IMAGE, crop=(60, 49), probability=True)
        ),
        Call("predict of one scale", maps[:1], lambda x: ops.predict([x], mode="average", size=IMAGE)),
        Call("segmentation_loss", [maps[0], labels(2, *IMAGE)], lambda x, y: [ops.segmentation_loss(x, y, 8)], 1),
        Call("segmentation_loss resized", [maps[1], labels(2, *IMAGE)], lambda x, y: [ops.segmentation_loss(x, y, 8)], 1),
        Call(
            "domain_transform",
            [normal(2, CLASSES, 20, 31), normal(2, 1, 20, 31).abs(), torch.tensor([[20, 31], [13, 31]])],
            lambda x, edge, valid: [ops.domain_transform(x, edge, 3, 20.0, 2.0, 0.0, valid)],
            2,
        ),
    ]  # fmt: skip
    if dtype == torch.float32:
        image = torch.randint(256, (2, 3, 20, 31), generator=generator, dtype=torch.uint8)
        made += [
            Call("confusion_matrix", [labels(2, *IMAGE), labels(2, *IMAGE)], lambda p, y: ops.confusion_matrix(p, y, CLASSES)),
            Call("dense_crf", [normal(2, 5, 20, 31), image], lambda x, i: [ops.dense_crf(x, i, 3, 3, 3, 5, 50, 10)]),
        ]  # fmt: skip
    return made


def results(call: Call, device: torch.device) -> list[torch.Tensor]:
    """Runs a call on a device: its results, then the gradients of its inputs, on the CPU."""
    inputs = [x.to(device, copy=True) for x in call.inputs]
    leaves = [x.requires_grad_() for x in inputs[: call.differentiable]]
    found = [result for result in call.run(*inputs) if result is not None]
    if leaves:
        generator = torch.Generator().manual_seed(1)
        above = [torch.randn(r.shape, generator=generator).to(r.dtype).to(device) for r in found]
        found += torch.autograd.grad(found, leaves, above)
    return [result.detach().cpu() for result in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    device, done = torch.device(parser.parse_args().device), 0
    for dtype in (torch.float32, torch.bfloat16):
        for call in calls(dtype):
            results(call, device)
            done += 1
            print(f"{call.name} {dtype}", flush=True)
    print(f"{done} calls done")
    return 0


if __name__ == "__main__":
    sys.exit(main())

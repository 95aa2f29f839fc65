"""The inputs of a case, one way to call every implementation, and the check against float64 that comes before any timing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType

import torch
from torch.nn import functional as F

from repro.bench import lattice
from repro.bench.cases import BACKWARD, CRF, FORWARD, Case
from repro.bench.opencv import FILTER
from repro.ops import reference

IGNORE = 255
# Of max|a - b| / max|b|: about ten times what float32 shows at the largest sizes. float64: F.interpolate takes its source positions in float64, Caffe's Interp
# in float32 always. 16 bits: a few roundings of the storage type.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}
# Of dense_crf, in every type: it computes in float32, and a pixel that hesitates between two classes enlarges what is rounded in each iteration.
CRF_TOLERANCE = 1e-4


class Disagreement(Exception):
    """A contestant's result is not the float64 reference's."""


@dataclass(frozen=True)
class Inputs:
    """The tensors of a case.

    maps: The scores (or images), finest first.
    logits: Of the attention; the edge map of the domain transform; or None.
    labels: Of the image, (N, H, W) uint8: none, one, or prediction and label; of dense_crf the image itself, (N, 3, H, W) uint8.
    gradient: With respect to the result, where it is a map; None otherwise.
    """

    maps: list[torch.Tensor]
    logits: torch.Tensor | None
    labels: list[torch.Tensor]
    gradient: torch.Tensor | None

    def leaves(self) -> list[torch.Tensor]:
        """Lists what a gradient is taken with respect to."""
        return [*self.maps, *([] if self.logits is None else [self.logits])]

    def convert(self, dtype: torch.dtype, memory_format: torch.memory_format, device: torch.device) -> Inputs:
        """Copies everything: maps in this dtype and layout, labels as they are."""

        def copied(x: torch.Tensor | None) -> torch.Tensor | None:
            return None if x is None else x.to(device, dtype, memory_format=memory_format, copy=True)

        return replace(
            self,
            maps=[copied(x) for x in self.maps],
            logits=copied(self.logits),
            labels=[x.to(device, copy=True) for x in self.labels],
            gradient=copied(self.gradient),
        )


def label_map(case: Case, generator: torch.Generator) -> torch.Tensor:
    """Draws labels in blocks of 32 pixels, a tenth of them ignored: in an image neighbours mostly share their class."""
    blocks = -(-case.side // 32)
    labels = torch.randint(case.channels, (case.batch, blocks, blocks), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = IGNORE
    labels = labels.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, : case.side, : case.side]
    return labels.to(torch.uint8).contiguous()


def picture(case: Case, generator: torch.Generator) -> torch.Tensor:
    """Draws an image with the contrasts of a photograph: halved with every doubling of the frequency."""
    size = (case.height, case.side)
    image = torch.full((case.batch, 3, *size), 128.0)
    for cells in (2, 4, 8, 16, 32, 64, 128):
        noise = torch.randn(case.batch, 3, cells, cells, generator=generator) * (80 / cells**0.5)
        image += F.interpolate(noise, size=size, mode="bilinear", align_corners=True)
    return image.clamp(0, 255).to(torch.uint8)


def make_inputs(case: Case, dtype: torch.dtype, seed: int = 0) -> Inputs:
    """Draws a case's inputs on the CPU, rounded to `dtype`.

    Args:
        case: The case.
        dtype: Of the maps.
        seed: Other seeds give other inputs.

    Returns:
        Scores with standard deviation 3. For the mode "max" the gradient is 0 wherever the two best scores lie within the tolerance of each other: there
        float32 may rightly see another maximum than float64.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * std).to(dtype)

    if case.op == "dense_crf":
        coarse = normal(case.batch, case.channels, case.height // 8 + 1, case.side // 8 + 1, std=3.0).float()
        scores = F.interpolate(coarse, size=(case.height, case.side), mode="bilinear", align_corners=True)
        return Inputs([torch.log_softmax(scores, dim=1).to(dtype)], None, [picture(case, generator)], None)
    maps = [normal(case.batch, case.channels, side, side, std=3.0) for side in case.sides]
    logits, labels, gradient = None, [], None
    if case.logit_channels:
        logits = normal(case.batch, case.logit_channels, case.sides[0], case.sides[0], std=2.0)
    if case.op == "domain_transform":
        logits = logits.abs()
    if case.op in ("segmentation_loss", "confusion_matrix"):
        labels = [label_map(case, generator)]
    if case.op == "confusion_matrix":
        prediction = torch.where(labels[0] == IGNORE, 0, labels[0])
        wrong = torch.rand(prediction.shape, generator=generator) < 0.2
        other = torch.randint(case.channels, prediction.shape, generator=generator, dtype=torch.uint8)
        labels.insert(0, torch.where(wrong, other, prediction))
    if case.op in ("interp", "merge_scores", "domain_transform"):
        gradient = normal(case.batch, case.channels, case.side, case.side, std=1.0)
    if case.op == "merge_scores" and case.mode == "max":
        stacked = torch.stack([reference.interp(x.double(), (case.side, case.side)) for x in maps])
        best = stacked.topk(2, dim=0).values
        gradient[best[0] - best[1] < TOLERANCE[dtype] * stacked.abs().max()] = 0
    return Inputs(maps, logits, labels, gradient)


def call(implementation: ModuleType, case: Case, maps, logits, labels) -> torch.Tensor:
    """Runs a case's op as a module's function of that name computes it: repro.ops, its reference, or eager."""
    match case.op:
        case "interp":
            return implementation.interp(maps[0], (case.side, case.side))
        case "merge_scores":
            return implementation.merge_scores(maps, logits, case.mode, return_weights=False)[0]
        case "predict":
            return implementation.predict(maps, logits, case.mode, (case.side, case.side))[0]
        case "segmentation_loss":
            return implementation.segmentation_loss(maps[0], labels[0], case.shrink, IGNORE)
        case "domain_transform":
            return implementation.domain_transform(maps[0], logits, *FILTER)
        case "confusion_matrix":
            return implementation.confusion_matrix(labels[0], labels[1], case.channels, IGNORE)[0]
        case "dense_crf":
            scores = maps[0] if maps[0].dtype == torch.float64 else maps[0].float()
            return implementation.dense_crf(scores, labels[0], **CRF)
    raise ValueError(f"repro.bench: an op must be known; got {case.op!r}; add it to `call`")


def prepare(function: Callable[..., torch.Tensor], direction: str, inputs: Inputs) -> Callable[[], list[torch.Tensor]]:
    """Makes the call that is checked and timed.

    Args:
        function: Of maps, logits and labels.
        direction: FORWARD runs without autograd; BACKWARD differentiates a result computed here, once.
        inputs: Their leaves are made to require gradients unless the direction is FORWARD.

    Returns:
        A function that gives the result, the gradients, or both, by direction.
    """
    arguments = (inputs.maps, inputs.logits, inputs.labels)
    if direction == FORWARD:

        def forward() -> list[torch.Tensor]:
            with torch.no_grad():
                return [function(*arguments)]

        return forward
    leaves = [leaf.requires_grad_() for leaf in inputs.leaves()]
    if direction == BACKWARD:
        result = function(*arguments)
        return lambda: list(torch.autograd.grad(result, leaves, inputs.gradient, retain_graph=True))

    def forward_and_backward() -> list[torch.Tensor]:
        result = function(*arguments)
        return [result, *torch.autograd.grad(result, leaves, inputs.gradient)]

    return forward_and_backward


def truth(case: Case, direction: str, inputs: Inputs) -> list[torch.Tensor]:
    """Computes in float64, by the reference twins, what contestants are compared with; for predict that is the enlarged scores. For
    dense_crf, whose twin takes exact Gaussians and small images, it is the lattice in PyTorch."""
    device = (inputs.maps or inputs.labels)[0].device
    wide = inputs.convert(torch.float64, torch.channels_last, device)

    def function(maps, logits, labels) -> torch.Tensor:
        if case.op == "dense_crf":
            return call(lattice, case, maps, logits, labels)
        if case.op != "predict":
            return call(reference, case, maps, logits, labels)
        return reference.interp(reference.merge_scores(maps, logits, case.mode)[0], (case.side, case.side))

    return [result.detach() for result in prepare(function, direction, wide)()]


def error(case: Case, results: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Measures how far results are from the truth.

    Returns:
        The largest max|a - b| / max|b| of the results; for predict how far below the best score the chosen labels' float64 scores lie, by the largest
        score; for confusion_matrix the share of pixels counted elsewhere. NaN where a result holds a NaN or is no such result at all.
    """
    if any(a.shape != b.shape for a, b in zip(results, expected, strict=True) if case.op != "predict"):
        return math.nan
    if case.op == "predict":
        (labels,), (scores,) = results, expected
        if labels.shape != scores[:, 0].shape or not 0 <= labels.min() <= labels.max() < case.channels:
            return math.nan
        best, chosen = scores.amax(1), scores.gather(1, labels.long()[:, None])[:, 0]
        return ((best - chosen).max() / scores.abs().max()).item()
    if case.op == "confusion_matrix":
        return ((results[0] - expected[0]).abs().sum() / expected[0].sum()).item()
    errors = [(a.double() - b).abs().max() / b.abs().max() for a, b in zip(results, expected, strict=True)]
    return torch.stack(errors).max().item()


def tolerance_of(case: Case, dtype: torch.dtype) -> float:
    """Returns what an error may be."""
    return CRF_TOLERANCE if case.op == "dense_crf" else TOLERANCE[dtype]


def check(case: Case, direction: str, contestant: str, results, expected, tolerance: float) -> float:
    """Returns the error of a contestant's results.

    Raises:
        Disagreement: It exceeds the tolerance, or is no number.
    """
    value = error(case, results, expected)
    if not value <= tolerance:
        raise Disagreement(
            f"{case.op} {case.name} {direction}: {contestant} must agree with the float64 reference within {tolerance:.0e}; got a relative error of {value:.2e}; "
            "it is not timed: correct the implementation"
        )
    return value

"""The ops once more as a good PyTorch user writes them, with the signatures of repro.ops: the benchmark's rival, and what torch.compile gets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from repro.bench.lattice import dense_crf
from repro.ops import reference

__all__ = [
    "confusion_matrix",
    "dense_crf",
    "domain_transform",
    "interp",
    "merge_scores",
    "predict",
    "segmentation_loss",
]


def interp(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """See repro.ops.interp."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def merge_scores(
    scores: Sequence[torch.Tensor],
    logits: torch.Tensor | None,
    mode: str,
    return_weights: bool = False,
) -> tuple[torch.Tensor, None]:
    """See repro.ops.merge_scores; the logits are at the finest map's size.

    Attention's weighted sum by addcmul: the fastest of sum of products, addcmul, stack and einsum, and the one with the fewest temporaries.
    """
    size = scores[0].shape[2:]
    maps = [scores[0], *(interp(score, size) for score in scores[1:])]
    merged = maps[0]
    if mode == "attention":
        weights = torch.softmax(logits, dim=1)
        merged = weights[:, :1] * merged
        for s in range(1, len(maps)):
            merged = torch.addcmul(merged, weights[:, s : s + 1], maps[s])
    elif mode == "average":
        merged = sum(maps[1:], start=merged) * (1 / len(maps)) if len(maps) > 1 else merged
    else:
        for score in maps[1:]:
            merged = torch.maximum(merged, score)
    return merged, None


def predict(
    scores: Sequence[torch.Tensor], logits: torch.Tensor | None, mode: str, size: Sequence[int]
) -> tuple[torch.Tensor, None]:
    """See repro.ops.predict."""
    return interp(merge_scores(scores, logits, mode)[0], size).argmax(dim=1), None


def segmentation_loss(scores: torch.Tensor, labels: torch.Tensor, shrink: int, ignore_label: int = 255) -> torch.Tensor:
    """See repro.ops.segmentation_loss; 16-bit scores become float32 first, as under autocast."""
    labels = labels[:, ::shrink, ::shrink].long()
    if scores.shape[2:] != labels.shape[1:]:
        scores = interp(scores, labels.shape[1:])
    scores = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
    return F.cross_entropy(scores, labels, ignore_index=ignore_label)


def domain_transform(x: torch.Tensor, edge: torch.Tensor, *numbers) -> torch.Tensor:
    """See repro.ops.domain_transform; PyTorch has no recursive filter, so it goes line after line, as the twin does."""
    return reference.domain_transform(x, edge, *numbers)


def confusion_matrix(
    prediction: torch.Tensor, label: torch.Tensor, num_classes: int, ignore_label: int = 255
) -> tuple[torch.Tensor, None]:
    """See repro.ops.confusion_matrix; as torchvision's segmentation reference counts."""
    valid = label != ignore_label
    cell = label[valid].long() * num_classes + prediction[valid]
    return torch.bincount(cell, minlength=num_classes**2).reshape(num_classes, num_classes), None

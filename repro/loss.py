"""Caffe's softmax loss, and the paper's sum of one loss per scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from .models import Output, output_stride
from .ops import interp

_LARGEST_TERM = -float(
    torch.log(torch.tensor(torch.finfo(torch.float32).tiny, dtype=torch.float64))
)  # 87.3365: probabilities are floored at FLT_MIN


def shrink_labels(labels: torch.Tensor, factor: int) -> torch.Tensor:
    """Takes every `factor`-th label.

    Args:
        labels: (N, H, W), any integer type.
        factor: Step, pixels; must divide H - 1 and W - 1.

    Returns:
        (N, (H - 1) / factor + 1, (W - 1) / factor + 1).

    Raises:
        ValueError: The factor does not divide.

    Caffe: the Interp layer with shrink_factor, which is this striding exactly where the factor divides.
    """
    if any((side - 1) % factor for side in labels.shape[1:]):
        raise ValueError(
            f"shrink_labels: height - 1 and width - 1 must be multiples of {factor}; got {tuple(labels.shape[1:])}; choose a crop_size of the form {factor}k+1"
        )
    return labels[:, ::factor, ::factor]


def softmax_loss(scores: torch.Tensor, labels: torch.Tensor, ignore_label: int = 255) -> torch.Tensor:
    """Computes the mean cross-entropy over the positions that are not ignored.

    Args:
        scores: (N, C, H, W) raw scores.
        labels: (N, H, W) classes 0..C-1 or `ignore_label`, any integer type.
        ignore_label: The label that counts for nothing.

    Returns:
        A float64 scalar (the scores have a dtype of their own; the sum over positions shall not add to their rounding); 0 with zero gradient where
        every position is ignored.

    Raises:
        ValueError: The sizes differ.

    Caffe: src/caffe/layers/softmax_loss_layer.cpp: the normaliser is max(1, valid positions); a probability is floored at FLT_MIN in the loss
        but not in the gradient (p - onehot) / normaliser.
    """
    if scores.shape[2:] != labels.shape[1:] or scores.shape[0] != labels.shape[0]:
        raise ValueError(
            f"softmax_loss: labels must be (N, H, W) of the scores {tuple(scores.shape)}; got {tuple(labels.shape)}; shrink the labels"
        )
    labels = labels.long()
    terms = F.nll_loss(
        F.log_softmax(scores, dim=1, dtype=torch.float64), labels, ignore_index=ignore_label, reduction="none"
    )
    terms = terms - (terms - terms.clamp(max=_LARGEST_TERM)).detach()
    return terms.sum() / (labels != ignore_label).sum().clamp(min=1)


def losses(
    output: Output, labels: torch.Tensor, scales: Sequence[float], extra_supervision: bool, ignore_label: int = 255
) -> dict[str, torch.Tensor]:
    """Computes every loss of the network; training minimises their sum.

    Args:
        output: Of the network.
        labels: (N, H, W) at the resolution of the input.
        scales: The network's scales.
        extra_supervision: Whether each scale's own scores are supervised too, with weight 1.
        ignore_label: The label that counts for nothing.

    Returns:
        Scalars by Caffe's names: "loss", and with extra supervision "loss_res1", "loss_res075", "loss_res05" and so on.

    Paper: section 3, "Extra supervision". Caffe: a scale whose output stride is a whole number of pixels is compared with labels of that stride; another scale (0.75)
        has its scores resized to the finest map, since Interp cannot shrink labels by 3/4 (the authors' own comment).
    """
    finest_labels = shrink_labels(labels, int(output_stride(scales[0])))
    result = {"loss": softmax_loss(output.merged, finest_labels, ignore_label)}
    if extra_supervision:
        for scale, scores in zip(scales, output.scores, strict=True):
            stride = output_stride(scale)
            if stride.denominator == 1:
                term = softmax_loss(scores, shrink_labels(labels, int(stride)), ignore_label)
            else:
                term = softmax_loss(interp(scores, output.merged.shape[2:]), finest_labels, ignore_label)
            result[f"loss_res{f'{scale:g}'.replace('.', '')}"] = term
    return result

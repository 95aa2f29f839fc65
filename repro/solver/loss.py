"""The paper's sum of one softmax loss per scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from repro.models import Output, enlarged_scores, merged_scores, output_stride
from repro.ops import segmentation_loss


def losses(
    output: Output,
    labels: torch.Tensor,
    scales: Sequence[float],
    extra_supervision: bool,
    ignore_label: int = 255,
    valid_size: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Computes every loss of the network; training minimises their sum.

    Args:
        output: Of the network.
        labels: (N, H, W) at the resolution of the input.
        scales: The network's scales.
        extra_supervision: Whether each scale's own scores are supervised too, with weight 1.
        ignore_label: The label that counts for nothing.
        valid_size: (N, 2) int64 height and width of each image within the input, for the domain transform; None for all of it.

    Returns:
        Scalars by Caffe's names: "loss", and with extra supervision "loss_res1", "loss_res075", "loss_res05" and so on.

    Paper: section 3, "Extra supervision". Caffe: a scale whose output stride is a whole number of pixels is compared with labels of that stride; another scale (0.75)
        has its scores resized to the finest map, since Interp cannot shrink labels by 3/4 (the authors' own comment). Scores that the domain transform filters are
        compared with the labels as they are, at the image's size.
    """
    stride = int(output_stride(scales[0]))
    if output.edge is not None:
        filtered = enlarged_scores(output, labels.shape[1:], valid_size)
        result = {"loss": segmentation_loss(filtered, labels, 1, ignore_label)}
    else:
        result = {"loss": segmentation_loss(merged_scores(output), labels, stride, ignore_label)}
    if extra_supervision:
        for scale, scores in zip(scales, output.scores, strict=True):
            own = output_stride(scale)
            shrink = int(own) if own.denominator == 1 else stride  # segmentation_loss resizes the scores then
            name = f"loss_res{f'{scale:g}'.replace('.', '')}"
            result[name] = segmentation_loss(scores, labels, shrink, ignore_label)
    return result

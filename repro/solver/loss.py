"""The paper's sum of one softmax loss per scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from repro.models import Output, output_stride
from repro.ops import merge_scores, segmentation_loss


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
    stride = int(output_stride(scales[0]))
    merged = output.scores[0]
    if len(scales) > 1:
        merged = merge_scores(output.scores, output.logits, output.mode, return_weights=False)[0]
    result = {"loss": segmentation_loss(merged, labels, stride, ignore_label)}
    if extra_supervision:
        for scale, scores in zip(scales, output.scores, strict=True):
            own = output_stride(scale)
            shrink = int(own) if own.denominator == 1 else stride  # segmentation_loss resizes the scores then
            name = f"loss_res{f'{scale:g}'.replace('.', '')}"
            result[name] = segmentation_loss(scores, labels, shrink, ignore_label)
    return result

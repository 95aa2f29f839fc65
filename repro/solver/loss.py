"""The paper's sum of one softmax loss per scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from repro.distributed import total, world_size
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
        Scalars by Caffe's names: "loss", and with extra supervision "loss_res1", "loss_res075", "loss_res05" and so on; of a batch that is divided among processes, this one's
        terms of the whole batch's loss.

    Paper: section 3, "Extra supervision". Caffe: a scale whose output stride is a whole number of pixels is compared with labels of that stride; another scale (0.75)
        has its scores resized to the finest map, since Interp cannot shrink labels by 3/4 (the authors' own comment). Scores that the domain transform filters are
        compared with the labels as they are, at the image's size.
    """
    stride = int(output_stride(scales[0]))
    if output.edge is not None:
        compared = {"loss": (enlarged_scores(output, labels.shape[1:], valid_size), 1)}
    else:
        compared = {"loss": (merged_scores(output), stride)}
    if extra_supervision:
        for scale, scores in zip(scales, output.scores, strict=True):
            own = output_stride(scale)
            shrink = int(own) if own.denominator == 1 else stride  # segmentation_loss resizes the scores then
            compared[f"loss_res{f'{scale:g}'.replace('.', '')}"] = scores, shrink
    result = {
        name: segmentation_loss(scores, labels, shrink, ignore_label) for name, (scores, shrink) in compared.items()
    }
    if world_size() == 1:
        return result
    parts = _parts_of_batch(labels, [shrink for _, shrink in compared.values()], ignore_label)
    return {name: loss * part for (name, loss), part in zip(result.items(), parts, strict=True)}


def _parts_of_batch(labels: torch.Tensor, shrinks: Sequence[int], ignore_label: int) -> torch.Tensor:
    """Computes which part of the whole batch's valid positions lies in this process, for every loss.

    Caffe's one process divides the sum over the batch by the batch's valid positions; a process here has divided the sum over its own images by theirs, whose number differs
    from process to process. These parts of the processes' losses, and of their gradients, sum to Caffe's.
    """
    own = torch.stack([(labels[:, ::shrink, ::shrink] != ignore_label).sum() for shrink in shrinks])
    everywhere = total(own.clone())
    return own.clamp(min=1).double() / everywhere.clamp(min=1)  # Caffe: the normaliser is at least 1

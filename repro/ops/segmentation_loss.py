"""Caffe's softmax loss of a score map against the labels of its image, with the gradient in the same pass."""

from __future__ import annotations

import torch

from repro.ops import reference
from repro.ops.library import COMPILED, backend, check_one_device


def segmentation_loss(scores: torch.Tensor, labels: torch.Tensor, shrink: int, ignore_label: int = 255) -> torch.Tensor:
    """Computes the mean cross-entropy over the positions that are not ignored.

    Args:
        scores: (N, C, H_s, W_s) raw scores, float32, float64, bfloat16 or float16. Where they have another size than the shrunk labels they are
            resampled to it by Interp.
        labels: (N, H, W) of the image, any integer type: classes 0..C-1 or `ignore_label`.
        shrink: Every shrink-th label counts, pixels; must divide H - 1 and W - 1.
        ignore_label: The label that counts for nothing.

    Returns:
        A float64 scalar (its sum over positions shall not add to the scores' own rounding); 0 with zero gradient where every position is ignored.
        Differentiable once with respect to scores.

    Raises:
        ValueError: A shape, dtype or device is wrong, shrink does not divide, or, on the CPU, a label is neither a class nor ignored. (On CUDA, where
            asking would wait for the device, the loss is NaN then.)
        RuntimeError: It is differentiated twice or forwards, or runs under vmap.

    The loss is NaN where, at a position that is not ignored, a score is NaN or infinity, or all are minus infinity; what stands at an ignored position
    counts for nothing, in the gradient neither.

    Caffe: src/caffe/layers/softmax_loss_layer.cpp: the normaliser is max(1, valid positions); a probability is floored at FLT_MIN in the loss
        but not in the gradient (p - onehot) / normaliser. Labels are shrunk by Interp, which takes every shrink-th exactly where it divides.
    """
    if backend() == "reference":
        return reference.segmentation_loss(scores, labels, shrink, ignore_label)
    gradient = scores.requires_grad and torch.is_grad_enabled()
    return torch.ops.repro.segmentation_loss(scores, labels, shrink, ignore_label, gradient)[0]


if COMPILED:

    @torch.library.register_fake("repro::segmentation_loss")
    def _fake_segmentation_loss(scores, labels, shrink, ignore_label, gradient):
        check_one_device("segmentation_loss", scores, labels)
        n = scores.shape[0] if gradient else 0
        side = scores.shape[2:] if gradient else [(side - 1) // shrink + 1 for side in labels.shape[1:]]
        dscores = scores.new_empty((n, scores.shape[1], *side)).contiguous(memory_format=torch.channels_last)
        loss = scores.new_empty((), dtype=torch.float64)
        return loss, dscores, scores.new_empty((), dtype=torch.int64)

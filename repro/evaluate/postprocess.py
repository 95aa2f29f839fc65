"""What stands between a network's scores and the labels of an image: Interp by 8, and the fully connected CRF where the row has one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from repro import ops
from repro.models import Output


def enlarged_scores(output: Output, size: Sequence[int]) -> torch.Tensor:
    """Merges the scores of all scales and enlarges them to the input of the network.

    Args:
        output: Of a network.
        size: (height, width) of that input, pixels, each of the form 8k+1.

    Returns:
        (N, C, *size) float32 raw scores.

    Caffe: fc8_fusion, Interp with zoom_factor 8.
    """
    merged = ops.merge_scores(output.scores, output.logits, output.mode, return_weights=False)[0]
    return ops.interp(merged.float(), size)


def crf_probabilities(scores: torch.Tensor, image: torch.Tensor, crf: dict[str, Any]) -> torch.Tensor:
    """Refines scores by mean-field inference in the fully connected CRF.

    Args:
        scores: (N, C, H, W) float32 raw scores of whole images, without the padding of the test crop.
        image: (N, 3, H, W) float32, as the network saw them: BGR minus the mean.
        crf: A protocol's section.

    Returns:
        (N, C, H, W) float32 probabilities.

    Caffe: Softmax, Log, DenseCRF. The kernels do not feel the mean that is subtracted, but their approximation on the lattice does.
    """
    return ops.dense_crf(
        scores.log_softmax(1),
        image,
        crf["max_iter"],
        crf["pos_w"],
        crf["pos_xy_std"],
        crf["bi_w"],
        crf["bi_xy_std"],
        crf["bi_rgb_std"],
    )


def best_classes(maps: torch.Tensor) -> torch.Tensor:
    """Takes the best class of every pixel, the first of equal ones winning.

    Args:
        maps: (N, C, H, W) scores or probabilities.

    Returns:
        (N, H, W) uint8, int16 beyond 256 classes, as of `repro.ops.predict`.
    """
    return maps.argmax(1).to(torch.uint8 if maps.shape[1] <= 256 else torch.int16)

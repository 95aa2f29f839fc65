"""What stands between a network's output and the labels of its images: Interp by 8, the domain transform and the fully connected CRF where a row has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from repro import ops
from repro.models import Output, enlarged_scores

Sizes = Sequence[Sequence[int]]  # (height, width) of each image within a padded batch, pixels


def whole_scores(output: Output, size: Sequence[int], sizes: Sizes) -> torch.Tensor:
    """Makes the scores of a padded batch, (N, C, *size), float32 or float64: merged, enlarged and, where the network has an edge map, filtered.

    Args:
        output: Of the network.
        size: (P, P) of the padded batch, pixels, P of the form 8k+1.
        sizes: Of its images, which alone are filtered.
    """
    valid_size = None
    if output.edge is not None:
        valid_size = torch.tensor([list(one) for one in sizes], dtype=torch.int64, device=output.edge.device)
    return enlarged_scores(output, size, valid_size)


def crf_probabilities(scores: torch.Tensor, image: torch.Tensor, crf: dict[str, Any]) -> torch.Tensor:
    """Refines scores by mean-field inference in the fully connected CRF.

    Args:
        scores: (N, C, H, W) raw scores of whole images, without the padding of the test crop.
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
    """Takes the best class of every pixel of (N, C, H, W) maps, the first of equal ones winning: (N, H, W), uint8 or, beyond 256 classes, int16."""
    return ops.predict([maps], None, "average", size=maps.shape[2:])[0]


@torch.no_grad()
def final_labels(
    output: Output, data: torch.Tensor, sizes: Sizes, crf: dict[str, Any] | None
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Labels every pixel of the images of a padded batch; without domain transform and CRF neither the merged nor the enlarged scores of all scales are ever kept.

    Args:
        output: Of the network.
        data: (N, 3, P, P) BGR minus the mean, which it saw.
        sizes: Of the images.
        crf: A protocol's section, or None.

    Returns:
        Of each image (H, W) uint8 (int16 beyond 256 classes) labels, and those before the CRF, None without one.

    Caffe: fc8_fusion, Interp with zoom_factor 8, DomainTransform and DenseCRF where there are such, argmax; the first of equal scores wins.
    """
    size = data.shape[2:]
    scores = whole_scores(output, size, sizes) if crf or output.edge is not None else None
    if output.edge is None:
        plain = ops.predict(output.scores, output.logits, output.mode, size=size)[0]
    else:
        plain = best_classes(scores)
    found: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    for i, (height, width) in enumerate(sizes):
        own = (slice(i, i + 1), ..., slice(height), slice(width))
        labels = plain[own][0]
        if crf is None:
            found.append((labels, None))
        else:
            found.append((best_classes(crf_probabilities(scores[own], data[own], crf))[0], labels))
    return found

"""From the scales' scores to the label of every pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from repro.ops import reference
from repro.ops.library import COMPILED, backend, check_one_device


def predict(
    scores: Sequence[torch.Tensor],
    logits: torch.Tensor | None = None,
    mode: str = "attention",
    size: Sequence[int] | None = None,
    crop: Sequence[int] | None = None,
    probability: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Merges the score maps at the finest one's size, enlarges them and takes the best class, without ever storing the enlarged scores.

    Args:
        scores: 1 to 8 maps (N, C, H_s, W_s), float32, float64, bfloat16 or float16; the finest first.
        logits: (N, S, H, W), attention only.
        mode: As of merge_scores; "average" of one map is that map.
        size: (height, width) that the merged map is enlarged to, pixels; by default its own.
        crop: (height, width) of the image in the top left corner; by default all of `size`.
        probability: Whether the label's softmax probability is wanted too.

    Returns:
        Labels (N, *crop), uint8 (int16 beyond 256 classes), the first of equal scores winning; and their probability (N, *crop) in
        float32 (float64 for float64 scores), or None. Neither is differentiable.

    Raises:
        ValueError: A shape, dtype, device, mode, size or crop is wrong.
        RuntimeError: It runs under vmap.

    A score that is NaN is no best one: the label is the best of the others, and 0 where none is greater than minus infinity. The probability is NaN
    where a class's score is NaN or infinity, or every class's minus infinity.

    Caffe: fc8_fusion, Interp with zoom_factor 8, Softmax, ArgMax.
    """
    if len(scores) == 0:
        raise ValueError("predict: scores must hold 1 to 8 maps; got 0; pass the score map of every scale")
    size = scores[0].shape[2:] if size is None else size
    crop = size if crop is None else crop
    if backend() == "reference":
        return reference.predict(scores, logits, mode, size, crop, probability)
    with torch.no_grad():
        labels, confidence = torch.ops.repro.predict(list(scores), logits, mode, size, crop, probability)
    return labels, confidence if probability else None


if COMPILED:

    @torch.library.register_fake("repro::predict")
    def _fake_predict(scores, logits, mode, size, crop, probability):
        check_one_device("predict", *scores, logits)
        n, c = scores[0].shape[:2]
        wide = torch.float64 if scores[0].dtype == torch.float64 else torch.float32
        return (
            scores[0].new_empty((n, *crop), dtype=torch.uint8 if c <= 256 else torch.int16),
            scores[0].new_empty((n if probability else 0, *crop), dtype=wide),
        )

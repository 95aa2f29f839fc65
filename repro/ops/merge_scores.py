"""Merging the score maps of several scales: attention, average or maximum."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from repro.ops import reference
from repro.ops.library import COMPILED, backend, check_one_device


def merge_scores(
    scores: Sequence[torch.Tensor],
    logits: torch.Tensor | None = None,
    mode: str = "attention",
    size: Sequence[int] | None = None,
    return_weights: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Resamples S score maps to one size and merges them.

    Args:
        scores: 1 to 8 maps (N, C, H_s, W_s), float32, float64, bfloat16 or float16, each at its own size; the finest first.
        logits: (N, S, H, W), attention only; resampled to `size` before the softmax where H, W differ from it.
        mode: "attention" (sum weighted by the softmax over S), "average" or "max" (per position and class).
        size: (height, width) of the result, pixels; by default that of scores[0].
        return_weights: Whether attention's weights are written too.

    Returns:
        The merged map (N, C, *size), and for attention the weights (N, S, *size), which sum to 1 over S (None otherwise, or where they are not wanted).
        Both are channels_last and differentiable once.

    Raises:
        ValueError: A shape, dtype, device, mode or size is wrong.
        RuntimeError: It is differentiated twice or forwards, or runs under vmap.

    NaN and infinity go through the sums of "attention" and "average" (0 x infinity is NaN; a logit that is NaN or infinity makes all weights of its position
    NaN, minus infinity makes its own 0). "max" compares as Caffe does: NaN of map 1 is taken, NaN of map 0 or of a later map gives way.

    Paper: section 3, equations 1 and 2. Caffe: Interp, Softmax, Slice, SpatialProduct, Eltwise. Ties of "max": between maps 0 and 1 map 1 takes the gradient,
    a later map only where it is strictly greater.
    """
    if len(scores) == 0:
        raise ValueError("merge_scores: scores must hold 1 to 8 maps; got 0; pass the score map of every scale")
    size = scores[0].shape[2:] if size is None else size
    if backend() == "reference":
        return reference.merge_scores(scores, logits, mode, size, return_weights)
    merged, weights = torch.ops.repro.merge_scores(list(scores), logits, mode, size, return_weights)
    return merged, weights if mode == "attention" and return_weights else None


if COMPILED:

    def _empty_map(like, channels, size):
        return like.new_empty((like.shape[0], channels, *size)).contiguous(memory_format=torch.channels_last)

    @torch.library.register_fake("repro::merge_scores")
    def _fake_merge_scores(scores, logits, mode, size, return_weights):
        check_one_device("merge_scores", *scores, logits)
        weights = len(scores) if mode == "attention" and return_weights else 0
        return _empty_map(scores[0], scores[0].shape[1], size), _empty_map(scores[0], weights, size)

    @torch.library.register_fake("repro::merge_scores_backward")
    def _fake_merge_scores_backward(dmerged, dweights, scores, logits, mode):
        check_one_device("merge_scores_backward", dmerged, dweights, *scores, logits)
        dscores = [_empty_map(score, score.shape[1], score.shape[2:]) for score in scores]
        return dscores, _empty_map(dmerged, len(scores), logits.shape[2:]) if logits is not None else _empty_map(
            dmerged, 0, dmerged.shape[2:]
        )

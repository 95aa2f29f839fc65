"""Merging the score maps of several scales: attention, average or maximum."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import reference
from .library import COMPILED, backend


def merge_scores(
    scores: Sequence[torch.Tensor],
    logits: torch.Tensor | None = None,
    mode: str = "attention",
    size: Sequence[int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Resamples S score maps to one size and merges them.

    Args:
        scores: 1 to 8 maps (N, C, H_s, W_s), float32, float64 or bfloat16, each at its own size; the finest first.
        logits: (N, S, H, W), attention only; resampled to `size` before the softmax where H, W differ from it.
        mode: "attention" (sum weighted by the softmax over S), "average" or "max" (per position and class).
        size: (height, width) of the result, pixels; by default that of scores[0].

    Returns:
        The merged map (N, C, *size), and for attention the weights (N, S, *size), which sum to 1 over S (None otherwise). Both are
        channels_last and differentiable once.

    Raises:
        ValueError: A shape, dtype, device, mode or size is wrong.

    Paper: section 3, equations 1 and 2. Caffe: Interp, Softmax, Slice, SpatialProduct, Eltwise. Ties of "max": between maps 0 and 1 map 1 takes the gradient,
    a later map only where it is strictly greater.
    """
    if len(scores) == 0:
        raise ValueError("merge_scores: scores must hold 1 to 8 maps; got 0; pass the score map of every scale")
    size = scores[0].shape[2:] if size is None else size
    if backend() == "reference":
        return reference.merge_scores(scores, logits, mode, size)
    merged, weights = torch.ops.repro.merge_scores(list(scores), logits, mode, size)
    return merged, weights if mode == "attention" else None


if COMPILED:

    @torch.library.register_fake("repro::merge_scores")
    def _fake_merge_scores(scores, logits, mode, size):
        n, c = scores[0].shape[:2]
        weights = len(scores) if mode == "attention" else 0
        return tuple(
            scores[0].new_empty((n, k, *size)).contiguous(memory_format=torch.channels_last) for k in (c, weights)
        )

    @torch.library.register_fake("repro::merge_scores_backward")
    def _fake_merge_scores_backward(dmerged, dweights, scores, weights, mode):
        dscores = [torch.empty_like(score).contiguous(memory_format=torch.channels_last) for score in scores]
        return dscores, torch.empty_like(weights).contiguous(memory_format=torch.channels_last)

    def _setup_context(ctx, inputs, output):
        scores, logits, mode, _ = inputs
        ctx.mode = mode
        ctx.logits_size = None if logits is None else logits.shape[2:]
        ctx.save_for_backward(output[1], *scores)

    def _backward(ctx, dmerged, dweights):
        weights, *scores = ctx.saved_tensors
        dscores, dlogits = torch.ops.repro.merge_scores_backward(
            dmerged, dweights if ctx.mode == "attention" else None, scores, weights, ctx.mode
        )
        if ctx.logits_size is None:
            return dscores, None, None, None
        if ctx.logits_size != dlogits.shape[2:]:
            dlogits = torch.ops.repro.interp_backward(dlogits, ctx.logits_size)
        return dscores, dlogits, None, None

    def _no_second_derivative(ctx, ddscores, ddlogits):
        raise RuntimeError(
            "merge_scores_backward: must not be differentiated; got a request for a second derivative; use repro.ops.reference.merge_scores"
        )

    torch.library.register_autograd("repro::merge_scores", _backward, setup_context=_setup_context)
    torch.library.register_autograd("repro::merge_scores_backward", _no_second_derivative)

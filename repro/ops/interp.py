"""Caffe's Interp layer: bilinear resize, corner to corner."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from repro.ops import reference
from repro.ops.library import COMPILED, backend


def interp(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resizes maps bilinearly so that their corner pixels stay corner pixels.

    Args:
        x: (N, C, H_in, W_in), float32, float64, bfloat16 or float16; any strides.
        size: (H_out, W_out), pixels, both at least 1.

    Returns:
        (N, C, H_out, W_out) in x's dtype, channels_last. Differentiable any number of times.

    Raises:
        ValueError: A dimension, dtype or size is wrong.
        RuntimeError: It is differentiated forwards, or runs under vmap.

    NaN and infinity reach every position that reads their pixel, be it with weight 0 (0 x infinity is NaN), but along an axis that keeps its length pixels
    are copied. (Caffe copies where both axes keep theirs.) The derivative leaves out weights of 0.

    Caffe: src/caffe/util/interp.cpp, caffe_cpu_interp2; the source position is float32 in float64 programs too.
    """
    if backend() == "reference":
        return reference.interp(x, size)
    return torch.ops.repro.interp(x, size)


if COMPILED:

    @torch.library.register_fake("repro::interp")
    @torch.library.register_fake("repro::interp_backward")
    def _resized_like(x, size):
        return x.new_empty((x.shape[0], x.shape[1], *size)).contiguous(memory_format=torch.channels_last)

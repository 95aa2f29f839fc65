"""The ops again in plain PyTorch: same names and signatures, autograd's own gradients, any device. Slow, and the truth that kernels are tested against."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def _taps(n_in: int, n_out: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the lower and upper source index and the upper one's weight for every output of an axis (csrc/interp_geometry.h)."""
    one = torch.ones((), dtype=torch.float32, device=like.device)
    ratio = one * (n_in - 1) / (n_out - 1) if n_out > 1 else one * 0
    source = (
        torch.arange(n_out, dtype=torch.float32, device=like.device) * ratio
    )  # Caffe: float32 in float64 programs too
    lo = source.to(torch.int64).clamp(max=n_in - 1)
    return lo, (lo + 1).clamp(max=n_in - 1), (source - lo).to(like.dtype)


def interp(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """See repro.ops.interp."""
    dtype = x.dtype
    x = x.float() if dtype == torch.bfloat16 else x
    y_lo, y_hi, wy = _taps(x.shape[2], size[0], x)
    x_lo, x_hi, wx = _taps(x.shape[3], size[1], x)
    top, bottom = x[:, :, y_lo], x[:, :, y_hi]
    upper = (1 - wx) * top[..., x_lo] + wx * top[..., x_hi]
    lower = (1 - wx) * bottom[..., x_lo] + wx * bottom[..., x_hi]
    wy = wy[:, None]
    return ((1 - wy) * upper + wy * lower).to(dtype).contiguous(memory_format=torch.channels_last)


def merge_scores(
    scores: Sequence[torch.Tensor],
    logits: torch.Tensor | None = None,
    mode: str = "attention",
    size: Sequence[int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """See repro.ops.merge_scores."""
    size = scores[0].shape[2:] if size is None else size
    maps = [interp(score, size) for score in scores]
    if mode == "attention":
        weights = torch.softmax(interp(logits, size), dim=1)
        merged = sum(weights[:, s : s + 1] * score for s, score in enumerate(maps))
        return merged.contiguous(memory_format=torch.channels_last), weights.contiguous(
            memory_format=torch.channels_last
        )
    if mode == "average":
        weight = torch.tensor(1.0 / len(maps), dtype=torch.float32).item()  # Caffe: Eltwise's coefficients are float32
        return sum(weight * score for score in maps).contiguous(memory_format=torch.channels_last), None
    if mode != "max":
        raise ValueError(
            f'merge_scores: mode must be "attention", "average" or "max"; got "{mode}"; choose one of the three'
        )
    merged = maps[0]
    for s, score in enumerate(maps[1:], start=1):
        merged = torch.where(score >= merged if s == 1 else score > merged, score, merged)
    return merged.contiguous(memory_format=torch.channels_last), None

"""What the operators' tests share: maps of any size and strides, and errors measured against what was summed."""

from __future__ import annotations

import torch
from conftest import relative_error
from drawn import st

from repro.ops import reference

LAYOUTS = ("contiguous", "channels_last", "transposed", "strided", "expanded")
HEIGHTS = st.sampled_from([1, 2]) | st.integers(1, 70)
WIDTHS = st.sampled_from([1, 2]) | st.integers(1, 90)
SIZES = st.tuples(HEIGHTS, WIDTHS)


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """Gives a map the strides of a layout, differentiably; "expanded" shows the first image N times."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "strided":
        return torch.cat([x, x], dim=1).repeat_interleave(2, dim=3)[:, x.shape[1] :, :, 1::2]
    if layout == "expanded":
        return x[:1].expand(x.shape)
    return x.contiguous()


def assert_rounded_like_reference(actual, reference32, reference64, magnitude: float, what: str = "") -> None:
    """The rule of conftest.assert_as_exact_as_reference, where sums may cancel: the floor is relative to what was summed.

    Args:
        actual: The float32 kernel's result.
        reference32: The float32 reference's.
        reference64: The float64 reference's.
        magnitude: The largest sum of the terms' absolute values.
        what: Named in the message.
    """
    allowed = 2 * relative_error(reference32, reference64) * (peak(reference64) or 1.0) + 3e-7 * magnitude
    error = peak(actual.double() - reference64)
    assert error <= allowed, f"{what}: error {error:.2e}, allowed {allowed:.2e}"


def peak(x: torch.Tensor) -> float:
    """Returns the largest absolute value, 0 of nothing."""
    return float(x.abs().max()) if x.numel() else 0.0


def largest_adjoint(terms: torch.Tensor, size) -> float:
    """Computes the largest sum that an adjoint of Interp from `terms` to `size` takes, all terms positive."""
    leaf = torch.zeros(*terms.shape[:2], *size, dtype=torch.float64, device=terms.device, requires_grad=True)
    (sums,) = torch.autograd.grad(reference.interp(leaf, terms.shape[2:]), leaf, terms.abs().double())
    return peak(sums)


def sparse_pictures(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Makes scores and images of nine pixels with far colours around 0: what Caffe's filling adds to their lattice shows in every fourth result or so."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.log_softmax(torch.randn(1, 3, 3, 3, generator=generator), dim=1)
    return scores, torch.randn(1, 3, 3, 3, generator=generator) * 25

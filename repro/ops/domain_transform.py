"""Caffe's DomainTransform layer: a recursive filter that smooths a map along rows and columns, and stops at edges."""

from __future__ import annotations

import torch

from repro.ops import reference
from repro.ops.library import COMPILED, backend, check_one_device


def domain_transform(
    x: torch.Tensor,
    edge: torch.Tensor,
    num_iter: int,
    spatial_sigma: float,
    range_sigma: float,
    min_weight: float,
    valid_size: torch.Tensor | None = None,
) -> torch.Tensor:
    """Smooths a map where the edge map is small, and keeps it apart where the edge map is large.

    Iteration i of K goes over every row from left to right and back, then over every column from top to bottom and back:
    y[p] += w[p] * (y[p-1] - y[p]), and on the way back y[p] += w[p+1] * (y[p+1] - y[p]). The weight of a pixel's link to the one before it is
    w = exp(-sqrt(2) / sigma_i * (1 + edge * spatial_sigma / range_sigma)), clipped to min_weight..1, with
    sigma_i = spatial_sigma * sqrt(3) * 2^(K-i-1) / sqrt(4^K - 1).

    Args:
        x: (N, C, H, W), float32, float64, bfloat16 or float16; any strides.
        edge: (N, 1, H, W), of x's dtype: how strongly each pixel is an edge, at least 0 (below 0 it counts as 0 would, or less).
        num_iter: K, at least 1.
        spatial_sigma: Standard deviation of the smoothing where there is no edge, pixels; positive.
        range_sigma: The unit of `edge`; positive.
        min_weight: The least weight, 0 or more and below 1.
        valid_size: (N, 2) int64, height and width of each image in the map's top left corner, pixels, or None for the whole map. Outside, y is x.

    Returns:
        (N, C, H, W) in x's dtype, channels_last. Differentiable once, with respect to x and edge; outside the valid size the gradient of y is that of x, and that
        of edge is 0.

    Raises:
        ValueError: A shape, dtype, device or number is wrong.

    Caffe: src/caffe/layers/domain_transform_layer.cpp. The derivative of a clipped weight is taken as if it had that value unclipped. The first row's and
        the first column's weights link to nothing.
    Paper: Attention-DT; Gastal and Oliveira 2011 (the filter), Chen et al. 2016 (its gradients).
    """
    arguments = (x, edge, num_iter, spatial_sigma, range_sigma, min_weight, valid_size)
    if backend() == "reference":
        return reference.domain_transform(*arguments)
    return torch.ops.repro.domain_transform(*arguments)


if COMPILED:

    @torch.library.register_fake("repro::domain_transform")
    def _fake_domain_transform(x, edge, num_iter, spatial_sigma, range_sigma, min_weight, valid_size):
        check_one_device("domain_transform", x, edge, valid_size)
        return torch.empty_like(x, memory_format=torch.channels_last)

    @torch.library.register_fake("repro::domain_transform_backward")
    def _fake_domain_transform_backward(dy, x, edge, num_iter, spatial_sigma, range_sigma, min_weight, valid_size):
        check_one_device("domain_transform_backward", dy, x, edge, valid_size)
        return tuple(torch.empty_like(map, memory_format=torch.channels_last) for map in (x, edge))

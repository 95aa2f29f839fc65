"""Pooling and LRN."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from repro.caffe.layers.base import Context, Layer, Shape
from repro.caffe.layers.convolution import spatial
from repro.caffe.proto import Typed


class Pooling(Layer):
    """MAX or AVE over windows; with two tops MAX gives the winners' positions too. STOCHASTIC is refused.

    Caffe: src/caffe/layers/pooling_layer.cpp: the size rounds up, and a last window that would begin beyond the input's own end (with pad) is left out;
        MAX ignores padding, the first maximum wins; AVE divides by the window clipped to the padded input.
    """

    MAX_TOPS = 2
    IN_PLACE = False

    def __init__(self, param: Typed, context: Context):
        super().__init__(param, context)
        pool = param.pooling_param
        self.pool = pool
        if pool.pool == "STOCHASTIC":
            raise self.fail("pool must be MAX or AVE", "STOCHASTIC, which is not supported", "choose another")
        given = pool.has("kernel_size") or pool.has("kernel_h") or pool.has("kernel_w")
        if pool.global_pooling and given:
            raise self.fail("with global_pooling no kernel must be given", "one")
        self.kernel = None if pool.global_pooling else spatial(self, pool, "kernel", None, "kernel_size")
        self.stride = spatial(self, pool, "stride", 1, "stride")
        self.pad = spatial(self, pool, "pad", 0, "pad")
        if pool.global_pooling and (self.stride != (1, 1) or self.pad != (0, 0)):
            raise self.fail("with global_pooling pad must be 0 and stride 1", f"{self.pad} and {self.stride}")
        if min(*self.stride, *(self.kernel or (1,))) < 1:
            raise self.fail("kernel and stride must be at least 1", f"{self.kernel} and {self.stride}")
        if self.kernel and any(p >= k for p, k in zip(self.pad, self.kernel, strict=True)):
            raise self.fail("pad must be less than the kernel", f"{self.pad} and {self.kernel}")
        if max(*self.stride, *(self.kernel or (1,))) >= 2**24:
            raise self.fail("kernel and stride must be below 2^24", f"{self.kernel} and {self.stride}")
        if self.kernel and any(2 * p > k and p > 1024 for p, k in zip(self.pad, self.kernel, strict=True)):
            raise self.fail("pad beyond half the kernel must be at most 1024", self.pad)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Computes the top's shape."""
        shape = bottom_shapes[0]
        self.expect_axes(shape, 4)
        if min(shape) < 1:
            raise self.fail("its bottom must not be empty", list(shape))
        if self.tops == 2 and self.pool.pool != "MAX":
            raise self.fail("only MAX has a second top", self.pool.pool)
        kernel = self.kernel or shape[2:]
        rounded = math.floor if self.pool.round_mode == "FLOOR" else math.ceil
        sides = []
        for n, k, s, p in zip(shape[2:], kernel, self.stride, self.pad, strict=True):
            side = rounded((n + 2 * p - k) / s) + 1
            if any(self.pad) and (side - 1) * s >= n + p:
                side -= 1
            if side < 1 or (side - 1) * s - p >= n:
                raise self.fail("every window must begin inside its bottom", f"kernel {k}, stride {s} over {n}")
            sides.append(side)
        return [(*shape[:2], *sides)] * self.tops

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Pools."""
        x = bottoms[0]
        height, width = self.reshape([tuple(x.shape)])[0][2:]
        kernel, pad = self.kernel or tuple(x.shape[2:]), self.pad
        largest = self.pool.pool == "MAX"
        beyond = [
            0,
            0,
        ]  # torch pads at most half a kernel, and at the end only what the last window needs must be there
        if any(2 * p > k for p, k in zip(pad, kernel, strict=True)):
            beyond, pad = list(pad), (0, 0)
            x = F.pad(x, (beyond[1], beyond[1], beyond[0], beyond[0]), value=-math.inf if largest else 0.0)
        if not largest:
            y = F.avg_pool2d(x, kernel, self.stride, pad, ceil_mode=True, count_include_pad=True)
            return (y[:, :, :height, :width],)
        if self.tops == 1:
            return (F.max_pool2d(x, kernel, self.stride, pad, ceil_mode=True)[:, :, :height, :width],)
        y, winner = F.max_pool2d(x, kernel, self.stride, pad, ceil_mode=True, return_indices=True)
        rows, columns = winner // x.shape[3] - beyond[0], winner % x.shape[3] - beyond[1]
        mask = (rows * bottoms[0].shape[3] + columns).to(x.dtype)
        return y[:, :, :height, :width], mask[:, :, :height, :width]


class LRN(Layer):
    """Local response normalisation, across channels or within one. Caffe: src/caffe/layers/lrn_layer.cpp."""

    IN_PLACE = False

    def __init__(self, param: Typed, context: Context):
        super().__init__(param, context)
        self.lrn = param.lrn_param
        if self.lrn.local_size % 2 == 0 or self.lrn.local_size > 2**15:
            raise self.fail("local_size must be odd and below 2^15", self.lrn.local_size)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Returns the bottom's shape."""
        self.expect_axes(bottom_shapes[0], 4)
        return [bottom_shapes[0]]

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Normalises: x * (k + alpha * mean of squares) ^ -beta, where within a channel k is 1."""
        x, lrn, size = bottoms[0], self.lrn, self.lrn.local_size
        across = lrn.norm_region == "ACROSS_CHANNELS"
        if across:
            window = F.pad(x * x, (0, 0, 0, 0, size // 2, size // 2))
            mean = sum(window[:, i : i + x.shape[1]] for i in range(size)) / size
        else:
            mean = F.avg_pool2d(x * x, size, 1, size // 2)
        return (x * (mean * lrn.alpha + (lrn.k if across else 1.0)) ** -lrn.beta,)


TYPES = {"LRN": LRN, "Pooling": Pooling}

"""BatchNorm, Scale, Bias and MVN."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from repro.caffe.layers.base import Layer, Shape


def channelwise(value: torch.Tensor, axes: int) -> torch.Tensor:
    """Shapes one value per channel (C,) so that it meets a blob of `axes` axes."""
    return value.reshape(1, -1, *[1] * (axes - 2)) if axes > 1 else value


class BatchNorm(Layer):
    """(x - mean) / sqrt(variance + eps), with the statistics in the blobs, which are sums with a factor (blob 2), or with the batch's.

    Caffe: src/caffe/layers/batch_norm_layer.cpp. update_global_stats is DeepLab v2's: it subtracts the global mean, divides by the variance of this batch
        around it, adds both to the sums, and computes no gradient of the statistics.
    Deviates: the DeepLab fork never computes the batch's variance (each pass divides by the root of the last divisor plus eps); this is BVLC's.
    """

    def setup(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Makes the sums of means and of variances, and their factor, all 0."""
        shape = bottom_shapes[0]
        if not shape:
            raise self.fail("its bottom must have an axis", "none")
        self.channels = shape[1] if len(shape) > 1 else 1
        for size in (self.channels, self.channels, 1):
            self.add_blob((size,), None)
        return self.reshape(bottom_shapes)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Returns the bottom's shape."""
        shape = bottom_shapes[0]
        if len(shape) > 1 and shape[1] != self.channels:
            raise self.fail(f"its bottom must have {self.channels} channels", list(shape))
        return [shape]

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Normalises; in training without global statistics the running sums move."""
        x, norm = bottoms[0], self.param.batch_norm_param
        use_global = norm.use_global_stats if norm.has("use_global_stats") else self.context.phase == "TEST"
        means, variances, factor = (blob.detach() for blob in self.blobs)
        if use_global:
            share = torch.where(factor == 0, 0, 1 / factor)
            mean, variance = means * share, variances * share
            if not norm.update_global_stats:
                return ((x - channelwise(mean, x.dim())) / channelwise((variance + norm.eps).sqrt(), x.dim()),)
            with torch.no_grad():
                centred = x - channelwise(mean, x.dim())
                variance = _channel_mean(centred * centred)
                self._move(mean, variance, x)
            return ((x - channelwise(mean, x.dim())) / channelwise((variance + norm.eps).sqrt(), x.dim()),)
        mean = _channel_mean(x)
        centred = x - channelwise(mean, x.dim())
        variance = _channel_mean(centred * centred)
        self._move(mean, variance, x)
        return (centred / channelwise((variance + norm.eps).sqrt(), x.dim()),)

    @torch.no_grad()
    def _move(self, mean: torch.Tensor, variance: torch.Tensor, x: torch.Tensor) -> None:
        fraction = self.param.batch_norm_param.moving_average_fraction
        per_channel = x.numel() // max(1, self.channels)
        corrected = per_channel / (per_channel - 1) if per_channel > 1 else 1.0
        for blob, value in zip(self.blobs, (mean, variance * corrected, 1.0), strict=True):
            blob.mul_(fraction).add_(value)


def _channel_mean(x: torch.Tensor) -> torch.Tensor:
    return x.mean([axis for axis in range(x.dim()) if axis != 1]) if x.dim() > 1 else x.mean().reshape(1)


class Scale(Layer):
    """Multiplies by a parameter, or by the second bottom, from an axis on; with bias_term adds one too. Caffe: src/caffe/layers/scale_layer.cpp."""

    MAX_BOTTOMS = 2
    PARAM, DEFAULT = "scale_param", 1.0

    def setup(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Makes the factor, 1 where no filler says otherwise, and the bias."""
        scale, shape = getattr(self.param, self.PARAM), bottom_shapes[0]
        if len(bottom_shapes) == 1:
            axis = self.axis(scale.axis, len(shape))
            if scale.num_axes < -1 or axis + scale.num_axes > len(shape):
                raise self.fail("num_axes must be -1 or lie within its bottom", scale.num_axes)
            self.span = shape[axis:] if scale.num_axes == -1 else shape[axis : axis + scale.num_axes]
            self.add_blob(self.span, scale.filler if scale.has("filler") else None, default=self.DEFAULT)
        else:
            self.span = bottom_shapes[1]
        if self.PARAM == "scale_param" and scale.bias_term:
            self.add_blob(self.span, scale.bias_filler if scale.has("bias_filler") else None)
        return self.reshape(bottom_shapes)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Checks that the factor meets the bottom from the axis on; returns the bottom's shape."""
        shape = bottom_shapes[0]
        span = bottom_shapes[1] if len(bottom_shapes) == 2 else self.span
        self.first = self.axis(getattr(self.param, self.PARAM).axis, len(shape)) if span else 0
        if shape[self.first : self.first + len(span)] != span:
            raise self.fail(
                f"its factor's shape {list(span)} must be its bottom's from axis {self.first} on", list(shape)
            )
        return [shape]

    def spread(self, value: torch.Tensor, axes: int) -> torch.Tensor:
        """Shapes a factor so that it meets a blob of `axes` axes."""
        return value.reshape(*value.shape, *[1] * (axes - self.first - value.dim()))

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Multiplies and adds."""
        x, scale = bottoms[0], self.param.scale_param
        y = x * self.spread(bottoms[1] if len(bottoms) == 2 else self.blob(0), x.dim())
        return (y + self.spread(self.blob(len(self.blobs) - 1), x.dim()) if scale.bias_term else y,)


class Bias(Scale):
    """Adds a parameter, or the second bottom, from an axis on. Caffe: src/caffe/layers/bias_layer.cpp."""

    PARAM, DEFAULT = "bias_param", 0.0

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Adds."""
        x = bottoms[0]
        return (x + self.spread(bottoms[1] if len(bottoms) == 2 else self.blob(0), x.dim()),)


class _Normalised(torch.autograd.Function):
    """centred / (std + eps) with Caffe's gradient, which treats eps as part of the deviation (MVNLayer::Backward_cpu)."""

    @staticmethod
    def forward(ctx, x, eps):
        centred = x - x.mean(1, keepdim=True)
        deviation = (centred * centred).mean(1, keepdim=True).sqrt() + eps
        y = centred / deviation
        ctx.save_for_backward(y, deviation)
        return y

    @staticmethod
    def backward(ctx, dy):
        y, deviation = ctx.saved_tensors
        dx = dy - dy.mean(1, keepdim=True) - y * (y * dy).mean(1, keepdim=True)
        return dx / deviation, None


class MVN(Layer):
    """Subtracts the mean of each channel (or item) and divides by its standard deviation. Caffe: src/caffe/layers/mvn_layer.cpp."""

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Returns the bottom's shape."""
        self.expect_axes(bottom_shapes[0], 4)
        return [bottom_shapes[0]]

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Normalises."""
        x, mvn = bottoms[0], self.param.mvn_param
        rows = x.reshape(x.shape[0] * (1 if mvn.across_channels else x.shape[1]), -1)
        y = _Normalised.apply(rows, mvn.eps) if mvn.normalize_variance else rows - rows.mean(1, keepdim=True)
        return (y.reshape(x.shape),)


TYPES = {"BatchNorm": BatchNorm, "Bias": Bias, "MVN": MVN, "Scale": Scale}

"""Convolution, Deconvolution and InnerProduct."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from repro.caffe.layers.base import Context, Layer, Shape, count
from repro.caffe.proto import Typed


def spatial(layer: Layer, param: Typed, stem: str, default: int | None, *names: str) -> tuple[int, int]:
    """Reads a (height, width) pair that a message states as one number, two, or in fields ending in _h and _w.

    Args:
        layer: For errors.
        param: ConvolutionParameter or PoolingParameter.
        stem: Of the _h and _w fields.
        default: Where none is given; None if one must be.
        names: The fields that hold one or two numbers, the first given one counts.

    Caffe: src/caffe/layers/base_conv_layer.cpp, LayerSetUp.
    """
    high, wide = f"{stem}_h", f"{stem}_w"
    listed = next((name for name in names if param.has(name)), None)
    if param.has(high) or param.has(wide):
        if listed:
            raise layer.fail(f"{listed} or {high} and {wide} must be given", "both", "keep one")
        values = [getattr(param, high) or 0, getattr(param, wide) or 0]
    elif listed:
        given = getattr(param, listed)
        values = list(given) if isinstance(given, list) else [given]
        if len(values) > 2:
            raise layer.fail(f"{listed} must have one value per spatial axis", f"{len(values)} values")
    elif default is None:
        raise layer.fail(f"{names[0]} must be given", "none")
    else:
        values = [default]
    return values[0], values[-1]


class Convolution(Layer):
    """A convolution over (N, C, H, W); several bottoms go through the same weights to as many tops.

    Caffe: src/caffe/layers/base_conv_layer.cpp, conv_layer.cpp. `hole` is DeepLab v1's word for dilation.
    Deviates: two spatial axes, axis 1 alone.
    """

    MAX_BOTTOMS, MAX_TOPS = None, None
    IN_PLACE = False

    def __init__(self, param: Typed, context: Context):
        super().__init__(param, context)
        conv = param.convolution_param
        self.conv = conv
        self.kernel = spatial(self, conv, "kernel", None, "kernel_size")
        self.stride = spatial(self, conv, "stride", 1, "stride")
        self.pad = spatial(self, conv, "pad", 0, "pad")
        hole = conv.has("hole") or conv.has("hole_h") or conv.has("hole_w")
        if hole and conv.has("dilation"):
            raise self.fail("dilation or DeepLab v1's hole must be given", "both", "keep one")
        stem = "hole" if hole else "dilation"
        self.dilation = spatial(self, conv, stem, 1, stem) if hole else tuple(_pair(self, conv.dilation, "dilation"))
        self.group = conv.group
        if not all(side >= 1 for side in (*self.kernel, *self.stride, *self.dilation)):
            raise self.fail(
                "kernel, stride and dilation must be at least 1", f"{self.kernel}, {self.stride}, {self.dilation}"
            )
        if max(*self.kernel, *self.stride, *self.dilation, *self.pad) >= 2**24:
            raise self.fail("kernel, stride, pad and dilation must be below 2^24", f"{self.kernel}, {self.pad}")
        if conv.axis != 1:
            raise self.fail("convolution_param.axis must be 1", conv.axis)
        if conv.num_output < 1:
            raise self.fail("num_output must be at least 1", conv.num_output)
        if self.group < 1 or conv.num_output % self.group:
            raise self.fail("num_output must be a multiple of group", f"{conv.num_output} and {self.group}")

    def weight_shape(self, channels: int) -> Shape:
        """Returns the shape of the weight: (out, in / group, kh, kw)."""
        return (self.conv.num_output, channels // self.group, *self.kernel)

    def setup(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Makes weight and bias."""
        shape = bottom_shapes[0]
        self.expect_axes(shape, 4)
        self.channels = shape[1]
        if self.channels < 1 or self.channels % self.group:
            raise self.fail("its bottom's channels must be a multiple of group", f"{self.channels} and {self.group}")
        filler = self.conv.weight_filler if self.conv.has("weight_filler") else None
        self.add_blob(self.weight_shape(self.channels), filler)
        if self.conv.bias_term:
            self.add_blob((self.conv.num_output,), self.conv.bias_filler if self.conv.has("bias_filler") else None)
        return self.reshape(bottom_shapes)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Computes the tops' shapes."""
        if len(bottom_shapes) != self.tops:
            raise self.fail("it must have as many tops as bottoms", f"{len(bottom_shapes)} and {self.tops}")
        tops = []
        for shape in bottom_shapes:
            self.expect_axes(shape, 4)
            if shape[1] != self.channels:
                raise self.fail(f"its bottoms must have {self.channels} channels", shape[1])
            sides = [self.side(n, i) for i, n in enumerate(shape[2:])]
            if min(sides) < 1:
                raise self.fail("its bottom must be as large as the dilated kernel", list(shape))
            tops.append((shape[0], self.conv.num_output, *sides))
        return tops

    def side(self, length: int, i: int) -> int:
        """Returns a side of the top for a side of the bottom."""
        extent = self.dilation[i] * (self.kernel[i] - 1) + 1
        return (length + 2 * self.pad[i] - extent) // self.stride[i] + 1

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Convolves every bottom."""
        weight, bias = self.weight_and_bias()
        return tuple(F.conv2d(x, weight, bias, self.stride, self.pad, self.dilation, self.group) for x in bottoms)

    def weight_and_bias(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the weight, channels_last, and the bias or None."""
        weight = self.blob(0).to(memory_format=torch.channels_last)
        return weight, self.blob(1) if self.conv.bias_term else None


def _pair(layer: Layer, values: list, what: str) -> tuple[int, int]:
    if len(values) > 2:
        raise layer.fail(f"{what} must have one value per spatial axis", f"{len(values)} values")
    return (values[0], values[-1]) if values else (1, 1)


class Deconvolution(Convolution):
    """The transpose of a convolution; its weight is (in, out / group, kh, kw). Caffe: src/caffe/layers/deconv_layer.cpp."""

    def weight_shape(self, channels: int) -> Shape:
        """Returns the shape of the weight."""
        return (channels, self.conv.num_output // self.group, *self.kernel)

    def side(self, length: int, i: int) -> int:
        """Returns a side of the top for a side of the bottom."""
        extent = self.dilation[i] * (self.kernel[i] - 1) + 1
        return self.stride[i] * (length - 1) + extent - 2 * self.pad[i]

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Deconvolves every bottom."""
        weight, bias = self.weight_and_bias()
        return tuple(
            F.conv_transpose2d(x, weight, bias, self.stride, self.pad, 0, self.group, self.dilation) for x in bottoms
        )


class InnerProduct(Layer):
    """A fully connected layer over all axes from `axis` on. Caffe: src/caffe/layers/inner_product_layer.cpp."""

    IN_PLACE = False

    def setup(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Makes weight, (num_output, K), transposed if asked, and bias."""
        product = self.param.inner_product_param
        if product.num_output < 1:
            raise self.fail("num_output must be at least 1", product.num_output)
        self.features = self._features(bottom_shapes[0])
        shape = (product.num_output, self.features)
        self.add_blob(shape[::-1] if product.transpose else shape, _given(product, "weight_filler"))
        if product.bias_term:
            self.add_blob((product.num_output,), _given(product, "bias_filler"))
        return self.reshape(bottom_shapes)

    def _features(self, shape: Shape) -> int:
        return count(shape[self.axis(self.param.inner_product_param.axis, len(shape)) :])

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Computes the top's shape."""
        shape, product = bottom_shapes[0], self.param.inner_product_param
        if self._features(shape) != self.features:
            raise self.fail(f"its bottom must have {self.features} values from its axis on", list(shape))
        return [(*shape[: self.axis(product.axis, len(shape))], product.num_output)]

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Multiplies."""
        product, x = self.param.inner_product_param, bottoms[0]
        rows = x.reshape(*x.shape[: self.axis(product.axis, x.dim())], self.features)
        weight = self.blob(0).t() if product.transpose else self.blob(0)
        return (F.linear(rows, weight, self.blob(1) if product.bias_term else None),)


def _given(param: Typed, name: str) -> Typed | None:
    return getattr(param, name) if param.has(name) else None


TYPES = {"Convolution": Convolution, "Deconvolution": Deconvolution, "InnerProduct": InnerProduct}

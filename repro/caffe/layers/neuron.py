"""Layers that work element by element."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from repro.caffe.layers.base import Context, Layer, Shape, count
from repro.caffe.proto import Typed
from repro.data.caffe_rng import MAX_DRAW


class Neuron(Layer):
    """A layer whose top has its bottom's shape. Caffe: include/caffe/layers/neuron_layer.hpp."""

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Returns the bottom's shape."""
        return [bottom_shapes[0]]

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Applies `value` to the bottom."""
        return (self.value(bottoms[0]),)

    def value(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the top."""
        raise NotImplementedError


class ReLU(Neuron):
    """max(x, 0) + negative_slope * min(x, 0); the gradient at 0 is negative_slope's."""

    def value(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the top."""
        slope = self.param.relu_param.negative_slope
        return F.leaky_relu(x, slope) if slope else F.relu(x)


class PReLU(Neuron):
    """x where positive, else its channel's slope times x. Caffe: src/caffe/layers/prelu_layer.cpp; the slope begins as 0.25."""

    def setup(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Makes one slope per channel, or one in all."""
        shape = bottom_shapes[0]
        if len(shape) < 2:
            raise self.fail("its bottom must have at least 2 axes", list(shape))
        prelu = self.param.prelu_param
        filler = prelu.filler if prelu.has("filler") else None
        self.add_blob(() if prelu.channel_shared else (shape[1],), filler, default=0.25)
        return self.reshape(bottom_shapes)

    def value(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the top."""
        return F.prelu(x, self.blob(0).reshape(-1))


class ELU(Neuron):
    """x where positive, else alpha * (exp(x) - 1)."""

    def value(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the top."""
        return F.elu(x, self.param.elu_param.alpha)


class Sigmoid(Neuron):
    """1 / (1 + exp(-x))."""

    def value(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the top."""
        return torch.sigmoid(x)


class TanH(Neuron):
    """tanh(x)."""

    def value(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the top."""
        return torch.tanh(x)


class AbsVal(Neuron):
    """|x|."""

    def value(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the top."""
        return x.abs()


class BNLL(Neuron):
    """log(1 + exp(x))."""

    def value(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the top."""
        return torch.logaddexp(x, torch.zeros((), dtype=x.dtype, device=x.device))


class Exp(Neuron):
    """base ^ (shift + scale * x); base -1 stands for e."""

    def value(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the top. Caffe: src/caffe/layers/exp_layer.cpp: exp(inner * x) * outer."""
        exp = self.param.exp_param
        inner = _log_base(self, exp.base) * exp.scale
        outer = _powered(math.e if exp.base == -1 else exp.base, exp.shift)
        return torch.exp(x * inner) * outer


class Log(Neuron):
    """The logarithm of shift + scale * x to a base; -1 stands for e."""

    def value(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the top."""
        log = self.param.log_param
        return torch.log(x * log.scale + log.shift) / _log_base(self, log.base)


def _log_base(layer: Layer, base: float) -> float:
    if base != -1 and base <= 0:
        raise layer.fail("base must be positive, or -1 for e", base)
    if base == 1:
        raise layer.fail("base must not be 1", base)
    return 1.0 if base == -1 else math.log(base)


class Power(Neuron):
    """(shift + scale * x) ^ power. Caffe: src/caffe/layers/power_layer.cpp."""

    def value(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the top; constant where scale or power is 0."""
        power = self.param.power_param
        if power.scale == 0 or power.power == 0:
            value = 1.0 if power.power == 0 else _powered(power.shift, power.power)
            return torch.tensor(value, dtype=torch.float64).to(x).expand_as(x).clone()  # too large for x: infinity
        y = x * power.scale if power.scale != 1 else x
        y = y + power.shift if power.shift else y
        if power.power == 1:
            return y if y is not x else x.clone()
        return y**power.power


def _powered(base: float, power: float) -> float:
    """Returns base ^ power as C's pow does: NaN and infinity instead of errors and complex numbers."""
    return float(torch.tensor(base, dtype=torch.float64) ** power)


class Threshold(Neuron):
    """1 where x exceeds the threshold, else 0; no gradient."""

    def value(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the top."""
        return (x > self.param.threshold_param.threshold).to(x.dtype)


class Dropout(Neuron):
    """In phase TRAIN, zeroes each element with probability dropout_ratio and scales the others by 1 / (1 - dropout_ratio).

    One draw of the net's generator per element, in the order of the blob (N, C, H, W).

    Caffe: src/caffe/layers/dropout_layer.cpp; caffe_rng_bernoulli keeps where draw <= (1 - ratio) * (2^32 - 1), compared in double. DeepLab v1's
        scale_train: false, which scales at test, is refused.
    """

    def __init__(self, param: Typed, context: Context):
        super().__init__(param, context)
        dropout = param.dropout_param
        if not 0 <= dropout.dropout_ratio < 1:
            raise self.fail("dropout_ratio must be in [0, 1)", dropout.dropout_ratio)
        if not dropout.scale_train:
            raise self.fail("scale_train must be true", "false")
        self.ratio = dropout.dropout_ratio

    def value(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the top."""
        if self.context.phase != "TRAIN":
            return torch.ops.aten.alias(x)  # a view would lose the layout of a batch of one
        mask = self.mask(tuple(x.shape)).to(device=x.device, dtype=x.dtype)
        if x.dim() == 4:
            mask = mask.contiguous(memory_format=torch.channels_last)
        return x * mask * (1.0 / (1.0 - self.ratio))

    def mask(self, shape: Shape) -> torch.Tensor:
        """Draws a mask: True where the element is kept."""
        draws = self.context.rng.draw(count(shape))
        return torch.from_numpy(draws <= (1 - self.ratio) * MAX_DRAW).reshape(shape)


TYPES = {
    "AbsVal": AbsVal,
    "BNLL": BNLL,
    "Dropout": Dropout,
    "ELU": ELU,
    "Exp": Exp,
    "Log": Log,
    "PReLU": PReLU,
    "Power": Power,
    "ReLU": ReLU,
    "Sigmoid": Sigmoid,
    "TanH": TanH,
    "Threshold": Threshold,
}

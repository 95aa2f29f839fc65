"""Layers that combine or reduce values: Eltwise and Reduction."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from repro.caffe.layers.base import Context, Layer, Shape
from repro.caffe.proto import Typed


class Eltwise(Layer):
    """SUM (with coefficients), PROD or MAX of its bottoms.

    Caffe: src/caffe/layers/eltwise_layer.cpp. Ties of MAX: between bottoms 0 and 1 the gradient goes to 1, a later one takes it only where it is greater.
    """

    MIN_BOTTOMS, MAX_BOTTOMS = 2, None

    def __init__(self, param: Typed, context: Context):
        super().__init__(param, context)
        eltwise = param.eltwise_param
        if eltwise.coeff and len(eltwise.coeff) != len(param.bottom):
            raise self.fail("coeff must be given for every bottom", f"{len(eltwise.coeff)} for {len(param.bottom)}")
        if eltwise.coeff and eltwise.operation == "PROD":
            raise self.fail("coeff must be given for SUM alone", "PROD")

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Returns the bottoms' one shape."""
        if len(set(bottom_shapes)) > 1:
            raise self.fail("its bottoms must have one shape", ", ".join(str(list(shape)) for shape in bottom_shapes))
        return [bottom_shapes[0]]

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Combines."""
        eltwise, y = self.param.eltwise_param, bottoms[0]
        if eltwise.operation == "SUM":
            coefficients = eltwise.coeff or [1.0] * len(bottoms)
            y = y * coefficients[0] if coefficients[0] != 1 else y
            for x, coefficient in zip(bottoms[1:], coefficients[1:], strict=True):
                y = torch.add(y, x, alpha=coefficient)
        elif eltwise.operation == "PROD":
            for x in bottoms[1:]:
                y = y * x
        else:
            for place, x in enumerate(bottoms[1:], start=1):
                y = torch.where(y > x if place == 1 else ~(x > y), y, x)
        return (y,)


class Reduction(Layer):
    """SUM, ASUM, SUMSQ or MEAN over all axes from `axis` on, times coeff. Caffe: src/caffe/layers/reduction_layer.cpp."""

    IN_PLACE = False

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Computes the top's shape."""
        shape = bottom_shapes[0]
        return [shape[: self.axis(self.param.reduction_param.axis, len(shape))]]

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Reduces."""
        reduction, x = self.param.reduction_param, bottoms[0]
        rows = x.reshape(*x.shape[: self.axis(reduction.axis, x.dim())], -1)
        if reduction.operation == "ASUM":
            rows = rows.abs()
        elif reduction.operation == "SUMSQ":
            rows = rows * rows
        y = rows.mean(-1) if reduction.operation == "MEAN" else rows.sum(-1)
        return (y * reduction.coeff,)


TYPES = {"Eltwise": Eltwise, "Reduction": Reduction}

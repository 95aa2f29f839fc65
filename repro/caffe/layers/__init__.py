"""The layers of a net, one module per family, by Caffe's type."""

from repro.caffe.layers import (
    accuracy,
    convolution,
    data,
    deeplab,
    eltwise,
    loss,
    neuron,
    normalization,
    pooling,
    shape,
    weak,
)
from repro.caffe.layers.base import Context, DataLayer, Layer

TYPES: dict[str, type[Layer]] = {
    **accuracy.TYPES,
    **convolution.TYPES,
    **data.TYPES,
    **deeplab.TYPES,
    **eltwise.TYPES,
    **loss.TYPES,
    **neuron.TYPES,
    **normalization.TYPES,
    **pooling.TYPES,
    **shape.TYPES,
    **weak.TYPES,
}

__all__ = ["TYPES", "Context", "DataLayer", "Layer"]

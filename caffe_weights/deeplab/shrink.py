"""The 16-layer ImageNet VGG turned into the initialisation of DeepLab-LargeFOV."""

from collections.abc import Iterator

import numpy as np

from caffe_weights.deeplab.spec import VGG16_LAYERS
from caffe_weights.files.model import Layer, Model

# Shapes before and after; the convolutions before fc6 stay as they are.
FC6, FC7 = (4096, 512, 7, 7), (4096, 4096, 1, 1)
FILTER_STEP, TAP_STEP = 4, 3  # 4096 -> 1024 filters; taps 0, 3, 6 of 7


def shrink_vgg(model: Model) -> Iterator[Layer]:
    """Yields the layers of LargeFOV's initialisation: conv1_1 to conv5_3 unchanged, fc6 and fc7 decimated, no fc8.

    fc6 4096x512x7x7 becomes 1024x512x3x3 (every 4th filter, rows and columns 0, 3, 6), fc7 4096x4096 becomes 1024x1024x1x1 (every 4th filter,
    every 4th input); their biases follow the filters. With dilation 12 fc6 then sees more of the image than VGG's does; training adapts it.

    Args:
        model: VGG_ILSVRC_16_layers.caffemodel or another file with its layers; fc6 and fc7 as InnerProduct or as convolutions.

    Yields:
        Layers of type "Convolution", arrays being views where nothing is left out.

    Raises:
        ValueError: a layer is missing or has another shape.

    Paper: Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs", ICLR 2015 (arXiv 1412.7062):
    section 3.2 decimates the first fully connected layer in space, the section on the field of view takes 1024 filters instead of 4096.
    VGG_ILSVRC_16_layers_fc_reduced.caffemodel of ParseNet and SSD was made likewise (https://github.com/weiliu89/caffe/issues/258).
    Deviates: which filters the authors' vgg16_20M.caffemodel keeps is not published; use that file where it is to be had.
    """
    names = [layer.name for layer in VGG16_LAYERS if layer.name.startswith("conv")]
    layers = model.with_blobs()
    if missing := [name for name in (*names, "fc6", "fc7") if name not in layers]:
        raise ValueError(
            f"{model.path}: must have VGG-16's layers; got no {' '.join(missing)}; use VGG_ILSVRC_16_layers.caffemodel"
        )
    for name in names:
        if len(layers[name].blobs) != 2 or layers[name].blobs[0].ndim != 4:
            shapes = " and ".join(str(list(blob.shape)) for blob in layers[name].blobs)
            raise ValueError(
                f"{model.path}: layer {name!r}: must hold a kernel of four axes and biases; got {shapes}; use VGG-16"
            )
        yield Layer(name, "Convolution", (layers[name].blobs[0], layers[name].blobs[1].reshape(-1)))
    fc6, fc6_bias = _filters(model, layers["fc6"], FC6)
    fc7, fc7_bias = _filters(model, layers["fc7"], FC7)
    yield Layer("fc6", "Convolution", (fc6[::FILTER_STEP, :, ::TAP_STEP, ::TAP_STEP], fc6_bias[::FILTER_STEP]))
    yield Layer("fc7", "Convolution", (fc7[::FILTER_STEP, ::FILTER_STEP], fc7_bias[::FILTER_STEP]))


def _filters(model: Model, layer: Layer, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns weight as (out, in, kh, kw) and bias as (out,).

    Caffe: src/caffe/layers/inner_product_layer.cpp flattens its input in (channel, row, column) order, so the reshape is exact.
    """
    if len(layer.blobs) != 2 or layer.blobs[0].size != np.prod(shape) or layer.blobs[1].size != shape[0]:
        shapes = " and ".join(str(list(blob.shape)) for blob in layer.blobs)
        raise ValueError(
            f"{model.path}: layer {layer.name!r}: must hold {list(shape)} weights and {shape[0]} biases; got {shapes}; use VGG-16"
        )
    return layer.blobs[0].reshape(shape), layer.blobs[1].reshape(-1)

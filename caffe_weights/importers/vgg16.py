"""What all importers share: VGG-16's layers, their shapes, and what a file turned out to hold."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from caffe_weights.deeplab.spec import VGG16_LAYERS
from caffe_weights.files.model import count_nonfinite

CONVOLUTIONS = tuple(layer.name for layer in VGG16_LAYERS if layer.name.startswith("conv"))
CLASSIFIER = ("fc6", "fc7", "fc8")
FC_CHANNELS, FC6_SIDE = 4096, 7  # VGG's own; DeepLab's fc6 and fc7 are what shrink-vgg makes of them


@dataclass(frozen=True)
class Imported:
    """What an importer found.

    Attributes:
        form: which row of the table in caffe_weights/importers it is.
        layers: Caffe's name to (weight (out, in, kh, kw), bias (out,)), in VGG's order.
        done: what was done to the numbers beyond their order in memory; "" for nothing.
        left: names in the file that were not taken.
    """

    form: str
    layers: Mapping[str, tuple[np.ndarray, np.ndarray]]
    done: str
    left: tuple[str, ...] = ()


def dense_as_convolution(weight: np.ndarray, side: int, channels_last: bool, where: str) -> np.ndarray:
    """Turns a dense layer into the convolution of the same numbers.

    Args:
        weight: (out, in), the inputs being a map of side x side pixels, flattened.
        side: of that map.
        channels_last: whether the map was flattened as (h, w, c), not as (c, h, w).
        where: file and layer, for errors.

    Returns:
        (out, channels, side, side).

    Raises:
        ValueError: the inputs are no whole number of channels.
    """
    channels, rest = divmod(weight.shape[1], side * side)
    if rest:
        raise ValueError(
            f"{where}: must have inputs in multiples of {side} x {side}; got {weight.shape[1]}; use VGG-16"
        )
    if channels_last:
        return weight.reshape(len(weight), side, side, channels).transpose(0, 3, 1, 2)
    return weight.reshape(len(weight), channels, side, side)


def checked(path: Path, found: Imported) -> Imported:
    """Puts the layers in VGG's order and checks them; the width is conv1_1's share of 64 channels.

    Raises:
        ValueError: a layer is missing, has another shape, or holds NaN or infinite values.
    """
    if missing := [name for name in CONVOLUTIONS if name not in found.layers]:
        raise ValueError(f"{path}: must have VGG-16's 13 convolutions; got no {' '.join(missing)}; use another file")
    width = found.layers["conv1_1"][0].shape[0] / VGG16_LAYERS[0].channels
    shapes, inputs = {}, 3
    for layer in VGG16_LAYERS[: len(CONVOLUTIONS)]:
        shapes[layer.name] = (round(layer.channels * width), inputs, layer.kernel, layer.kernel)
        inputs = shapes[layer.name][0]
    hidden = round(FC_CHANNELS * width)
    shapes |= {"fc6": (hidden, inputs, FC6_SIDE, FC6_SIDE), "fc7": (hidden, hidden, 1, 1)}
    layers = {}
    for name in (name for name in (*CONVOLUTIONS, *CLASSIFIER) if name in found.layers):
        weight, bias = found.layers[name]
        wanted = shapes.get(name, (weight.shape[0], hidden, 1, 1))  # fc8 has any number of classes
        if weight.shape != wanted or bias.shape != wanted[:1]:
            raise ValueError(
                f"{path}: layer {name!r} must have VGG-16's shapes {list(wanted)} and {list(wanted[:1])}; "
                f"got {list(weight.shape)} and {list(bias.shape)}; use another file"
            )
        if count := count_nonfinite(weight) + count_nonfinite(bias):
            raise ValueError(f"{path}: layer {name!r} must hold finite numbers; got {count} others; use another file")
        layers[name] = (weight.astype("<f4"), bias.astype("<f4"))
    return replace(found, layers=layers)


def drawn_classifier(inputs: int, width: float, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Draws LargeFOV's fc6 and fc7, for a trunk that comes without.

    Args:
        inputs: channels of conv5_3.
        width: share of VGG-16's channels.
        seed: of numpy's PCG64.

    Returns:
        "fc6" and "fc7": (out, in, kh, kw) float32 of variance 2 / fan-in, zero biases.

    Caffe: include/caffe/filler.hpp, MSRAFiller with FAN_IN.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = {}
    for layer in VGG16_LAYERS[len(CONVOLUTIONS) :]:
        shape = (max(1, round(layer.channels * width)), inputs, layer.kernel, layer.kernel)
        deviation = np.sqrt(2 / np.prod(shape[1:]))
        drawn[layer.name] = (
            generator.standard_normal(shape, np.float32) * np.float32(deviation),
            np.zeros(shape[0], "<f4"),
        )
        inputs = shape[0]
    return drawn

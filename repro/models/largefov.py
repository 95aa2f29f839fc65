"""DeepLab-LargeFOV on VGG-16: the network that every scale shares."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn
from torch.nn import functional as F

from caffe_weights.deeplab.spec import VGG16_LAYERS
from repro.models.layers import Dropout, ave_pool, convolution, max_pool

DROPOUTS = {"fc6": "drop6", "fc7": "drop7"}  # the layer that a dropout follows, and the dropout's name


def scaled_channels(channels: int, width: float) -> int:
    """Scales a full-width channel count by the protocol's `model.width`; never below 1."""
    return max(1, round(channels * width))


class LargeFOV(nn.Module):
    """VGG-16 with the last two pools at stride 1, dilated conv5 and the LargeFOV classifier fc6-fc8.

    Args:
        num_classes: Outputs of fc8, background included.
        width: Scales every hidden layer's channels; 1.0 is the paper's network (20,483,904 parameters before fc8).
        pool5a: Whether the 3x3 average pool follows pool5, as in DeepLab's v1 prototxts.
        dropout_ratio: Of the dropout after fc6 and fc7.

    Paper: section 4, "Network architectures". Caffe: the layers of DeepLab-LargeFOV's train.prototxt, by their names.
    """

    def __init__(self, num_classes: int, width: float = 1.0, pool5a: bool = True, dropout_ratio: float = 0.5):
        super().__init__()
        self.pool5a = pool5a
        inputs = 3
        for layer in VGG16_LAYERS:
            outputs = scaled_channels(layer.channels, width)
            setattr(self, layer.name, convolution(inputs, outputs, layer.kernel, layer.dilation))
            if layer.name in DROPOUTS:
                setattr(self, DROPOUTS[layer.name], Dropout(dropout_ratio))
            inputs = outputs
        self.fc8 = convolution(inputs, num_classes, 1)

    def forward(self, x: torch.Tensor, keep: Collection[str] = ()) -> dict[str, torch.Tensor]:
        """Computes the classifier's three layers.

        Args:
            x: (N, 3, H, W) BGR minus the mean, range about +-128.
            keep: Caffe's names of blobs before fc6 that are wanted too: "data", "conv1_2" (after its ReLU), "pool1" and so on.

        Returns:
            "fc6", "fc7" (after ReLU and dropout) and "fc8" (raw scores), each (N, channels, H/8, W/8), a side of 8k+1 giving k+1; and the blobs of `keep`.
        """
        kept: dict[str, torch.Tensor] = {}

        def blob(name: str, value: torch.Tensor) -> torch.Tensor:
            if name in keep:
                kept[name] = value
            return value

        blob("data", x)
        for layer in VGG16_LAYERS:
            if layer.name == "fc6":
                break
            x = blob(layer.name, F.relu(getattr(self, layer.name)(x)))
            if layer.pool_stride:
                x = blob(layer.pool, max_pool(x, layer.pool_stride))
        fc6 = self.drop6(F.relu(self.fc6(ave_pool(x) if self.pool5a else x)))
        fc7 = self.drop7(F.relu(self.fc7(fc6)))
        return {"fc6": fc6, "fc7": fc7, "fc8": self.fc8(fc7), **kept}


def blob_channels(net: LargeFOV) -> dict[str, int]:
    """Lists the channels of every blob that `LargeFOV.forward` can keep."""
    channels = {"data": 3}
    for layer in VGG16_LAYERS:
        channels[layer.name] = getattr(net, layer.name).out_channels
        if layer.pool_stride:
            channels[layer.pool] = channels[layer.name]
    return channels

"""DeepLab-LargeFOV on VGG-16: the network that every scale shares."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from repro.models.layers import Dropout, ave_pool, convolution, max_pool

OUTPUT_STRIDE = 8


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
        c1, c2, c3, c4, c_fc = (scaled_channels(c, width) for c in (64, 128, 256, 512, 1024))
        self.pool5a = pool5a
        self.conv1_1 = convolution(3, c1, 3)
        self.conv1_2 = convolution(c1, c1, 3)
        self.conv2_1 = convolution(c1, c2, 3)
        self.conv2_2 = convolution(c2, c2, 3)
        self.conv3_1 = convolution(c2, c3, 3)
        self.conv3_2 = convolution(c3, c3, 3)
        self.conv3_3 = convolution(c3, c3, 3)
        self.conv4_1 = convolution(c3, c4, 3)
        self.conv4_2 = convolution(c4, c4, 3)
        self.conv4_3 = convolution(c4, c4, 3)
        self.conv5_1 = convolution(c4, c4, 3, dilation=2)
        self.conv5_2 = convolution(c4, c4, 3, dilation=2)
        self.conv5_3 = convolution(c4, c4, 3, dilation=2)
        self.fc6 = convolution(c4, c_fc, 3, dilation=12)
        self.drop6 = Dropout(dropout_ratio)
        self.fc7 = convolution(c_fc, c_fc, 1)
        self.drop7 = Dropout(dropout_ratio)
        self.fc8 = convolution(c_fc, num_classes, 1)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the input of fc6.

        Args:
            x: (N, 3, H, W) BGR minus the mean, range about +-128.

        Returns:
            (N, 512 * width, H/8, W/8), a side of 8k+1 giving k+1.
        """
        x = F.relu(self.conv1_1(x))
        x = max_pool(F.relu(self.conv1_2(x)), stride=2)
        x = F.relu(self.conv2_1(x))
        x = max_pool(F.relu(self.conv2_2(x)), stride=2)
        x = F.relu(self.conv3_1(x))
        x = F.relu(self.conv3_2(x))
        x = max_pool(F.relu(self.conv3_3(x)), stride=2)
        x = F.relu(self.conv4_1(x))
        x = F.relu(self.conv4_2(x))
        x = max_pool(F.relu(self.conv4_3(x)), stride=1)
        x = F.relu(self.conv5_1(x))
        x = F.relu(self.conv5_2(x))
        x = max_pool(F.relu(self.conv5_3(x)), stride=1)
        return ave_pool(x) if self.pool5a else x

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Computes the classifier's three layers.

        Args:
            x: (N, 3, H, W) BGR minus the mean.

        Returns:
            "fc6", "fc7" (after ReLU and dropout) and "fc8" (raw scores), each (N, channels, H/8, W/8).
        """
        fc6 = self.drop6(F.relu(self.fc6(self.features(x))))
        fc7 = self.drop7(F.relu(self.fc7(fc6)))
        return {"fc6": fc6, "fc7": fc7, "fc8": self.fc8(fc7)}

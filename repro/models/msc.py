"""DeepLab-MSc's skip connections: scores from the image and the first four pools, added to LargeFOV's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from caffe_weights.deeplab.spec import MSC_BRANCHES
from repro.models.layers import Dropout, convolution

SOURCES = tuple(source for source, _ in MSC_BRANCHES)


class MSc(nn.Module):
    """One branch of three convolutions for the image and each of the first four pools; a strided first one brings each to the scores' size.

    Args:
        channels: Of every source, by Caffe's blob name.
        num_classes: Outputs of every branch, background included.
        filters: Of the first two convolutions (128 in the paper).
        dropout_ratio: Of the dropout after each of these.

    Paper: Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs", ICLR 2015 (arXiv 1412.7062), section 4.3, which says that the branches'
        features are concatenated with the network's: before a linear classifier that is this sum. Caffe: train.prototxt of DeepLab-MSc-LargeFOV.
    """

    def __init__(self, channels: Mapping[str, int], num_classes: int, filters: int = 128, dropout_ratio: float = 0.5):
        super().__init__()
        for source, stride in MSC_BRANCHES:
            for number, layer in (
                (1, convolution(channels[source], filters, 3, stride=stride)),
                (2, convolution(filters, filters, 1)),
            ):
                setattr(self, f"{source}_ms{number}", layer)
                setattr(self, f"drop_{source}_ms{number}", Dropout(dropout_ratio))
            setattr(self, f"{source}_ms3", convolution(filters, num_classes, 1))

    def forward(self, fc8: torch.Tensor, blobs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Adds the branches' scores to the network's, in Caffe's order.

        Args:
            fc8: (N, C, H, W).
            blobs: Those of `SOURCES`, each (N, channels, stride * (H - 1) + 1, stride * (W - 1) + 1).

        Returns:
            (N, C, H, W).
        """
        for source in SOURCES:
            x = blobs[source]
            for number in (1, 2):
                layer, drop = getattr(self, f"{source}_ms{number}"), getattr(self, f"drop_{source}_ms{number}")
                x = drop(F.relu(layer(x)))
            fc8 = fc8 + getattr(self, f"{source}_ms3")(x)
        return fc8

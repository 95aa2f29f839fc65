"""The edge map of the domain transform, predicted from the trunk's early layers, and the scores that it filters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from caffe_weights.deeplab.spec import EDGE_SOURCES
from repro.models.layers import convolution
from repro.ops import interp


class DomainTransform(NamedTuple):
    """The parameters of `repro.ops.domain_transform`; Caffe's DomainTransformParameter."""

    num_iter: int
    spatial_sigma: float
    range_sigma: float
    min_weight: float


class Edge(nn.Module):
    """One 1x1 convolution over conv1_2, conv2_2 and conv3_3, and a ReLU; and what the filter that takes its map is set to.

    Args:
        channels: Of every source, by Caffe's blob name.
        transform: The filter's parameters.

    Paper: Chen et al., "Semantic Image Segmentation with Task-Specific Edge Detection Using CNNs and a Discriminatively Trained Domain Transform", CVPR 2016 (arXiv 1511.03328),
        figure 2. Caffe: Interp of each blob to the image's size, Concat, Convolution, ReLU.
    Deviates: each blob meets its own weights before it is enlarged, not after: both are linear, and a map of one channel is enlarged in place of a blob of 64 to 256.
    """

    def __init__(self, channels: Mapping[str, int], transform: DomainTransform):
        super().__init__()
        self.transform = transform
        self.edge = convolution(sum(channels[source] for source in EDGE_SOURCES), 1, 1)

    def forward(self, blobs: Mapping[str, torch.Tensor], size: Sequence[int]) -> torch.Tensor:
        """Predicts the map.

        Args:
            blobs: Those of EDGE_SOURCES.
            size: (H, W) of the image, pixels.

        Returns:
            (N, 1, H, W), at least 0; large where the filter must not smooth.
        """
        sources = [blobs[source] for source in EDGE_SOURCES]
        weights = self.edge.weight.split([source.shape[1] for source in sources], dim=1)
        biases = [self.edge.bias, *[None] * (len(sources) - 1)]
        return F.relu(sum(interp(F.conv2d(*one), size) for one in zip(sources, weights, biases, strict=True)))

"""The attention head: from the features of every scale to one logit per scale and position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from repro.models.layers import Dropout, convolution
from repro.ops import interp


class Attention(nn.Module):
    """Two convolutions (or one) over the concatenated features of all scales.

    Args:
        features: Channels of each scale's features.
        scales: Number of scales S.
        layers: 2 for att_conv1 and att_fc (the paper); 1 for att_fc alone, which then takes `kernel_size`.
        kernel_size: Of the first layer, pixels (3 in the paper).
        filters: Outputs of att_conv1 (512 in the paper).
        dropout_ratio: Of the dropout after att_conv1.

    Raises:
        ValueError: `layers` is neither 1 nor 2.

    Paper: section 3, "Attention model"; section 4.1, "Design choices".
    """

    def __init__(
        self,
        features: int,
        scales: int,
        layers: int = 2,
        kernel_size: int = 3,
        filters: int = 512,
        dropout_ratio: float = 0.5,
    ):
        super().__init__()
        if layers not in (1, 2):
            raise ValueError(f"Attention: layers must be 1 or 2; got {layers}; correct model.attention_layers")
        self.layers = layers
        if layers == 2:
            self.att_conv1 = convolution(features * scales, filters, kernel_size)
            self.drop_att_conv1 = Dropout(dropout_ratio)
            self.att_fc = convolution(filters, scales, 1)
        else:
            self.att_fc = convolution(features * scales, scales, kernel_size)

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Computes the logits.

        Args:
            features: S maps (N, features, H_s, W_s) in the order of the scales, the finest first.

        Returns:
            (N, S, H_0, W_0).
        """
        finest = features[0].shape[2:]
        x = torch.cat([features[0], *(interp(f, finest) for f in features[1:])], dim=1)
        if self.layers == 2:
            x = self.drop_att_conv1(F.relu(self.att_conv1(x)))
        return self.att_fc(x)

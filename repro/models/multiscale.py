"""The share-net: one LargeFOV over several scaled inputs, merged by attention, average or maximum."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import nn

from caffe_weights.deeplab.spec import EDGE_SOURCES, OUTPUT_STRIDE
from repro.models.attention import Attention
from repro.models.edge import DomainTransform, Edge
from repro.models.largefov import LargeFOV
from repro.models.layers import convolutions
from repro.models.msc import SOURCES, MSc
from repro.ops import domain_transform, interp, merge_scores


class Output(NamedTuple):
    """What the network computes: every scale's own scores, and what merges and filters them; neither is done here.

    scores: Of each scale (N, C, H_s, W_s), raw, in the order of the scales, the finest first.
    logits: (N, S, H_0, W_0) of the attention before its softmax over scales, or None.
    mode: Of `repro.ops.merge_scores` and `repro.ops.predict`; "average" for a single scale, whose average is itself.
    edge: (N, 1, H, W) at the image's size, the edge map by which the merged scores are to be filtered, or None.
    transform: The filter's parameters, with an edge map alone.
    """

    scores: list[torch.Tensor]
    logits: torch.Tensor | None
    mode: str
    edge: torch.Tensor | None = None
    transform: DomainTransform | None = None


def merged_scores(output: Output) -> torch.Tensor:
    """Merges the scores of all scales: (N, C, H_0, W_0), Caffe's fc8_fusion."""
    if len(output.scores) == 1:
        return output.scores[0]
    return merge_scores(output.scores, output.logits, output.mode, return_weights=False)[0]


def enlarged_scores(output: Output, size: Sequence[int], valid_size: torch.Tensor | None = None) -> torch.Tensor:
    """Merges a network's scores, enlarges them to the image, and filters them where the network has an edge map.

    Args:
        output: Of the network.
        size: (H, W) of the input, pixels, of the form 8k+1.
        valid_size: (N, 2) int64 height and width of each image within the input, which alone are filtered; None for all of it.

    Returns:
        (N, C, H, W), float32 or float64.

    Caffe: fc8_fusion, Interp with zoom_factor 8 (fc8_interp), DomainTransform (fc8_dt).
    """
    merged = merged_scores(output)
    large = interp(merged.to(torch.promote_types(merged.dtype, torch.float32)), size)  # half precision only stores
    if output.edge is None:
        return large
    return domain_transform(large, output.edge.to(large.dtype), *output.transform, valid_size)


def exact(scale: float) -> Fraction:
    """Reads a scale as the fraction p/q that it stands for: 0.75 is 3/4."""
    return Fraction(scale).limit_denominator(64)


def output_stride(scale: float) -> Fraction:
    """Computes how many pixels of the unscaled input one score of a scaled input stands for: 8 for 1, 16 for 0.5, 32/3 for 0.75."""
    return OUTPUT_STRIDE / exact(scale)


def scaled_size(side: int, scale: float) -> int:
    """Computes the side of an input scaled by p/q: shrink q, then zoom p, as one resize: 321 -> 241 for 3/4.

    Caffe: src/caffe/layers/interp_layer.cpp, Reshape, with shrink_factor q and zoom_factor p.
    """
    ratio = exact(scale)
    shrunk = (side - 1) // ratio.denominator + 1
    return shrunk + (shrunk - 1) * (ratio.numerator - 1)


class MultiScale(nn.Module):
    """The network of one cell of the paper's grid.

    Args:
        net: The LargeFOV that all scales share.
        scales: Descending, each in (0, 2], e.g. (1, 0.75, 0.5); a single one is the baseline.
        merge: "none" (only for a single scale), "attention", "average" or "max".
        attention: The head, for merge "attention" alone.
        attention_input: Which layer of every scale the head reads: "fc6", "fc7" or "fc8".
        msc: DeepLab-MSc's branches, for a single scale.
        edge: The edge map, from the unscaled input's layers.

    Raises:
        ValueError: These do not fit together.

    Paper: section 3, figure 2.
    """

    def __init__(
        self,
        net: LargeFOV,
        scales: Sequence[float],
        merge: str,
        attention: Attention | None = None,
        attention_input: str = "fc7",
        msc: MSc | None = None,
        edge: Edge | None = None,
    ):
        super().__init__()
        if (attention is not None) != (merge == "attention"):
            raise ValueError(
                f'MultiScale: an attention head must be given for merge "attention" and no other; got {merge!r}; pass or drop `attention`'
            )
        self.net = net
        self.scales = tuple(scales)
        self.merge = merge
        self.attention = attention
        self.attention_input = attention_input
        self.msc = msc
        self.edge = edge
        self._keep = (*(SOURCES if msc else ()), *(EDGE_SOURCES if edge else ()))

    def forward(self, x: torch.Tensor) -> Output:
        """Scores a batch.

        Args:
            x: (N, 3, H, W) BGR minus the mean; H and W of the form 8k+1.
        """
        x = x.contiguous(memory_format=torch.channels_last)
        layers: list[dict[str, torch.Tensor]] = [{} for _ in self.scales]
        # Caffe: the authors' prototxt runs the finest scale first, then the others from the smallest; dropout draws its masks in this order.
        for s in (0, *range(len(self.scales) - 1, 0, -1)):
            size = [scaled_size(side, self.scales[s]) for side in x.shape[2:]]
            layers[s] = self.net(x if size == list(x.shape[2:]) else interp(x, size), () if s else self._keep)
        scores = [layer["fc8"] for layer in layers]
        if self.msc is not None:
            scores[0] = self.msc(scores[0], layers[0])
        logits = self.attention and self.attention([layer[self.attention_input] for layer in layers])
        mode = "average" if self.merge == "none" else self.merge
        if self.edge is None:
            return Output(scores, logits, mode)
        return Output(scores, logits, mode, self.edge(layers[0], x.shape[2:]), self.edge.transform)

    def convolutions(self) -> dict[str, nn.Conv2d]:
        """Lists the convolutions by their Caffe layer names, in the network's order."""
        return convolutions(self)

"""The share-net: one LargeFOV over several scaled inputs, merged by attention, average or maximum."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import nn

from ..ops import interp, merge_scores
from .attention import Attention
from .largefov import OUTPUT_STRIDE, LargeFOV, scaled_channels
from .layers import Dropout, convolutions, fill


class Output(NamedTuple):
    """What the network computes.

    merged: (N, C, H, W) scores, H and W those of the finest scale's map.
    scores: each scale's own raw scores (N, C, H_s, W_s), in the order of the scales.
    weights: (N, S, H, W) attention weights, or None.
    logits: (N, S, H, W) before the softmax over scales, or None.
    """

    merged: torch.Tensor
    scores: list[torch.Tensor]
    weights: torch.Tensor | None
    logits: torch.Tensor | None


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
            layers[s] = self.net(x if size == list(x.shape[2:]) else interp(x, size))
        scores = [layer["fc8"] for layer in layers]
        if self.merge == "none":
            return Output(scores[0], scores, None, None)
        logits = (
            self.attention([layer[self.attention_input] for layer in layers]) if self.attention is not None else None
        )
        merged, weights = merge_scores(scores, logits, self.merge)
        return Output(merged, scores, weights, logits)

    def convolutions(self) -> dict[str, nn.Conv2d]:
        """Lists the convolutions by their Caffe layer names, in the network's order."""
        return convolutions(self)

    def dropouts(self) -> dict[str, Dropout]:
        """Lists the dropout layers by their Caffe names."""
        return {name.rpartition(".")[2]: module for name, module in self.named_modules() if isinstance(module, Dropout)}


def check_model(model: dict) -> None:
    """Raises ValueError unless the scales of a protocol's `model` table descend within (0, 2], suit its merge, and the names are known."""
    scales, merge = model["scales"], model["merge"]
    descending = all(a > b for a, b in itertools.pairwise(scales))
    if not scales or not descending or not all(0 < s <= 2 for s in scales):
        raise ValueError(
            f"MultiScale: scales must descend within (0, 2], e.g. [1, 0.75, 0.5]; got {list(scales)}; correct model.scales"
        )
    if output_stride(scales[0]).denominator != 1:
        raise ValueError(
            f"MultiScale: the first scale's score must stand for a whole number of pixels, as 1 and 2 do; got {scales[0]}; "
            "correct model.scales"
        )
    if merge not in ("none", "attention", "average", "max"):
        raise ValueError(
            f'MultiScale: merge must be "none", "attention", "average" or "max"; got {merge!r}; correct model.merge'
        )
    if (merge == "none") != (len(scales) == 1):
        raise ValueError(
            f'MultiScale: merge must be "none" for one scale and no other; got {merge!r} for scales {list(scales)}; correct model.merge'
        )
    if model["attention_input"] not in ("fc6", "fc7", "fc8"):
        raise ValueError(
            f'MultiScale: attention_input must be "fc6", "fc7" or "fc8"; got {model["attention_input"]!r}; correct model.attention_input'
        )


def build(model: dict, num_classes: int, seed: int) -> MultiScale:
    """Makes the network that a protocol's `model` table describes, and fills every layer.

    Args:
        model: The table; keys as in repro/protocol.py.
        num_classes: Outputs of fc8.
        seed: Of the fillers.

    Returns:
        The network, float32, channels_last, in training mode, on the CPU.
    """
    check_model(model)
    width = model["width"]
    ratio = model["dropout_ratio"]
    net = LargeFOV(num_classes, width, model["pool5a"], ratio)
    attention = None
    if model["merge"] == "attention":
        features = getattr(net, model["attention_input"]).out_channels
        attention = Attention(
            features,
            len(model["scales"]),
            model["attention_layers"],
            model["attention_kernel"],
            scaled_channels(model["attention_filters"], width),
            ratio,
        )
    network = MultiScale(net, model["scales"], model["merge"], attention, model["attention_input"])
    generator = torch.Generator().manual_seed(seed)
    for name, layer in network.convolutions().items():
        if name.startswith("att_"):
            fill(layer, "gaussian", model["attention_filler_std"], generator)
        elif name == "fc8":
            fill(layer, "gaussian", model["fc8_filler_std"], generator)
        else:
            fill(layer, model["filler"], generator=generator)
            with torch.no_grad():
                layer.weight *= model["filler_gain"]
    return network.to(memory_format=torch.channels_last)

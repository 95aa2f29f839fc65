"""From a protocol's `model` table to the network, filled."""

from __future__ import annotations

import itertools

import torch

from repro.models.attention import Attention
from repro.models.largefov import LargeFOV, scaled_channels
from repro.models.layers import fill
from repro.models.multiscale import MultiScale, output_stride


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
        model: The table; keys as in repro/protocol/schema.py.
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

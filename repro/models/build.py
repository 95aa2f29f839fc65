"""From a protocol's `model` table to the network, filled."""

from __future__ import annotations

import itertools

import torch

from caffe_weights.deeplab.spec import MSC_LAYERS
from repro.models.attention import Attention
from repro.models.edge import DomainTransform, Edge
from repro.models.largefov import LargeFOV, blob_channels, scaled_channels
from repro.models.layers import fill
from repro.models.msc import MSc
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
    if "msc_filters" in model and list(scales) != [1]:
        raise ValueError(
            f"MultiScale: DeepLab-MSc's branches must have one scale, 1, to add to; got {list(scales)}; correct model.scales"
        )
    if "dt_num_iter" in model and scales[0] != 1:
        raise ValueError(
            f"MultiScale: the edge map of the domain transform must come from scale 1, the finest; got {scales[0]}; correct model.scales"
        )


def lr_mult_key(layer: str) -> str:
    """Names the key of a protocol's `model` table that holds a layer's multipliers of the learning rate."""
    if layer in MSC_LAYERS:
        return "msc_lr_mult"
    own = {"fc8": "fc8_lr_mult", "edge": "edge_lr_mult"}
    return "attention_lr_mult" if layer.startswith("att_") else own.get(layer, "lr_mult")


def filler_std(layer: str) -> str | None:
    """Names the key of a protocol's `model` table that holds the standard deviation of a layer's gaussian filler; None for the backbone, which has another."""
    if layer in MSC_LAYERS:
        return "msc_score_filler_std" if layer.endswith("3") else "msc_filler_std"
    own = {"fc8": "fc8_filler_std", "edge": "edge_filler_std"}
    return "attention_filler_std" if layer.startswith("att_") else own.get(layer)


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
    channels = blob_channels(net)
    msc = edge = None
    if "msc_filters" in model:
        msc = MSc(channels, num_classes, scaled_channels(model["msc_filters"], width), model["msc_dropout_ratio"])
    if "dt_num_iter" in model:
        edge = Edge(channels, DomainTransform(*(model[f"dt_{key}"] for key in DomainTransform._fields)))
    network = MultiScale(net, model["scales"], model["merge"], attention, model["attention_input"], msc, edge)
    generator = torch.Generator().manual_seed(seed)
    for name, layer in network.convolutions().items():
        std = filler_std(name)
        if std is not None:
            fill(layer, "gaussian", model[std], generator)
        else:
            fill(layer, model["filler"], generator=generator)
            with torch.no_grad():
                layer.weight *= model["filler_gain"]
    return network.to(memory_format=torch.channels_last)

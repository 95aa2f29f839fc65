"""Data layers by themselves, as a net sets them up."""

from __future__ import annotations

from pathlib import Path

import torch

from caffe_weights.nets.prototxt import parse_prototxt
from repro.caffe.layers.base import Context
from repro.caffe.layers.data import TYPES
from repro.caffe.proto import typed
from repro.data.caffe_rng import CaffeRNG


def data_layer(text: str, root: Path = Path(), phase: str = "TRAIN", seed: int = 1, dtype=torch.float32, log=print):
    """Sets up the layer of a prototxt; returns it with the shapes of its tops."""
    layer = typed(parse_prototxt(text, "net.prototxt"), "NetParameter", "net.prototxt").layer[0]
    context = Context(
        phase, CaffeRNG(seed), root, lambda shape, where: None, torch.Generator().manual_seed(seed), dtype, log
    )
    made = TYPES[layer.type](layer, context)
    made.tops = len(layer.top)
    return made, made.setup([])

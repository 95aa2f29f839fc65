"""A net's parameters: who owns them, who shares them, and where their values come from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

import caffe_weights
from repro.caffe.layers.base import Layer, count
from repro.caffe.proto import Typed


@dataclass
class Learnable:
    """A parameter that a layer owns: one of Caffe's learnable_params, in their order, which is that of a solverstate's history.

    layer: The owner's name.
    index: Of the parameter among the owner's blobs.
    tensor: The parameter; the layers that share it hold the same object. After `Net.backward` its grad is never None where lr_mult is not 0.
    lr_mult, decay_mult: As the prototxt gives them (1 where it gives none), float32. With lr_mult 0 no gradient is computed and the solver leaves it alone.
    """

    layer: str
    index: int
    tensor: nn.Parameter
    lr_mult: float
    decay_mult: float


def specs(layer: Layer) -> list[Typed | None]:
    """Returns a layer's ParamSpec for each of its blobs, None where the prototxt gives none.

    Raises:
        ValueError: There are more specs than blobs, or BatchNorm's statistics have a rate.

    Caffe: Net::Init; src/caffe/layers/batch_norm_layer.cpp, LayerSetUp.
    """
    given = list(layer.param.param)
    if len(given) > len(layer.blobs):
        raise layer.fail(f"at most its {len(layer.blobs)} parameters must have a param", len(given))
    if layer.type == "BatchNorm" and any(spec.has("lr_mult") and spec.lr_mult for spec in given):
        raise layer.fail("its statistics are no weights: their lr_mult must be 0", "another", "set lr_mult: 0")
    return given + [None] * (len(layer.blobs) - len(given))


def share(layers: Iterable[Layer], force_backward: bool) -> list[Learnable]:
    """Gives layers whose param has one name one parameter, and says of each whether its gradient is computed.

    Returns:
        The parameters that layers own.

    Raises:
        ValueError: Shapes, or multipliers, of a shared parameter differ.

    Caffe: Net::AppendParam. The first layer owns a parameter; a multiplier that several give must be the same.
    """
    learnable: list[Learnable] = []
    owners: dict[str, tuple[Learnable, set[str]]] = {}
    for layer in layers:
        layer.param_propagate_down = []
        for index, spec in enumerate(specs(layer)):
            given = set(spec.set) & {"lr_mult", "decay_mult"} if spec else set()
            statistics = layer.type == "BatchNorm"
            rate = spec.lr_mult if spec and not statistics else float(not statistics)
            decay = spec.decay_mult if spec else 1.0
            layer.param_propagate_down.append(force_backward or rate != 0)
            name = spec.name if spec else ""
            if name not in owners:
                own = Learnable(layer.name, index, layer.blobs[index], rate, decay)
                learnable.append(own)
                if name:
                    owners[name] = own, given
                continue
            owner, stated = owners[name]
            _check_shape(layer, index, spec, owner)
            for multiplier in sorted(given):
                value = getattr(spec, multiplier)
                if multiplier in stated and value != getattr(owner, multiplier):
                    raise layer.fail(
                        f"the {multiplier} of the shared parameter {name!r} must be its owner's {getattr(owner, multiplier):g}",
                        f"{value:g}",
                    )
                setattr(owner, multiplier, value)
                stated.add(multiplier)
            layer.blobs[index] = owner.tensor
    wanted = {id(layer.blobs[i]) for layer in layers for i, on in enumerate(layer.param_propagate_down) if on}
    for parameter in learnable:
        parameter.tensor.requires_grad_(id(parameter.tensor) in wanted)
    return learnable


def _check_shape(layer: Layer, index: int, spec: Typed, owner: Learnable) -> None:
    shape, owned = layer.blob_shapes[index], tuple(owner.tensor.shape)
    permissive = spec.share_mode == "PERMISSIVE"
    if count(shape) != count(owned) if permissive else shape != owned:
        what = "count" if permissive else "shape"
        raise layer.fail(
            f"the {what} of the shared parameter {spec.name!r} must be that of its owner {owner.layer!r}, {list(owned)}",
            list(shape),
        )


def _shape_text(shape: Sequence[int]) -> str:
    """Writes a shape as Caffe's log does (Blob::shape_string)."""
    return " ".join(map(str, shape)) + f" ({count(shape)})"


@torch.no_grad()
def copy_weights(layers: Iterable[Layer], path: str | os.PathLike, log: Callable[[str], None]) -> set[str]:
    """Copies a model's parameters into the layers of the same names; returns those names.

    Raises:
        FileNotFoundError, ValueError: The file is unusable, or a layer's blobs do not fit.

    Caffe: Net::CopyTrainedLayersFrom, Blob::FromProto. A legacy blob has four axes, the missing leading ones are 1. With DeepLab v1's strict_dim: false
        the count alone must fit.
    """
    targets = {layer.name: layer for layer in layers}
    copied = set()
    for source in caffe_weights.read_caffemodel(path).layers:
        target = targets.get(source.name)
        if target is None:
            log(f"Ignoring source layer {source.name}")
            continue
        if not source.blobs and source.owned is None and not target.blobs:
            continue
        if source.owned is None and len(source.blobs) != len(target.blobs):
            if not source.blobs:
                continue
            raise ValueError(
                f"{path}: layer {source.name!r} must have the net's {len(target.blobs)} blobs; got {len(source.blobs)}: "
                f"incompatible number of blobs for layer {source.name}; rename the layer to learn it anew"
            )
        for number, blob in zip(source.numbers, source.blobs, strict=True):
            if number >= len(target.blobs):
                raise ValueError(
                    f"{path}: layer {source.name!r} must have the net's {len(target.blobs)} blobs; got number {number}; rename the layer"
                )
            _copy(target, number, blob, path)
        copied.add(source.name)
    return copied


def _copy(target: Layer, number: int, blob: np.ndarray, path) -> None:
    wanted = target.blob_shapes[number]
    fits = blob.size == count(wanted) if not target.param.strict_dim else blob.shape == wanted
    legacy = blob.ndim == 4 and blob.shape == (1,) * (4 - len(wanted)) + wanted
    if not fits and not legacy:
        raise ValueError(
            f"{path}: cannot copy param {number} weights from layer '{target.name}': its shape must be the net's {_shape_text(wanted)}; "
            f"got {_shape_text(blob.shape)}: shape mismatch; to learn this layer's parameters from scratch, rename the layer"
        )
    parameter = target.blobs[number]
    value = torch.from_numpy(np.array(blob, copy=True))
    parameter.copy_(value.reshape(parameter.shape))

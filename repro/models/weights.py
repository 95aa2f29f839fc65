"""Caffe's weights into our networks and out of them, with every layer accounted for."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

import caffe_weights
from caffe_weights.deeplab.names import classifiers, renamed
from caffe_weights.deeplab.spec import MSC_BRANCHES, SHARED_COPY
from repro.models.layers import convolutions

# Layers that a protocol initialises by a filler when the file does not have them; every other layer must come from the file.
KEEPS_FILLER = ("fc8", "att_", *(f"{source}_ms" for source, _ in MSC_BRANCHES), "edge")


@dataclass
class LoadReport:
    """What became of every layer of the file and of the network.

    Attributes:
        path: the file.
        format: "V0", "V1", "V2", "Caffe HDF5" or "HDF5".
        used: layers whose blobs went into the network.
        shared: copies of a used layer for another scale, verified to be bitwise equal to it.
        without_blobs: layers of the file that hold no parameters.
        absent_in_model: layers with parameters that the network does not have.
        absent_in_file: layers of the network that keep their filler.
        skipped: layers of both that the caller asked to leave alone.
        renamed: the file's name to the network's, for layers taken under another name.
        nonfinite: how many NaN and infinite values a used layer holds, which only a caller that allows them meets.
    """

    path: Path
    format: str
    used: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    without_blobs: list[str] = field(default_factory=list)
    absent_in_model: list[str] = field(default_factory=list)
    absent_in_file: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    nonfinite: dict[str, int] = field(default_factory=dict)

    def line(self) -> str:
        """Says in one line what was loaded, what of the file was not, and where the network keeps its filler."""
        parts = [f"{self.path.name} ({self.format}): {len(self.used)} layers loaded"]
        parts += [f"{old} taken for {new}" for old, new in self.renamed.items()]
        parts += [f"{count} values of {name} are NaN or infinite" for name, count in self.nonfinite.items()]
        unused = self.absent_in_model + self.skipped
        parts += [f"of the file unused: {', '.join(unused)}"] if unused else []
        filled = self.absent_in_file + self.skipped
        parts += [f"the filler stays in {', '.join(filled)}"] if filled else []
        return "; ".join(parts)

    def __str__(self) -> str:
        groups = {
            "used": self.used,
            "taken under another name": [f"{old} for {new}" for old, new in self.renamed.items()],
            "shared copies, bitwise equal": self.shared,
            "in the file, not in the model": self.absent_in_model,
            "in the model, not in the file (filler kept)": self.absent_in_file,
            "skipped": self.skipped,
        }
        lines = [f"  {title}: {len(names)}{': ' + ' '.join(names) if names else ''}" for title, names in groups.items()]
        return "\n".join([f"{self.path} ({self.format})", *lines, f"  without blobs: {len(self.without_blobs)}"])


def load_caffemodel(
    net: nn.Module,
    path: str | os.PathLike,
    skip: Collection[str] = (),
    prototxt: str | os.PathLike | None = None,
    defines: dict[str, str] | None = None,
    rename: Mapping[str, str] | None = None,
    allow_nonfinite: bool = False,
    fill: Collection[str] = (),
) -> LoadReport:
    """Copies a .caffemodel (any generation, or HDF5) into a network; nothing is copied unless everything fits.

    Args:
        net: its convolutions carry Caffe's layer names.
        path: the file.
        skip: layers to leave as they are although the file has them.
        prototxt: the file's net; if given, num_output, kernel, stride, pad, dilation and group must be the network's.
        defines: values for the prototxt's ${VARS}.
        rename: the file's layer name to the network's. A classifier under DeepLab's own names (fc8_voc12, fc8_pascal) is taken for fc8 without
            it, where the file has no fc8 and its shape fits.
        allow_nonfinite: load NaN and infinite values too; the caller records it.
        fill: layers that the file is known to lack, which keep their filler.

    Returns:
        What became of every layer.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged; a layer's shape or geometry differs; a shared copy differs from its owner; the file lacks a layer
            that has no filler, or has one to be filled; `skip`, `fill` or `rename` names no layer; several classifiers fit; a layer holds NaN or infinite values.

    Caffe: src/caffe/net.cpp, Net::CopyTrainedLayersFrom (matches layers by name; shapes must be equal).
    Deviates: Caffe passes over layers that only one side has; here they are reported, and an error where the network needs them.
    """
    model = caffe_weights.read_caffemodel(path)
    layers = convolutions(net)
    report = LoadReport(Path(path), model.format)
    for what, names in (("skip", skip), ("fill", fill)):
        if unknown := sorted(set(names) - set(layers)):
            raise ValueError(
                f"{path}: {what} must name layers of the network; got {' '.join(unknown)}; choose from {' '.join(layers)}"
            )
    if prototxt is not None:
        _check_geometry(layers, prototxt, defines)
    model = renamed(model, rename or {})
    classifier = _classifier(model, layers)
    model = renamed(model, classifier)
    report.renamed = dict(rename or {}) | classifier
    in_file = model.with_blobs()
    values: list[tuple[nn.Parameter, np.ndarray]] = []
    for layer in model.layers:
        copy = SHARED_COPY.fullmatch(layer.name)
        if not layer.blobs:
            report.without_blobs.append(layer.name)
        elif layer.name in skip:
            report.skipped.append(layer.name)
        elif layer.name in layers:
            values += _matched(layers[layer.name], layer, path)
            if nonfinite := sum(caffe_weights.count_nonfinite(blob) for blob in layer.blobs):
                report.nonfinite[layer.name] = nonfinite
            report.used.append(layer.name)
        elif copy and copy["owner"] in layers:
            _check_copy(layer, in_file.get(copy["owner"]), path)
            report.shared.append(layer.name)
        else:
            report.absent_in_model.append(layer.name)
    report.absent_in_file = [name for name in layers if name not in in_file]
    if there := [name for name in fill if name in in_file and name not in skip]:
        raise ValueError(f"{path}: must lack the layers to be filled; got {' '.join(there)}; leave them out of fill")
    if missing := [name for name in report.absent_in_file if not name.startswith(KEEPS_FILLER) and name not in fill]:
        raise ValueError(
            f"{path}: must have every layer but the classifier and what stands beside the trunk; got no {' '.join(missing)}; use the net's own weights, or --fill {','.join(missing)}"
        )
    if report.nonfinite and not allow_nonfinite:
        name, count = next(iter(report.nonfinite.items()))
        raise ValueError(
            f"{path}: layer {name!r} must hold finite numbers; got {count} that are NaN or infinite; use weights that were trained to the end"
        )
    with torch.no_grad():
        for parameter, array in values:
            # A copy of our own: the file's view is read-only and may be unaligned.
            parameter.copy_(torch.from_numpy(np.array(array)))
    return report


def _classifier(model: caffe_weights.Model, layers: dict[str, nn.Conv2d]) -> dict[str, str]:
    """Finds the layer that is fc8 under one of DeepLab's own names; returns its name to "fc8", or nothing."""
    if "fc8" not in layers or "fc8" in model.with_blobs():
        return {}
    fitting = [name for name in classifiers(model) if model[name].blobs[0].shape == tuple(layers["fc8"].weight.shape)]
    if len(fitting) > 1:
        raise ValueError(
            f"{model.path}: one layer must be the classifier; got {' and '.join(fitting)}; rename one to fc8 with caffe_weights convert --rename"
        )
    return dict.fromkeys(fitting, "fc8")


def _matched(module: nn.Conv2d, layer: caffe_weights.Layer, path) -> list[tuple[nn.Parameter, np.ndarray]]:
    """Pairs a layer's blobs with the module's parameters.

    Caffe: src/caffe/blob.cpp, Blob::ShapeEquals (a legacy blob has four axes, the missing leading ones are 1).
    """
    parameters = [module.weight] if module.bias is None else [module.weight, module.bias]
    if layer.owned is not None:
        raise ValueError(
            f"{path}: layer {layer.name!r} must have its blobs from 0; got {' '.join(map(str, layer.owned))} alone, the others being shared; use the .caffemodel"
        )
    if len(layer.blobs) != len(parameters):
        raise ValueError(
            f"{path}: layer {layer.name!r} must have {len(parameters)} blobs; got {len(layer.blobs)}; check bias_term"
        )
    for index, (parameter, blob) in enumerate(zip(parameters, layer.blobs, strict=True)):
        wanted = tuple(parameter.shape)
        if blob.shape not in (wanted, (1,) * (4 - len(wanted)) + wanted):
            hint = "check the width"
            if layer.name in ("fc6", "fc7"):
                hint = "shrink-vgg makes LargeFOV's"
            elif layer.name.startswith(KEEPS_FILLER):
                hint = "check width and classes, or skip another task's head"
            raise ValueError(
                f"{path}: layer {layer.name!r}, blob {index} must have the network's shape {list(wanted)}; got {list(blob.shape)}; {hint}"
            )
    return [
        (parameter, blob.reshape(tuple(parameter.shape)))
        for parameter, blob in zip(parameters, layer.blobs, strict=True)
    ]


def _check_copy(layer: caffe_weights.Layer, owner: caffe_weights.Layer | None, path) -> None:
    """Raises unless a shared copy equals its owner bit for bit."""
    if owner is None:
        raise ValueError(
            f"{path}: layer {layer.name!r} must have its owner beside it; got a file without; use the whole model"
        )
    same = len(layer.blobs) == len(owner.blobs) and all(
        a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
        for a, b in zip(layer.blobs, owner.blobs, strict=True)
    )
    if not same:
        raise ValueError(
            f"{path}: layer {layer.name!r} must equal {owner.name!r} bit for bit; got other values; the scales of this model are not shared"
        )


def _check_geometry(layers: dict[str, nn.Conv2d], prototxt, defines) -> None:
    """Raises unless every convolution that net and network share has the same geometry in both."""
    net = caffe_weights.read_prototxt(prototxt, defines)
    for layer in caffe_weights.net_layers(net, str(prototxt)):
        copy = SHARED_COPY.fullmatch(layer.name)
        module = layers.get(layer.name) or (layers.get(copy["owner"]) if copy else None)
        geometry = caffe_weights.conv_geometry(layer, str(prototxt))
        if module is None or geometry is None:
            continue
        ours = caffe_weights.ConvGeometry(
            module.out_channels,
            module.kernel_size,
            module.stride,
            tuple(module.padding),
            module.dilation,
            module.groups,
        )
        for key in ("num_output", "kernel", "stride", "pad", "dilation", "group"):
            if getattr(geometry, key) != getattr(ours, key):
                raise ValueError(
                    f"{prototxt}: layer {layer.name!r} must have the network's {key} {getattr(ours, key)}; "
                    f"got {getattr(geometry, key)}; use the prototxt of the same network"
                )


def save_caffemodel(net: nn.Module, path: str | os.PathLike, name: str = "") -> None:
    """Writes a network's convolutions as a V2 .caffemodel, one entry per layer (Caffe shares it with the other scales by param name).

    Args:
        net: its convolutions carry Caffe's layer names.
        path: the file to write, whole or not at all.
        name: the network's name.

    Caffe: src/caffe/net.cpp, Net::ToProto.
    """
    caffe_weights.write_caffemodel(
        path, {key: ("Convolution", parameters(module)) for key, module in convolutions(net).items()}, name
    )


def parameters(module: nn.Conv2d) -> list[np.ndarray]:
    """Returns a convolution's weight and bias as arrays in Caffe's order and layout (out, in, kh, kw)."""
    tensors = [module.weight] if module.bias is None else [module.weight, module.bias]
    return [tensor.detach().cpu().contiguous().numpy() for tensor in tensors]

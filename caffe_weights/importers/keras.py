"""Keras files of VGG-16: HDF5, kernels HWIO, inputs BGR minus (103.939, 116.779, 123.68) as in Caffe, from which they come."""

import re
from pathlib import Path

import numpy as np

from caffe_weights.files.hdf5_tree import Hdf5File, Node
from caffe_weights.importers.vgg16 import FC6_SIDE, Imported, dense_as_convolution

# Keras 3, a model per level: block2/layers/conv2d_1/vars/0. Layers of a kind are numbered from the second on.
_NESTED = re.compile(r"/block([1-5])/layers/conv2d(?:_([12]))?/vars/[01]")
# keras-applications: block2_conv2/block2_conv2_W_1:0 (Keras 1), block2_conv2/block2_conv2/kernel:0 (Keras 2), with or without model_weights.
_FLAT = re.compile(r"(?:/model_weights)?/block([1-5])_conv([1-3])/.+")
_DENSE = re.compile(r"(?:/model_weights)?/(fc1|fc2|predictions)/.+")
_CLASSIFIER = {"fc1": "fc6", "fc2": "fc7", "predictions": "fc8"}


def read(path: Path) -> Imported:
    """Reads a Keras file; errors as for import_vgg16."""
    file = Hdf5File(path)
    arrays: dict[str, list[np.ndarray]] = {}
    left, nested = [], False
    for node in _datasets(file, file.root):
        if match := _NESTED.fullmatch(node.path):
            name, nested = f"conv{match[1]}_{int(match[2] or 0) + 1}", True
        elif match := _FLAT.fullmatch(node.path):
            name = f"conv{match[1]}_{match[2]}"
        elif match := _DENSE.fullmatch(node.path):
            name = _CLASSIFIER[match[1]]
        else:
            left.append(node.path)
            continue
        arrays.setdefault(name, []).append(file.array(node))
    layers = {name: _caffes(path, name, found) for name, found in arrays.items()}
    form = "Keras 3 with a block per level" if nested else "Keras 1 or 2, keras-applications"
    return Imported(form, layers, "", tuple(left))


def _datasets(file: Hdf5File, group: Node) -> list[Node]:
    found = []
    for node in file.members(group).values():
        found += [node] if "dtype" in node.entry else _datasets(file, node)
    return found


def _caffes(path: Path, name: str, arrays: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Tells kernel and bias apart by their axes and gives the kernel Caffe's order."""
    by_axes = {array.ndim: array for array in arrays}
    axes = 2 if name.startswith("fc") else 4
    if len(arrays) != 2 or set(by_axes) != {axes, 1}:
        shapes = " and ".join(str(list(array.shape)) for array in arrays)
        raise ValueError(
            f"{path}: layer {name!r} must have a kernel of {axes} axes and a bias; got {shapes}; use VGG-16"
        )
    kernel = by_axes[axes]
    if axes == 4:
        return kernel.transpose(3, 2, 0, 1), by_axes[1]
    return dense_as_convolution(
        kernel.T, FC6_SIDE if name == "fc6" else 1, channels_last=True, where=f"{path}: layer {name!r}"
    ), by_axes[1]

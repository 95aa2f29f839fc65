"""A Caffe model in memory: layers in file order, each with its blobs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAX_AXES = 32  # Caffe: kMaxBlobAxes, include/caffe/blob.hpp
MAX_COUNT = 2**31 - 1  # Caffe: Blob::Reshape counts in int
MAX_LAYERS = 65536
MAX_BLOBS = 65536


@dataclass(frozen=True)
class Layer:
    """One layer of a file.

    Attributes:
        name: Caffe's layer name.
        type: Caffe's type in its V2 spelling ("Convolution"); "" where the file states none.
        blobs: arrays, float32 or float64, read-only, possibly unaligned views of the file; usually weight, bias.
        owned: which of Caffe's blobs these are, where the file has only some: Caffe's HDF5 leaves out those that another layer shares.
            None for all of them, from 0.
    """

    name: str
    type: str
    blobs: tuple[np.ndarray, ...]
    owned: tuple[int, ...] | None = None

    @property
    def numbers(self) -> tuple[int, ...]:
        """The blobs' numbers in Caffe's layer: 0 the weight, 1 the bias."""
        return tuple(range(len(self.blobs))) if self.owned is None else self.owned


@dataclass(frozen=True)
class Model:
    """The layers of a .caffemodel or .caffemodel.h5.

    Attributes:
        path: the file.
        name: the network's name, "" where the file has none.
        format: "V0", "V1", "V2" (binary protobuf), "Caffe HDF5" or "HDF5" (our own layout).
        layers: in file order.
    """

    path: Path
    name: str
    format: str
    layers: tuple[Layer, ...]

    def __getitem__(self, name: str) -> Layer:
        """Returns the layer of a name; of several without blobs, the first."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"{self.path}: must have a layer {name!r}; got {len(self.layers)} others; list the file")

    def __contains__(self, name: str) -> bool:
        return any(layer.name == name for layer in self.layers)

    def with_blobs(self) -> dict[str, Layer]:
        """Returns the layers that hold blobs, by name, in file order."""
        return {layer.name: layer for layer in self.layers if layer.blobs}

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields ("<layer>[<blob>]", array) in file order."""
        for layer in self.layers:
            for number, blob in zip(layer.numbers, layer.blobs, strict=True):
                yield f"{layer.name}[{number}]", blob


def printable(name: str) -> str:
    """Returns a name as it may be printed: control characters, which could be a terminal's commands, come out as escapes."""
    return name if name.isprintable() else name.encode("unicode_escape").decode()


def count_nonfinite(array: np.ndarray) -> int:
    """Counts NaN and infinite values, a million at a time so that no mask of the whole array is made."""
    flat = array.reshape(-1)
    return sum(int(np.count_nonzero(~np.isfinite(flat[i : i + 2**20]))) for i in range(0, flat.size, 2**20))


def check_shape(shape: tuple[int, ...], count: int) -> str:
    """Says what is wrong with a blob's shape given how many numbers the file has for it; "" if nothing is."""
    if len(shape) > MAX_AXES:
        return f"a blob must have at most {MAX_AXES} axes; got {len(shape)}"
    if any(not 0 <= length <= MAX_COUNT for length in shape):
        return f"every axis of a blob must lie in 0..2^31-1; got shape {list(shape)}"
    if math.prod(length for length in shape if length) > MAX_COUNT:
        return f"a blob must have fewer than 2^31 numbers; got shape {list(shape)}"
    if math.prod(shape) != count:
        return f"a blob of shape {list(shape)} must have {math.prod(shape)} numbers; got {count}"
    return ""


def duplicate(layers: list[Layer]) -> str:
    """Says which name two layers share although one has blobs, or which have none; "" where every layer with blobs can be named.

    Caffe: Net::CopyTrainedLayersFrom takes the last of them without a word. Layers without blobs may share a name.
    """
    blobs: dict[str, bool] = {}
    for layer in layers:
        if layer.name in blobs and (blobs[layer.name] or layer.blobs):
            shown = f"{layer.name!r} more than once" if layer.name else "several without a name"
            return f"layers with blobs must have names of their own; got {shown}"
        blobs[layer.name] = bool(layer.blobs)
    return ""

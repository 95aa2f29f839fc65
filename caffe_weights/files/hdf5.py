"""Models in HDF5: Caffe's own .caffemodel.h5, and the layout that `convert` writes.

Our layout. The root has the attributes `format` ("caffe_weights 1"), `tool`, `source`, `source_sha256`, `source_format` and `network`. Every
layer of the source is a group `/<layer>` with the attribute `type`; a name with slashes makes nested groups. Its blobs are contiguous
datasets `weight`, `bias`, then `blob2`, `blob3` ..., in Caffe's axis order and the source's precision. With a prototxt a convolution's
group also has `num_output`, `kernel`, `stride`, `pad`, `dilation` and `group`, pairs as (height, width). The dataset `/layer_names` lists
the groups in file order.
"""

import io
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from caffe_weights.files.atomic import replacing
from caffe_weights.files.checksum import sha256
from caffe_weights.files.hdf5_tree import Hdf5File, Node
from caffe_weights.files.model import MAX_BLOBS, MAX_LAYERS, Layer, Model, duplicate
from caffe_weights.files.wire import another_kind
from caffe_weights.nets.network import ConvGeometry

FORMAT = "caffe_weights 1"
_BLOB_NAMES = ("weight", "bias")
_RESERVED = re.compile(r"weight|bias|blob\d+|layer_names")


def read_model(path: Path) -> Model:
    """Reads Caffe's .caffemodel.h5 or our own layout; see read_caffemodel.

    Caffe: src/caffe/net.cpp, Net::CopyTrainedLayersFromHDF5 (layer types are not stored; only owning layers hold blobs).
    """
    file = Hdf5File(path)
    attributes = file.text(file.root)
    if attributes.get("format") == FORMAT:
        layers, form = _our_layers(file), "HDF5"
    elif "data" in (members := file.members(file.root)):
        layers, form = _caffe_layers(file, members["data"]), "Caffe HDF5"
    elif "history" in members:
        raise another_kind(path, "a model", "a solver state")
    else:
        raise file.fail("/", f"must be Caffe's HDF5 (group `data`) or {FORMAT!r}; got neither")
    if sum(len(layer.blobs) for layer in layers) > MAX_BLOBS:
        raise file.fail("/", f"a network must have at most {MAX_BLOBS} blobs; got more")
    if problem := duplicate(layers):
        raise file.fail("/", problem)
    return Model(path, attributes.get("network", ""), form, tuple(layers))


def _caffe_layers(file: Hdf5File, group: Node, above: str = "") -> list[Layer]:
    """Lists the layers of a group; a layer named x/bn is a group within that of x, beside its blobs."""
    layers = []
    for name, node in file.members(group).items():
        if above and "dtype" in node.entry:
            continue  # a blob of the layer above
        inner = file.members(node)
        blobs = {part: entry for part, entry in inner.items() if "dtype" in entry.entry}
        if other := [part for part in blobs if not re.fullmatch(r"0|[1-9]\d{0,4}", part)]:
            raise file.fail(node.path, f"a layer's datasets must be named 0, 1, ...; got {other[0]!r}")
        if blobs or not inner:  # else only the way to layers below it
            layers.append(_layer(above + name, "", {int(part): file.array(blobs[part]) for part in blobs}))
        layers += _caffe_layers(file, node, f"{above}{name}/")
    return layers


def _layer(name: str, kind: str, blobs: Mapping[int, np.ndarray]) -> Layer:
    """Makes a layer of blobs by number, of which those that are shared may be missing."""
    owned = tuple(sorted(blobs))
    return Layer(name, kind, tuple(blobs[i] for i in owned), None if owned == tuple(range(len(owned))) else owned)


def numbered(file: Hdf5File, group: Node) -> tuple[np.ndarray, ...]:
    """Returns the datasets "0", "1", ... of a group, which must have no other members.

    Caffe: src/caffe/net.cpp, Net::ToHDF5; src/caffe/solvers/sgd_solver.cpp, SnapshotSolverStateToHDF5.
    """
    members = file.members(group)
    if missing := [str(i) for i in range(len(members)) if str(i) not in members]:
        raise file.fail(group.path, f"must have the members 0 to {len(members) - 1}; got no {missing[0]}")
    return tuple(file.array(members[str(i)]) for i in range(len(members)))


def _our_layers(file: Hdf5File) -> list[Layer]:
    groups = {"": file.members(file.root)}  # members by path, so that a group shared by many names is listed once
    if "layer_names" not in groups[""]:
        raise file.fail("/", "must have a dataset layer_names; got none")
    listed = file.array(groups[""]["layer_names"], "S")
    if listed.ndim != 1 or listed.size > MAX_LAYERS:
        raise file.fail("/layer_names", f"must list at most {MAX_LAYERS} names; got shape {list(listed.shape)}")
    layers = []
    for name in (octets.decode("utf-8", "backslashreplace") for octets in listed.tolist()):
        path = ""
        for part in name.split("/"):
            if part not in groups[path]:
                raise file.fail(f"{path}/{part}", f"must exist, for layer_names has {name!r}; got nothing")
            node, path = groups[path][part], f"{path}/{part}"
            if path not in groups:
                groups[path] = file.members(node)
        members = groups[path]
        numbers = {part: number for part in members if (number := _blob_number(part)) is not None}
        blobs = {number: file.array(members[part]) for part, number in numbers.items()}
        layers.append(_layer(name, file.text(node).get("type", ""), blobs))
    return layers


def write_hdf5(
    model: Model, path: str | os.PathLike, tool: str, geometry: Mapping[str, ConvGeometry] | None = None
) -> None:
    """Writes a model in our layout, whole or not at all; the same input gives the same bytes.

    Args:
        model: what read_caffemodel gave; its file's sha256 is taken on the way.
        path: the file to write.
        tool: name and version of the program, for the provenance.
        geometry: convolution name to geometry, from a prototxt.

    Raises:
        ValueError: a layer's name cannot be an HDF5 path.
        FileNotFoundError: the folder is missing.
    """
    import h5py  # takes as long to import as a 500 MB caffemodel to list

    digest: list[str] = []
    hashing = threading.Thread(target=lambda: digest.append(sha256(model.path)))
    hashing.start()
    try:
        with replacing(path) as part, Recorder(part) as recorder, h5py.File(recorder, "w", libver="earliest") as file:
            for layer in model.layers:
                _write_layer(file, layer, path, (geometry or {}).get(layer.name))
            file.create_dataset("layer_names", data=np.array([layer.name.encode() for layer in model.layers], "S"))
            hashing.join()
            provenance = {
                "format": FORMAT,
                "tool": tool,
                "source": model.path.name,
                "source_format": model.format,
                "network": model.name,
            }
            for key, value in (provenance | {"source_sha256": digest[0]}).items():
                file.attrs[key] = np.bytes_(value.encode())  # fixed strings: reading them needs no heap
    finally:
        hashing.join()


class Recorder(io.FileIO):
    """A file for h5py to write to. libhdf5 2.0 crashes where a write fails, so it is told that all is well, and the failure raised on leaving."""

    def __init__(self, path: Path):
        super().__init__(path, "w+")
        self.failure: OSError | None = None

    def write(self, octets) -> int:
        rest = memoryview(octets).cast("B")
        try:
            while rest and not self.failure:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.failure = error
        return len(octets)

    def truncate(self, size: int | None = None) -> int | None:
        try:
            if not self.failure:
                super().truncate(size)
        except OSError as error:
            self.failure = error
        return size

    def __exit__(self, kind, error, trace) -> None:
        super().__exit__(kind, error, trace)
        if self.failure:
            raise self.failure


def _write_layer(file, layer: Layer, path, geometry: ConvGeometry | None) -> None:
    parts = layer.name.split("/")
    if not all(parts) or "\0" in layer.name or any(part == "." or _RESERVED.fullmatch(part) for part in parts):
        raise ValueError(
            f"{path}: a layer name must serve as an HDF5 path of groups; got {layer.name!r}; rename the layer"
        )
    group = file.require_group(layer.name)
    group.attrs["type"] = np.bytes_(layer.type.encode())
    for number, blob in zip(layer.numbers, layer.blobs, strict=True):
        group.create_dataset(_blob_name(number), data=blob)
    if geometry:
        for key, value in vars(geometry).items():
            group.attrs[key] = value


def _blob_name(index: int) -> str:
    return _BLOB_NAMES[index] if index < 2 else f"blob{index}"


def _blob_number(name: str) -> int | None:
    """Returns the number of the blob that a dataset of our layout holds; None for what is no blob, such as a group within the layer's."""
    if name in _BLOB_NAMES:
        return _BLOB_NAMES.index(name)
    return int(name[4:]) if re.fullmatch(r"blob([2-9]|[1-9]\d{1,4})", name) else None

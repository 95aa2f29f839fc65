"""HDF5 models: Caffe's own layout and ours, read without libhdf5, written through it."""

import json
import struct
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import GOLDEN

from caffe_weights import Layer, Model, read_caffemodel, read_solverstate, write_caffemodel
from caffe_weights.hdf5 import write_hdf5
from caffe_weights.hdf5_file import Hdf5File
from caffe_weights.network import ConvGeometry

HERE = Path(__file__).parent / "golden"
W = np.arange(36, dtype=np.float32).reshape(2, 2, 3, 3) - 7.25


@pytest.fixture
def model(tmp_path) -> Model:
    path = tmp_path / "net.caffemodel"
    layers = {
        "conv1/7x7": ("Convolution", [W, W[0, 0, 0]]),
        "relu": ("ReLU", []),
        "bn": ("BatchNorm", [W[0], W[1], np.float32([999])]),
    }
    write_caffemodel(path, layers | {"conv1/1x1": ("Convolution", [W[:1]])}, "net")
    return read_caffemodel(path)


def same(first: Model, second: Model) -> bool:
    pairs = list(first.arrays()), list(second.arrays())
    return [(n, a.shape, a.dtype, a.tobytes()) for n, a in pairs[0]] == [
        (n, a.shape, a.dtype, a.tobytes()) for n, a in pairs[1]
    ]


def test_our_layout_comes_back_bit_for_bit(tmp_path, model):
    out = tmp_path / "net.h5"
    write_hdf5(model, out, "caffe_weights test")
    back = read_caffemodel(out)
    assert (back.format, back.name) == ("HDF5", "net")
    assert [(layer.name, layer.type) for layer in back.layers] == [(layer.name, layer.type) for layer in model.layers]
    assert same(model, back)


def test_our_layout_opens_in_h5py(tmp_path, model):
    import hashlib

    out = tmp_path / "net.h5"
    write_hdf5(model, out, "caffe_weights test", {"conv1/7x7": ConvGeometry(2, (3, 3), (1, 2), (4, 5), (6, 7), 1)})
    with h5py.File(out) as file:
        np.testing.assert_array_equal(file["/conv1/7x7/weight"], W)
        np.testing.assert_array_equal(file["/conv1/7x7/bias"], W[0, 0, 0])
        np.testing.assert_array_equal(file["/bn/blob2"], [999])
        attributes = {key: value.decode() for key, value in file.attrs.items()}
        conv = file["/conv1/7x7"].attrs
        assert [conv[key].tolist() for key in ("num_output", "kernel", "stride", "pad", "dilation", "group")] == [
            2,
            [3, 3],
            [1, 2],
            [4, 5],
            [6, 7],
            1,
        ]
        assert file["/relu"].attrs["type"] == b"ReLU"
    assert attributes == {
        "format": "caffe_weights 1",
        "tool": "caffe_weights test",
        "source": "net.caffemodel",
        "source_sha256": hashlib.sha256(model.path.read_bytes()).hexdigest(),
        "source_format": "V2",
        "network": "net",
    }
    assert same(model, read_caffemodel(out))


def test_conversion_is_reproducible_and_keeps_doubles(tmp_path, model):
    double = Model(model.path, "net", "V2", (Layer("c", "Convolution", (W.astype(np.float64) / 3, np.zeros((0, 2)))),))
    outs = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for out in outs:
        write_hdf5(double, out, "t")
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert same(double, read_caffemodel(outs[0]))


@pytest.mark.parametrize("name", ["", "a//b", "weight", "a/bias", "blob2", "layer_names", "a/./b", "a\0b"])
def test_names_that_hdf5_cannot_hold(tmp_path, model, name):
    with pytest.raises(
        ValueError, match=r"a layer name must serve as an HDF5 path of groups; got .*; rename the layer"
    ):
        write_hdf5(Model(model.path, "", "V2", (Layer(name, "X", (W,)),)), tmp_path / "x.h5", "t")
    assert not (tmp_path / "x.h5").exists()


def caffe_hdf5(path: Path, model: Model) -> None:
    """What Caffe's Net::ToHDF5 makes of a model, by libhdf5."""
    with h5py.File(path, "w") as file:
        for layer in model.layers:
            group = file.create_group("data/" + layer.name.replace("/", "_"))
            for index, blob in enumerate(layer.blobs):
                group[str(index)] = blob


def test_caffe_layout(tmp_path, model):
    path = tmp_path / "net.caffemodel.h5"
    caffe_hdf5(path, model)
    back = read_caffemodel(path)
    assert back.format == "Caffe HDF5"
    assert {layer.name for layer in back.layers} == {"conv1_7x7", "conv1_1x1", "relu", "bn"}
    for layer in model.layers:
        for ours, theirs in zip(layer.blobs, back[layer.name.replace("/", "_")].blobs, strict=True):
            assert (ours.shape, ours.tobytes()) == (theirs.shape, theirs.tobytes())
            assert not theirs.flags.owndata


def test_many_layers_make_a_tree_of_several_levels(tmp_path):
    """2000 members need B-tree nodes above the leaves; libhdf5 sorts them."""
    path = tmp_path / "many.h5"
    with h5py.File(path, "w") as file:
        for i in range(2000):
            file[f"data/layer{i}/0"] = np.float32([i])
    model = read_caffemodel(path)
    assert {layer.name: float(layer.blobs[0][0]) for layer in model.layers} == {
        f"layer{i}": float(i) for i in range(2000)
    }


@pytest.mark.skipif(
    not (GOLDEN / "weights/thin_iter_4.caffemodel.h5").is_file(),
    reason="needs weights/*.h5 written by Caffe under REPRO_GOLDEN",
)
def test_files_that_caffe_wrote():
    binary, hdf5 = (read_caffemodel(GOLDEN / "weights" / f"thin_iter_4.caffemodel{suffix}") for suffix in ("", ".h5"))
    owners = hdf5.with_blobs()
    assert len(owners) == 18
    for name, layer in owners.items():
        assert [b.tobytes() for b in layer.blobs] == [b.tobytes() for b in binary[name].blobs]
    states = [read_solverstate(GOLDEN / "weights" / f"thin_iter_4.solverstate{suffix}") for suffix in ("", ".h5")]
    assert [b.tobytes() for b in states[0].history] == [b.tobytes() for b in states[1].history]
    assert [(s.iter, s.current_step, s.learned_net) for s in states] == [
        (4, 1, "thin_iter_4.caffemodel"),
        (4, 1, "thin_iter_4.caffemodel.h5"),
    ]


def rewritten(path: Path, old: bytes, new: bytes, which: int = 0) -> None:
    data = bytearray(path.read_bytes())
    at = -1
    for _ in range(which + 1):
        at = data.index(old, at + 1)
    data[at : at + len(new)] = new
    path.write_bytes(data)


def build(path: Path, fill) -> Path:
    with h5py.File(path, "w", libver="earliest") as file:
        fill(file)
    return path


def chunked(file):
    file.create_dataset("data/c/0", data=W, chunks=(1, 2, 3, 3))


def integers(file):
    file["data/c/0"] = np.arange(3)


def big_endian(file):
    file["data/c/0"] = W.astype(">f4")


def soft_link(file):
    file["data/d/0"] = W
    file["data/c"] = h5py.SoftLink("/data/d")


def external_data(file):
    file.create_dataset("data/c/0", (3,), "f4", external=[("/etc/passwd", 0, 12)])


def null(file):
    file["data/c/0"] = h5py.Empty("f4")


def unallocated(file):
    file.create_dataset("data/c/0", (2**28,), "f4")


def gap(file):
    file["data/c/1"] = W


def group_for_blob(file):
    file.create_group("data/c/0")


def dataset_for_layer(file):
    file["data/c"] = W


def other(file):
    file["something"] = W


def no_names(file):
    file.attrs["format"] = np.bytes_(b"caffe_weights 1")


def missing_layer(file):
    no_names(file)
    file["layer_names"] = np.array([b"gone"])


def names_are_numbers(file):
    no_names(file)
    file["layer_names"] = W


def names_are_square(file):
    no_names(file)
    file["layer_names"] = np.array([[b"a"]])


CASES = [
    (chunked, r"/data/c/0: must be stored in one piece \(layout version 3, class 1\); got version 3, class 2"),
    (integers, r"/data/c/0: must hold little-endian numbers of kind 'f'; got int64"),
    (big_endian, r"/data/c/0: must hold little-endian numbers of kind 'f'; got another type"),
    (soft_link, r"/data/c: must be an object of this file; got a link"),
    (external_data, r"/data/c/0: a blob of shape \[3\] must have 3 numbers; got 0"),
    (null, r"/data/c/0: must have a dataspace of version 1 and at most 32 axes; got version 2, 0 axes"),
    (unallocated, r"/data/c/0: a blob of shape \[268435456\] must have 268435456 numbers; got 0"),
    (gap, r"/data/c: must have the members 0 to 0; got no 0"),
    (group_for_blob, r"/data/c/0: must be a dataset; got another object"),
    (dataset_for_layer, r"/data/c: must be a group; got another object"),
    (other, r"/: must be Caffe's HDF5 \(group `data`\) or 'caffe_weights 1'; got neither"),
    (no_names, r"/: must have a dataset layer_names; got none"),
    (missing_layer, r"/gone: must exist, for layer_names has 'gone'; got nothing"),
    (names_are_numbers, r"/layer_names: must hold little-endian numbers of kind 'S'; got float32"),
    (names_are_square, r"/layer_names: must list at most 65536 names; got shape \[1, 1\]"),
]


@pytest.mark.parametrize(("fill", "message"), CASES, ids=[fill.__name__ for fill, _ in CASES])
def test_other_content_is_refused(tmp_path, fill, message):
    path = build(tmp_path / "bad.h5", fill)
    with pytest.raises(ValueError, match=message) as caught:
        read_caffemodel(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_newer_hdf5_is_named(tmp_path):
    path = tmp_path / "new.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file["data/c/0"] = W
    with pytest.raises(
        ValueError, match=r"superblock: must have version 0 or 1 .* got version \d, .*libver=\"earliest\""
    ):
        read_caffemodel(path)


DAMAGE = [
    (b"TREE", b"TREX", 0, r"a group must consist of a tree of symbol nodes; got b'TREX'"),
    (b"HEAP", b"HEAX", 0, r"a group must have a heap of names within the file; got b'HEAX'"),
    (b"TREE\x00", b"TREE\x01", 0, r"a group's tree must have type 0 and levels that fall to 0; got type 1, level 0"),
    (
        b"SNOD\x01\x00",
        b"SNOD\x01\x00\xff\xff",
        0,
        r"must lie within the file|names must differ|name must end within the heap",
    ),
    (
        struct.pack("<HHBxxx", 0x11, 16, 0),
        struct.pack("<HHBxxx", 0x11, 60000, 0),
        0,
        r"header messages must fit their block, at most 1024; got 60000 bytes",
    ),
    (
        struct.pack("<HHBxxx", 0x11, 16, 0),
        struct.pack("<HHBxxx", 0x10, 16, 0),
        0,
        r"an object header must lie within|must be a group; got another object",
    ),
]


@pytest.mark.parametrize(("old", "new", "which", "message"), DAMAGE)
def test_damaged_structure_is_refused(tmp_path, model, old, new, which, message):
    path = tmp_path / "bad.h5"
    caffe_hdf5(path, model)
    rewritten(path, old, new, which)
    with pytest.raises(ValueError, match=message):
        read_caffemodel(path)


def test_tree_that_contains_itself_ends(tmp_path):
    """Levels must fall, so a node that names itself as its child is found out at once."""
    path = tmp_path / "loop.h5"
    caffe_hdf5(path, Model(path, "", "V2", (Layer("c", "X", (W,)),)))
    data = bytearray(path.read_bytes())
    at = data.index(b"TREE")
    data[at + 5] = 1
    data[at + 32 : at + 40] = struct.pack("<Q", at)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"levels that fall to 0"):
        read_caffemodel(path)


@pytest.mark.parametrize("size", [8, 20, 60, 95, 100, 500, 1000])
def test_truncated(tmp_path, model, size):
    path = tmp_path / "cut.h5"
    caffe_hdf5(path, model)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=rf"{path}: "):
        read_caffemodel(path)


def test_reader_does_not_use_libhdf5(tmp_path, model, monkeypatch):
    path = tmp_path / "net.h5"
    caffe_hdf5(path, model)
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert len(read_caffemodel(path).with_blobs()) == 3


def test_attributes_of_every_version_are_text(tmp_path):
    """libhdf5 writes version 1 for plain and version 3 for UTF-8 named attributes; variable-length ones are passed over."""
    path = build(
        tmp_path / "a.h5",
        lambda file: file.attrs.update(
            {"plain": np.bytes_(b"one"), "später": np.bytes_(b"zwei"), "vlen": "three", "n": 4}
        ),
    )
    file = Hdf5File(path)
    assert json.loads(json.dumps(file.text(file.root))) == {"plain": "one", "später": "zwei"}

"""HDF5 models: Caffe's own layout and ours, described by libhdf5 in a child process and viewed in place."""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import GOLDEN

from caffe_weights import Layer, Model, read_caffemodel, read_solverstate, write_caffemodel
from caffe_weights.files import hdf5_tree
from caffe_weights.files.hdf5 import write_hdf5
from caffe_weights.files.hdf5_tree import Hdf5File
from caffe_weights.nets.network import ConvGeometry

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


def test_nested_and_partly_shared_layers(tmp_path):
    """x/bn is a group within x; a layer that shares its weight owns blob 1 only; a group without blobs may be but the way to others."""
    path, ours = tmp_path / "net.h5", tmp_path / "ours.h5"
    with h5py.File(path, "w") as file:
        file["data/x/0"], file["data/x/1"], file["data/x/bn/0"] = W, W[0], W[1]
        file["data/tied/1"], file["data/gap/0"], file["data/gap/2"] = W[0, 0], W, W[1, 1]
        file["data/way/to/0"] = W
        file.create_group("data/relu")
    model = read_caffemodel(path)
    assert {layer.name: layer.numbers for layer in model.layers} == {
        "gap": (0, 2),
        "relu": (),
        "tied": (1,),
        "way/to": (0,),
        "x": (0, 1),
        "x/bn": (0,),
    }
    np.testing.assert_array_equal(model["tied"].blobs[0], W[0, 0])
    assert [name for name, _ in model.arrays() if name.startswith(("tied", "gap"))] == ["gap[0]", "gap[2]", "tied[1]"]
    write_hdf5(model, ours, "t")
    assert same(model, read_caffemodel(ours))
    assert {layer.name: layer.numbers for layer in read_caffemodel(ours).layers} == {
        layer.name: layer.numbers for layer in model.layers
    }


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


def other_blob(file):
    file["data/c/weight"] = W


def state(file):
    file["history/0"] = file["iter"] = W


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


def compact(file):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    h5py.h5d.create(file.create_group("data/c").id, b"0", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((3,)), plist)


def loop(file):
    file.create_group("data/c")
    file["data/c/c"] = file["data"]


def deep(file):
    file["data/" + "c/" * 40 + "0"] = W


CASES = [
    (
        chunked,
        r"/data/c/0: must be stored in one piece within the file; got chunked storage; rewrite the file with h5repack",
    ),
    (compact, r"/data/c/0: must be stored in one piece within the file; got compact storage"),
    (external_data, r"/data/c/0: must be stored in one piece within the file; got external storage"),
    (null, r"/data/c/0: must be stored in one piece within the file; got null storage"),
    (integers, r"/data/c/0: must hold little-endian numbers of kind 'f'; got <i8"),
    (big_endian, r"/data/c/0: must hold little-endian numbers of kind 'f'; got >f4"),
    (soft_link, r"/data/c: must be a group; got a link"),
    (unallocated, r"/data/c/0: a blob of shape \[268435456\] must have 268435456 numbers; got 0"),
    (other_blob, r"/data/c: a layer's datasets must be named 0, 1, ...; got 'weight'"),
    (state, r": must be a model; got a solver state; its weights are in the .caffemodel that it names"),
    (dataset_for_layer, r"/data/c: must be a group; got a dataset"),
    (
        loop,
        r"/: libhdf5 must be able to read it; got 'groups must nest at most 32 deep and not in themselves; got /data/c",
    ),
    (
        deep,
        r"/: libhdf5 must be able to read it; got 'groups must nest at most 32 deep and not in themselves; got /data/c",
    ),
    (other, r"/: must be Caffe's HDF5 \(group `data`\) or 'caffe_weights 1'; got neither"),
    (no_names, r"/: must have a dataset layer_names; got none"),
    (missing_layer, r"/gone: must exist, for layer_names has 'gone'; got nothing"),
    (names_are_numbers, r"/layer_names: must hold little-endian numbers of kind 'S'; got <f4"),
    (names_are_square, r"/layer_names: must list at most 65536 names; got shape \[1, 1\]"),
]


@pytest.mark.parametrize(("fill", "message"), CASES, ids=[fill.__name__ for fill, _ in CASES])
def test_other_content_is_refused(tmp_path, fill, message):
    path = build(tmp_path / "bad.h5", fill)
    with pytest.raises(ValueError, match=message) as caught:
        read_caffemodel(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_newer_hdf5_is_read(tmp_path):
    path = tmp_path / "new.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file["data/c/0"] = W
    np.testing.assert_array_equal(read_caffemodel(path)["c"].blobs[0], W)


@pytest.mark.parametrize("size", [8, 20, 60, 95, 100, 500, 1000])
def test_truncated(tmp_path, model, size):
    path = tmp_path / "cut.h5"
    caffe_hdf5(path, model)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=rf"{path}: /: libhdf5 must be able to read it; got .*; the file is damaged"):
        read_caffemodel(path)


def child(tmp_path, monkeypatch, code: str) -> None:
    """Puts another program in the place of hdf5_child.py."""
    path = tmp_path / "child.py"
    path.write_text(code)
    monkeypatch.setattr(hdf5_tree, "CHILD", path)


LIMIT = f"import runpy; limit = runpy.run_path({str(hdf5_tree.CHILD)!r})['limit']\n"
ENDS = [
    (
        "import os; os.kill(os.getpid(), 11)",
        ValueError,
        r"/: libhdf5 must come to an end; got signal 11; the file is damaged",
    ),
    (
        LIMIT + "limit.__globals__['SECONDS'] = 1; limit(0)\nwhile True: pass",
        ValueError,
        r"/: libhdf5 must come to an end; got signal 24",
    ),
    (LIMIT + "limit(0)\nbytes(2**29)", RuntimeError, r"h5py must be able to run; got MemoryError; pip install h5py"),
    ("import time; time.sleep(60)", ValueError, r"/: libhdf5 must come to an end; got none within 0.5 s"),
    ("import h5py_of_nobody", RuntimeError, r"h5py must be able to run; got ModuleNotFoundError: .*; pip install h5py"),
]


@pytest.mark.parametrize(("code", "kind", "message"), ENDS, ids=["crash", "loop", "memory", "stall", "missing"])
def test_a_child_that_does_not_answer(tmp_path, model, monkeypatch, code, kind, message):
    """What libhdf5 does on some damaged files, and what its process may take."""
    path = tmp_path / "net.h5"
    caffe_hdf5(path, model)
    child(tmp_path, monkeypatch, code)
    if "sleep" in code:
        monkeypatch.setattr(hdf5_tree, "SECONDS", 0.5)
    with pytest.raises(kind, match=message) as caught:
        read_caffemodel(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"at": 10**9}, r"/data/c/0: must lie within the file's \d+ bytes; got 1000000000"),
        ({"shape": [7]}, r"/data/c/0: a blob of shape \[7\] must have 7 numbers; got 36"),
        ({"size": 10**9, "shape": [250_000_000]}, r"/data/c/0: must lie within the file's \d+ bytes"),
    ],
)
def test_a_description_is_not_believed(tmp_path, monkeypatch, change, message):
    """A damaged file can make libhdf5 say anything: every view is checked against the file itself."""
    path = build(tmp_path / "net.h5", lambda file: file.update({"data/c/0": W}))
    entry = {"dtype": "<f4", "shape": list(W.shape), "at": 0, "size": W.nbytes, "layout": "contiguous"} | change
    tree = {"text": {}, "members": {"data": {"text": {}, "members": {"c": {"text": {}, "members": {"0": entry}}}}}}
    child(tmp_path, monkeypatch, f"print({json.dumps(tree)!r})")
    with pytest.raises(ValueError, match=message):
        read_caffemodel(path)


def test_the_child_imports_neither_torch_nor_this_package(tmp_path, model):
    code = f"import runpy, sys; sys.argv = ['', {str(model.path)!r}]; runpy.run_path({str(hdf5_tree.CHILD)!r}); "
    code += "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'repro', 'caffe_weights'}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_attributes_that_are_text(tmp_path):
    """Fixed and variable strings; numbers and arrays of strings are passed over."""
    path = build(
        tmp_path / "a.h5",
        lambda file: file.attrs.update(
            {"plain": np.bytes_(b"one"), "später": np.bytes_(b"zw\xffei"), "vlen": "dreiß", "n": 4, "s": ["a", "b"]}
        ),
    )
    file = Hdf5File(path)
    assert file.text(file.root) == {"plain": "one", "später": "zw\\xffei", "vlen": "dreiß"}

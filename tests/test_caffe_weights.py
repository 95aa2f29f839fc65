"""Binary .caffemodel files: every generation and encoding read, damaged ones refused, V2 written whole."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from caffe_proto import MESSAGES, fill_blob

import caffe_weights
from caffe_weights import read_caffemodel
from caffe_weights.files.wire import MAX_PIECES

GOLDEN = Path(__file__).parent / "golden"
W = np.arange(36, dtype=np.float32).reshape(2, 2, 3, 3) - 7.25
B = np.array([0.5, -1e-30], np.float32)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def delimited(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def v2(*blobs: bytes, name: bytes = b"c") -> bytes:
    """A V2 network of one layer with these encoded BlobProtos."""
    return delimited(100, delimited(1, name) + b"".join(delimited(7, blob) for blob in blobs))


def shape(*dims: int) -> bytes:
    return delimited(7, delimited(1, b"".join(varint(d % 2**64) for d in dims)))


def floats(*values: float) -> bytes:
    return delimited(5, np.array(values, "<f4").tobytes())


def network(generation: str, legacy: bool, double: bool = False):
    """The same two layers in one of the three forms, by Google's library."""
    net = MESSAGES["NetParameter"](name="net")
    for name, kind, arrays in (("conv", ("conv", 4, "Convolution"), (W, B)), ("relu", ("relu", 18, "ReLU"), ())):
        if generation == "V2":
            layer = net.layer.add(name=name, type=kind[2], bottom=["data"], top=[name])
        elif generation == "V1":
            layer = net.layers.add(name=name, type=kind[1], bottom=["data"], top=[name], blobs_lr=[1, 2])
        else:
            connection = net.layers.add(bottom=["data"], top=[name])
            layer = connection.layer
            layer.name, layer.type = name, kind[0]
        for array in arrays:
            fill_blob(layer.blobs.add(), array, legacy, double)
    return net


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("generation", ["V0", "V1", "V2"])
def test_every_generation_and_blob_form(tmp_path, generation, legacy, double):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(network(generation, legacy, double).SerializeToString())
    model = read_caffemodel(path)
    assert (model.format, model.name) == (generation, "net")
    assert [(layer.name, layer.type, len(layer.blobs)) for layer in model.layers] == [
        ("conv", "Convolution", 2),
        ("relu", "ReLU", 0),
    ]
    weight, bias = model["conv"].blobs
    assert weight.dtype == bias.dtype == (np.float64 if double else np.float32)
    assert weight.shape == W.shape
    assert bias.shape == ((1, 1, 1, 2) if legacy else (2,))
    np.testing.assert_array_equal(weight, W)
    np.testing.assert_array_equal(bias.ravel(), B)


@pytest.mark.parametrize("double", [False, True])
def test_unpacked_numbers_and_shapes(tmp_path, double):
    """UnpackedBlob has BlobProto's numbers with a key before each."""
    blob = MESSAGES["UnpackedBlob"]()
    fill_blob(blob, W, double=double)
    path = tmp_path / "net.caffemodel"
    path.write_bytes(v2(blob.SerializeToString()))
    array = read_caffemodel(path)["c"].blobs[0]
    np.testing.assert_array_equal(array, W)
    assert array.strides[-1] == array.itemsize + 1  # a view that steps over the keys


def test_numbers_in_several_pieces(tmp_path):
    """Protobuf lets a repeated field come packed, unpacked and packed again; the pieces follow each other."""
    path = tmp_path / "net.caffemodel"
    path.write_bytes(
        v2(
            shape(2, 3)
            + floats(1, 2)
            + b"\x2d"
            + np.float32(3).tobytes()
            + b"\x2d"
            + np.float32(4).tobytes()
            + floats(5, 6)
        )
    )
    np.testing.assert_array_equal(read_caffemodel(path)["c"].blobs[0], [[1, 2, 3], [4, 5, 6]])


def test_doubles_win_over_floats_and_legacy_over_shape(tmp_path):
    """Caffe: Blob::FromProto."""
    path = tmp_path / "net.caffemodel"
    path.write_bytes(
        v2(
            shape(9)
            + b"\x08\x01\x10\x01\x18\x01\x20\x02"
            + floats(1, 2, 3)
            + delimited(8, np.array([7, 8], "<f8").tobytes())
        )
    )
    array = read_caffemodel(path)["c"].blobs[0]
    assert array.shape == (1, 1, 1, 2)
    np.testing.assert_array_equal(array.ravel(), [7, 8])


def raw(kind: int | None, array: np.ndarray) -> bytes:
    return (b"" if kind is None else varint(10 << 3) + varint(kind)) + delimited(12, array.tobytes())


@pytest.mark.parametrize(("kind", "stored", "read"), [(0, "<f8", "f8"), (1, "<f4", "f4"), (2, "<f2", "f4")])
def test_nvcaffes_raw_data(tmp_path, kind, stored, read):
    """Half precision comes out as the float32 of the same value."""
    path = tmp_path / "net.caffemodel"
    values = (W / 3).astype(stored)
    path.write_bytes(v2(raw(kind, values) + shape(*W.shape), shape(2) + floats(5, 6) + raw(kind, values)))
    weight, bias = read_caffemodel(path)["c"].blobs
    assert (weight.dtype, weight.shape) == (np.dtype(read), W.shape)
    np.testing.assert_array_equal(weight, values.astype(read))
    np.testing.assert_array_equal(bias, [5, 6])  # NVCaffe: Blob::FromProto takes `data` before raw data


def test_unknown_fields_and_fork_types_are_passed_over(tmp_path):
    net = network("V1", True)
    net.layers.add(name="crf", type=12345)
    path = tmp_path / "net.caffemodel"
    unknown = (
        varint(999 << 3)
        + b"\x05"
        + varint(998 << 3 | 5)
        + b"abcd"
        + varint(997 << 3 | 1)
        + b"abcdefgh"
        + delimited(996, b"xyz")
    )
    path.write_bytes(net.SerializeToString() + unknown)
    assert read_caffemodel(path)["crf"].type == "V1:12345"


def test_golden_file_of_the_deeplab_fork():
    model = read_caffemodel(GOLDEN / "weights/thin_iter_4.caffemodel")
    with np.load(GOLDEN / "weights/expected.npz") as expected:
        names, digests, layer_names = (
            expected["history_order"],
            expected["params_after4_sha256"],
            expected["layer_names"],
        )
    assert [layer.name for layer in model.layers if not layer.name.endswith("_split")] == [
        n for n in layer_names.tolist() if not n.endswith("_split")
    ]
    for name, digest in zip(names, digests, strict=True):
        layer, blob = name.split("/")
        assert hashlib.sha256(model[layer].blobs["wb".index(blob)].tobytes()).hexdigest() == digest, name


def check_expected(path: Path, expected: dict) -> None:
    model = read_caffemodel(path)
    assert expected["format"].startswith(model.format)
    for entry in expected["layers"]:
        blobs = model[entry["name"]].blobs
        assert len(blobs) == len(entry["blobs"])
        for array, blob in zip(blobs, entry["blobs"], strict=True):
            wide = array.astype(np.float64).ravel()
            assert (list(array.shape), wide.size, wide[:3].tolist(), wide[-1]) == (
                blob["shape"],
                blob["n"],
                blob["first3"],
                blob["last"],
            )
            assert wide.sum() == pytest.approx(blob["sum"], rel=1e-12, abs=1e-9)
            assert np.abs(wide).sum() == pytest.approx(blob["abssum"], rel=1e-12)


def test_genuine_file():
    expected = json.loads((GOLDEN / "caffemodels/expected_blobs.json").read_text())
    check_expected(GOLDEN / "caffemodels/det1.caffemodel", expected["det1.caffemodel"])


@pytest.mark.data
def test_genuine_files_of_2014_to_2017(data_root):
    folder = data_root / "caffemodels"
    if not (folder / "expected_blobs.json").is_file():
        pytest.skip(f"needs {folder}/expected_blobs.json and the .caffemodel files it lists")
    models = {
        name: entry
        for name, entry in json.loads((folder / "expected_blobs.json").read_text()).items()
        if name.endswith(".caffemodel")
    }
    assert models
    for name, entry in models.items():
        check_expected(folder / name, entry)


GOOD = v2(shape(2, 3) + floats(*range(6)))
BAD = {
    "empty": (b"", r"must hold data; got an empty file; fetch or write it again"),
    "pickle": (
        b"\x80\x04\x95",
        r"must be a binary Caffe message; got a Python pickle \(it is not read: unpickling runs code\); name the Caffe file",
    ),
    "zip": (b"PK\x03\x04rest", r"got a zip archive, perhaps a PyTorch checkpoint \(it is not read\)"),
    "html": (b"<html>404</html>", r"got an HTML or XML page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1", r"got a Git LFS pointer, not the file itself"),
    "no layers": (
        delimited(1, b"net"),
        r"network, byte 5: a .caffemodel must have layers; got none; the file is damaged or of another format",
    ),
    "truncated": (
        GOOD[:-5],
        r"network, byte 0: field 100 must end within its message; got \d+ bytes where \d+ are left",
    ),
    "length that lies": (
        delimited(100, delimited(1, b"c") + b"\x3a\xff\xff\xff\xff\x0f"),
        r"layer 0, byte \d+: field 7 must end within its message",
    ),
    "data that lies": (
        v2(shape(3) + b"\x2a\x7f" + b"\0" * 12),
        r"layer 0 'c', blob 0, byte \d+: field 5 must end within its message; got 127 bytes",
    ),
    "data beyond its blob": (
        v2(shape(3) + b"\x2a\x0c" + b"\0" * 8) + GOOD,
        r"field 5 must end within its message; got 12 bytes where 8 are left",
    ),
    "odd data": (v2(shape(3) + delimited(5, b"\0" * 13)), r"packed numbers must fill a multiple of 4 bytes; got 13"),
    "count": (
        v2(shape(2, 4) + floats(*range(6))),
        r"blob 0, byte \d+: a blob of shape \[2, 4\] must have 8 numbers; got 6",
    ),
    "no shape": (v2(floats(1, 2)), r"a blob of shape \[\] must have 1 numbers; got 2"),
    "overflow": (
        v2(shape(2**31, 2**31, 4) + floats(1)),
        r"every axis of a blob must lie in 0..2\^31-1; got shape \[2147483648, 2147483648, 4\]",
    ),
    "product": (
        v2(shape(2**20, 2**20) + floats(1)),
        r"a blob must have fewer than 2\^31 numbers; got shape \[1048576, 1048576\]",
    ),
    "negative": (v2(shape(-1, 3) + floats(1)), r"must lie in 0..2\^31-1; got shape \[-1, 3\]"),
    "axes": (v2(shape(*[1] * 33) + floats(1)), r"a blob must have at most 32 axes; got 33"),
    "long shape": (v2(shape(*[1] * 5000) + floats(1)), r"a shape must have at most 64 numbers; got 5000 bytes"),
    "many shapes": (v2(delimited(7, b"\x08\x01" * 65) + floats(1)), r"a shape must have at most 64 numbers; got more"),
    "twice": (GOOD + GOOD, r"layers with blobs must have names of their own; got 'c' more than once"),
    "twice without a name": (
        v2(shape(1) + floats(1), name=b"") * 2,
        r"layers with blobs must have names of their own; got several without a name",
    ),
    "raw type": (v2(shape(1) + raw(3, B)), r"raw_data_type must be one of 0 \(float64\), 1 .*, 2 \(float16\); got 3"),
    "no raw type": (v2(shape(1) + raw(None, B)), r"raw_data_type must be one of .*; got None"),
    "odd raw data": (v2(shape(1) + raw(2, B[:1].view("u1")[:3])), r"must fill a multiple of 2 bytes; got 3"),
    "raw wire": (v2(shape(1) + raw(2, B)[:2] + b"\x60\x01"), r"field 12 must have wire type 2; got 0"),
    "both forms": (GOOD + delimited(2, delimited(4, b"x")), r"a file must have `layers` or `layer`; got both"),
    "group": (b"\x0b" + GOOD, r"the wire type of field 1 must be 0, 1, 2 or 5; got 3"),
    "field 0": (b"\x00\x00" + GOOD, r"a field number must lie in 1..2\^29-1; got 0"),
    "varint": (b"\x18" + b"\xff" * 11, r"a varint must have at most 10 bytes; got more"),
    "cut varint": (GOOD + b"\x18\xff", r"a varint must end within its message; got 1 bytes"),
    "layer wire": (varint(100 << 3) + b"\x01", r"field 100 must have wire type 2; got 0"),
    "pieces": (
        v2(shape(9) + (b"\x2d\0\0\0\0\x08\x01") * (MAX_PIECES + 1)),
        rf"a blob must have at most {MAX_PIECES} runs of numbers; got more",
    ),
    "long name": (v2(name=b"n" * 70000), r"a name must have at most 65536 bytes; got 70000"),
    "many layers": (delimited(100, b"") * 65537, r"a network must have at most 65536 layers; got more"),
    "many blobs": (delimited(100, delimited(7, b"") * 65537), r"a layer must have at most 65536 blobs; got more"),
    "blobs of all layers": (
        v2(*[shape(0)] * 40000, name=b"a") + v2(*[shape(0)] * 40000, name=b"b"),
        r"a network must have at most 65536 blobs; got more",
    ),
    "many fields": (GOOD + b"\x18\x01" * 1_000_001, r"the file must have at most 1000000 fields; got more"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file_is_one_value_error(tmp_path, case):
    octets, message = BAD[case]
    path = tmp_path / "bad.caffemodel"
    path.write_bytes(octets)
    with pytest.raises(ValueError, match=message) as caught:
        read_caffemodel(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_million_nested_messages(tmp_path):
    """Only known fields are entered, so nesting costs nothing; here 1000 levels in field 1 of `layers`, and a million octets of it."""
    nested = b""
    for _ in range(1000):
        nested = delimited(1, nested)
    path = tmp_path / "bad.caffemodel"
    path.write_bytes(delimited(2, nested))
    assert read_caffemodel(path).format == "V0"
    path.write_bytes(b"\x12\x01" * 1_000_000)
    with pytest.raises(ValueError, match=r"bad.caffemodel: "):
        read_caffemodel(path)


def test_not_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x.caffemodel: must be a file; got nothing there; check the path"):
        read_caffemodel(tmp_path / "x.caffemodel")
    with pytest.raises(ValueError, match=r"must be a file; got a directory; name the file itself"):
        read_caffemodel(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(
        ValueError, match=r"must be a file; got something that is no regular file; name the file itself"
    ):
        read_caffemodel(tmp_path / "pipe")


def test_layers_without_blobs_may_share_a_name(tmp_path):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(v2(name=b"relu") * 2 + GOOD)
    model = read_caffemodel(path)
    assert [layer.name for layer in model.layers] == ["relu", "relu", "c"]
    assert "relu" in model
    with pytest.raises(KeyError, match=r"must have a layer 'fc9'; got 3 others; list the file"):
        model["fc9"]


def test_blobs_are_views_of_the_file(tmp_path):
    """Nothing is copied, whatever the size: the file is sparse, and reading it touches none of its 400 MB."""
    count = 100_000_000
    head = shape(count) + varint(5 << 3 | 2) + varint(4 * count)
    blob = varint(7 << 3 | 2) + varint(len(head) + 4 * count) + head
    layer = delimited(1, b"c") + blob
    start = varint(100 << 3 | 2) + varint(len(layer) + 4 * count) + layer
    path = tmp_path / "big.caffemodel"
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(len(start) + 4 * count)
    before = time.perf_counter()
    array = read_caffemodel(path)["c"].blobs[0]
    assert time.perf_counter() - before < 0.2
    assert array.shape == (count,)
    assert not array.flags.owndata
    assert not array.flags.writeable


def test_imports_neither_torch_nor_repro():
    code = "import sys, caffe_weights; print(sorted({'torch', 'repro', 'h5py'} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(caffe_weights.__file__).parents[1],
    )
    assert run.stdout.strip() == "[]"

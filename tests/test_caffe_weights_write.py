"""V2 .caffemodel files written: what protobuf would write, whole or not at all."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from caffe_proto import MESSAGES

import caffe_weights
from caffe_weights import read_caffemodel, write_caffemodel
from caffe_weights.files import caffemodel
from caffe_weights.files.atomic import replacing

W = np.arange(36, dtype=np.float32).reshape(2, 2, 3, 3) - 7.25
B = np.array([0.5, -1e-30], np.float32)


def test_written_file_is_what_protobuf_writes(tmp_path):
    """Byte for byte what Google's library makes of the same message, and bit-exact on the way back."""
    path = tmp_path / "net.caffemodel"
    write_caffemodel(
        path, {"conv": ("Convolution", [W, B]), "relu": ("ReLU", []), "scalar": ("Power", [np.float32(2)])}, "net"
    )
    net = MESSAGES["NetParameter"]()
    net.ParseFromString(path.read_bytes())
    assert [(layer.name, layer.type, [list(b.shape.dim) for b in layer.blobs]) for layer in net.layer] == [
        ("conv", "Convolution", [[2, 2, 3, 3], [2]]),
        ("relu", "ReLU", []),
        ("scalar", "Power", [[]]),
    ]
    assert np.array(net.layer[0].blobs[0].data, np.float32).tobytes() == W.tobytes()
    model = read_caffemodel(path)
    assert model["conv"].blobs[1].tobytes() == B.tobytes()
    assert model["scalar"].blobs[0].shape == ()


def test_writing_rounds_and_reorders(tmp_path):
    path = tmp_path / "net.caffemodel"
    write_caffemodel(path, {"a": ("X", [W.transpose(1, 0, 2, 3)[:, ::-1].astype(np.float64) / 3, np.zeros((0, 3))])})
    first, empty = read_caffemodel(path)["a"].blobs
    np.testing.assert_array_equal(first, (W.transpose(1, 0, 2, 3)[:, ::-1].astype(np.float64) / 3).astype(np.float32))
    assert empty.shape == (0, 3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array(["x"]), r"layer 'a', blob 0: an array must be numeric; got <U1; convert it"),
        (np.array([1e300]), r"layer 'a', blob 0: values must fit float32; got 1e\+300; rescale them"),
        (
            np.broadcast_to(np.float32(0), (2**31,)),
            r"layer 'a', blob 0: a blob must have fewer than 2\^31 numbers; got 2147483648; split the layer",
        ),
    ],
)
def test_what_cannot_be_written(tmp_path, array, message):
    with pytest.raises(ValueError, match=message):
        write_caffemodel(tmp_path / "x.caffemodel", {"a": ("X", [array])})
    assert not list(tmp_path.iterdir())


def test_protobufs_limit(tmp_path, monkeypatch):
    assert caffemodel.MAX_BYTES == 2**31
    monkeypatch.setattr(caffemodel, "MAX_BYTES", 150)
    with pytest.raises(ValueError, match=r"a .caffemodel must stay below 150 bytes; got 1\d\d; write HDF5 instead"):
        write_caffemodel(tmp_path / "x.caffemodel", {"a": ("X", [W])})


def test_missing_folder_and_folder_as_target(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"its folder must exist; got no folder .*gone; create it"):
        write_caffemodel(tmp_path / "gone/x.caffemodel", {})
    with pytest.raises(ValueError, match=r"must name a file to write; got a directory; add a file name"):
        write_caffemodel(tmp_path, {})


def test_killed_writer_leaves_the_old_file(tmp_path):
    """The writer is killed while the new file is half written."""
    path = tmp_path / "net.caffemodel"
    write_caffemodel(path, {"old": ("X", [W])})
    code = f"""
import os, signal
from caffe_weights.files.atomic import replacing
with replacing({str(path)!r}) as part, open(part, "wb") as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(caffe_weights.__file__).parents[1], check=False)
    assert run.returncode == -signal.SIGKILL
    assert [layer.name for layer in read_caffemodel(path).layers] == ["old"]


def test_failed_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "net.caffemodel"
    write_caffemodel(path, {"old": ("X", [W])})
    with pytest.raises(ZeroDivisionError), replacing(path) as part:
        part.write_bytes(b"half" * (1 // 0))
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.caffemodel"]
    assert read_caffemodel(path)["old"].blobs[0].tobytes() == W.tobytes()

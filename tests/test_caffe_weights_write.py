"""V2 .caffemodel files written: what protobuf would write."""

import numpy as np
import pytest
from caffe_proto import MESSAGES

from caffe_weights import read_caffemodel, write_caffemodel
from caffe_weights.files import caffemodel

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

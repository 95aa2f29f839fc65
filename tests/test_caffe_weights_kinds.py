"""Files of another kind are called by their name: what people hand over by mistake, and one of Caffe's files for another."""

import gzip

import h5py
import numpy as np
import pytest

from caffe_weights import (
    read_binaryproto,
    read_caffemodel,
    read_solverstate,
    write_binaryproto,
    write_caffemodel,
    write_solverstate,
)
from caffe_weights.files.kinds import HEAD, other_kind

A = np.zeros((1, 3, 2, 2), np.float32)
OTHERS = {
    "pickle": (b"\x80\x04\x95", "a Python pickle (it is not read: unpickling runs code)"),
    "zip": (b"PK\x03\x04rest", "a zip archive, perhaps a PyTorch checkpoint (it is not read)"),
    "gzip": (gzip.compress(b"net"), "a gzip archive (unpack it)"),
    "bzip2": (b"BZh91AY", "a bzip2 archive (unpack it)"),
    "xz": (b"\xfd7zXZ\0", "an xz archive (unpack it)"),
    "7z": (b"7z\xbc\xaf\x27\x1c", "a 7z archive (unpack it)"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04", "a zstd archive (unpack it)"),
    "tar": (b"net\0".ljust(257, b"\0") + b"ustar\0", "a tar archive (unpack it)"),
    "npy": (b"\x93NUMPY\x01", "a NumPy array"),
    "png": (b"\x89PNG\r\n", "an image"),
    "jpeg": (b"\xff\xd8\xff\xe0", "an image"),
    "pdf": (b"%PDF-1.4", "a PDF document"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the file itself"),
    "html": (b"<html>404</html>", "an HTML or XML page"),
    "html after blank lines": (b"\n\n <!DOCTYPE html>", "an HTML or XML page"),
    "404": (b"404: Not Found", "a server's message, '404: Not Found'"),
    "prototxt": (b'name: "LeNet"\nlayer {', "prototxt text, which describes a net or solver and holds no weights"),
    "prototxt after a comment": (b"# net\n\nlayers {", "prototxt text, which describes a net or solver"),
    "prototxt in GBK": (b'# \xd6\xd0\nname: "\xcd\xf8"', "prototxt text, which describes a net or solver"),
    "prototxt in UTF-16": ('name: "n"'.encode("utf-16"), "prototxt text, which describes a net or solver"),
    "text": (b"see the README", "text that begins 'see the README'"),
    "csv": (b"a,b\n1,2\n", "text that begins 'a,b 1,2'"),
}


@pytest.mark.parametrize("reader", [read_caffemodel, read_solverstate, read_binaryproto])
@pytest.mark.parametrize("case", OTHERS)
def test_other_formats(tmp_path, case, reader):
    octets, what = OTHERS[case]
    path = tmp_path / "x.caffemodel"
    path.write_bytes(octets)
    with pytest.raises(
        ValueError, match=r"x.caffemodel: must be a binary Caffe message; got .*; name the Caffe f"
    ) as e:
        reader(path)
    assert f"; got {what}" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("length", [9, 10, 13, 32, 40, 60, 80, 123, 126])
def test_names_as_long_as_a_character_are_no_text(tmp_path, length):
    """A network's name comes first: after the key, a line feed, the octet of its length may be any character, such as < or {."""
    path = tmp_path / "net.caffemodel"
    write_caffemodel(path, {"c": ("X", [A])}, "n" * length)
    assert other_kind(path.read_bytes()[:HEAD]) == ""
    assert read_caffemodel(path).name == "n" * length


def model(path):
    write_caffemodel(path, {"c": ("X", [A])}, "net")


def v1_model(path):
    path.write_bytes(b"\x0a\x01n\x12\x05\x22\x01c\x28\x04")


def unnamed_model(path):
    write_caffemodel(path, {"c": ("X", [A])})


def state(path):
    write_solverstate(path, 4, [A], "net.caffemodel")


def mean(path):
    write_binaryproto(path, A)


def hdf5_model(path):
    with h5py.File(path, "w") as file:
        file["data/c/0"] = A


def hdf5_state(path):
    with h5py.File(path, "w") as file:
        file["iter"], file["current_step"], file["history/0"] = np.int32(1), np.int32(0), A


INSTEAD = {
    "a model": "its momentum is in the .solverstate of the same iteration",
    "a solver state": "its weights are in the .caffemodel that it names",
    "an image mean": "name another file",
}
PAIRS = [
    (state, read_caffemodel, "a model", "a solver state"),
    (mean, read_caffemodel, "a model", "an image mean"),
    (hdf5_state, read_caffemodel, "a model", "a solver state"),
    (model, read_solverstate, "a solver state", "a model"),
    (v1_model, read_solverstate, "a solver state", "a model"),
    (unnamed_model, read_solverstate, "a solver state", "a model"),
    (hdf5_model, read_solverstate, "a solver state", "a model"),
    (mean, read_solverstate, "a solver state", "an image mean"),
    (model, read_binaryproto, "an image mean", "a model"),
    (state, read_binaryproto, "an image mean", "a solver state"),
]


@pytest.mark.parametrize(("write", "read", "wanted", "got"), PAIRS)
def test_one_of_caffes_files_for_another(tmp_path, write, read, wanted, got):
    path = tmp_path / "x"
    write(path)
    with pytest.raises(ValueError, match=rf"^{path}: must be {wanted}; got {got}; {INSTEAD[got]}$"):
        read(path)

"""Solver states and image means."""

import hashlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from caffe_proto import MESSAGES, fill_blob

from caffe_weights import read_binaryproto, read_solverstate, write_binaryproto, write_solverstate

GOLDEN = Path(__file__).parent / "golden/weights"
A, B = np.arange(12, dtype=np.float32).reshape(3, 2, 2), np.float32([1e-20, -5])


def test_golden_state():
    state = read_solverstate(GOLDEN / "thin_iter_4.solverstate")
    assert (state.iter, state.current_step, state.learned_net) == (4, 1, "thin_iter_4.caffemodel")
    with np.load(GOLDEN / "expected.npz") as expected:
        digests = expected["history_after4_sha256"]
    assert [hashlib.sha256(buffer.tobytes()).hexdigest() for buffer in state.history] == digests.tolist()


def test_written_state_is_what_protobuf_reads(tmp_path):
    path = tmp_path / "x.solverstate"
    write_solverstate(path, 4000, [A, B], "net.caffemodel", 3)
    state = MESSAGES["SolverState"].FromString(path.read_bytes())
    assert (state.iter, state.current_step, state.learned_net) == (4000, 3, "net.caffemodel")
    assert [list(blob.shape.dim) for blob in state.history] == [[3, 2, 2], [2]]
    back = read_solverstate(path)
    assert [(b.shape, b.tobytes()) for b in back.history] == [(A.shape, A.tobytes()), (B.shape, B.tobytes())]


def test_golden_state_round_trip(tmp_path):
    state = read_solverstate(GOLDEN / "thin_iter_4.solverstate")
    write_solverstate(tmp_path / "x.solverstate", state.iter, state.history, state.learned_net, state.current_step)
    ours, caffes = (
        MESSAGES["SolverState"].FromString(p.read_bytes())
        for p in (tmp_path / "x.solverstate", GOLDEN / "thin_iter_4.solverstate")
    )
    assert ours == caffes


@pytest.mark.parametrize("numbers", [(-1, 0), (2**31, 0), (0, -1)])
def test_iterations_out_of_range_are_not_written(tmp_path, numbers):
    with pytest.raises(
        ValueError, match=r"iter and current_step must lie in 0..2\^31-1; got -?\d+ and -?\d+; correct them"
    ):
        write_solverstate(tmp_path / "x.solverstate", numbers[0], [A], "", numbers[1])


def state_h5(path: Path, **changes) -> Path:
    """What Caffe's SnapshotSolverStateToHDF5 writes, with changes; None leaves a member out."""
    members = {
        "iter": np.int32([7]),
        "current_step": np.int32([2]),
        "learned_net": np.bytes_(b"n.caffemodel.h5"),
        "history": [A, B],
    } | changes
    with h5py.File(path, "w") as file:
        for name, value in members.items():
            if isinstance(value, list):
                group = file.create_group(name)
                for i, array in enumerate(value):
                    group[str(i)] = array
            elif value is not None:
                file[name] = value
    return path


def test_hdf5_state(tmp_path):
    state = read_solverstate(state_h5(tmp_path / "x.solverstate.h5"))
    assert (state.iter, state.current_step, state.learned_net) == (7, 2, "n.caffemodel.h5")
    assert [b.tobytes() for b in state.history] == [A.tobytes(), B.tobytes()]
    assert read_solverstate(state_h5(tmp_path / "y.solverstate.h5", learned_net=None)).learned_net == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"history": None}, r"/: a solver state must have iter, current_step and history; got no history"),
        ({"history": []}, r"/history: a solver state must have a history; got none"),
        ({"iter": np.int32([1, 2])}, r"/iter: must be one integer in 0..2\^31-1; got 2 integers or another value"),
        ({"iter": np.int32([-1])}, r"/iter: must be one integer"),
        (
            {"current_step": np.float32([1])},
            r"/current_step: must hold little-endian numbers of kind 'iu'; got <f4",
        ),
    ],
)
def test_bad_hdf5_state(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_solverstate(state_h5(tmp_path / "x.h5", **changes))


@pytest.mark.parametrize(
    ("octets", "message"),
    [
        (b"\x08\x04", r"solver state, byte 2: a solver state must have a history; got none"),
        (b"\x08" + b"\xff" * 9 + b"\x01", r"iter and current_step must lie in 0..2\^31-1; got 18446744073709551615"),
        (b"\x0a\x01x", r"field 1 must have wire type 0; got 2"),
        (b"\x1a\x00" * 65537, r"a solver state must have at most 65536 blobs; got more"),
        (b"\x1a\x04\x3a\x02\x08\x02", r"history 0, byte \d+: a blob of shape \[2\] must have 2 numbers; got 0"),
    ],
)
def test_bad_binary_state(tmp_path, octets, message):
    path = tmp_path / "x.solverstate"
    path.write_bytes(octets)
    with pytest.raises(ValueError, match=message):
        read_solverstate(path)


def test_image_mean(tmp_path):
    """Written with the legacy axes, which Caffe's compute_image_mean uses; read in either form."""
    mean, path = np.arange(24, dtype=np.float32).reshape(1, 3, 2, 4), tmp_path / "mean.binaryproto"
    write_binaryproto(path, mean)
    blob = MESSAGES["BlobProto"].FromString(path.read_bytes())
    assert (blob.num, blob.channels, blob.height, blob.width, blob.HasField("shape")) == (1, 3, 2, 4, False)
    np.testing.assert_array_equal(read_binaryproto(path), mean)
    shaped = MESSAGES["BlobProto"]()
    fill_blob(shaped, mean)
    path.write_bytes(shaped.SerializeToString())
    np.testing.assert_array_equal(read_binaryproto(path), mean)


def test_bad_image_mean(tmp_path):
    with pytest.raises(ValueError, match=r"an image mean must have four axes; got shape \[3\]; add axes of length 1"):
        write_binaryproto(tmp_path / "m.binaryproto", np.zeros(3))
    (tmp_path / "m.binaryproto").write_bytes(b"\x3a\x02\x08\x00")
    with pytest.raises(ValueError, match=r"blob, byte 0: an image mean must have numbers; got none"):
        read_binaryproto(tmp_path / "m.binaryproto")


@pytest.mark.data
def test_genuine_states(data_root):
    folder = data_root / "caffemodels"
    for name, iteration in (("cifar10_quick_iter_4000", 4000), ("lenet_v2_iter_5000", 5000)):
        if not (folder / f"{name}.solverstate").is_file():
            pytest.skip(f"needs {folder}/{name}.solverstate")
        state = read_solverstate(folder / f"{name}.solverstate")
        assert state.iter == iteration
        assert state.learned_net.endswith(f"{name.replace('_v2', '')}.caffemodel")

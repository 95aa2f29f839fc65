"""Solver states and image means: .solverstate, .solverstate.h5 and .binaryproto."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from caffe_weights.files.atomic import replacing
from caffe_weights.files.caffemodel import blob_chunks, bytes_field, encode_varint, message_field, read_blob
from caffe_weights.files.hdf5 import FORMAT, numbered
from caffe_weights.files.hdf5_tree import Hdf5File, is_hdf5
from caffe_weights.files.model import MAX_BLOBS
from caffe_weights.files.wire import BYTES, VARINT, Field, WireFile, another_kind

MAX_ITERATION = 2**31 - 1  # Caffe: SolverState.iter is an int32


@dataclass(frozen=True)
class SolverState:
    """Where a training run stood.

    Attributes:
        path: the file.
        iter: iterations done.
        current_step: drops of the rate so far (policies step and multistep).
        learned_net: the model file that belongs to it, as written, usually a relative name.
        history: momentum buffers in the net's order of learnable parameters (shared ones once), read-only.
    """

    path: Path
    iter: int
    current_step: int
    learned_net: str
    history: tuple[np.ndarray, ...]


def read_solverstate(path: str | os.PathLike) -> SolverState:
    """Reads a .solverstate or .solverstate.h5; the content decides, not the name.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: the file is no solver state or is damaged; the message names file and place.

    Caffe: src/caffe/solvers/sgd_solver.cpp, RestoreSolverStateFromBinaryProto and ...FromHDF5.
    """
    path = Path(path)
    if is_hdf5(path):
        return _read_hdf5(path)
    file = WireFile(path)
    file.must_be("a solver state")
    numbers, learned_net, blobs = {1: 0, 4: 0}, "", []
    for found in file.fields(0, len(file.data), "solver state"):
        if found.number in numbers:
            file.expect(found, VARINT, "solver state")
            numbers[found.number] = found.value
            if found.value > MAX_ITERATION:
                raise file.fail(
                    "solver state", found.start, f"iter and current_step must lie in 0..2^31-1; got {found.value}"
                )
        elif found.number == 2:
            learned_net = file.text(found, "learned_net")
        elif found.number == 3:
            blobs.append(found)
            if len(blobs) > MAX_BLOBS:
                raise file.fail(
                    "solver state", found.start, f"a solver state must have at most {MAX_BLOBS} blobs; got more"
                )
    if not blobs:
        raise file.fail("solver state", len(file.data), "a solver state must have a history; got none")
    history = tuple(read_blob(file, blob, f"history {i}") for i, blob in enumerate(blobs))
    return SolverState(path, numbers[1], numbers[4], learned_net, history)


def _read_hdf5(path: Path) -> SolverState:
    file = Hdf5File(path)
    members = file.members(file.root)
    if "history" not in members and ("data" in members or file.text(file.root).get("format") == FORMAT):
        raise another_kind(path, "a solver state", "a model")
    if missing := [name for name in ("iter", "current_step", "history") if name not in members]:
        raise file.fail("/", f"a solver state must have iter, current_step and history; got no {missing[0]}")
    numbers = []
    for name in ("iter", "current_step"):
        value = file.array(members[name], "iu")
        if value.size != 1 or not 0 <= int(value.flat[0]) <= MAX_ITERATION:
            raise file.fail(f"/{name}", f"must be one integer in 0..2^31-1; got {value.size} integers or another value")
        numbers.append(int(value.flat[0]))
    learned_net = file.array(members["learned_net"], "S").tobytes()[:65536] if "learned_net" in members else b""
    history = numbered(file, members["history"])
    if not history:
        raise file.fail("/history", "a solver state must have a history; got none")
    return SolverState(path, *numbers, learned_net.rstrip(b"\0").decode("utf-8", "backslashreplace"), history)


def write_solverstate(
    path: str | os.PathLike, iteration: int, history: Sequence[np.ndarray], learned_net: str, current_step: int = 0
) -> None:
    """Writes a binary .solverstate, whole or not at all.

    Args:
        path: the file to write.
        iteration: iterations done.
        history: momentum buffers in the net's order of learnable parameters; rounded to float32.
        learned_net: the model file; Caffe looks it up relative to the folder it is started in.
        current_step: drops of the rate so far.

    Raises:
        ValueError: an array is not numeric or overflows float32; a number is negative.
        FileNotFoundError: the folder is missing.

    Caffe: src/caffe/solvers/sgd_solver.cpp, SnapshotSolverStateToBinaryProto.
    """
    check_numbers(path, iteration, current_step)
    chunks: list = [b"\x08" + encode_varint(iteration), bytes_field(2, learned_net.encode())]
    for index, array in enumerate(history):
        chunks += message_field(3, list(blob_chunks(array, f"{path}: history {index}")))
    chunks.append(b"\x20" + encode_varint(current_step))
    with replacing(path) as part, open(part, "wb") as file:
        file.writelines(chunks)


def check_numbers(path: str | os.PathLike, iteration: int, current_step: int) -> None:
    """Raises ValueError unless a solver state can hold both numbers."""
    if not (0 <= iteration <= MAX_ITERATION and 0 <= current_step <= MAX_ITERATION):
        raise ValueError(
            f"{path}: iter and current_step must lie in 0..2^31-1; got {iteration} and {current_step}; correct them"
        )


def read_binaryproto(path: str | os.PathLike) -> np.ndarray:
    """Reads a .binaryproto image mean.

    Returns:
        Read-only array, usually (1, 3, H, W) BGR.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: the file is no BlobProto or is damaged.

    Caffe: src/caffe/util/io.cpp, ReadProtoFromBinaryFile of a BlobProto.
    """
    file = WireFile(Path(path))
    file.must_be("an image mean")
    mean = read_blob(file, Field(0, BYTES, 0, 0, len(file.data)), "blob")
    if not mean.size:
        raise file.fail("blob", 0, "an image mean must have numbers; got none")
    return mean


def write_binaryproto(path: str | os.PathLike, mean: np.ndarray) -> None:
    """Writes an image mean as Caffe's tools do: legacy num, channels, height, width; whole or not at all.

    Raises:
        ValueError: `mean` has not four axes, is not numeric or overflows float32.

    Caffe: tools/compute_image_mean.cpp.
    """
    if mean.ndim != 4:
        raise ValueError(
            f"{path}: an image mean must have four axes; got shape {list(mean.shape)}; add axes of length 1"
        )
    legacy = b"".join(
        bytes([(number << 3) | VARINT]) + encode_varint(side) for number, side in enumerate(mean.shape, 1)
    )
    _, key, data = blob_chunks(mean, str(path))
    with replacing(path) as part, open(part, "wb") as file:
        file.writelines([legacy, key, data])

"""A solver's files: Caffe's own .caffemodel and .solverstate, binary or HDF5, and beside them the place in the data stream, which Caffe does not keep."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from caffe_weights.files.caffe_hdf5 import write_caffemodel_hdf5, write_solverstate_hdf5
from caffe_weights.files.solverstate import write_solverstate
from repro.caffe.log import info
from repro.caffe.net import Net
from repro.caffe.update import Update
from repro.data.caffe_rng import CaffeRNG
from repro.files import read_bytes, write_json

STREAM_SUFFIX = ".stream.json"
_MAX_STREAM_BYTES = 16 * 2**20


@dataclass
class StreamPlace:
    """Where the random numbers and the data of a run stand.

    rng: Caffe's global generator: its 624 words and the position among them.
    filler: torch's generator of the fillers, of each net, for DummyData.
    positions: Of each net, layer name to batches handed out.
    """

    rng: tuple[np.ndarray, int]
    filler: list[bytes]
    positions: list[dict[str, int]] = field(default_factory=list)


def snapshot_prefix(solver: Path, given: str, root: Path) -> Path:
    """Finds where a solver's snapshots go: what snapshot_prefix says; a folder gets the solver's name added; without one, beside the solver.

    Caffe: src/caffe/util/upgrade_proto.cpp, UpgradeSnapshotPrefixProperty.
    """
    if not given:
        return solver.with_suffix("")
    prefix = root / given
    return prefix / solver.stem if prefix.is_dir() else prefix


def check_prefix(prefix: Path) -> None:
    """Sees that snapshots can be written, before any work is done.

    Raises:
        FileNotFoundError: The folder is missing.
        ValueError: It cannot be written to.

    Caffe: src/caffe/solver.cpp, CheckSnapshotWritePermissions.
    """
    folder = prefix.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"snapshot_prefix: the folder of {prefix} must exist; got no {folder}; create it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"snapshot_prefix: {folder} must be writable; got no permission; change snapshot_prefix")


def write_snapshot(prefix: Path, hdf5: bool, net: Net, update: Update, iteration: int) -> Path:
    """Writes a model and its solver state, with Caffe's names and log lines.

    Args:
        prefix: What stands before `_iter_<n>`.
        hdf5: Whether the files are HDF5.
        net: The train net.
        update: The solver's, whose history is written.
        iteration: Iterations done.

    Returns:
        The solver state's file.

    Caffe: src/caffe/solver.cpp, Snapshot; sgd_solver.cpp, SnapshotSolverState.
    """
    arrays = list(map(_array, update.history))
    stem = f"{prefix}_iter_{iteration}"
    if hdf5:
        model, state = Path(f"{stem}.caffemodel.h5"), Path(f"{stem}.solverstate.h5")
        info(f"Snapshotting to HDF5 file {model}")
        write_caffemodel_hdf5(model, owned_blobs(net))
        info(f"Snapshotting solver state to HDF5 file {state}")
        write_solverstate_hdf5(state, iteration, arrays, str(model), update.current_step)
    else:
        model, state = Path(f"{stem}.caffemodel"), Path(f"{stem}.solverstate")
        info(f"Snapshotting to binary proto file {model}")
        net.save(model)
        info(f"Snapshotting solver state to binary proto file {state}")
        write_solverstate(state, iteration, arrays, str(model), update.current_step)
    return state


def owned_blobs(net: Net) -> dict[str, dict[int, np.ndarray]]:
    """Returns every layer's own blobs by number; those that it shares with an earlier layer are left out."""
    seen: set[int] = set()
    owned: dict[str, dict[int, np.ndarray]] = {}
    for name, _, blobs in net.listed_layers():
        new = {number: blob for number, blob in enumerate(blobs) if id(blob) not in seen}
        seen.update(map(id, new.values()))
        owned[name] = {number: _array(blob) for number, blob in new.items()}
    return owned


def _array(blob: torch.Tensor) -> np.ndarray:
    return blob.detach().cpu().numpy()


def find_learned_net(state: Path, learned_net: str, root: Path) -> Path:
    """Finds the model that a solver state names.

    Deviates: Caffe looks it up from the folder where it was started; here beside the solver state too, where a moved run has it.
    """
    named = root / learned_net
    beside = state.parent / Path(learned_net).name
    return named if named.exists() or not beside.exists() else beside


def stream_file(state: Path) -> Path:
    """Names the file beside a solver state that holds its place in the stream."""
    return state.with_name(state.name + STREAM_SUFFIX)


def stream_place(nets: Sequence[Net], rng: CaffeRNG) -> StreamPlace:
    """Notes where the data layers of all nets and their common generator stand."""
    positions = [
        {name: layer.position for name, layer in net.layers.items() if hasattr(layer, "position")} for net in nets
    ]
    return StreamPlace(rng.state(), [bytes(net.generator.get_state().numpy()) for net in nets], positions)


def go_to(place: StreamPlace, nets: Sequence[Net], rng: CaffeRNG) -> None:
    """Puts all data layers and the generator where a snapshot left them."""
    rng.set_state(*place.rng)
    for net, filler, positions in zip(nets, place.filler, place.positions, strict=True):
        net.generator.set_state(torch.frombuffer(bytearray(filler), dtype=torch.uint8))
        for name, position in positions.items():
            net.layers[name].seek(position)


def write_stream(path: Path, place: StreamPlace) -> None:
    """Writes a place in the stream as JSON, whole or not at all."""
    words, index = place.rng
    document = {
        "rng": base64.b64encode(np.asarray(words, "<u4").tobytes()).decode(),
        "rng_index": index,
        "filler": [base64.b64encode(state).decode() for state in place.filler],
        "positions": place.positions,
    }
    write_json(path, document)


def read_stream(path: Path, nets: Sequence[Net]) -> StreamPlace:
    """Reads a place in the stream.

    Args:
        path: The file.
        nets: Those that it must fit.

    Raises:
        FileNotFoundError: There is none, as beside the files of Caffe itself.
        ValueError: It is damaged, or of other nets.
    """
    octets = read_bytes(path, _MAX_STREAM_BYTES, "the stream's place", "leave out --continue-stream")
    names = [[name for name, layer in net.layers.items() if hasattr(layer, "position")] for net in nets]
    try:
        found: Mapping = json.loads(octets)
        words = np.frombuffer(base64.b64decode(found["rng"], validate=True), "<u4")
        index, positions = found["rng_index"], found["positions"]
        filler = [base64.b64decode(state, validate=True) for state in found["filler"]]
        sizes = [net.generator.get_state().numel() for net in nets]
        fits = [list(place) for place in positions] == names and [len(state) for state in filler] == sizes
        counts = [index, *(count for place in positions for count in place.values())]
        whole = all(type(count) is int and 0 <= count < 2**40 for count in counts) and index <= 624
        if not (fits and whole and words.size == 624):
            raise ValueError("that of other nets")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ValueError(
            f"{path}: must be the place in the stream of these nets; got {reason}; leave out --continue-stream"
        ) from error
    return StreamPlace((words, index), filler, positions)

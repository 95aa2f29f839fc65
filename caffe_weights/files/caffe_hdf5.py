"""Caffe's own HDF5 snapshots, .caffemodel.h5 and .solverstate.h5, written as the original writes them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from caffe_weights.files.atomic import replacing
from caffe_weights.files.hdf5 import Recorder
from caffe_weights.files.solverstate import check_numbers


def write_caffemodel_hdf5(path: str | os.PathLike, layers: Mapping[str, Mapping[int, np.ndarray]]) -> None:
    """Writes a .caffemodel.h5, whole or not at all.

    Args:
        path: the file to write.
        layers: layer name to its blobs by number, of those that it owns; in any order. Values are rounded to float32.

    Raises:
        ValueError: a name cannot be an HDF5 path of groups.
        FileNotFoundError: the folder is missing.

    Caffe: src/caffe/net.cpp, Net::ToHDF5 (a layer whose blobs belong to another is an empty group).
    """
    with _written(path) as file:
        data = file.create_group("data")
        for name, blobs in layers.items():
            parts = name.split("/")
            if not all(parts) or "\0" in name or "." in parts:
                raise ValueError(
                    f"{path}: a layer name must serve as an HDF5 path of groups; got {name!r}; rename the layer, or write BINARYPROTO"
                )
            group = data.require_group(name)
            for number, blob in blobs.items():
                group.create_dataset(str(number), data=np.asarray(blob, np.float32))


def write_solverstate_hdf5(
    path: str | os.PathLike, iteration: int, history: Sequence[np.ndarray], learned_net: str, current_step: int = 0
) -> None:
    """Writes a .solverstate.h5, whole or not at all; arguments and errors as for write_solverstate.

    Caffe: src/caffe/solvers/sgd_solver.cpp, SnapshotSolverStateToHDF5; src/caffe/util/hdf5.cpp.
    """
    check_numbers(path, iteration, current_step)
    with _written(path) as file:
        import h5py

        file.create_dataset("iter", data=np.array([iteration], np.int32))
        # H5LTread_dataset_string needs the zero at the end.
        kind = h5py.h5t.C_S1.copy()
        kind.set_size(len(learned_net.encode()) + 1)
        space = h5py.h5s.create(h5py.h5s.SCALAR)
        text = h5py.h5d.create(file.id, b"learned_net", kind, space)
        text.write(space, space, np.array(learned_net.encode() + b"\0"), kind)
        file.create_dataset("current_step", data=np.array([current_step], np.int32))
        group = file.create_group("history")
        for number, array in enumerate(history):
            group.create_dataset(str(number), data=np.asarray(array, np.float32))


@contextmanager
def _written(path: str | os.PathLike) -> Iterator:
    import h5py  # takes as long to import as a 500 MB caffemodel to list

    with replacing(path) as part, Recorder(part) as recorder, h5py.File(recorder, "w", libver="earliest") as file:
        yield file

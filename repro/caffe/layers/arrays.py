"""Layers whose tops come from memory, from fillers or from HDF5 files: MemoryData, DummyData, HDF5Data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from caffe_weights.files.hdf5_tree import Hdf5File
from repro.caffe.fillers import fill
from repro.caffe.layers.base import DataLayer, Shape
from repro.caffe.proto import Typed
from repro.data.lists import read_lines


class MemoryData(DataLayer):
    """Tops data (N, C, H, W) and label (N,), batch after batch of what `reset` was given, and again from its start.

    Caffe: src/caffe/layers/memory_data_layer.cpp.
    """

    MIN_TOPS, MAX_TOPS = 2, 2

    def setup(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        size = self.param.memory_data_param
        self._shape = (size.batch_size, size.channels, size.height, size.width)
        if min(self._shape) < 1:
            raise self.fail("batch_size, channels, height and width must be above 0", self._shape)
        self._data: torch.Tensor | None = None
        self.position = 0
        return [self._shape, self._shape[:1]]

    def reset(self, data: torch.Tensor | np.ndarray, labels: torch.Tensor | np.ndarray) -> None:
        """Sets what the batches are taken from (pycaffe: set_input_arrays); arrays are not copied.

        Args:
            data: (M, C, H, W); M is a multiple of batch_size.
            labels: (M,), or (M, 1, 1, 1).

        Raises:
            ValueError: They have other shapes.
        """
        data, labels, batch = torch.as_tensor(data), torch.as_tensor(labels), self._shape[0]
        if tuple(data.shape[1:]) != self._shape[1:] or len(data) % batch or not len(data):
            raise self.fail(
                f"data must be a multiple of {batch} items of shape {list(self._shape[1:])}",
                list(data.shape),
                "reshape it",
            )
        if labels.numel() != len(data):
            raise self.fail(f"there must be {len(data)} labels", labels.numel(), "give one for each item")
        self._data, self._labels, self.position = data, labels.reshape(-1), 0

    def seek(self, position: int) -> None:
        """Lets the next batch be number `position`, counted from 0."""
        self.position = position

    def next(self) -> tuple[torch.Tensor, ...]:
        if self._data is None:
            raise self.fail("its data must be set before the first pass", "none", "call reset(data, labels)")
        batch = self._shape[0]
        start = self.position * batch % len(self._data)
        self.position += 1
        return self._data[start : start + batch], self._labels[start : start + batch]


class DummyData(DataLayer):
    """Tops from fillers: constants once, random numbers anew in every pass.

    Caffe: src/caffe/layers/dummy_data_layer.cpp.
    Deviates: random numbers are torch's (repro/caffe/fillers.py).
    """

    def setup(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        param = self.param.dummy_data_param
        fillers = param.data_filler or [Typed("FillerParameter", {}, self.param.where)]
        if len(fillers) not in (1, self.tops):
            raise self.fail(f"data_filler must be given 0, 1 or {self.tops} times", len(fillers))
        self._fillers = fillers * self.tops if len(fillers) == 1 else fillers
        sides = [param.num, param.channels, param.height, param.width]
        if any(sides):
            if param.shape or any(len(side) not in (1, self.tops) for side in sides):
                raise self.fail(
                    f"num, channels, height and width must be given 1 or {self.tops} times each, without shape",
                    "otherwise",
                )
            sides = [side * self.tops if len(side) == 1 else side for side in sides]
            shapes = list(zip(*sides, strict=True))
        else:
            if len(param.shape) not in (1, self.tops):
                raise self.fail(f"shape must be given 1 or {self.tops} times", len(param.shape))
            shapes = [tuple(shape.dim) for shape in param.shape]
            shapes = shapes * self.tops if len(shapes) == 1 else shapes
        for shape in shapes:
            if any(side < 0 for side in shape):
                raise self.fail("a shape must have no negative side", list(shape))
        self._shapes = shapes
        self._constant: dict[int, torch.Tensor] = {}
        return shapes

    def next(self) -> tuple[torch.Tensor, ...]:
        return tuple(map(self._top, range(self.tops)))

    def _top(self, index: int) -> torch.Tensor:
        if index in self._constant:
            return self._constant[index]
        value, filler = torch.empty(self._shapes[index]), self._fillers[index]
        fill(value, filler, self.context.rng, self.context.generator)
        if filler.type == "constant":
            self._constant[index] = value
        return value


class HDF5Data(DataLayer):
    """Tops from the datasets of their names, row after row, file after file of a list.

    Attributes:
        position: Batches that were handed out.

    Caffe: src/caffe/layers/hdf5_data_layer.cpp.
    Deviates: where shuffle is on, the orders are torch's; Caffe's come from the C library's rand. Datasets must be stored in one piece (h5py's way without
        compression), numbers of whole types or floats.
    """

    def setup(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        param = self.param.hdf5_data_param
        if param.batch_size < 1:
            raise self.fail("batch_size must be at least 1", param.batch_size)
        if not param.source:
            raise self.fail("hdf5_data_param must name its list in source", "none")
        if self.param.has("transform_param"):
            raise self.fail("there must be no transform_param", "one")
        source = self.context.root / param.source
        self._files = [self.context.root / line.strip() for _, line in read_lines(source)]
        self._names = list(self.param.top)
        self._random = torch.Generator().manual_seed(self.context.generator.initial_seed())
        self._rows = param.batch_size
        self._open: dict[Path, list[np.ndarray]] = {}
        self.seek(0)
        return [(self._rows, *array.shape[1:]) for array in self._arrays(self._files[0])]

    def seek(self, position: int) -> None:
        """Lets the next batch be number `position`, counted from 0."""
        self._random.manual_seed(self._random.initial_seed())
        self._order = self._shuffled(len(self._files))
        self._file = self._row = self.position = 0
        self._begin()
        for _ in range(position * self._rows):
            self._advance()
        self.position = position

    def next(self) -> tuple[torch.Tensor, ...]:
        rows = [self._advance() for _ in range(self._rows)]
        self.position += 1
        arrays = [np.stack([file[top][row] for file, row in rows]) for top in range(len(self._names))]
        return tuple(torch.from_numpy(array).to(self.context.dtype) for array in arrays)

    def _advance(self) -> tuple[list[np.ndarray], int]:
        """Returns the current file's arrays and the row to take from them, and moves on."""
        if self._row == len(self._permutation):
            if len(self._files) > 1:
                self._file += 1
                if self._file == len(self._files):
                    self._file, self._order = 0, self._shuffled(len(self._files))
                self._begin()
            else:
                self._permutation = self._shuffled(len(self._permutation))
            self._row = 0
        row, self._row = self._permutation[self._row], self._row + 1
        return self._current, row

    def _begin(self) -> None:
        self._current = self._arrays(self._files[self._order[self._file]])
        self._permutation = self._shuffled(len(self._current[0]))

    def _shuffled(self, count: int) -> list[int]:
        shuffle = self.param.hdf5_data_param.shuffle
        return torch.randperm(count, generator=self._random).tolist() if shuffle else list(range(count))

    def _arrays(self, path: Path) -> list[np.ndarray]:
        """Maps a file's datasets, once."""
        if path not in self._open:
            file = Hdf5File(path)
            members = file.members(file.root)
            if missing := [name for name in self._names if name not in members]:
                raise file.fail("/", f"must have a dataset for every top of layer {self.name!r}; got no {missing[0]}")
            arrays = [file.array(members[name], "fiu") for name in self._names]
            lengths = [array.shape[0] if array.ndim else 0 for array in arrays]
            if not lengths[0] or any(a != b for a, b in pairwise(lengths)):
                raise file.fail("/", f"its datasets must have one and the same number of rows, above 0; got {lengths}")
            first = next(iter(self._open.values()), arrays)
            if any(a.shape[1:] != b.shape[1:] for a, b in zip(arrays, first, strict=True)):
                raise file.fail("/", "its datasets must have the shapes of the first file's; got others")
            self._open[path] = arrays
        return self._open[path]

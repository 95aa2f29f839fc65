"""What every layer of a net is: shapes first, then data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from repro.caffe.fillers import fill
from repro.caffe.proto import Typed
from repro.data.caffe_rng import CaffeRNG

Shape = tuple[int, ...]
MAX_AXES = 32  # Caffe: kMaxBlobAxes, include/caffe/blob.hpp


@dataclass
class Context:
    """What a net gives all its layers.

    phase: "TRAIN" or "TEST".
    rng: Caffe's global generator, which fillers, Dropout and the data layers draw from in the order of the net.
    root: The folder that relative paths in the prototxt start from.
    allocate: Counts the elements of a blob about to be made against the net's bound; raises ValueError beyond it.
    generator: torch's, for the fillers whose numbers are not Caffe's (repro/caffe/fillers.py).
    dtype: Of the blobs; data layers compute in it.
    log: Takes one line of text.
    """

    phase: str
    rng: CaffeRNG
    root: Path
    allocate: Callable[[Shape, str], None]
    generator: torch.Generator
    dtype: torch.dtype = torch.float32
    log: Callable[[str], None] = field(default=lambda line: None)


class Layer(nn.Module):
    """One layer of a net.

    Args:
        param: Its LayerParameter.
        context: The net's.

    Attributes:
        name, type: Caffe's.
        blobs: Its parameters in Caffe's order (weight, bias). A shared one is its owner's object.
        tops: How many tops the prototxt gives it, those that Caffe adds by itself included.

    A subclass states MIN_BOTTOMS, MAX_BOTTOMS, MIN_TOPS, MAX_TOPS (None: any number), and defines `reshape` and `forward`.

    Caffe: include/caffe/layer.hpp.
    """

    MIN_BOTTOMS: int = 1
    MAX_BOTTOMS: int | None = 1
    MIN_TOPS: int = 1
    MAX_TOPS: int | None = 1
    AUTO_TOPS = False  # whether Caffe adds tops that the prototxt leaves out (loss layers)
    LOSS = False  # whether its first top has loss_weight 1 where the prototxt gives none
    IN_PLACE = True  # whether a top may be its bottom
    DATA = False  # whether it makes its tops from files or memory: see DataLayer

    def __init__(self, param: Typed, context: Context):
        super().__init__()
        self.param, self.context = param, context
        self.name, self.type = param.name, param.type
        self.blobs = nn.ParameterList()
        self.blob_shapes: list[Shape] = []
        self.param_propagate_down: list[bool] = []
        self.tops = 0

    def setup(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Makes the parameters, once, from the bottoms' shapes; returns the tops' shapes."""
        return self.reshape(bottom_shapes)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Computes the tops' shapes from the bottoms'; raises ValueError where they do not fit the layer."""
        raise NotImplementedError

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Computes the tops, differentiable by torch as Caffe's Backward computes the gradients."""
        raise NotImplementedError

    def allows_force_backward(self, bottom: int) -> bool:
        """Whether force_backward makes the gradient of a bottom be computed (not that of labels)."""
        return True

    def fail(self, must: str, got, remedy: str = "correct the prototxt") -> ValueError:
        """Makes the error for something wrong in this layer; the caller raises it."""
        return ValueError(f"{self.param.where}: layer {self.name!r} ({self.type}): {must}; got {got}; {remedy}")

    def axis(self, index: int, axes: int, what: str = "axis", extra: int = 0) -> int:
        """Returns an axis that may count from the end as one that counts from 0; `extra` allows as many axes beyond the last."""
        if not -axes <= index < axes + extra:
            raise self.fail(f"{what} must be within a blob of {axes} axes", index)
        return index + axes if index < 0 else index

    def add_blob(self, shape: Shape, filler: Typed | None, default: float = 0.0) -> None:
        """Makes the next parameter and fills it; without a filler it is constant."""
        self.context.allocate(shape, f"{self.param.where}: layer {self.name!r}: parameter {len(self.blobs)}")
        value = torch.empty(shape, dtype=torch.float32)
        if filler is None:
            value.fill_(default)
        else:
            fill(value, filler, self.context.rng, self.context.generator)
        self.blobs.append(nn.Parameter(value))
        self.blob_shapes.append(tuple(shape))

    def blob(self, index: int) -> torch.Tensor:
        """Returns a parameter as the layer computes with it: in its own shape, and without a gradient where Caffe computes none."""
        value = self.blobs[index]
        if not self.param_propagate_down[index]:
            value = value.detach()
        return value if tuple(value.shape) == self.blob_shapes[index] else value.reshape(self.blob_shapes[index])

    def expect_axes(self, shape: Shape, axes: int) -> None:
        """Raises unless a bottom has that many axes."""
        if len(shape) != axes:
            raise self.fail(f"its bottom must have {axes} axes", list(shape))


class DataLayer(Layer):
    """A layer without bottoms that makes its tops itself, batch after batch.

    A subclass defines `setup`, which draws from `context.rng` what Caffe's layer set-up draws, and `next`.
    """

    MIN_BOTTOMS, MAX_BOTTOMS, MAX_TOPS = 0, 0, None
    DATA = True

    def setup(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Opens what the layer reads (relative paths start from `context.root`); returns the tops' shapes."""
        raise NotImplementedError

    def next(self) -> tuple[torch.Tensor, ...]:
        """Returns the next batch's tops on the CPU; the net moves them to its device and dtype."""
        raise NotImplementedError

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Not asked: the tops' shapes are those of `setup` and `next`."""
        raise NotImplementedError

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Returns the next batch."""
        return self.next()


def count(shape: Sequence[int]) -> int:
    """Returns the number of elements of a shape, 1 of the empty one."""
    return math.prod(shape)

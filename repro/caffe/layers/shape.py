"""Layers that move values without changing them: Concat, Slice, Split, Flatten, Reshape, Tile, Crop, Padding, Silence, Input."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from repro.caffe.layers.base import MAX_AXES, DataLayer, Layer, Shape, count


class Concat(Layer):
    """Joins its bottoms along an axis. Caffe: src/caffe/layers/concat_layer.cpp."""

    MAX_BOTTOMS = None
    IN_PLACE = False

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Computes the top's shape."""
        concat, first = self.param.concat_param, bottom_shapes[0]
        if concat.has("axis") and concat.has("concat_dim"):
            raise self.fail("axis or concat_dim must be given", "both", "keep axis")
        self.dim = self.axis(concat.concat_dim if concat.has("concat_dim") else concat.axis, len(first))
        for shape in bottom_shapes[1:]:
            if len(shape) != len(first) or any(
                a != b for i, (a, b) in enumerate(zip(shape, first, strict=True)) if i != self.dim
            ):
                raise self.fail(f"its bottoms must agree but for axis {self.dim}", f"{list(first)} and {list(shape)}")
        total = sum(shape[self.dim] for shape in bottom_shapes)
        return [(*first[: self.dim], total, *first[self.dim + 1 :])]

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Joins."""
        return (torch.cat(tuple(bottoms), self.dim),)


class Slice(Layer):
    """Cuts its bottom along an axis, at slice_points or into equal parts. Caffe: src/caffe/layers/slice_layer.cpp."""

    MAX_TOPS = None
    IN_PLACE = False

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Computes the tops' shapes."""
        param, shape = self.param.slice_param, bottom_shapes[0]
        if param.has("axis") and param.has("slice_dim"):
            raise self.fail("axis or slice_dim must be given", "both", "keep axis")
        self.dim = self.axis(param.slice_dim if param.has("slice_dim") else param.axis, len(shape))
        length, points = shape[self.dim], param.slice_point
        if points:
            bounds = [0, *points, length]
            if len(points) != self.tops - 1 or any(a >= b for a, b in itertools.pairwise(bounds)):
                raise self.fail(
                    f"slice_point must rise within 0..{length}, one fewer than its {self.tops} tops", points
                )
            self.sizes = [b - a for a, b in itertools.pairwise(bounds)]
        elif length % self.tops:
            raise self.fail(f"axis {self.dim} must divide into its {self.tops} tops", length)
        else:
            self.sizes = [length // self.tops] * self.tops
        return [(*shape[: self.dim], size, *shape[self.dim + 1 :]) for size in self.sizes]

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Cuts."""
        return bottoms[0].split(self.sizes, self.dim)


class _Copies(torch.autograd.Function):
    """One tensor several times; the gradients are summed from the first to the last (Caffe: SplitLayer::Backward_cpu)."""

    @staticmethod
    def forward(ctx, x, number):
        return tuple(x.detach() for _ in range(number))  # a view would lose the layout of a batch of one

    @staticmethod
    def backward(ctx, *gradients):
        total = gradients[0]
        for gradient in gradients[1:]:
            total = total + gradient
        return total, None


def copies(x: torch.Tensor, number: int) -> tuple[torch.Tensor, ...]:
    """Returns a blob for each of its readers, so that their gradients are summed in Caffe's order."""
    return _Copies.apply(x, number) if x.requires_grad and torch.is_grad_enabled() else (x,) * number


class Split(Layer):
    """Gives its bottom to several tops; Caffe puts one behind every blob that several layers read."""

    MAX_TOPS = None
    IN_PLACE = False

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Returns the bottom's shape for every top."""
        return [bottom_shapes[0]] * self.tops

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Copies."""
        return copies(bottoms[0], self.tops)


class Flatten(Layer):
    """Makes one axis of the axes from `axis` to `end_axis`. Caffe: src/caffe/layers/flatten_layer.cpp."""

    IN_PLACE = False

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Computes the top's shape."""
        flatten, shape = self.param.flatten_param, bottom_shapes[0]
        first, last = self.axis(flatten.axis, len(shape)), self.axis(flatten.end_axis, len(shape), "end_axis")
        if last < first:
            raise self.fail("end_axis must not be before axis", f"{last} and {first}")
        self.shape = (*shape[:first], count(shape[first : last + 1]), *shape[last + 1 :])
        return [self.shape]

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Reshapes, in the order of the blob."""
        return (bottoms[0].reshape(self.shape),)


class Reshape(Flatten):
    """Gives its bottom another shape: 0 copies an axis, -1 takes what is left. Caffe: src/caffe/layers/reshape_layer.cpp."""

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Computes the top's shape."""
        param, shape = self.param.reshape_param, bottom_shapes[0]
        if param.axis < 0:
            first = self.axis(param.axis + 1 + len(shape), len(shape), extra=1)
        else:
            first = self.axis(param.axis, len(shape), extra=1)
        last = len(shape) if param.num_axes == -1 else first + param.num_axes
        if param.num_axes < -1 or last > len(shape):
            raise self.fail("num_axes must be -1 or lie within its bottom", param.num_axes)
        dims = list(param.shape.dim)
        if len(dims) + len(shape) > MAX_AXES:
            raise self.fail(f"a blob must have at most {MAX_AXES} axes", len(dims))
        if dims.count(-1) > 1 or any(dim < -1 for dim in dims):
            raise self.fail("dims must be sizes, 0 to copy, or once -1", dims)
        for place, dim in enumerate(dims):
            if dim == 0:
                if first + place >= len(shape):
                    raise self.fail("dim 0 must have an axis to copy", dims)
                dims[place] = shape[first + place]
        rest = count(shape[:first]) * count(shape[last:]) * count([dim for dim in dims if dim != -1])
        if -1 in dims:
            if rest == 0 or count(shape) % rest:
                raise self.fail(f"what dim -1 stands for must be whole for {list(shape)}", dims)
            dims[dims.index(-1)] = count(shape) // rest
        self.shape = (*shape[:first], *dims, *shape[last:])
        if count(self.shape) != count(shape):
            raise self.fail(f"its top must have its bottom's {count(shape)} values", list(self.shape))
        return [self.shape]


class Tile(Layer):
    """Repeats its bottom along an axis. Caffe: src/caffe/layers/tile_layer.cpp."""

    IN_PLACE = False

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Computes the top's shape."""
        tile, shape = self.param.tile_param, bottom_shapes[0]
        if tile.tiles < 1:
            raise self.fail("tiles must be at least 1", tile.tiles)
        self.dim = self.axis(tile.axis, len(shape))
        return [(*shape[: self.dim], shape[self.dim] * tile.tiles, *shape[self.dim + 1 :])]

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Repeats."""
        times = [self.param.tile_param.tiles if axis == self.dim else 1 for axis in range(bottoms[0].dim())]
        return (bottoms[0].repeat(times),)


class Crop(Layer):
    """Cuts its first bottom to the size of the second, from `axis` on, at an offset. Caffe: src/caffe/layers/crop_layer.cpp (BVLC)."""

    MIN_BOTTOMS, MAX_BOTTOMS = 2, 2
    IN_PLACE = False

    def allows_force_backward(self, bottom: int) -> bool:
        """The second bottom is a size alone."""
        return bottom == 0

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Computes the top's shape."""
        crop, (shape, like) = self.param.crop_param, bottom_shapes
        if len(like) != len(shape):
            raise self.fail("its bottoms must have as many axes", f"{len(shape)} and {len(like)}")
        first = self.axis(crop.axis, len(shape))
        cropped = len(shape) - first
        if len(crop.offset) not in (0, 1, cropped):
            raise self.fail(f"offset must be given once or for each of the {cropped} axes", list(crop.offset))
        offsets = (list(crop.offset) or [0]) * (cropped if len(crop.offset) < 2 else 1)
        self.ranges = [(axis, offsets[axis - first], like[axis]) for axis in range(first, len(shape))]
        for axis, offset, size in self.ranges:
            if offset + size > shape[axis]:
                raise self.fail(f"the crop of axis {axis} must lie within {shape[axis]}", f"{offset} + {size}")
        return [(*shape[:first], *like[first:])]

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Cuts."""
        y = bottoms[0]
        for axis, offset, size in self.ranges:
            y = y.narrow(axis, offset, size)
        return (y,)


class Padding(Layer):
    """Puts zeros around an image, pad_beg before and pad_end behind either axis, or cuts off as many where these are negative.

    Caffe: src/caffe/layers/padding_layer.cpp of DeepLab v1.
    """

    IN_PLACE = False

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Computes the top's shape."""
        shape, param = bottom_shapes[0], self.param.padding_param
        self.expect_axes(shape, 4)
        self.pads = [param.pad_beg, param.pad_end]
        if min(self.pads) < 0 < max(self.pads):
            raise self.fail("pad_beg and pad_end must not have opposite signs", f"{self.pads[0]} and {self.pads[1]}")
        sides = [side + sum(self.pads) for side in shape[2:]]
        if min(sides) < 1:
            raise self.fail("it must leave a row and a column", sides)
        return [(*shape[:2], *sides)]

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Pads, or cuts."""
        return (torch.nn.functional.pad(bottoms[0], self.pads * 2),)


class Silence(Layer):
    """Takes blobs so that they are no outputs; their gradient is 0."""

    MAX_BOTTOMS, MIN_TOPS, MAX_TOPS = None, 0, 0

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """There are no tops."""
        return []

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Returns nothing."""
        return ()


class Input(DataLayer):
    """Blobs that are set from outside; the net takes their names and shapes. Caffe: src/caffe/layers/input_layer.cpp (BVLC)."""

    def setup(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Returns the shapes: one for all tops, or one for each."""
        shapes = [tuple(shape.dim) for shape in self.param.input_param.shape]
        if len(shapes) not in (1, self.tops):
            raise self.fail(f"input_param must have one shape or one for each of its {self.tops} tops", len(shapes))
        return shapes * self.tops if len(shapes) == 1 else shapes

    def next(self) -> tuple[torch.Tensor, ...]:
        """Not asked: the net has the tensors."""
        raise NotImplementedError


TYPES = {
    "Concat": Concat,
    "Crop": Crop,
    "Flatten": Flatten,
    "Input": Input,
    "Padding": Padding,
    "Reshape": Reshape,
    "Silence": Silence,
    "Slice": Slice,
    "Split": Split,
    "Tile": Tile,
}

"""DeepLab's own layers: Interp, SpatialProduct, DomainTransform, DenseCRF and MatWrite; those for weak labels are in weak.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io
import torch

from caffe_weights.files.atomic import replacing
from repro.caffe.layers.base import Context, Layer, Shape
from repro.caffe.proto import Typed
from repro.ops import dense_crf, domain_transform, interp


class Interp(Layer):
    """Resizes its bottom bilinearly, corner to corner, after cropping it by -pad_beg and -pad_end.

    Caffe: src/caffe/layers/interp_layer.cpp of the DeepLab forks, in this order: shrink_factor alone, zoom_factor alone, height and width, shrink and then zoom as
        one resize.
    """

    IN_PLACE = False

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Computes the top's shape."""
        shape, param = bottom_shapes[0], self.param.interp_param
        self.expect_axes(shape, 4)
        if param.pad_beg > 0 or param.pad_end > 0:
            raise self.fail("pad_beg and pad_end must be at most 0 (they crop)", f"{param.pad_beg} and {param.pad_end}")
        self.cropped = [side + param.pad_beg + param.pad_end for side in shape[2:]]
        shrinks, zooms = param.has("shrink_factor"), param.has("zoom_factor")
        if min(param.shrink_factor, param.zoom_factor) < 1:
            raise self.fail("factors must be at least 1", f"{param.shrink_factor} and {param.zoom_factor}")
        if shrinks == zooms and param.has("height") and param.has("width"):
            self.size = [param.height, param.width]
        elif shrinks or zooms:
            shrunk = [(side - 1) // param.shrink_factor + 1 for side in self.cropped]
            self.size = [side + (side - 1) * (param.zoom_factor - 1) for side in shrunk]
        else:
            raise self.fail("a factor, or height and width, must be given", "neither")
        if min(*self.cropped, *self.size) < 1:
            raise self.fail("no side must be empty", f"{self.cropped} to {self.size}")
        return [(*shape[:2], *self.size)]

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Resizes."""
        x, begin, (height, width) = bottoms[0], -self.param.interp_param.pad_beg, self.cropped
        # A slice of everything would copy the gradient, in torch 2.6 into the other layout.
        if (height, width) != x.shape[2:]:
            x = x[:, :, begin : begin + height, begin : begin + width]
        return (interp(x, self.size),)


class SpatialProduct(Layer):
    """Multiplies every channel of the first bottom by the one channel of the others. Caffe: src/caffe/layers/spatial_product_layer.cpp."""

    MIN_BOTTOMS, MAX_BOTTOMS = 2, None
    IN_PLACE = False

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Returns the first bottom's shape."""
        shape = bottom_shapes[0]
        self.expect_axes(shape, 4)
        for other in bottom_shapes[1:]:
            if other != (shape[0], 1, *shape[2:]):
                raise self.fail(f"its factor's shape must be {[shape[0], 1, *shape[2:]]}", list(other))
        return [shape]

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Multiplies."""
        y = bottoms[0]
        for factor in bottoms[1:]:
            y = y * factor
        return (y,)


class DomainTransform(Layer):
    """Smooths scores up to the edges of an edge map, inside each image's own size. Caffe: src/caffe/layers/domain_transform_layer.cpp of the DeepLab fork."""

    MIN_BOTTOMS, MAX_BOTTOMS = 3, 3
    IN_PLACE = False

    def allows_force_backward(self, bottom: int) -> bool:
        """The sizes have no gradient."""
        return bottom < 2

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Checks the edge map and the sizes; returns the scores' shape."""
        shape, edge, dim = bottom_shapes
        self.expect_axes(shape, 4)
        if edge != (shape[0], 1, *shape[2:]):
            raise self.fail(f"its edge map's shape must be {[shape[0], 1, *shape[2:]]}", list(edge))
        check_dim(self, shape, dim)
        return [shape]

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Filters."""
        x, edge, dim = bottoms
        param = self.param.domain_transform_param
        sizes = valid_sizes(x, dim)
        return (
            domain_transform(x, edge, param.num_iter, param.spatial_sigma, param.range_sigma, param.min_weight, sizes),
        )


def check_dim(layer: Layer, shape: Shape, dim: Shape) -> None:
    """Raises unless a blob holds each image's height and width."""
    if len(dim) != 4 or dim[0] != shape[0] or dim[1] * dim[2] * dim[3] != 2:
        raise layer.fail(f"dim must hold height and width of {shape[0]} images", list(dim))


def valid_sizes(x: torch.Tensor, dim: torch.Tensor) -> torch.Tensor:
    """Returns each image's (height, width), at most the blob's, int64."""
    limit = torch.tensor(x.shape[2:], device=dim.device)
    return torch.minimum(dim.detach().reshape(x.shape[0], 2).long(), limit)


class DenseCRF(Layer):
    """Mean-field inference in a fully connected CRF; bottoms are scores, each image's height and width, and the image as the net sees it.

    Caffe: src/caffe/layers/densecrf_layer.cpp of the DeepLab fork: the whole blob counts where both sizes reach it, else the top left part, with 0 outside; the
        kernels of every item come from the image of item 0. No gradient. Always float32.
    Deviates: one kernel of each kind.
    """

    MIN_BOTTOMS, MAX_BOTTOMS = 2, 3
    IN_PLACE = False

    def __init__(self, param: Typed, context: Context):
        super().__init__(param, context)
        crf = param.dense_crf_param
        lengths = [len(values) for values in (crf.pos_w, crf.pos_xy_std, crf.bi_w, crf.bi_xy_std, crf.bi_rgb_std)]
        if lengths[0] != lengths[1] or len(set(lengths[2:])) > 1 or max(lengths) > 1:
            raise self.fail("pos_ and bi_ settings must be given together, each at most once", lengths)
        if len(param.bottom) == 3 and not lengths[2]:
            raise self.fail("with an image bi_w, bi_xy_std and bi_rgb_std must be given", "none")

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Checks sizes and image; returns the scores' shape."""
        shape, dim = bottom_shapes[:2]
        self.expect_axes(shape, 4)
        check_dim(self, shape, dim)
        if len(bottom_shapes) == 3 and bottom_shapes[2] != (shape[0], 3, *shape[2:]):
            raise self.fail(f"its image's shape must be {[shape[0], 3, *shape[2:]]}", list(bottom_shapes[2]))
        return [shape]

    @torch.no_grad()
    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Infers, one item after the other."""
        x, dim, crf = bottoms[0], bottoms[1].reshape(-1, 2).tolist(), self.param.dense_crf_param
        image = (
            bottoms[2][:1].float() if len(bottoms) == 3 else torch.zeros_like(x[:1, :1]).float().expand(1, 3, -1, -1)
        )
        pos = (crf.pos_w[0], crf.pos_xy_std[0]) if crf.pos_w else (0.0, 1.0)
        bi = (crf.bi_w[0], crf.bi_xy_std[0], crf.bi_rgb_std[0]) if len(bottoms) == 3 else (0.0, 1.0, 1.0)
        y = torch.zeros_like(x)
        for item, (height, width) in enumerate(dim):
            if height >= x.shape[2] and width >= x.shape[3]:
                height, width = x.shape[2:]
            height, width = min(int(height), x.shape[2]), min(int(width), x.shape[3])
            part = x[item : item + 1, :, :height, :width]
            probability = dense_crf(part, image[:, :, :height, :width], crf.max_iter, *pos, *bi)
            if not crf.output_probability:
                probability = probability.clamp(min=torch.finfo(torch.float32).tiny).log()
            y[item, :, :height, :width] = probability[0].to(y.dtype)
        return (y,)


class MatWrite(Layer):
    """Writes its bottoms as MATLAB files, one per pass: <prefix><name>_blob_<i>.mat with the variable `data`, (W, H, C, N) as MATLAB counts.

    The names are the lines of `source`, less `strip` characters at the end, or iter_<n>.

    Caffe: src/caffe/layers/mat_write_layer.cpp of the DeepLab forks, Blob::ToMat.
    Deviates: a name that would lead out of the prefix's folder is refused.
    """

    MAX_BOTTOMS, MIN_TOPS, MAX_TOPS = None, 0, 0

    def setup(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Reads the names."""
        param = self.param.mat_write_param
        if not param.prefix or param.period < 1 or param.strip < 0:
            raise self.fail("prefix must be given, period positive and strip not negative", f"{param.prefix!r}")
        self.passes, self.names = 0, None
        if param.source:
            path = self.context.root / param.source
            if not path.is_file():
                raise FileNotFoundError(f"{self.param.where}: layer {self.name!r}: source must be a file; got {path}")
            lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
            words = [line.split()[0] for line in lines if line.split()]
            self.names = [word[: len(word) - param.strip] for word in words]
            bad = next((name for name in self.names if not name or ".." in Path(name).parts or name[:1] == "/"), None)
            if bad is not None:
                raise self.fail(f"{path} must list names within the prefix's folder", repr(bad), "correct the list")
        return []

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """There are no tops."""
        return []

    @torch.no_grad()
    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Writes."""
        param, number = self.param.mat_write_param, self.passes
        self.passes += 1
        if number % param.period:
            return ()
        if self.names is not None and number >= len(self.names):
            raise self.fail(f"its source must list a name for every pass; it has {len(self.names)}", number + 1)
        stem = self.names[number] if self.names is not None else f"iter_{number}"
        for i, x in enumerate(bottoms):
            path = self.context.root / f"{param.prefix}{stem}_blob_{i}.mat"
            array = x.detach().cpu().contiguous().numpy()
            array = array.reshape((1,) * (4 - array.ndim) + array.shape)
            with replacing(path) as part:
                scipy.io.savemat(part, {"data": np.ascontiguousarray(array.transpose(3, 2, 1, 0))}, appendmat=False)
        return ()


TYPES = {
    "DenseCRF": DenseCRF,
    "DomainTransform": DomainTransform,
    "Interp": Interp,
    "MatWrite": MatWrite,
    "SpatialProduct": SpatialProduct,
}

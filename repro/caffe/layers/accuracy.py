"""Layers that judge and decide: ArgMax, Accuracy, SegAccuracy. Of equal scores the highest index counts as the greatest (Caffe sorts pairs, descending)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from repro.caffe.layers.base import Context, Layer, Shape, count
from repro.caffe.proto import Typed
from repro.ops import confusion_matrix


def ranked(x: torch.Tensor, dim: int, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the `top` greatest values along an axis and their indices, the greatest first, of equal ones the highest index first."""
    last = x.shape[dim] - 1
    if top == 1:
        values, index = x.flip(dim).max(dim, keepdim=True)
        return values, last - index
    values, index = torch.sort(x.flip(dim), dim=dim, descending=True, stable=True)
    return values.narrow(dim, 0, top), last - index.narrow(dim, 0, top)


class ArgMax(Layer):
    """The top_k indices (or values) along an axis, or of every item's whole. Caffe: src/caffe/layers/argmax_layer.cpp."""

    IN_PLACE = False

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Computes the top's shape."""
        param, shape = self.param.argmax_param, bottom_shapes[0]
        if param.has("axis"):
            self.dim = self.axis(param.axis, len(shape))
            most = shape[self.dim]
            top = (*shape[: self.dim], param.top_k, *shape[self.dim + 1 :])
        else:
            if not shape:
                raise self.fail("its bottom must have an axis", "none")
            most = count(shape[1:])
            tail = (2 if param.out_max_val else 1, param.top_k, *[1] * (len(shape) - 3))
            top = (shape[0], *tail)
        if not 1 <= param.top_k <= most:
            raise self.fail(f"top_k must be 1..{most}", param.top_k)
        return [top]

    @torch.no_grad()
    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Ranks."""
        x, param = bottoms[0], self.param.argmax_param
        if param.has("axis"):
            values, index = ranked(x, self.dim, param.top_k)
            return (values if param.out_max_val else index.to(x.dtype),)
        values, index = ranked(x.reshape(x.shape[0], -1), 1, param.top_k)
        rows = [index.to(x.dtype), values] if param.out_max_val else [index.to(x.dtype)]
        shape = self.reshape([tuple(x.shape)])[0]
        return (torch.stack(rows, 1).reshape(shape),)


class Accuracy(Layer):
    """The share of labels among the top_k scores, and with a second top that of each class. Caffe: src/caffe/layers/accuracy_layer.cpp."""

    MIN_BOTTOMS, MAX_BOTTOMS, MAX_TOPS = 2, 2, 2
    IN_PLACE = False

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Checks the bottoms; the top is a scalar, the second one has a value per class."""
        shape, label = bottom_shapes
        self.dim = self.axis(self.param.accuracy_param.axis, len(shape))
        if count(shape[: self.dim]) * count(shape[self.dim + 1 :]) != count(label):
            raise self.fail("there must be a label for every position", f"{list(shape)} and {list(label)}")
        if not 1 <= self.param.accuracy_param.top_k <= shape[self.dim]:
            raise self.fail(f"top_k must be 1..{shape[self.dim]}", self.param.accuracy_param.top_k)
        return [(), (shape[self.dim],)][: self.tops]

    @torch.no_grad()
    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Counts."""
        x, param = bottoms[0], self.param.accuracy_param
        classes = x.shape[self.dim]
        label = bottoms[1].reshape(-1).long()
        rows = x.movedim(self.dim, -1).reshape(-1, classes)
        counted = label != param.ignore_label if param.has("ignore_label") else torch.ones_like(label, dtype=torch.bool)
        label, rows = label[counted], rows[counted]
        if label.numel() and not 0 <= int(label.min()) <= int(label.max()) < classes:
            raise self.fail(f"labels must be 0..{classes - 1} or ignored", int(label.max()), "set ignore_label")
        right = (ranked(rows, 1, param.top_k)[1] == label[:, None]).any(1)
        accuracy = right.sum().double() / max(1, label.numel())
        if self.tops == 1:
            return (accuracy.to(x.dtype),)
        hits, totals = (torch.bincount(part, minlength=classes).double() for part in (label[right], label))
        return accuracy.to(x.dtype), (hits / totals.clamp(min=1)).to(x.dtype)


class SegAccuracy(Layer):
    """Pixel accuracy, mean recall over the classes that occur in the labels, and mean IoU over all classes.

    Counts are kept between passes unless `reset`.

    Caffe: src/caffe/layers/seg_accuracy_layer.cpp of the DeepLab fork: a class whose union is 0 counts IoU 1.
    """

    MIN_BOTTOMS, MAX_BOTTOMS = 2, 2
    IN_PLACE = False

    def __init__(self, param: Typed, context: Context):
        super().__init__(param, context)
        self.counts: torch.Tensor | None = None

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Checks the bottoms."""
        shape, label = bottom_shapes
        self.expect_axes(shape, 4)
        if label != (shape[0], 1, *shape[2:]):
            raise self.fail("there must be a label for every pixel", f"{list(shape)} and {list(label)}")
        return [(1, 1, 1, 3)]

    @torch.no_grad()
    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Counts and computes the three."""
        x, label = bottoms[0], bottoms[1].long()
        classes = x.shape[1]
        ignored = torch.zeros_like(label, dtype=torch.bool)
        for value in self.param.seg_accuracy_param.ignore_label:
            ignored |= label == value
        marked = label.masked_fill(ignored, -1)
        counts, outside = confusion_matrix(ranked(x, 1, 1)[1], marked, classes, -1)
        if int(outside):
            raise self.fail(f"labels must be 0..{classes - 1} or ignored", f"{int(outside)} others", "set ignore_label")
        kept = self.counts if self.counts is not None and not self.param.seg_accuracy_param.reset else 0
        self.counts = counts = counts + kept
        right, truth, said = counts.diagonal().double(), counts.sum(1).double(), counts.sum(0).double()
        union = truth + said - right
        total, present = truth.sum(), (truth > 0).sum()
        accuracy = right.sum() / total.clamp(min=1)
        recall = (right / truth.clamp(min=1)).sum() / present.clamp(min=1)
        iou = torch.where(union == right, torch.ones_like(union), right / union.clamp(min=1)).mean()
        return (torch.stack([accuracy, recall, iou]).to(x.dtype).reshape(1, 1, 1, 3),)


TYPES = {"Accuracy": Accuracy, "ArgMax": ArgMax, "SegAccuracy": SegAccuracy}

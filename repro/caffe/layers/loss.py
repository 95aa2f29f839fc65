"""Softmax and the losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from repro.caffe.layers.base import Layer, Shape, count
from repro.ops import segmentation_loss

LARGEST_TERM = 87.33654475055310898657  # -log(FLT_MIN): probabilities are floored there, in the loss alone


class Softmax(Layer):
    """exp(x) over its sum along an axis. Caffe: src/caffe/layers/softmax_layer.cpp."""

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Returns the bottom's shape."""
        shape = bottom_shapes[0]
        self.axis(self.param.softmax_param.axis, len(shape))
        return [shape]

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Normalises."""
        return (torch.softmax(bottoms[0], self.param.softmax_param.axis),)


class Loss(Layer):
    """A layer with two bottoms and one scalar, whose loss_weight is 1 where none is given. Caffe: src/caffe/layers/loss_layer.cpp."""

    MIN_BOTTOMS, MAX_BOTTOMS = 2, 2
    AUTO_TOPS, LOSS, IN_PLACE = True, True, False
    LABELS = True  # whether the second bottom holds labels, which have no gradient

    def allows_force_backward(self, bottom: int) -> bool:
        """Labels have no gradient."""
        return bottom == 0 or not self.LABELS

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Checks the bottoms; the top is a scalar."""
        shape, label = bottom_shapes
        if not shape or not label or shape[0] != label[0]:
            raise self.fail("its bottoms must be of one batch", f"{list(shape)} and {list(label)}")
        return [()]

    def labels(self, label: torch.Tensor, classes: int, ignored: torch.Tensor | None = None) -> torch.Tensor:
        """Returns labels as int64; raises ValueError where one is neither a class nor ignored."""
        label = label.detach().long()
        outside = (label < 0) | (label >= classes)
        if ignored is not None:
            outside &= ~ignored
        if outside.any():
            raise self.fail(f"labels must be 0..{classes - 1} or ignored", int(label[outside][0]), "set ignore_label")
        return label

    NORMALIZATION = "VALID"  # where loss_param says nothing

    @property
    def normalization(self) -> str:
        """What the sum is divided by. Caffe: `normalization` wins over `normalize`, of which false alone is BATCH_SIZE."""
        param = self.param.loss_param
        if param.has("normalization"):
            return param.normalization
        if param.has("normalize"):
            return "VALID" if param.normalize else "BATCH_SIZE"
        return self.NORMALIZATION

    def ignored(self, label: torch.Tensor) -> torch.Tensor:
        """Marks the labels that count for nothing."""
        param = self.param.loss_param
        return label == param.ignore_label if param.has("ignore_label") else torch.zeros_like(label, dtype=torch.bool)

    def normaliser(self, ignored: torch.Tensor, batch: int) -> int:
        """Returns what the sum is divided by, at least 1."""
        if self.normalization == "VALID":
            return max(1, int((~ignored).sum()))
        return max(1, {"FULL": ignored.numel(), "BATCH_SIZE": batch, "NONE": 1}[self.normalization])


class _Floored(torch.autograd.Function):
    """-log p with p floored at FLT_MIN, whose derivative is that of -log p."""

    @staticmethod
    def forward(ctx, terms):
        return terms.clamp(max=LARGEST_TERM)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class SoftmaxWithLoss(Loss):
    """Cross-entropy of the softmax along an axis against labels.

    Caffe: src/caffe/layers/softmax_loss_layer.cpp. `normalization` wins over `normalize`; `normalize: false` alone is BATCH_SIZE.
    Deviates: the sum over positions is float64, so the top is too; a second top is refused, as the DeepLab fork aborts with it.
    """

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Checks that there is a label for every position."""
        shape, label = bottom_shapes
        axis = self.axis(self.param.softmax_param.axis, len(shape))
        if count(shape[:axis]) * count(shape[axis + 1 :]) != count(label):
            raise self.fail("there must be a label for every position", f"{list(shape)} and {list(label)}")
        return [()]

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Computes the loss."""
        x, label = bottoms
        param, axis = self.param.loss_param, self.axis(self.param.softmax_param.axis, x.dim())
        valid_only = self.normalization == "VALID" and param.has("ignore_label")
        if valid_only and axis == 1 and x.dim() == 4:
            positions = self.positions(label.reshape(x.shape[0], *x.shape[2:]), x.shape[1])
            return (segmentation_loss(x, positions, 1, param.ignore_label),)
        rows = x.movedim(axis, -1).reshape(-1, x.shape[axis])
        # Caffe: a label blob is read in the order of the positions before and behind the axis.
        positions = label.reshape(-1)
        ignored = self.ignored(positions)
        target = self.labels(positions, x.shape[axis], ignored).masked_fill(ignored, 0)
        terms = F.nll_loss(F.log_softmax(rows, 1, dtype=torch.float64), target, reduction="none")
        total = torch.where(ignored, torch.zeros_like(terms), _Floored.apply(terms)).sum()
        return (total / self.normaliser(ignored, count(x.shape[:axis])),)

    def positions(self, label: torch.Tensor, classes: int, step: int = 1) -> torch.Tensor:
        """Returns labels (N, H, W) for segmentation_loss, of which every step-th counts.

        Checked on the CPU alone: to ask a GPU would make it wait, and there the loss is NaN where a label is no class.
        """
        if label.device.type == "cpu":
            read = label[:, ::step, ::step]
            self.labels(read, classes, read == self.param.loss_param.ignore_label)
        return label.detach().long()


class EuclideanLoss(Loss):
    """Half the mean squared distance: sum of squares / (2 N). Caffe: src/caffe/layers/euclidean_loss_layer.cpp."""

    LABELS = False

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Checks that both have as many values."""
        super().reshape(bottom_shapes)
        if count(bottom_shapes[0][1:]) != count(bottom_shapes[1][1:]):
            raise self.fail("its bottoms must have as many values", " and ".join(str(list(s)) for s in bottom_shapes))
        return [()]

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Computes the loss."""
        difference = bottoms[0].reshape(-1) - bottoms[1].reshape(-1)
        return ((difference * difference).sum(dtype=torch.float64) / (2 * bottoms[0].shape[0]),)


class SigmoidCrossEntropyLoss(Loss):
    """Cross-entropy of a sigmoid against targets in [0, 1], divided by N unless loss_param says otherwise.

    Caffe: src/caffe/layers/sigmoid_cross_entropy_loss_layer.cpp (BVLC's, with ignore_label and normalization).
    """

    NORMALIZATION = "BATCH_SIZE"

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Checks that both have as many values."""
        super().reshape(bottom_shapes)
        if count(bottom_shapes[0]) != count(bottom_shapes[1]):
            raise self.fail("its bottoms must have as many values", " and ".join(str(list(s)) for s in bottom_shapes))
        return [()]

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Computes the loss."""
        x, target = bottoms[0].reshape(-1).double(), bottoms[1].detach().reshape(-1).double()
        ignored = self.ignored(target)
        terms = F.binary_cross_entropy_with_logits(x, target, reduction="none").masked_fill(ignored, 0)
        return (terms.sum() / self.normaliser(ignored, bottoms[0].shape[0]),)


class HingeLoss(Loss):
    """One-versus-all hinge loss, L1 or L2, divided by N. Caffe: src/caffe/layers/hinge_loss_layer.cpp."""

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Checks that there is one label per item."""
        super().reshape(bottom_shapes)
        if count(bottom_shapes[1]) != bottom_shapes[0][0]:
            raise self.fail("there must be one label per item", list(bottom_shapes[1]))
        return [()]

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Computes the loss."""
        rows = bottoms[0].reshape(bottoms[0].shape[0], -1)
        label = self.labels(bottoms[1].reshape(-1), rows.shape[1])
        sign = torch.ones_like(rows).scatter(1, label[:, None], -1.0)
        margin = (1 + sign * rows).clamp(min=0)
        if self.param.hinge_loss_param.norm == "L2":
            margin = margin * margin
        return (margin.sum(dtype=torch.float64) / rows.shape[0],)


TYPES = {
    "EuclideanLoss": EuclideanLoss,
    "HingeLoss": HingeLoss,
    "SigmoidCrossEntropyLoss": SigmoidCrossEntropyLoss,
    "Softmax": Softmax,
    "SoftmaxWithLoss": SoftmaxWithLoss,
}

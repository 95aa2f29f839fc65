"""DeepLab v1's layers for training with weak labels: BiasChannel and UniqueLabel."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from repro.caffe.layers.base import Layer, Shape


class BiasChannel(Layer):
    """Adds to the scores of the classes that are present: bg_bias to the background's, fg_bias to others'; for semi-supervised training.

    With label_type IMAGE the labels (N, L, 1, 1) of an image count everywhere; with PIXEL each pixel's own does, and where the background is named, every
    labelled pixel's background gets bg_bias and its own class, if another, fg_bias.

    Caffe: src/caffe/layers/bias_channel_layer.cpp of the DeepLab fork. The gradient of the labels is none; that of the scores is copied.
    """

    MIN_BOTTOMS, MAX_BOTTOMS = 2, 2
    IN_PLACE = False

    def allows_force_backward(self, bottom: int) -> bool:
        """Labels have no gradient."""
        return bottom == 0

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Checks the labels; returns the scores' shape."""
        (shape, label), param = bottom_shapes, self.param.bias_channel_param
        self.expect_axes(shape, 4)
        pixel = param.label_type == "PIXEL"
        fits = label == (shape[0], 1, *shape[2:]) if pixel else label[:1] == shape[:1] and label[2:] == (1, 1)
        if param.label_type == "NONE" or not fits:
            raise self.fail("labels must be (N, 1, H, W) for PIXEL, (N, L, 1, 1) for IMAGE", list(label))
        return [shape]

    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Adds."""
        x, label = bottoms[0], bottoms[1].detach().long()
        param, classes = self.param.bias_channel_param, bottoms[0].shape[1]
        valid = label >= 0 if param.label_type == "IMAGE" else torch.ones_like(label, dtype=torch.bool)
        for value in param.ignore_label:
            valid &= label != value
        if (valid & ((label < 0) | (label >= classes))).any():
            raise self.fail(f"labels must be 0..{classes - 1} or ignored", int(label[valid].max()), "set ignore_label")
        index = label.masked_fill(~valid, 0)
        if param.label_type == "IMAGE":
            bias = torch.where(index == 0, param.bg_bias, param.fg_bias).to(x.dtype)
            added = torch.zeros(x.shape[0], classes, 1, 1, dtype=x.dtype, device=x.device)
            return (x + added.scatter_add(1, index, bias * valid),)
        foreground = valid
        if param.has("background_label"):
            foreground = valid & (label != param.background_label)
        added = torch.zeros_like(x).scatter_add(1, index, foreground.to(x.dtype) * param.fg_bias)
        if param.has("background_label"):
            added[:, param.background_label : param.background_label + 1] += valid * param.bg_bias
        return (x + added,)


class UniqueLabel(Layer):
    """Lists the labels that occur in an image: of labels (N, 1, H, W) the values, without the ignored ones and with force_label's.

    The top (N, max_labels, 1, 1) has them ascending, filled up with -1.

    Caffe: src/caffe/layers/unique_label_layer.cpp of DeepLab v1. No gradient.
    """

    IN_PLACE = False

    def allows_force_backward(self, bottom: int) -> bool:
        """Labels have no gradient."""
        return False

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Checks the labels; returns the list's shape."""
        shape, param = bottom_shapes[0], self.param.unique_label_param
        self.expect_axes(shape, 4)
        if shape[1] != 1:
            raise self.fail("its labels must have one channel", list(shape))
        if param.max_labels <= len(set(param.force_label)):
            raise self.fail(
                f"max_labels must exceed the {len(set(param.force_label))} of force_label", param.max_labels
            )
        return [(shape[0], param.max_labels, 1, 1)]

    @torch.no_grad()
    def forward(self, bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Lists."""
        labels, param = bottoms[0], self.param.unique_label_param
        y = labels.new_full((len(labels), param.max_labels, 1, 1), -1)
        for item, image in enumerate(labels):
            values = sorted(({*image.unique().tolist()} - {*param.ignore_label}) | {*param.force_label})
            if len(values) > param.max_labels:
                raise self.fail(
                    f"max_labels must hold the {len(values)} labels of an image", param.max_labels, "raise max_labels"
                )
            y[item, : len(values), 0, 0] = y.new_tensor(values)
        return (y,)


TYPES = {"BiasChannel": BiasChannel, "UniqueLabel": UniqueLabel}

"""Counting pixels by label and prediction."""

from __future__ import annotations

import torch

from repro.ops import reference
from repro.ops.library import COMPILED, backend, check_one_device


def confusion_matrix(
    prediction: torch.Tensor, label: torch.Tensor, num_classes: int, ignore_label: int = 255
) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts pixels by label and prediction, without waiting for the device.

    Args:
        prediction: Any shape, any integer type.
        label: Of the same shape; `ignore_label` counts for nothing.
        num_classes: Background included.
        ignore_label: The label left out.

    Returns:
        (num_classes, num_classes) int64 counts, row = label, column = prediction; and an int64 scalar: the pixels outside 0..num_classes-1, which are in
        no count and ought to be none (repro.metrics.confusion_matrix checks it).

    Raises:
        ValueError: A shape, dtype, device or number is wrong.
    """
    if backend() == "reference":
        return reference.confusion_matrix(prediction, label, num_classes, ignore_label)
    return torch.ops.repro.confusion_matrix(prediction, label, num_classes, ignore_label)


if COMPILED:

    @torch.library.register_fake("repro::confusion_matrix")
    def _fake_confusion_matrix(prediction, label, num_classes, ignore_label):
        check_one_device("confusion_matrix", prediction, label)
        counts = label.new_empty((num_classes, num_classes), dtype=torch.int64)
        return counts, label.new_empty((), dtype=torch.int64)

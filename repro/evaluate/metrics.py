"""The paper's metric: one confusion matrix over the set, intersection over union per class, their mean."""

from __future__ import annotations

import numpy as np
import torch

from repro import ops


def confusion_matrix(
    prediction: torch.Tensor, label: torch.Tensor, num_classes: int, ignore_label: int = 255
) -> torch.Tensor:
    """Counts pixels by label and prediction.

    Args:
        prediction: Classes 0..num_classes-1, any shape, any integer type.
        label: Of the same shape; `ignore_label` counts for nothing.
        num_classes: Background included.
        ignore_label: The label left out.

    Returns:
        (num_classes, num_classes) int64 on the inputs' device: row = label, column = prediction.

    Raises:
        ValueError: The shapes differ, or a label or prediction is outside the classes.
    """
    counts, outside = ops.confusion_matrix(prediction, label, num_classes, ignore_label)
    if outside.item():
        valid = label != ignore_label
        for name, values in (("label", label[valid]), ("prediction", prediction[valid])):
            if not 0 <= int(values.min()) <= int(values.max()) < num_classes:
                raise ValueError(
                    f"confusion_matrix: {name} must be 0..{num_classes - 1}; got {int(values.min())}..{int(values.max())}; check the number of classes"
                )
    return counts


def iou(confusion: np.ndarray) -> np.ndarray:
    """Computes intersection over union of every class.

    Args:
        confusion: (C, C) counts, row = label, column = prediction.

    Returns:
        (C,) float64 in 0..1; a class that neither occurs nor is predicted counts 0, as in the authors' script.
    """
    confusion = np.asarray(confusion, dtype=np.float64)
    intersection = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)

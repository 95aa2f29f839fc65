"""The paper's metric: one confusion matrix over the set, intersection over union per class, their mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from repro import ops
from repro.protocol import Metric, metric_value


class ConfusionMatrix:
    """Counts pixels by label and prediction, on their device; reading the result is the only time that waits for it.

    Args:
        num_classes: Background included.
        ignore_label: The label that counts for nothing.
    """

    def __init__(self, num_classes: int, ignore_label: int = 255):
        self._num_classes, self._ignore_label = num_classes, ignore_label
        self._counts: torch.Tensor | None = None
        self._outside: torch.Tensor | None = None

    def add(self, prediction: torch.Tensor, label: torch.Tensor) -> None:
        """Counts an image.

        Args:
            prediction: Classes 0..num_classes-1, any shape, any integer type.
            label: Of the same shape and device; classes or `ignore_label`.

        Raises:
            ValueError: The shapes differ.
        """
        counts, outside = ops.confusion_matrix(prediction, label, self._num_classes, self._ignore_label)
        self._counts = counts if self._counts is None else self._counts.add_(counts)
        self._outside = outside if self._outside is None else self._outside.add_(outside)

    def result(self) -> np.ndarray:
        """Reads the counts.

        Returns:
            (num_classes, num_classes) int64: row = label, column = prediction.

        Raises:
            ValueError: A label or prediction was outside the classes.
        """
        if self._counts is None:
            return np.zeros((self._num_classes, self._num_classes), np.int64)
        if outside := int(self._outside):
            raise ValueError(
                f"confusion matrix: labels and predictions must be 0..{self._num_classes - 1}, labels or {self._ignore_label}; "
                f"got {outside} pixels with another; check the number of classes"
            )
        return self._counts.cpu().numpy()


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


def summary(confusion: np.ndarray, class_names: list[str], metric: Metric) -> dict[str, Any]:
    """Makes of a confusion matrix what a record says of it.

    Args:
        confusion: (C, C) counts, row = label, column = prediction.
        class_names: Of the C classes.
        metric: As the protocol states it.

    Returns:
        "value" in percent, "per_class" in percent by name, and the counts as "confusion".
    """
    per_class = dict(zip(class_names, (100 * iou(confusion)).tolist(), strict=True))
    return {"value": metric_value(metric, per_class), "per_class": per_class, "confusion": confusion.tolist()}

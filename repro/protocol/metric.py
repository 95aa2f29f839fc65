"""A row's metric, as its protocol states it: "mean_iou", the IoU of one class, or the mean over the classes of a list."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from repro.protocol.schema import NAMES, matches, suggestion

MEAN_IOU = "mean_iou"
Metric = str | tuple[str, ...]  # "mean_iou", a class, or several classes


def read_metric(value: Any, class_names: Iterable[str] | None, where: str) -> Metric:
    """Takes a metric from a protocol or a record.

    Args:
        value: Of the key.
        class_names: Of the row; None where there are none to compare with.
        where: For messages.

    Raises:
        ValueError: It is neither a name nor a list of them, or names what is no class, one class twice, or nothing.
    """
    names = [value] if isinstance(value, str) else value if matches(value, NAMES) else []
    known = names if class_names is None or value == MEAN_IOU else list(class_names)
    unknown = next((name for name in names if name not in known), None)
    if not names or len(set(names)) < len(names) or unknown is not None:
        hint = "; correct it" if unknown is None else suggestion(unknown, known)
        raise ValueError(
            f'{where}: metric must be "mean_iou", a class name or a list of different class names; got {value!r}{hint}'
        )
    return value if isinstance(value, str) else tuple(value)


def plain_metric(metric: Metric) -> str | list[str]:
    """Writes a metric as a file holds it."""
    return metric if isinstance(metric, str) else list(metric)


def metric_classes(metric: Metric, class_names: Iterable[str]) -> list[str]:
    """Lists the classes whose mean a metric is, among all of them."""
    if metric == MEAN_IOU:
        return list(class_names)
    return [metric] if isinstance(metric, str) else list(metric)


def metric_value(metric: Metric, per_class: Mapping[str, Any]) -> float | None:
    """Computes a metric from the IoU of every class; None where a class of it is missing."""
    names = metric_classes(metric, per_class)
    if not names or any(name not in per_class for name in names):
        return None
    return statistics.fmean(per_class[name] for name in names)


def metric_name(metric: Metric) -> str:
    """Names a metric in words, with the classes of a list."""
    if metric == MEAN_IOU:
        return "mean IoU"
    return f"IoU of {metric}" if isinstance(metric, str) else f"mean IoU of {', '.join(metric)}"

"""Attention against object size: the paper's claim that scale 1 looks at small objects and scale 0.5 at large ones, as a measured curve."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

# A data set whose labels lie in this folder shows parts of persons: what hangs together there is one object, whatever its parts.
PARTS_FOLDER = "SegmentationPart"
BINS_PER_OCTAVE = 2
_CONNECTED = np.ones((3, 3), bool)  # diagonal neighbours too


class SizedObject(NamedTuple):
    """An object of a label: its size, the root of its area in pixels, and the mean weight (S,) of every scale over its pixels."""

    size: float
    weight: np.ndarray


def components(label: np.ndarray, ignore_label: int, parts: bool) -> tuple[np.ndarray, int]:
    """Finds the objects of a label: connected regions of one class, or of any foreground class where classes are parts.

    Args:
        label: (H, W) uint8, 0 is background.
        ignore_label: The label that counts for nothing.
        parts: Whether all classes are parts of one kind of object.

    Returns:
        (H, W) int32, 0 where there is no object and its number elsewhere, and the number of objects.
    """
    if parts:
        return ndimage.label((label != 0) & (label != ignore_label), _CONNECTED)
    numbers, count = np.zeros(label.shape, np.int32), 0
    for value in np.unique(label).tolist():
        if value not in (0, ignore_label):
            regions, found = ndimage.label(label == value, _CONNECTED)
            numbers += np.where(regions > 0, regions + count, 0).astype(np.int32)
            count += found
    return numbers, count


def sized_objects(label: np.ndarray, maps: np.ndarray, ignore_label: int, parts: bool) -> list[SizedObject]:
    """Measures the objects of one label.

    Args:
        label: (H, W) uint8.
        maps: (S, H, W) weights, 0..1.
        ignore_label, parts: As for `components`.

    Returns:
        One entry per object.
    """
    numbers, count = components(label, ignore_label, parts)
    area = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
    sums = np.stack([np.bincount(numbers.ravel(), one.ravel(), minlength=count + 1)[1:] for one in maps])
    return [SizedObject(math.sqrt(n), weight) for n, weight in zip(area.tolist(), (sums / area).T, strict=True)]


def size_bins(objects: Iterable[SizedObject]) -> list[dict[str, Any]]:
    """Averages over objects of like size: bins of half an octave whose edges are powers of the root of 2, so that all runs share them.

    Args:
        objects: Of a whole set.

    Returns:
        For every bin that holds objects: "size_min" (inclusive) and "size_max" (exclusive) in pixels, "n_objects", and per scale the
        "mean_weight" and its standard deviation "std" over the objects.
    """
    filled: dict[int, list[np.ndarray]] = {}
    for entry in objects:
        filled.setdefault(math.floor(BINS_PER_OCTAVE * math.log2(entry.size)), []).append(entry.weight)
    return [
        {
            "size_min": 2 ** (number / BINS_PER_OCTAVE),
            "size_max": 2 ** ((number + 1) / BINS_PER_OCTAVE),
            "n_objects": len(weights),
            "mean_weight": np.mean(weights, axis=0).tolist(),
            "std": np.std(weights, axis=0).tolist(),
        }
        for number, weights in sorted(filled.items())
    ]

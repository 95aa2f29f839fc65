"""Choosing images by rule, never by hand: fixed places in the list, and the best and the worst of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from repro.data.lists import Item
from repro.evaluate.metrics import ConfusionMatrix, iou
from repro.visualize.network import Seen
from repro.visualize.runs import Recorded

NUM_FIXED = 3


class Choice(NamedTuple):
    """An image that is shown: its place in the validation list, its item, and the rule's clause that chose it."""

    index: int
    item: Item
    why: str


def count(seen: Seen, num_classes: int, ignore_label: int) -> np.ndarray:
    """Counts one image's pixels: (num_classes, num_classes) int64, row = label, column = prediction."""
    counts = ConfusionMatrix(num_classes, ignore_label)
    counts.add(torch.from_numpy(seen.prediction), torch.from_numpy(seen.label))
    return counts.result()


def image_iou(counts: np.ndarray) -> float | None:
    """Computes the mean IoU in percent of one image, over the classes that its label or prediction shows; None where no pixel counts.

    Args:
        counts: Of `count`.
    """
    shown = (counts.sum(0) + counts.sum(1)) > 0
    return float(100 * iou(counts)[shown].mean()) if shown.any() else None


def fixed_indices(num_images: int) -> list[int]:
    """Lists NUM_FIXED evenly spaced places in a list, the first one among them."""
    return [k * num_images // NUM_FIXED for k in range(NUM_FIXED)]


def choose(ious: Sequence[float | None], has_object: Sequence[bool], items: Sequence[Item]) -> list[Choice]:
    """Applies the rule: evenly spaced fixed indices, then the best and the worst image that shows an object.

    Args:
        ious: Of every validation image, percent.
        has_object: Whether its label shows anything but background.
        items: The validation list.

    Returns:
        The chosen images, each once, in the order of the rule's clauses.
    """
    chosen: dict[int, list[str]] = {}
    for index in fixed_indices(len(items)):
        chosen.setdefault(index, []).append(f"fixed index {index}")
    candidates = [i for i, value in enumerate(ious) if value is not None and has_object[i]]
    if candidates:
        chosen.setdefault(max(candidates, key=lambda i: (ious[i], -i)), []).append("best")
        chosen.setdefault(min(candidates, key=lambda i: (ious[i], i)), []).append("worst")
    return [Choice(i, items[i], ", ".join(dict.fromkeys(why))) for i, why in chosen.items()]


def reference_run(runs: Sequence[Recorded]) -> Recorded:
    """Finds the run by which the best and the worst image are chosen.

    Args:
        runs: Of one data set, at least one of them drawn.

    Returns:
        attention3-extra of the lowest seed, the paper's best; else the attention row, else the drawn row, of the highest value.
    """
    drawn = [one for one in runs if one.drawn]
    attention = [one for one in drawn if one.model["merge"] == "attention"]
    paper = [one for one in attention if one.record["row"] == "attention3-extra"]
    if paper:
        return min(paper, key=lambda one: one.record["seed"])
    return max(attention or drawn, key=lambda one: (one.record["value"], one.key))


def rule(reference: Recorded, num_images: int) -> str:
    """Says in words how the images of one data set were chosen."""
    return (
        f"Images {', '.join(map(str, dict.fromkeys(fixed_indices(num_images))))} of the {num_images} validation images (evenly spaced, counted from 0), and among those whose label "
        f"shows an object the one with the highest and the one with the lowest mean IoU under {reference.record['row']}, seed {reference.record['seed']} "
        "(mean over the classes that the image's label or prediction shows)."
    )

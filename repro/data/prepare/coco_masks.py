"""COCO's three forms of a region as masks: polygons, run lengths, compressed run lengths; none is drawn before it was looked at."""

from __future__ import annotations

from typing import Any

import numpy as np

CORNERS = 3  # of a polygon, at least


def mask_api() -> Any:
    """Imports pycocotools' masks, which draw the polygons."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise RuntimeError(
            f"coco: pycocotools must be installed; got {error}; pip install pycocotools (the extra `coco`)"
        ) from error
    return mask


def checked_segmentation(segmentation: Any, size: tuple[int, int]) -> tuple[Any, int]:
    """Looks at a region before it is drawn: pycocotools reads past the end of runs that are too short, and walks along every edge of a polygon.

    Args:
        segmentation: As in the JSON: a list of polygons, or `counts` (runs down the columns, zeros first, or their compressed text) and `size`.
        size: (height, width) of its image.

    Returns:
        Polygons of at least CORNERS corners, or runs; and how many polygons with fewer corners were dropped, which pycocotools would take for boxes.

    Raises:
        ValueError: It is neither, is empty, or does not fit the image; the message says what must hold and what was found, without saying where.
    """
    if isinstance(segmentation, dict):
        return _checked_runs(segmentation, size), 0
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        raise ValueError("segmentation must be a list of polygons, each a list, or runs; got " + _short(segmentation))
    # Outside by as much as the image is large: nothing that a person draws, and few enough steps along an edge.
    far = 2 * max(size)
    kept = []
    for polygon in segmentation:
        numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in polygon)
        if not numbers or len(polygon) % 2:
            raise ValueError(f"a polygon must be x, y, x, y, ...; got {_short(polygon)}")
        wrong = [x for x in polygon if not -far <= x <= far]  # NaN is not.
        if wrong:
            raise ValueError(f"a polygon's coordinates must lie within {far} pixels of 0; got {_short(wrong[0])}")
        if len(polygon) >= 2 * CORNERS:
            kept.append(polygon)
    if not kept:
        raise ValueError("segmentation must not be empty; got no region")
    return kept, len(segmentation) - len(kept)


def _checked_runs(segmentation: dict[str, Any], size: tuple[int, int]) -> list[int]:
    counts = segmentation.get("counts")
    if not counts:
        raise ValueError("segmentation must not be empty; got no region")
    found = segmentation.get("size")
    if found != list(size):
        raise ValueError(f"mask must have its image's size {size}; got {_short(found)}")
    runs = decompressed(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        raise ValueError(f"counts must be runs of 0 and more pixels; got {_short(runs)}")
    if sum(runs) != size[0] * size[1]:
        raise ValueError(f"runs must fill the image's {size[0] * size[1]} pixels; got {sum(runs)}")
    return runs


def decompressed(text: str) -> list[int]:
    """Unpacks compressed runs: digits of 5 bits, the lowest first, each a character from "0" on, with a bit for "goes on"; from the fourth run on, what
    it is more than the last but one.

    Raises:
        ValueError: The text is none.

    COCO: rleFrString (cocoapi, common/maskApi.c).
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64 or shift > 30:
            raise ValueError(f"counts must be compressed runs; got {_short(text)}")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError(f"counts must be compressed runs; got {_short(text)}, which ends within one")
    return runs


def draw(region: Any, size: tuple[int, int]) -> np.ndarray:
    """Draws a region.

    Args:
        region: As `checked_segmentation` returns it.
        size: (height, width) of its image.

    Returns:
        (H, W) bool.
    """
    if isinstance(region[0], int):
        inside = np.arange(len(region)) % 2 == 1
        return np.repeat(inside, region).reshape(size[::-1]).T
    api = mask_api()
    return api.decode(api.merge(api.frPyObjects(region, *size))).astype(bool)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."

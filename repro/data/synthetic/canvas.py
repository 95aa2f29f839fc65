"""A small numpy painter: anti-aliased shapes that carry a class, and the cloth, skin and bark they are painted with.

Every operation is an elementwise IEEE operation (add, multiply, divide, sqrt, floor, compare) on float32, and
coordinates that come out of sines are rounded to 1/64 pixel, so that a seed draws the same pixels on every machine.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

BACKGROUND = 0
# A class of the canvas only, never of a label file: things that were drawn to be mistaken for people.
DISTRACTOR = 7

PATTERNS = ("plain", "hoops", "stripes", "checks", "dots", "mottled")
_GRAIN = np.random.Generator(np.random.PCG64(20151110)).random((64, 64)).astype(np.float32)

Point = tuple[float, float]


class Paint(NamedTuple):
    """What a surface looks like.

    Args:
        pattern: one of PATTERNS.
        first: RGB, 0..255.
        second: RGB, 0..255, the pattern's other colour.
        period: the pattern's length in pixels.
        shading: darkening towards the outline, 0 (flat) to 1 (a round limb).
    """

    pattern: str
    first: np.ndarray
    second: np.ndarray
    period: float
    shading: float

    def colours(self, along: np.ndarray, across: np.ndarray, roundness: np.ndarray) -> np.ndarray:
        """Returns the RGB colours, (h, w, 3) float32, at distances along and across the shape in pixels.

        Args:
            along: (h, w) float32, pixels from the shape's start.
            across: (h, w) float32, pixels from its axis, signed.
            roundness: (h, w) float32, 0 on the axis to 1 on the outline.
        """
        u, v = along / np.float32(self.period), across / np.float32(self.period)
        if self.pattern == "hoops":
            mix = np.floor(u) % 2
        elif self.pattern == "stripes":
            mix = np.floor(v) % 2
        elif self.pattern == "checks":
            mix = (np.floor(u) % 2 + np.floor(v) % 2) / np.float32(2)
        elif self.pattern == "dots":
            fu, fv = u - np.floor(u) - np.float32(0.5), v - np.floor(v) - np.float32(0.5)
            mix = (fu * fu + fv * fv < np.float32(0.09)).astype(np.float32)
        elif self.pattern == "mottled":
            mix = _GRAIN[np.floor(u * 2).astype(np.int64) % 64, np.floor(v * 2).astype(np.int64) % 64]
        else:
            mix = np.zeros_like(u)
        colour = self.first + (self.second - self.first) * mix[..., None]
        return colour * (1 - np.float32(self.shading) * roundness * roundness)[..., None]


def grid_round(value: float) -> float:
    """Returns `value` rounded to 1/64, which hides a machine's last bits of a sine."""
    return math.floor(value * 64 + 0.5) / 64


def polar(start: Point, length: float, degrees: float) -> Point:
    """Returns the (y, x) point `length` pixels from `start`; 0 degrees points down, 90 to the right."""
    angle = math.radians(degrees)
    return grid_round(start[0] + length * math.cos(angle)), grid_round(start[1] + length * math.sin(angle))


class Canvas:
    """A picture being painted, back to front.

    Args:
        size: (height, width) in pixels.

    Attributes:
        rgb: (H, W, 3) float32, 0..255.
        part: (H, W) uint8, the class of the shape seen at each pixel: 0 background, 1..6 a body part, 7 a distractor.
        owner: (H, W) int16, the person seen at each pixel, 0 for none.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.rgb = np.zeros((*size, 3), np.float32)
        self.part = np.zeros(size, np.uint8)
        self.owner = np.zeros(size, np.int16)

    def limb(
        self, start: Point, end: Point, radii: tuple[float, float], paint: Paint, part: int, owner: int = 0
    ) -> None:
        """Paints a tapered limb with round ends (a disc where start and end coincide).

        Args:
            start: (y, x) of the first end's centre, pixels.
            end: (y, x) of the other end's centre.
            radii: radius in pixels at start and end.
            paint: the surface.
            part: the class, 0..7.
            owner: the person's number, 0 for none.
        """
        box = self._box(start, end, max(radii) + 1)
        if box is None:
            return
        y, x = self._offsets(box, start)
        dy, dx = np.float32(end[0] - start[0]), np.float32(end[1] - start[1])
        length = np.sqrt(dy * dy + dx * dx)
        if length > 0:
            along, side = (y * dy + x * dx) / length, (y * dx - x * dy) / length
            t = np.clip(along / length, 0, 1)
        else:
            along, side = y + np.zeros_like(x), x + np.zeros_like(y)
            t = np.zeros_like(along)
        from_axis_y, from_axis_x = y - t * dy, x - t * dx
        distance = np.sqrt(from_axis_y * from_axis_y + from_axis_x * from_axis_x)
        radius = np.float32(radii[0]) + t * np.float32(radii[1] - radii[0])
        self._blend(box, radius - distance, paint.colours(along, side, np.minimum(distance / radius, 1)), part, owner)

    def slab(
        self,
        start: Point,
        end: Point,
        widths: tuple[float, float],
        corner: float,
        paint: Paint,
        part: int,
        owner: int = 0,
    ) -> None:
        """Paints a tapered bar with rounded corners.

        Args:
            start: (y, x) of the middle of the first edge, pixels.
            end: (y, x) of the middle of the opposite edge; it must differ from start.
            widths: half widths in pixels at start and end.
            corner: corner radius in pixels.
            paint: the surface.
            part: the class, 0..7.
            owner: the person's number, 0 for none.
        """
        box = self._box(start, end, max(widths) + 1)
        if box is None:
            return
        y, x = self._offsets(box, start)
        dy, dx = np.float32(end[0] - start[0]), np.float32(end[1] - start[1])
        length = np.sqrt(dy * dy + dx * dx)
        along, side = (y * dy + x * dx) / length, (y * dx - x * dy) / length
        half = np.float32(widths[0]) + np.clip(along / length, 0, 1) * np.float32(widths[1] - widths[0])
        corner = np.float32(min(corner, *widths, float(length) / 2))
        over_side = np.abs(side) - half + corner
        over_along = np.abs(along - length / 2) - length / 2 + corner
        beyond_side, beyond_along = np.maximum(over_side, 0), np.maximum(over_along, 0)
        outside = np.sqrt(beyond_side * beyond_side + beyond_along * beyond_along)
        outside = outside + np.minimum(np.maximum(over_side, over_along), 0)
        self._blend(box, corner - outside, paint.colours(along, side, np.minimum(np.abs(side) / half, 1)), part, owner)

    def label(self) -> np.ndarray:
        """Returns the (H, W) uint8 label: 0..6, and 255 on a ring of one pixel around and between people, as in VOC."""
        label = np.where(self.part == DISTRACTOR, BACKGROUND, self.part).astype(np.uint8)
        padded = np.pad(self.owner, 1, mode="edge")
        for neighbour in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
            # The ring lies on the background beside a person, and on the earlier drawn of two people.
            label[neighbour > self.owner] = 255
        return label

    def _box(self, start: Point, end: Point, reach: float) -> tuple[slice, slice] | None:
        """Returns the rows and columns within `reach` of the line, None where they miss the picture."""
        spans = []
        for first, last, limit in zip(start, end, self.size, strict=True):
            low = max(0, math.floor(min(first, last) - reach))
            high = min(limit, math.ceil(max(first, last) + reach) + 1)
            if low >= high:
                return None
            spans.append(slice(low, high))
        return spans[0], spans[1]

    @staticmethod
    def _offsets(box: tuple[slice, slice], origin: Point) -> tuple[np.ndarray, np.ndarray]:
        y = np.arange(box[0].start, box[0].stop, dtype=np.float32)[:, None] - np.float32(origin[0])
        return y, np.arange(box[1].start, box[1].stop, dtype=np.float32)[None, :] - np.float32(origin[1])

    def _blend(self, box: tuple[slice, slice], inside: np.ndarray, colours: np.ndarray, part: int, owner: int) -> None:
        cover = np.clip(inside + np.float32(0.5), 0, 1)
        rgb = self.rgb[box]
        rgb += (colours - rgb) * cover[..., None]
        seen = cover >= 0.5
        self.part[box][seen] = part
        self.owner[box][seen] = owner

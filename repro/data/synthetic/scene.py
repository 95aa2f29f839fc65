"""Whole synthetic pictures: a cluttered ground, lookalikes, people of many sizes, things before them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from repro.data.synthetic.canvas import BACKGROUND, DISTRACTOR, PATTERNS, Canvas, Paint, Point, polar
from repro.data.synthetic.people import draw_person, random_cloth, random_colour, skin_colour


class Scene(NamedTuple):
    """A picture and what is on it.

    Args:
        image: (H, W, 3) uint8 RGB.
        label: (H, W) uint8, 0..6, and 255 on the ring around people.
        distractor: (H, W) bool, where something drawn to be mistaken for a person is seen.
    """

    image: np.ndarray
    label: np.ndarray
    distractor: np.ndarray


def draw_scene(
    rng: np.random.Generator,
    size: tuple[int, int],
    heights: tuple[float, float] = (0.1, 2.0),
    people: tuple[int, int] = (1, 4),
) -> Scene:
    """Draws one picture.

    Args:
        rng: the source of chance.
        size: (height, width) in pixels.
        heights: smallest and largest standing height of a person, in picture heights; its root is drawn uniformly.
        people: smallest and largest number of people.

    Returns:
        The picture with its labels. Of every person some level between crown and knees lies within the picture, but it
        may be hidden by another.
    """
    canvas = Canvas(size)
    _paint_ground(canvas, rng)
    count = int(rng.integers(people[0], people[1] + 1))
    low, high = (math.sqrt(h) for h in heights)
    # Further away is smaller and is drawn first.
    sizes = sorted(root * root * size[0] for root in rng.uniform(low, high, count).tolist())
    for _ in range(rng.integers(3, 9)):
        _paint_thing(canvas, rng, rng.uniform(0.2, 1.0) * size[0])
    for owner, height in enumerate(sizes, start=1):
        draw_person(canvas, rng, _body_middle(rng, size, height), height, owner)
        if rng.random() < 0.35:
            _paint_thing(canvas, rng, rng.uniform(0.3, 0.8) * min(height, size[0]))
    return Scene(_photograph(canvas.rgb, rng), canvas.label(), canvas.part == DISTRACTOR)


def _body_middle(rng: np.random.Generator, size: tuple[int, int], height: float) -> Point:
    """Returns where a person's middle is, so that some level between crown and knees lies within the picture."""
    level = rng.uniform(-0.42, 0.3) * height
    return rng.uniform(0.12, 0.88) * size[0] - level, rng.uniform(0.05, 0.95) * size[1]


def _value_noise(rng: np.random.Generator, size: tuple[int, int], cells: int) -> np.ndarray:
    """Returns smooth noise, (H, W) float32, 0..1: a random grid of cells x cells, enlarged bilinearly."""
    grid = rng.random((cells + 1, cells + 1)).astype(np.float32)
    y, x = (np.arange(n, dtype=np.float32) * np.float32(cells / n) for n in size)
    rows, columns = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
    down, right = (y - rows)[:, None], (x - columns)[None, :]
    top = grid[rows][:, columns] * (1 - right) + grid[rows][:, columns + 1] * right
    bottom = grid[rows + 1][:, columns] * (1 - right) + grid[rows + 1][:, columns + 1] * right
    return top * (1 - down) + bottom * down


def _paint_ground(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paints sky and floor, each with its own noise, and up to five walls or fields of some pattern."""
    height, width = canvas.size
    horizon = rng.uniform(0.2, 0.9) * height
    floor = (np.arange(height) >= horizon)[:, None]
    for half in (~floor, floor):
        coarse = _value_noise(rng, canvas.size, int(rng.integers(2, 7)))
        mix = np.float32(0.6) * coarse + np.float32(0.4) * _value_noise(rng, canvas.size, int(rng.integers(10, 60)))
        first, second = random_colour(rng), random_colour(rng)
        second = first + (second - first) * np.float32(rng.uniform(0.2, 1))
        np.copyto(canvas.rgb, first + (second - first) * mix[..., None], where=half[..., None])
    for _ in range(rng.integers(0, 6)):
        foot = horizon + rng.uniform(-0.1, 0.3) * height, rng.uniform(0, 1) * width
        top = polar(foot, rng.uniform(0.2, 1.0) * height, 180 + rng.uniform(-4, 4))
        half_width = rng.uniform(0.05, 0.4) * width
        canvas.slab(foot, top, (half_width, half_width), 0, _surface(rng, height), BACKGROUND)


def _surface(rng: np.random.Generator, unit: float) -> Paint:
    """Returns a wall's, trunk's or stone's surface; its pattern is in proportion to `unit`, a length in pixels."""
    pattern = PATTERNS[rng.integers(len(PATTERNS))]
    period = max(1.5, unit * rng.uniform(0.015, 0.1))
    return Paint(pattern, random_colour(rng), random_colour(rng), period, rng.uniform(0, 0.4))


def _lure(rng: np.random.Generator, unit: float) -> Paint:
    """Returns a surface that people have too: skin or cloth."""
    if rng.random() < 0.35:
        skin = skin_colour(rng)
        return Paint("plain", skin, skin, 1, rng.uniform(0.25, 0.5))
    return random_cloth(rng, unit)


def _paint_thing(canvas: Canvas, rng: np.random.Generator, unit: float) -> None:
    """Paints one thing that could be mistaken for a person or a part of one; `unit` is about its height in pixels."""
    foot = rng.uniform(0.1, 1.3) * canvas.size[0], rng.uniform(0, 1) * canvas.size[1]
    kinds = (_paint_post, _paint_tree, _paint_animal, _paint_dummy, _paint_chest, _paint_ball, _paint_sticks)
    kinds[rng.integers(len(kinds))](canvas, rng, foot, unit)


def _paint_post(canvas: Canvas, rng: np.random.Generator, foot: Point, unit: float) -> None:
    top = polar(foot, unit, 180 + rng.uniform(-12, 12))
    radius = unit * rng.uniform(0.02, 0.08)
    canvas.limb(foot, top, (radius, radius), _lure(rng, unit), DISTRACTOR)
    if rng.random() < 0.5:
        canvas.limb(top, top, (radius * 1.8, radius * 1.8), _lure(rng, unit), DISTRACTOR)


def _paint_tree(canvas: Canvas, rng: np.random.Generator, foot: Point, unit: float) -> None:
    bark, leaf = _surface(rng, unit), Paint("mottled", random_colour(rng), random_colour(rng), unit * 0.03, 0.2)
    fork = polar(foot, 0.55 * unit, 180 + rng.uniform(-10, 10))
    leafy = rng.random() < 0.6
    canvas.limb(foot, fork, (0.08 * unit, 0.055 * unit), bark, DISTRACTOR)
    for _ in range(rng.integers(2, 5)):
        angle = 180 + rng.uniform(-70, 70)
        elbow = polar(fork, rng.uniform(0.15, 0.3) * unit, angle)
        twig = polar(elbow, rng.uniform(0.1, 0.25) * unit, angle + rng.uniform(-40, 40))
        canvas.limb(fork, elbow, (0.05 * unit, 0.035 * unit), bark, DISTRACTOR)
        canvas.limb(elbow, twig, (0.035 * unit, 0.02 * unit), bark, DISTRACTOR)
        if leafy:
            canvas.limb(twig, twig, (rng.uniform(0.1, 0.2) * unit,) * 2, leaf, DISTRACTOR)


def _paint_animal(canvas: Canvas, rng: np.random.Generator, foot: Point, unit: float) -> None:
    coat = _lure(rng, unit)
    facing = 1 if rng.random() < 0.5 else -1
    rump = polar(foot, 0.4 * unit, 180)
    chest = polar(rump, 0.5 * unit, 90 * facing + rng.uniform(-10, 10))
    for hip in (rump, chest):
        for swing in (rng.uniform(-30, 0), rng.uniform(0, 30)):
            canvas.limb(hip, polar(hip, 0.4 * unit, swing), (0.06 * unit, 0.035 * unit), coat, DISTRACTOR)
    canvas.limb(rump, chest, (0.12 * unit, 0.14 * unit), coat, DISTRACTOR)
    head = polar(chest, 0.3 * unit, (90 + rng.uniform(10, 60)) * facing)
    canvas.limb(chest, head, (0.08 * unit, 0.06 * unit), coat, DISTRACTOR)
    canvas.limb(head, polar(head, 0.12 * unit, 75 * facing), (0.075 * unit, 0.05 * unit), coat, DISTRACTOR)


def _paint_dummy(canvas: Canvas, rng: np.random.Generator, foot: Point, unit: float) -> None:
    """Paints a tailor's dummy: a clothed trunk on a pole, at times with a featureless ball for a head."""
    hip = polar(foot, 0.5 * unit, 180)
    neck = polar(hip, 0.35 * unit, 180 + rng.uniform(-5, 5))
    canvas.limb(foot, hip, (0.02 * unit, 0.02 * unit), _surface(rng, unit), DISTRACTOR)
    canvas.slab(neck, hip, (0.12 * unit, 0.09 * unit), 0.05 * unit, _lure(rng, unit), DISTRACTOR)
    if rng.random() < 0.5:
        ball = polar(neck, 0.07 * unit, 180)
        canvas.limb(ball, ball, (0.06 * unit, 0.06 * unit), _lure(rng, unit), DISTRACTOR)


def _paint_chest(canvas: Canvas, rng: np.random.Generator, foot: Point, unit: float) -> None:
    """Paints a chest, table or bag: a box, at times on legs."""
    body = polar(foot, 0.3 * unit, 180 + rng.uniform(-6, 6))
    half = rng.uniform(0.15, 0.4) * unit
    if rng.random() < 0.5:
        for side in (-0.8, 0.8):
            corner = polar(foot, half * side, 90)
            end = polar(corner, 0.3 * unit, rng.uniform(-5, 5))
            canvas.limb(corner, end, (0.03 * unit, 0.03 * unit), _surface(rng, unit), DISTRACTOR)
    canvas.slab(foot, body, (half, half * rng.uniform(0.7, 1)), 0.04 * unit, _lure(rng, unit), DISTRACTOR)


def _paint_ball(canvas: Canvas, rng: np.random.Generator, foot: Point, unit: float) -> None:
    radius = rng.uniform(0.06, 0.25) * unit
    end = polar(foot, rng.uniform(0, 1) * radius, rng.uniform(0, 360))
    canvas.limb(foot, end, (radius, radius), _lure(rng, unit), DISTRACTOR)


def _paint_sticks(canvas: Canvas, rng: np.random.Generator, foot: Point, unit: float) -> None:
    """Paints a chain of one to four limb-like pieces: hoses, bent pipes, rolled rugs."""
    angle, end = rng.uniform(0, 360), foot
    for _ in range(rng.integers(1, 5)):
        start, angle = end, angle + rng.uniform(-80, 80)
        end = polar(start, rng.uniform(0.15, 0.35) * unit, angle)
        radius = rng.uniform(0.03, 0.07) * unit
        canvas.limb(start, end, (radius, radius * rng.uniform(0.7, 1)), _lure(rng, unit), DISTRACTOR)


def _photograph(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns (H, W, 3) uint8: colour cast, contrast, uneven light, slight blur and grain on a painting in 0..255."""
    gain = (rng.uniform(0.75, 1.2) * rng.uniform(0.93, 1.07, 3)).astype(np.float32)
    light = np.float32(0.75) + np.float32(0.5) * _value_noise(rng, rgb.shape[:2], 2)
    image = (rgb - 128) * gain * light[..., None] + np.float32(128 + rng.uniform(-20, 20))
    blur = np.float32(rng.uniform(0, 0.2))
    for axis in (0, 1):
        places, last = np.arange(rgb.shape[axis]), rgb.shape[axis] - 1
        before, after = (
            np.take(image, np.maximum(places - 1, 0), axis),
            np.take(image, np.minimum(places + 1, last), axis),
        )
        image = image * (1 - 2 * blur) + (before + after) * blur
    image = image + (rng.random(image.shape) - 0.5).astype(np.float32) * np.float32(rng.uniform(4, 30))
    return np.floor(np.clip(image, 0, 255) + np.float32(0.5)).astype(np.uint8)

"""Drawing strips of pictures and weight maps, as in the paper's figures 4 and 5, with one colour bar and a legend of classes."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from caffe_weights.files.atomic import replacing
from repro.data.palette import voc_palette

COLORMAP = "magma"
PANEL = 200  # pixels
INK, GREY = "#1a1a1a", "#666666"
_GAP, _MARGIN, _NAME, _BAR, _LEGEND, _FOOT = 8, 12, 122, 66, 142, 16  # pixels
# Okabe and Ito's colours, which stay apart for colour-blind eyes; for sets of up to seven foreground classes.
_FEW = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
FLAT = (0.0, 1.0)  # the same colour is the same weight in every map
_NARROWEST = 0.02  # of a map's own span: rounding shall not look like a pattern
_BACKGROUND, _IGNORED = (38, 38, 42), (255, 255, 255)


class Panel(NamedTuple):
    """One picture of a strip.

    Args:
        title: Above it, one or two lines.
        pixels: (H, W, 3) uint8 RGB, or (H, W) float weights in 0..1, which become a heat map.
        span: The weights at the dark and at the bright end of the heat map; any but 0 and 1 is written below the panel.
    """

    title: str
    pixels: np.ndarray
    span: tuple[float, float] = FLAT


class Strip(NamedTuple):
    """One row of a figure: a name at its left, and its panels; None leaves a place empty."""

    name: str
    panels: Sequence[Panel | None]


def class_colours(num_classes: int) -> np.ndarray:
    """Chooses the colours of a label map.

    Args:
        num_classes: Background included.

    Returns:
        (256, 3) uint8 RGB by label value: colour-blind safe ones for up to eight classes, else VOC's; a dark ground, and white for
        whatever is no class.
    """
    colours = np.full((256, 3), _IGNORED, np.uint8)
    if num_classes <= len(_FEW) + 1:
        rgb = [tuple(int(one[i : i + 2], 16) for i in (1, 3, 5)) for one in _FEW]
        colours[1:num_classes] = rgb[: num_classes - 1]
    else:
        colours[:num_classes] = np.asarray(voc_palette(), np.uint8).reshape(256, 3)[:num_classes]
    colours[0] = _BACKGROUND
    return colours


def overlay(image: np.ndarray, label: np.ndarray, colours: np.ndarray, opacity: float = 0.62) -> np.ndarray:
    """Lays a label map over its image; background keeps the image as it is.

    Args:
        image: (H, W, 3) uint8 RGB.
        label: (H, W) uint8.
        colours: Of `class_colours`.
        opacity: Of the labels, 0..1.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    mixed = np.rint(image * (1 - opacity) + colours[label] * opacity).astype(np.uint8)
    return np.where((label == 0)[..., None], image, mixed)


def own_span(weights: np.ndarray) -> tuple[float, float]:
    """Finds the span that shows how a map varies: from its lowest to its highest weight; FLAT for a map of zeros and ones."""
    if ((weights == 0) | (weights == 1)).all():
        return FLAT
    low, high = float(weights.min()), float(weights.max())
    more = max(0.0, _NARROWEST - (high - low)) / 2
    return low - more, high + more


def heat(weights: np.ndarray, span: tuple[float, float] = FLAT) -> np.ndarray:
    """Colours weights (...) as (..., 3) uint8 RGB, dark at the span's first end and bright at the second."""
    low, high = span
    return matplotlib.colormaps[COLORMAP]((np.asarray(weights, np.float64) - low) / (high - low), bytes=True)[..., :3]


def fitted(panel: Panel, size: tuple[int, int]) -> np.ndarray:
    """Resizes a panel's pixels into a box, keeping their proportions, and colours weights.

    Args:
        panel: The panel.
        size: (height, width) of the box, pixels.

    Returns:
        (H, W, 3) uint8 RGB, H and W at most the box's and one of them equal to it.
    """
    pixels = panel.pixels
    share = min(box / side for box, side in zip(size, pixels.shape[:2], strict=True))
    height, width = (min(box, max(1, round(side * share))) for box, side in zip(size, pixels.shape[:2], strict=True))
    if pixels.ndim == 2:
        binary = ((pixels == 0) | (pixels == 1)).all()
        weights = Image.fromarray(np.ascontiguousarray(pixels, np.float32))
        way = Image.Resampling.NEAREST if binary else Image.Resampling.BILINEAR
        return heat(np.asarray(weights.resize((width, height), way)), panel.span)
    rgb = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(rgb.resize((width, height), Image.Resampling.BILINEAR), np.uint8)


def _panel_height(strip: Strip, panel: int) -> int:
    rows, columns = next(p for p in strip.panels if p is not None).pixels.shape[:2]
    return round(panel * min(max(rows / columns, 0.25), 1.5))


@functools.cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    # matplotlib brings DejaVu along, so every machine writes the same letters.
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _wrapped_head(width: float, title: str, subtitle: str) -> tuple[list[str], list[str]]:
    """Breaks a title and a subtitle into lines that fit a figure of `width` pixels."""
    return (
        textwrap.wrap(title, max(20, int(width / 11.5))) or [""],
        textwrap.wrap(subtitle, max(20, int(width / 7.6))),
    )


def _head_height(titles: Sequence[str], lines: Sequence[str]) -> int:
    """Computes the height of a figure's head, pixels, from the lines of its title and subtitle."""
    return 22 + 22 * len(titles) + 18 * len(lines)


def draw_strips(
    strips: Sequence[Strip],
    title: str,
    subtitle: str,
    classes: Sequence[tuple[str, Sequence[int]]] = (),
    panel: int = PANEL,
) -> Image.Image:
    """Draws strips below each other, with one colour bar for all weight maps, and below each that has a span of its own that span.

    Args:
        strips: The panels of one strip have the same height and width.
        title: Above all.
        subtitle: Under the title, smaller.
        classes: The legend below: name and (R, G, B), 0..255.
        panel: Width of a panel, pixels.

    Returns:
        The figure, RGB.
    """
    columns = max(len(strip.panels) for strip in strips)
    left = _NAME if any(strip.name for strip in strips) else _MARGIN
    maps = [p for strip in strips for p in strip.panels if p is not None and p.pixels.ndim == 2]
    feet = [_FOOT if any(p and p.span != FLAT for p in strip.panels) else 0 for strip in strips]
    row = left + columns * (panel + _GAP) - _GAP
    width = max(row + (_BAR if maps else _MARGIN), 640)
    captions = [
        4 + 16 * max((p.title.count("\n") + 1 for p in s.panels if p and p.title), default=-0.25) for s in strips
    ]
    heights = [_panel_height(strip, panel) for strip in strips]
    per_line = max(1, (width - _MARGIN) // _LEGEND)
    legend = 24 * -(-len(classes) // per_line)
    titles, lines = _wrapped_head(width, title, subtitle)
    head = _head_height(titles, lines)
    body = int(sum(captions)) + sum(heights) + sum(feet) + _GAP * (len(strips) - 1) + _MARGIN + legend

    figure = Image.new("RGB", (width, head + body), "white")
    write = ImageDraw.Draw(figure)
    for i, line in enumerate(titles):
        write.text((_MARGIN, 22 + 22 * i), line, INK, _font(17, bold=True), "lm")
    for i, line in enumerate(lines):
        write.text((_MARGIN, 24 + 22 * len(titles) + 18 * i), line, GREY, _font(13), "lm")
    y = head
    for strip, caption, height, foot in zip(strips, captions, heights, feet, strict=True):
        y += int(caption)
        for i, line in enumerate(lines := strip.name.split("\n")):
            at = (left - 10, y + height / 2 + 16 * (i - (len(lines) - 1) / 2))
            write.text(at, line, INK, _font(12), "rm")
        for column, one in enumerate(strip.panels):
            if one is not None:
                x = left + column * (panel + _GAP)
                picture = Image.fromarray(fitted(one, (height, panel)))
                figure.paste(picture, (x + (panel - picture.width) // 2, y + (height - picture.height) // 2))
                for i, line in enumerate(reversed(one.title.split("\n"))):
                    write.text((x + panel / 2, y - 6 - 16 * i), line, INK, _font(12), "ms")
                if one.span != FLAT:
                    span = f"{one.span[0]:.2f} to {one.span[1]:.2f}"
                    write.text((x + panel / 2, y + height + _FOOT - 3), span, GREY, _font(11), "ms")
        y += height + foot + _GAP
    if maps:
        flat = all(one.span == FLAT for one in maps)
        _paste_colour_bar(figure, (row + 14, head + int(captions[0])), min(heights[0], panel), flat)
    y += _MARGIN - _GAP
    for i, (name, colour) in enumerate(classes):
        top, x = y + 24 * (i // per_line), _MARGIN + _LEGEND * (i % per_line)
        write.rectangle((x, top, x + 19, top + 13), tuple(int(c) for c in colour), "#969696")
        write.text((x + 27, top + 7), name, INK, _font(12), "lm")
    return figure


def _paste_colour_bar(figure: Image.Image, corner: tuple[int, int], height: int, flat: bool) -> None:
    write, (x, y) = ImageDraw.Draw(figure), corner
    steps = np.repeat(np.linspace(1, 0, height)[:, None], 12, axis=1)
    figure.paste(Image.fromarray(heat(steps)), corner)
    names = {1: "1", 0.75: "¾", 0.5: "½", 0.25: "¼", 0: "0"}
    ends = {1: names[1], 0: names[0]} if flat else {1: "high", 0: "low"}
    for weight, name in (names if flat and height >= 5 * 16 else ends).items():
        at = y + round((1 - weight) * (height - 1))
        write.line((x + 12, at, x + 16, at), INK)
        write.text((x + 20, at), name, INK, _font(12), "lm")
    write.text((x - 4, y - 10), "weight", INK, _font(12), "ls")


def save_png(figure: Image.Image, path: Path, description: str = "") -> None:
    """Writes a figure as PNG, whole or not at all; the same figure gives the same bytes.

    Args:
        figure: The figure.
        path: The file.
        description: Stored in the file as its Description.
    """
    text = PngInfo()
    if description:
        text.add_text("Description", description)
    with replacing(path) as part:
        figure.save(part, format="PNG", pnginfo=text)

"""A picture of a net: its layers from top to bottom as an SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

from caffe_weights.files.model import printable
from repro.caffe.proto import Typed

_CHARACTER, _LINE, _PADDING = 6.7, 15, 8  # of 11-pixel sans serif, pixels
_GAP_X, _GAP_Y = 24, 36
_SHOWN = (
    "num_output",
    "kernel_size",
    "stride",
    "pad",
    "dilation",
    "hole",
    "group",
    "pool",
    "operation",
    "dropout_ratio",
)
_SHOWN += ("zoom_factor", "shrink_factor", "height", "width", "crop_size", "batch_size", "axis", "ignore_label")
_COLOURS = (
    (("Data", "Input"), "#dce9f7"),
    (("Loss", "Accuracy"), "#f7dcdc"),
    (("Convolution", "Deconvolution", "InnerProduct"), "#e3f2dd"),
    (("Pooling", "Interp"), "#f7efd8"),
)


@dataclass
class Box:
    """A layer, or an input, with the layers that work in place on its top; x is the middle, y the upper edge, pixels.

    lines: What is written in it. kind: The first layer's type. above: (box, blob) of every bottom.
    """

    lines: list[str]
    kind: str
    above: list[tuple[int, str]] = field(default_factory=list)
    rank: int = 0
    x: float = 0.0
    y: float = 0.0

    @property
    def width(self) -> float:
        return max(map(len, self.lines)) * _CHARACTER + 2 * _PADDING

    @property
    def height(self) -> float:
        return len(self.lines) * _LINE + _PADDING


def draw_net(layers: Sequence[Typed], inputs: Sequence[str], name: str) -> str:
    """Draws a net.

    Args:
        layers: In their order, those of one phase.
        inputs: Names of the blobs that are set from outside.
        name: The net's.

    Returns:
        The SVG, ASCII alone.
    """
    boxes = _boxes(layers, inputs)
    width, height = _place(boxes)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" '
        'font-family="sans-serif" font-size="11">',
        f"<title>{_text(name or 'net')}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for box in boxes:
        for above, blob in box.above:
            parts.append(_edge(boxes[above], box, blob))
    for box in boxes:
        parts += _drawn(box)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _boxes(layers: Sequence[Typed], inputs: Sequence[str]) -> list[Box]:
    boxes = [Box([name, "input"], "Input") for name in inputs]
    maker = {name: index for index, name in enumerate(inputs)}
    for layer in layers:
        words = [layer.name, " ".join([layer.type, *_settings(layer)])]
        if layer.bottom and list(layer.bottom) == list(layer.top) and layer.bottom[0] in maker:
            boxes[maker[layer.bottom[0]]].lines.append(f"+ {words[1]} ({layer.name})")
            continue
        above = [(maker[blob], blob) for blob in layer.bottom if blob in maker]
        rank = max((boxes[index].rank + 1 for index, _ in above), default=0)
        boxes.append(Box(words, layer.type, above, rank))
        maker |= dict.fromkeys(layer.top, len(boxes) - 1)
    last = {index: box.rank for box in reversed(boxes) for index, _ in box.above}
    for index in range(
        len(boxes) - 1, -1, -1
    ):  # what is needed late, such as shrunk labels, stands late: fewer lines cross
        box = boxes[index]
        if box.above and index in last:
            box.rank = last[index] - 1
        for above, _ in box.above:
            last[above] = min(last[above], box.rank)
    return boxes


def _settings(layer: Typed) -> list[str]:
    """Writes the settings of a layer that a reader looks for, such as num_output 64."""
    words = []
    for name in sorted(layer.set):
        message = getattr(layer, name)
        if name.endswith("_param") and isinstance(message, Typed):
            for key in _SHOWN:
                if message.has(key):
                    value = getattr(message, key)
                    words.append(f"{key} {' '.join(map(str, value)) if isinstance(value, list) else value}")
    return words


def _place(boxes: Sequence[Box]) -> tuple[float, float]:
    """Places the boxes in rows by rank, each near the middle of what it hangs on; returns the picture's width and height."""
    rows: dict[int, list[Box]] = {}
    for box in boxes:
        rows.setdefault(box.rank, []).append(box)
    y, right = float(_GAP_Y), 0.0
    for rank in sorted(rows):
        row = rows[rank]
        for box in row:
            box.x = sum(boxes[i].x for i, _ in box.above) / len(box.above) if box.above else right / 2
        row.sort(key=lambda box: box.x)
        left = float(_GAP_X)
        for box in row:
            box.x = max(box.x, left + box.width / 2)
            left = box.x + box.width / 2 + _GAP_X
            box.y = y
            right = max(right, left)
        y += max(box.height for box in row) + _GAP_Y
    return right or 2 * _GAP_X, y


def _edge(above: Box, below: Box, blob: str) -> str:
    x1, y1, x2, y2 = above.x, above.y + above.height, below.x, below.y
    bend = min(_GAP_Y, (y2 - y1) / 2)
    path = f"M{x1:.1f} {y1:.1f}C{x1:.1f} {y1 + bend:.1f} {x2:.1f} {y2 - bend:.1f} {x2:.1f} {y2:.1f}"
    line = f'<path d="{path}" fill="none" stroke="#888"><title>{_text(blob)}</title></path>'
    if blob == above.lines[0]:
        return line
    return f'{line}<text x="{(x1 + x2) / 2 + 3:.1f}" y="{(y1 + y2) / 2:.1f}" fill="#888">{_text(blob)}</text>'


def _drawn(box: Box) -> list[str]:
    colour = next((c for words, c in _COLOURS if any(word in box.kind for word in words)), "#eeeeee")
    parts = [
        f'<rect x="{box.x - box.width / 2:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="4" fill="{colour}" stroke="#555"/>'
    ]
    for index, line in enumerate(box.lines):
        weight = ' font-weight="bold"' if index == 0 else ""
        y = box.y + (index + 1) * _LINE - 2
        parts.append(f'<text x="{box.x:.1f}" y="{y:.1f}" text-anchor="middle"{weight}>{_text(line)}</text>')
    return parts


def _text(words: str) -> str:
    """Escapes what XML would take for its own, and writes what is not ASCII as references; control characters come out as escapes."""
    return escape(printable(words)).encode("ascii", "xmlcharrefreplace").decode()

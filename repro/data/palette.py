"""Index PNGs with VOC's colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from caffe_weights.files.atomic import replacing


def voc_palette() -> list[int]:
    """Returns the 256 colours of VOC's index PNGs, R, G, B in turn: the class's bits, dealt to the high bits."""
    palette = []
    for index in range(256):
        palette += [sum((index >> (3 * bit + colour) & 1) << (7 - bit) for bit in range(3)) for colour in range(3)]
    return palette


def write_label(path: Path, label: np.ndarray, description: str = "") -> None:
    """Writes class ids as an index PNG with VOC's palette, whole or not at all.

    Args:
        path: The file.
        label: (H, W) uint8.
        description: What the file says of itself, or "".
    """
    info = PngInfo()
    if description:
        info.add_text("Description", description)
    image = Image.fromarray(label).convert("P")
    image.putpalette(voc_palette())
    with replacing(path) as part:
        image.save(part, format="PNG", pnginfo=info)

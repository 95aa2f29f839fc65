"""Any photos, or the frames of a video: labels laid over, the weight map of every scale beside, one PNG per image."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from repro.data.palette import write_label
from repro.data.pictures import SUFFIXES, decode, open_picture
from repro.device import Compute
from repro.files import MAX_NAME_BYTES
from repro.models import OUTPUT_STRIDE, MultiScale
from repro.visualize.draw import FLAT, Panel, Strip, class_colours, draw_strips, overlay, own_span, save_png
from repro.visualize.network import SHARE, Seen, look

DRAWING = 3  # goes up with every change of what is drawn: pictures of another version are drawn anew
_PANEL = 300  # pixels


class Drawer(NamedTuple):
    """How photos are drawn.

    Args:
        network: On `device`, in evaluation mode.
        settings: The row's.
        device: Where the network is.
        identity: Names the network's weights.
        max_side: Larger photos are shrunk until their longer side has so many pixels.
        note: What every picture must say, or "".
        flat: Whether all weight maps have one scale from 0 to 1, in place of one each that shows how it varies.
    """

    network: MultiScale
    settings: dict[str, Any]
    device: torch.device
    identity: str
    max_side: int
    note: str
    flat: bool = False


class Drawn(NamedTuple):
    """A picture that is there: its file, its photo's name, its size (height, width) in pixels, and in words what it shows."""

    path: Path
    name: str
    size: tuple[int, int]
    alt: str


def find_photos(folder: Path) -> tuple[list[Path], int]:
    """Lists a folder's images in the order that people count: frame2 before frame10.

    Args:
        folder: Not searched below; hidden files are passed over.

    Returns:
        The files whose suffix is an image's, and how many other files there are.

    Raises:
        FileNotFoundError: There is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--images: {folder} must be a folder of images; got no such folder; correct the path")
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    photos = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not photos:
        raise FileNotFoundError(
            f"--images: {folder} must hold images (.jpg, .png, ...); got {len(files)} other files; name another folder"
        )
    return sorted(photos, key=lambda path: (natural_key(path.name), path.name)), len(files) - len(photos)


def require_apart(photos: Sequence[Path]) -> None:
    """Raises ValueError where two photos differ in nothing but their suffix, so that their labels would have one name."""
    first: dict[str, Path] = {}
    for photo in photos:
        if first.setdefault(photo.stem, photo) is not photo:
            raise ValueError(
                f"--labels-out: photos must have different names without suffix; got {photo.name!r} beside "
                f"{first[photo.stem].name!r}; rename one"
            )


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Makes the key that sorts names by the numbers in them: digits as numbers, before letters."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in re.split(r"(\d+)", name) if part
    ]


def read_photo(path: Path) -> np.ndarray:
    """Reads a photo as people see it: turned as its EXIF data say, transparency on white, the range of 16-bit grey stretched.

    Args:
        path: A file that `open_picture` opens; of an animation the first picture.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: It does not decode completely.

    Deviates: ImageSegData ignores EXIF and transparency (repro/data/transforms.py does as it does).
    """
    with open_picture(path) as file:
        decode(path, "image", file)
        try:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I;16") or image.mode in ("I", "F"):
                grey = np.asarray(image, np.float64)
                image = Image.fromarray((grey / max(grey.max(), 1) * 255).clip(0, 255).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.asarray(image.convert("RGB"), np.uint8)
        except Exception as error:  # Of broken EXIF data Pillow raises SyntaxError, ValueError and more.
            reason = " ".join(f"{type(error).__name__} {error}".split())[:160]
            raise ValueError(f"{path}: must be an image; got {reason}; replace or remove the file") from error


def shrunk(image: np.ndarray, max_side: int) -> np.ndarray:
    """Shrinks an image (H, W, 3) uint8 until its longer side has at most `max_side` pixels."""
    if max(image.shape[:2]) <= max_side:
        return image
    share = max_side / max(image.shape[:2])
    size = [max(1, round(side * share)) for side in image.shape[1::-1]]
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS), np.uint8)


def padded(image: np.ndarray, mean_bgr: Sequence[float], crop_size: int) -> torch.Tensor:
    """Makes the network's input: BGR minus the mean, padded with it at the bottom and right, as `read_test_item` does.

    Args:
        image: (H, W, 3) uint8 RGB.
        mean_bgr: Grey levels.
        crop_size: Smallest side of the result, pixels.

    Returns:
        (1, 3, P, P) float32, P = max(crop_size, the smallest 8k + 1 that holds the image).
    """
    height, width = image.shape[:2]
    side = max(crop_size, -(-(max(height, width) - 1) // OUTPUT_STRIDE) * OUTPUT_STRIDE + 1)
    data = np.zeros((1, side, side, 3), np.float32)
    np.subtract(image[..., ::-1], np.asarray(mean_bgr, np.float32), out=data[0, :height, :width])
    return torch.from_numpy(data).permute(0, 3, 1, 2)


class Looked(NamedTuple):
    """A photo and what the network sees in it.

    full: (H, W, 3) uint8 RGB, the photo as it is.
    seen: What it makes of the photo as it got it, (h, w) pixels.
    """

    full: np.ndarray
    seen: Seen


class Photo:
    """One photo of a folder: read and looked at where a picture or labels of it are missing, and then once.

    Args:
        drawer: How.
        path: The file.

    Raises:
        ValueError: The file cannot be read; of `draw` and `label`, it is no image.
    """

    def __init__(self, drawer: Drawer, path: Path):
        self.drawer, self.path = drawer, path
        try:
            self._digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise ValueError(f"{path}: must be an image; got {error.strerror}; replace or remove the file") from error

    @functools.cached_property
    def looked(self) -> Looked:
        """What the network sees."""
        drawer, full = self.drawer, read_photo(self.path)
        image = shrunk(full, drawer.max_side)
        settings = drawer.settings
        data = padded(image, settings["transform"]["mean_bgr"], settings["test"]["crop_size"])
        place, sizes = drawer.device, [image.shape[:2]]
        (seen,) = look(drawer.network, data.to(place), sizes, settings, Compute(place))
        return Looked(full, seen)

    def _key(self, *how: Any) -> str:
        return hashlib.sha256(
            json.dumps([DRAWING, self.drawer.identity, self.drawer.max_side, *how, self._digest]).encode()
        ).hexdigest()

    def draw(self, out: Path) -> tuple[Drawn, bool]:
        """Draws the photo, unless it was drawn before by the same network and in the same way.

        Args:
            out: The folder of the PNG, which is named after the photo's whole name.

        Returns:
            What is there now, and whether it was drawn just now.
        """
        drawer, target = self.drawer, out / _png_name(self.path.name)
        key, shown_name = self._key(drawer.note, drawer.flat), os.fsencode(self.path.name).decode(errors="replace")
        description = _description(target)
        if description.get("key") == key and {"alt", "size"} <= set(description):
            return Drawn(target, shown_name, tuple(description["size"]), description["alt"]), False

        full, (label, _, maps, edge, before) = self.looked
        display, scales = shrunk(full, 2 * _PANEL), drawer.network.scales
        names = drawer.settings["data"]["class_names"]
        laid, colours = _enlarged(label, display.shape), class_colours(len(names))
        panels = [Panel("image", display)]
        if before is not None:
            panels.append(Panel("before the CRF", overlay(display, _enlarged(before, display.shape), colours)))
        panels.append(Panel("labels", overlay(display, laid, colours)))
        means: list[float] = []
        if maps is not None:
            means = maps.mean((1, 2)).tolist()
            titles = [
                f"scale {scale:g}, {SHARE[drawer.network.merge]} {mean:.2f}"
                for scale, mean in zip(scales, means, strict=True)
            ]
            spans = [FLAT if drawer.flat else own_span(one) for one in maps]
            panels += [Panel(*panel) for panel in zip(titles, maps, spans, strict=True)]
        panels += [Panel("edge map", edge, own_span(edge))] if edge is not None else []
        share = np.bincount(label.ravel(), minlength=len(names)) / label.size
        shown = [c for c in np.argsort(-share, kind="stable").tolist() if share[c] and c]
        legend = [(f"{names[c]}", colours[c]) for c in shown]
        found = ", ".join(f"{names[c]} {100 * share[c]:.1f} %" for c in shown) or "nothing but background"
        weights = ", ".join(f"scale {scale:g} {mean:.2f}" for scale, mean in zip(scales, means, strict=False))
        alt = f"{shown_name}: {found}" + (f"; {SHARE[drawer.network.merge]} {weights}" if weights else "")
        figure = draw_strips(
            [Strip("", panels)], shown_name, f"{drawer.note} {found[:1].upper()}{found[1:]}.".strip(), legend, _PANEL
        )
        save_png(figure, target, json.dumps({"key": key, "alt": alt, "size": [figure.height, figure.width]}))
        return Drawn(target, shown_name, (figure.height, figure.width), alt), True

    def label(self, out: Path) -> bool:
        """Writes the photo's labels as an index PNG of its own size, unless the same network wrote them before.

        Args:
            out: The folder of the PNG, which is named as a data set names labels: as the photo, with .png for its suffix.

        Returns:
            Whether they were written just now.
        """
        target, key = out / _png_name(self.path.stem), self._key("labels")
        if _description(target).get("key") == key:
            return False
        write_label(target, _enlarged(self.looked.seen.prediction, self.looked.full.shape), json.dumps({"key": key}))
        return True


def _png_name(name: str) -> str:
    """Names a PNG after a photo, or after the beginning of its name where that is long."""
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        name = f"{name[:40]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return f"{name}.png"


def _enlarged(label: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Brings a label (h, w) to the size (H, W, ...) of a picture, pixel by pixel: no classes between classes."""
    if label.shape == tuple(size[:2]):
        return label
    return np.asarray(Image.fromarray(label).resize(tuple(size[1::-1]), Image.Resampling.NEAREST), np.uint8)


def _description(path: Path) -> dict[str, Any]:
    """Reads what a picture of ours says of itself; nothing where there is none, or a foreign one."""
    try:
        with open_picture(path) as image:
            found = json.loads(image.info.get("Description", "{}"))
            return found if isinstance(found, dict) else {}
    except (OSError, ValueError, SyntaxError):
        return {}

"""Reads what repro.visualize left: a list of figures and curves, each taken or left out by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from repro.data.pictures import decode_png
from repro.documents import document_bytes, is_number
from repro.records.store import read_document

FORMAT = 1
MOST_FIGURES = 1000  # of a table
MOST_SIDE, MOST_PIXELS = 16383, 1 << 25  # of a picture: a WebP's longest side, and a hundred megabytes decoded
MOST_SCALES, MOST_BINS = 8, 64
ROUNDING = 1e-5  # of a mean weight
TEXTS = ("kind", "row", "title", "alt", "caption", "image", "chosen")
_SIGNATURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


@dataclass
class Pictures:
    """What a table's figures.json holds that can be shown.

    folder: Where its PNGs are.
    table: Whose figures.
    rule, note, synthetic, records: As in the file.
    figures: Each with "file", the texts, and "iou".
    attention_by_size: Each with "row", "seed", "scales" and "bins".
    """

    folder: Path
    table: str
    rule: str
    note: str
    synthetic: bool
    records: dict[str, str]
    figures: list[dict[str, Any]] = field(default_factory=list)
    attention_by_size: list[dict[str, Any]] = field(default_factory=list)


def read_picture(path: Path) -> Image.Image:
    """Decodes a PNG, whole.

    Raises:
        ValueError: It is none, too large for a page, or cut off; the reason alone.
    """
    data = document_bytes(path)
    if not data.startswith(_SIGNATURE) or len(data) < 24:
        raise ValueError("no PNG")
    # Looked at before anything is decoded: a few bytes may claim any size.
    width, height = (int.from_bytes(data[place : place + 4]) for place in (16, 20))
    if max(width, height) > MOST_SIDE or width * height > MOST_PIXELS:
        raise ValueError(f"a picture of {height} x {width} pixels, more than a page can show")
    return decode_png(data)


def _figure(entry: Any, folder: Path) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError("no table")
    name = entry.get("file")
    if not isinstance(name, str) or Path(name).name != name or not name.lower().endswith(".png"):
        raise ValueError(f"its file must be the name of a PNG beside it; got {name!r}"[:200])
    if wrong := [key for key in TEXTS if not isinstance(entry.get(key, ""), str)]:
        raise ValueError(f"{wrong[0]} must be text")
    iou = entry.get("iou")
    if iou is not None and not is_number(iou):
        raise ValueError("iou must be a number, or null")
    try:
        read_picture(folder / name)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return {key: entry.get(key, "") for key in TEXTS} | {"file": name, "iou": iou}


def _is_bin(one: Any, scales: int) -> bool:
    if not isinstance(one, dict):
        return False
    edges, count = [one.get("size_min"), one.get("size_max")], one.get("n_objects")
    if not (all(map(is_number, edges)) and 0 < edges[0] < edges[1] and type(count) is int and 0 <= count < 2**63):
        return False
    weights = [one.get("mean_weight"), one.get("std")]
    return count == 0 or all(
        isinstance(values, list)
        and len(values) == scales
        and all(is_number(v) and -ROUNDING <= v <= 1 + ROUNDING for v in values)
        for values in weights
    )


def _curve(entry: Any, others: list[dict[str, Any]]) -> dict[str, Any]:
    if not isinstance(entry, dict) or not isinstance(entry.get("row"), str) or type(entry.get("seed")) is not int:
        raise ValueError("must have a row and a seed")
    scales, bins = entry.get("scales"), entry.get("bins")
    if (
        not (isinstance(scales, list) and 0 < len(scales) <= MOST_SCALES)
        or not all(is_number(scale) and scale > 0 for scale in scales)
        or len(set(scales)) < len(scales)
    ):
        raise ValueError(f"scales must be 1 to {MOST_SCALES} different numbers above 0")
    if not (isinstance(bins, list) and len(bins) <= MOST_BINS and all(_is_bin(one, len(scales)) for one in bins)):
        raise ValueError(f"bins must be at most {MOST_BINS} of sizes, counts and weights from 0 to 1, one per scale")
    for other in others:
        if other["row"] == entry["row"] and (other["scales"] != scales or other["seed"] == entry["seed"]):
            raise ValueError("another of its row has other scales, or the same seed")
    return {key: entry[key] for key in ("row", "seed", "scales", "bins")}


def read_pictures(path: Path, leave_out: Callable[[Path, str], None]) -> Pictures:
    """Reads a figures.json.

    Args:
        path: The file.
        leave_out: Is told of every part that cannot be shown, and why.

    Raises:
        ValueError: Nothing of it can be shown, and why.
    """
    document, _ = read_document(path, "list of figures", FORMAT)
    lists = [document.get(key) for key in ("figures", "attention_by_size")]
    if not all(isinstance(one, list) and len(one) <= MOST_FIGURES for one in lists):
        raise ValueError(f"damaged: figures and attention_by_size must be lists of at most {MOST_FIGURES}")
    texts = [document.get(key, "") for key in ("rule", "note")]
    if not all(isinstance(text, str) for text in (document.get("table"), *texts)):
        raise ValueError("damaged: table, rule and note must be text")
    records = document.get("records", {})
    if not (isinstance(records, dict) and all(isinstance(sha256, str) for sha256 in records.values())):
        raise ValueError("damaged: records must be a table of fingerprints")
    found = Pictures(path.parent, document["table"], *texts, document.get("synthetic") is True, records)
    for number, entry in enumerate(lists[0]):
        try:
            found.figures.append(_figure(entry, path.parent))
        except ValueError as error:
            leave_out(path, f"damaged: figure {number}: {error}")
    for number, entry in enumerate(lists[1]):
        try:
            found.attention_by_size.append(_curve(entry, found.attention_by_size))
        except ValueError as error:
            leave_out(path, f"damaged: attention_by_size {number}: {error}")
    return found

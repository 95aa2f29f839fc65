"""A synthetic stand-in for PASCAL-Person-Part, drawn by the package itself and laid out on disk as the real set.

The numbers measured on it are not comparable with the paper's: it exists so that the whole protocol can run where the
photographs are not at hand.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from repro.data.palette import voc_palette
from repro.data.pool import work_through
from repro.data.synthetic.people import CLASS_NAMES as class_names
from repro.data.synthetic.scene import Scene, draw_scene

__all__ = ["class_names", "draw_scenes", "parameters", "write_dataset"]

# Goes up with every change of the drawing that changes a pixel: a set of another version is another set.
VERSION = 1
_SPLITS = ("train", "val")
_STAMP = "complete.json"
_CONTENTS = "contents_sha256"
_CHUNK = 16

README = """Synthetic stand-in for PASCAL-Person-Part: drawn by a program, not photographed.
Not comparable with the paper's data.

JPEGImages/<id>.png        pictures (PNG, so that every machine decodes the same pixels; the folder keeps VOC's name)
SegmentationPart/<id>.png  labels, index PNG with VOC's palette: {classes};
                           255 (ignored) on a ring of one pixel around people
ImageSets/<split>.txt      ids
complete.json              what the set was drawn from ({parameters}), and its contents' SHA-256
"""


def draw_scenes(
    seed: tuple[int, ...], count: int, size: tuple[int, int], workers: int = 1, **options: tuple
) -> Iterator[Scene]:
    """Draws pictures one after another, with a progress bar on stderr.

    Args:
        seed: names the set of pictures; a picture depends on it and on its own number only.
        count: how many pictures.
        size: (height, width) in pixels.
        workers: processes that draw; the pictures do not depend on it.
        options: `heights` and `people`, passed on to `draw_scene`.

    Yields:
        Scene after scene.
    """
    work = partial(_draw, seed=seed, size=size, options=options)
    yield from work_through(work, range(count), workers, _CHUNK, "drawing", "picture")


def parameters(num_train: int, num_val: int, size: tuple[int, int], seed: int) -> dict[str, Any]:
    """Collects all that the pictures of a set depend on, as for `write_dataset`."""
    return {"version": VERSION, "num_train": num_train, "num_val": num_val, "size": list(size), "seed": seed}


def write_dataset(root: Path, num_train: int, num_val: int, size: tuple[int, int], seed: int, workers: int = 1) -> Path:
    """Draws the training and the validation set into a folder, unless it already holds them.

    The folder appears complete or not at all: it is drawn beside its place and then renamed. What is there is never replaced: somebody may be reading it.

    Args:
        root: the folder to make.
        num_train: pictures in ImageSets/train.txt.
        num_val: pictures in ImageSets/val.txt.
        size: (height, width) of every picture in pixels.
        seed: another seed gives other pictures.
        workers: processes that draw; the pictures do not depend on it.

    Returns:
        `root`.

    Raises:
        ValueError: a number or size cannot be drawn, or `root` holds something else than this very set, byte for byte.
    """
    counts = {"train": num_train, "val": num_val}
    if min(num_train, num_val) < 1 or min(size) < 16:
        raise ValueError(
            f"write_dataset: num_train and num_val must be at least 1 and size at least 16 x 16; got {num_train}, "
            f"{num_val} and {size[0]} x {size[1]}; correct the protocol"
        )
    drawn_from = parameters(num_train, num_val, size, seed)
    root = Path(root)
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        _require_set(root, drawn_from)
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        part.chmod(0o755)
        for folder in ("JPEGImages", "SegmentationPart", "ImageSets"):
            (part / folder).mkdir()
        for split, count in counts.items():
            names = [f"{split}_{index:05d}" for index in range(count)]
            save = partial(_save, root=part, split=split, size=size, seed=seed)
            for _ in work_through(save, range(count), workers, _CHUNK, f"drawing {split}", "picture"):
                pass
            (part / "ImageSets" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        classes = ", ".join(f"{index} {name}" for index, name in enumerate(class_names))
        (part / "README.txt").write_text(README.format(classes=classes, parameters=", ".join(drawn_from)))
        stamp = drawn_from | {_CONTENTS: _contents_sha256(part)}
        (part / _STAMP).write_text(json.dumps(stamp, indent=1, sort_keys=True) + "\n")
        try:
            os.rename(part, root)
        except OSError:  # Another process was quicker: its set stays.
            if not root.exists():
                raise
            _require_set(root, drawn_from)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return root


def _draw(index: int, seed: tuple[int, ...], size: tuple[int, int], options: dict) -> Scene:
    return draw_scene(np.random.Generator(np.random.PCG64([*seed, index])), size, **options)


def _save(index: int, root: Path, split: str, size: tuple[int, int], seed: int) -> None:
    scene = _draw(index, (seed, _SPLITS.index(split)), size, {})
    name = f"{split}_{index:05d}.png"
    Image.fromarray(scene.image).save(root / "JPEGImages" / name, compress_level=1)
    label = Image.fromarray(scene.label, mode="P")
    label.putpalette(voc_palette())
    label.save(root / "SegmentationPart" / name)


def _contents_sha256(root: Path) -> str:
    """Names what lies in a set's folder: SHA-256 over the name and the bytes of every file but the stamp."""
    digest = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file() and path.name != _STAMP):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\t{len(content)}\n".encode() + content)
    return digest.hexdigest()


def _require_set(root: Path, drawn_from: dict[str, Any]) -> None:
    """Raises ValueError unless the folder holds a set with these parameters, as it was drawn."""
    try:
        stamp = json.loads((root / _STAMP).read_text())
    except (OSError, ValueError):
        stamp = None
    if not isinstance(stamp, dict) or {key: stamp.get(key) for key in drawn_from} != drawn_from:
        raise ValueError(
            f"{root}: must be absent, empty or the synthetic set of these parameters; got other files; name another folder"
        )
    if stamp.get(_CONTENTS) != _contents_sha256(root):
        raise ValueError(
            f"{root}: must hold its pictures as they were drawn; got others; delete the folder, and they are drawn again"
        )

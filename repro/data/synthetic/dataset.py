"""A synthetic stand-in for PASCAL-Person-Part, drawn by the package itself and laid out on disk as the real set.

The numbers measured on it are not comparable with the paper's: it exists so that the whole protocol can run where the
photographs are not at hand.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from repro.data.palette import voc_palette
from repro.data.synthetic.people import CLASS_NAMES as class_names
from repro.data.synthetic.scene import Scene, draw_scene

__all__ = ["class_names", "draw_scenes", "write_dataset"]

# Goes up with every change of the drawing that changes a pixel: folders of another version are drawn anew.
VERSION = 1
_SPLITS = ("train", "val")
_STAMP = "complete.json"
_CHUNK = 16
T = TypeVar("T")

README = """Synthetic stand-in for PASCAL-Person-Part: drawn by a program, not photographed.
Not comparable with the paper's data.

JPEGImages/<id>.png        pictures (PNG, so that every machine decodes the same pixels; the folder keeps VOC's name)
SegmentationPart/<id>.png  labels, index PNG with VOC's palette: {classes};
                           255 (ignored) on a ring of one pixel around people
ImageSets/<split>.txt      ids
complete.json              what the set was drawn from: {parameters}
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
    yield from _run(partial(_draw, seed=seed, size=size, options=options), range(count), workers)


def write_dataset(root: Path, num_train: int, num_val: int, size: tuple[int, int], seed: int, workers: int = 1) -> Path:
    """Draws the training and the validation set into a folder, unless it already holds them.

    The folder appears complete or not at all: it is drawn beside its place and then renamed.

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
        ValueError: a number or size cannot be drawn, or `root` holds something else than a synthetic set.
    """
    counts = {"train": num_train, "val": num_val}
    if min(num_train, num_val) < 1 or min(size) < 16:
        raise ValueError(
            f"write_dataset: num_train and num_val must be at least 1 and size at least 16 x 16; got {num_train}, "
            f"{num_val} and {size[0]} x {size[1]}; correct the protocol"
        )
    parameters = {"version": VERSION, "num_train": num_train, "num_val": num_val, "size": list(size), "seed": seed}
    root = Path(root)
    if root.exists():
        if _stamp(root) == parameters:
            return root
        if not root.is_dir() or (any(root.iterdir()) and _stamp(root) is None):
            raise ValueError(f"{root}: must be absent, empty or a synthetic set; got other files; name another folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        part.chmod(0o755)
        for folder in ("JPEGImages", "SegmentationPart", "ImageSets"):
            (part / folder).mkdir()
        for split, count in counts.items():
            names = [f"{split}_{index:05d}" for index in range(count)]
            save = partial(_save, root=part, split=split, size=size, seed=seed)
            for _ in _run(save, range(count), workers, f"drawing {split}"):
                pass
            (part / "ImageSets" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        classes = ", ".join(f"{index} {name}" for index, name in enumerate(class_names))
        (part / "README.txt").write_text(README.format(classes=classes, parameters=", ".join(parameters)))
        (part / _STAMP).write_text(json.dumps(parameters, indent=1, sort_keys=True) + "\n")
        _move(part, root, parameters)
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


def _run(work: Callable[[int], T], indices: range, workers: int, what: str = "drawing") -> Iterator[T]:
    # A log gets a line every five seconds, a terminal a smooth bar.
    interval = 0.1 if sys.stderr.isatty() else 5.0
    progress = partial(tqdm, total=len(indices), desc=what, unit="picture", file=sys.stderr, mininterval=interval)
    workers = min(workers, 1 + len(indices) // _CHUNK)
    if workers <= 1:
        yield from progress(map(work, indices))
        return
    # Not forked: the caller may run torch's threads. Workers import only numpy and Pillow.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from progress(pool.map(work, indices, chunksize=_CHUNK))


def _stamp(root: Path) -> dict | None:
    try:
        return json.loads((root / _STAMP).read_text())
    except (OSError, ValueError):
        return None


def _move(part: Path, root: Path, parameters: dict) -> None:
    """Puts the finished folder in its place; where another process was quicker with the same set, that one stays."""
    old = part.with_name(part.name + ".old")
    if root.exists():
        os.rename(root, old)
    try:
        os.rename(part, root)
    except OSError:
        if _stamp(root) != parameters:
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)

"""How many batches a second the data stream makes at table 3's shapes, from pictures of VOC's size that are drawn here: with JPEG to decode, and nothing kept in memory."""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from repro.bench.cases import VOC_IMAGE
from repro.bench.evidence.training import row_settings
from repro.data.lists import Item
from repro.files import write_json
from repro.solver.train import training_stream

PICTURES, WARM_UP, TIMED = 120, 3, 10


def draw_pictures(folder: Path, count: int, size: tuple[int, int], classes: int) -> list[Item]:
    """Writes JPEG images and PNG labels: noise at every frequency, halved with each doubling, as photographs have it."""
    rng, (height, width) = np.random.default_rng(0), size
    items = []
    for n in range(count):
        image = np.full((height, width, 3), 128.0)
        for cells in (4, 16, 64, 256):
            noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)).resize((width, height))
            image += (np.asarray(noise, dtype=float) - 128) * 2 / cells**0.5
        label = rng.integers(0, classes, (height // 32 + 1, width // 32 + 1), dtype=np.uint8)
        label = label.repeat(32, 0).repeat(32, 1)[:height, :width]
        item = Item(f"{n}", folder / f"{n}.jpg", folder / f"{n}.png")
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(item.image, quality=95)
        Image.fromarray(label).save(item.label)
        items.append(item)
    return items


def measure(items: list[Item], settings: dict[str, Any], workers: int, batches: int) -> dict[str, Any]:
    """Times the batches of one stream after its first ones; with workers the median hides that they come in bursts, so the mean counts."""
    stream = training_stream(items, settings, seed=1, workers=workers, cache=False)
    batch = iter(stream)
    for _ in itertools.islice(batch, WARM_UP):
        pass
    seconds = []
    for _ in range(batches):
        started = time.perf_counter()
        next(batch)
        seconds.append(time.perf_counter() - started)
    mean = statistics.fmean(seconds)
    return {"workers": workers, "seconds": mean, "images_per_second": settings["solver"]["batch_size"] / mean}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", required=True)
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args()
    rehearsal = options.device == "cpu"
    settings = row_settings(rehearsal)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    numbers = sorted({0, 1} if rehearsal else {0, max(1, cores // 2), max(1, cores - 1)})
    found: dict[str, Any] = {"batch": settings["solver"]["batch_size"], "cores": cores, "streams": []}
    with tempfile.TemporaryDirectory() as folder:
        items = draw_pictures(
            Path(folder), 6 if rehearsal else PICTURES, VOC_IMAGE, len(settings["data"]["class_names"])
        )
        for workers in numbers:
            # Two batches wait ready for each worker: more are timed than were made ahead.
            batches = TIMED if workers == 0 else 2 * TIMED + 4 * workers
            found["streams"].append(measure(items, settings, workers, 2 if rehearsal else batches))
            write_json(options.result, found)
            print(found["streams"][-1], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

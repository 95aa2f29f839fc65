"""Times the test of VOC-sized images with and without the CRF behind the network: `python -m repro.bench.hidden_crf`.

The CRF runs in threads beside the network, which takes its next image meanwhile; hidden, it costs the test little. Both tests are the program's own, over the same drawn images and
random weights, and take turns. Beside their ratio stands the least that it can be: where the network keeps all cores busy, the CRF's own seconds of one core come on top.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from repro.bench.agreement import label_map, picture
from repro.bench.cases import CRF, VOC_IMAGE, Case
from repro.bench.options import row_parser
from repro.data.lists import Item
from repro.device import Compute, choose_device
from repro.evaluate.labels import evaluate
from repro.models import build
from repro.ops import dense_crf
from repro.protocol import load_protocol
from repro.shell import exit_code

WITHIN = 1.1  # of the test without the CRF


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns 0 where the CRF costs the test no more than WITHIN, 1 where it does, 2 on wrong input."""
    parser = row_parser("repro.bench.hidden_crf", __doc__, "attention3")
    parser.add_argument("--images", type=int, default=8, metavar="N", help="of each test (default 8)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="tests of each kind (default 3)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="threads of the CRF (default 2)")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _measure(options), options.traceback)


def _measure(options: argparse.Namespace) -> int:
    if min(options.images, options.repeats, options.workers, options.threads) < 1:
        raise ValueError(
            f"--images, --repeats, --workers, --threads: must be at least 1; got {options.images}, {options.repeats}, {options.workers}, {options.threads}; correct them"
        )
    torch.set_num_threads(options.threads)
    settings = load_protocol(options.table, options.set).row(options.row).settings
    settings = {section: keys for section, keys in settings.items() if section != "crf"}
    names = {"max_iter": "iterations"}
    with_crf = settings | {"crf": {key: CRF[names.get(key, key)] for key in ("max_iter", *list(CRF)[1:])}}
    classes = len(settings["data"]["class_names"])
    compute = Compute(choose_device(options.device, "fp32"), workers=options.workers)
    network = build(settings["model"], classes, seed=1).to(compute.device).eval()
    with tempfile.TemporaryDirectory() as folder:
        items = draw_items(Path(folder), options.images, classes)
        plain, both = take_turns(
            [lambda: evaluate(network, items, settings, compute), lambda: evaluate(network, items, with_crf, compute)],
            options.repeats,
        )
    alone = crf_seconds(classes)
    ratio, least = both / plain, 1 + alone * options.images / (plain * options.threads)
    bound = f"; the CRF alone takes {alone:.3f} s of one core, so that beside a network that fills {options.threads} it is at least {least:.3f}"
    print(
        f"{options.table}/{options.row}: {plain / options.images:.3f} s an image, with the CRF {both / options.images:.3f}; "
        f"ratio {ratio:.3f} (must be at most {WITHIN}){bound if compute.device.type == 'cpu' else ''}"
    )
    return int(ratio > WITHIN)


def draw_items(folder: Path, count: int, classes: int) -> list[Item]:
    """Draws images of VOC's commonest size, with labels, into a folder."""
    height, width = VOC_IMAGE
    case = Case("dense_crf", "drawn", (), 1, classes, (width,), width, height=height)
    items = []
    for n in range(count):
        random = torch.Generator().manual_seed(n)
        image, label = folder / f"{n}.png", folder / f"{n}-label.png"
        Image.fromarray(picture(case, random)[0].permute(1, 2, 0).numpy()).save(image)
        Image.fromarray(label_map(case, random)[0, :height].numpy()).save(label)
        items.append(Item(str(n), image, label))
    return items


def take_turns(tests: list[Callable[[], object]], repeats: int) -> list[float]:
    """Runs tests in turn, once unmeasured; returns the median of each, seconds."""
    seconds: list[list[float]] = [[] for _ in tests]
    for turn in range(1 + repeats):
        for test, own in zip(tests, seconds, strict=True):
            started = time.perf_counter()
            test()
            own += [time.perf_counter() - started] * (turn > 0)
    return [statistics.median(own) for own in seconds]


def crf_seconds(classes: int) -> float:
    """Times the CRF of one image on one core, seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        random = torch.Generator().manual_seed(0)
        height, width = VOC_IMAGE
        image = picture(Case("dense_crf", "drawn", (), 1, classes, (width,), width, height=height), random)
        log_prob = torch.log_softmax(torch.randn(1, classes, height, width, generator=random), dim=1)
        log_prob = log_prob.contiguous(memory_format=torch.channels_last)
        return take_turns([lambda: dense_crf(log_prob, image, **CRF)], 3)[0]
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(main())

"""Testing as Caffe tests: pad to the test crop, score, merge, enlarge by 8, cut to the image, CRF where there is one, argmax; one confusion matrix over the set."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from repro.data.lists import Item
from repro.data.pictures import open_picture
from repro.data.stream import read_test_item, test_side
from repro.device import Compute
from repro.distributed import share
from repro.evaluate.metrics import ConfusionMatrix
from repro.evaluate.postprocess import final_labels
from repro.evaluate.trimap import trimap_label
from repro.models import MultiScale, Output


class PaddedImage(NamedTuple):
    """An image of a test batch: its item, its (H, W) uint8 label or None, and its size (height, width) within the padded crop."""

    item: Item
    label: torch.Tensor | None
    size: tuple[int, int]


class Labelled(NamedTuple):
    """An image of the test with its labels.

    image: As it was read.
    labels: (H, W) uint8 or int16 classes on the device, after everything that the row does.
    before_crf: The same before the CRF; None where the row has none.
    """

    image: PaddedImage
    labels: torch.Tensor
    before_crf: torch.Tensor | None = None


class Counts(NamedTuple):
    """What a test counted.

    confusion: (C, C) int64: row = label, column = prediction.
    before_crf: The same before the CRF; None where the row has none.
    trimap: Both of the pixels near the boundaries alone; None where they were not asked for.
    """

    confusion: np.ndarray
    before_crf: np.ndarray | None = None
    trimap: Counts | None = None


def ahead(work: Callable, items: Iterable, workers: int) -> Iterator:
    """Maps `work` over items in order, `workers` threads at most 2 results each ahead; 0 works in this thread."""
    if workers == 0:
        yield from map(work, items)
        return
    items = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        pending: deque = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) >= 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def share_of_batches(items: Sequence[Item], settings: dict[str, dict], rank: int, world_size: int) -> Sequence[Item]:
    """Picks a process's share of a list, in whole batches: every image is scored among the same neighbours as by one process, and so to the same bits.

    Args:
        items: The list.
        settings: The row's, as of `padded_batches`.
        rank, world_size: The process, and how many there are.

    Raises:
        ValueError, FileNotFoundError: An image cannot be opened.
    """
    if world_size == 1:
        return items
    test = settings["test"]

    def side(item: Item) -> int:
        with open_picture(item.image) as picture:
            return test_side((picture.height, picture.width), test["crop_size"])

    starts: list[int] = []
    end = 0
    for _, group in itertools.groupby(items, key=side):
        begin, end = end, end + len(list(group))
        starts += range(begin, end, test["batch_size"])
    own = share(len(starts), rank, world_size)
    starts.append(end)
    return items[starts[own.start] : starts[own.stop]]


def padded_batches(
    items: Iterable[Item], settings: dict[str, dict], compute: Compute
) -> Iterator[tuple[list[PaddedImage], torch.Tensor]]:
    """Reads images as the test of a row does, neighbours in the list whose padded sizes are equal together.

    Args:
        items: With labels or without.
        settings: The row's: transform.mean_bgr, test.crop_size (which grows for a larger image) and test.batch_size.
        compute: Where to; its workers are threads that read ahead.

    Yields:
        The images of a batch, and (N, 3, P, P) BGR minus the mean on the device, P of the form 8k+1.

    Raises:
        ValueError, FileNotFoundError: A file is unusable; the message names it.
    """
    mean, test = tuple(settings["transform"]["mean_bgr"]), settings["test"]
    read = ahead(lambda item: (item, *read_test_item(item, mean, test["crop_size"])), items, compute.workers)
    for _, group in itertools.groupby(read, key=lambda entry: entry[1].shape):
        while batch := list(itertools.islice(group, test["batch_size"])):
            images = [PaddedImage(item, label, size) for item, _, label, size in batch]
            yield images, compute.send(torch.cat([data for _, data, _, _ in batch]))


def label_maps(
    network: MultiScale, items: Iterable[Item], settings: dict[str, dict], compute: Compute
) -> Iterator[list[Labelled]]:
    """Labels the pixels of every image of a list, in its order.

    Args:
        network: On the device; put into evaluation mode.
        items: With labels or without.
        settings: The row's, as of `padded_batches`; with a section `crf` its labels go through the CRF.
        compute: Where and how. Its workers are threads that read ahead, and as many that run the CRF beside the network, each at most two batches behind it;
            their number changes no label.

    Yields:
        The images of one batch.

    Raises:
        ValueError, FileNotFoundError: A file is unusable; the message names it.
    """
    network.eval()
    crf = settings.get("crf")

    def outputs() -> Iterator[tuple[list[PaddedImage], torch.Tensor, Output]]:
        for images, data in padded_batches(items, settings, compute):
            with torch.no_grad(), compute.autocast():
                output = network(data)
            yield images, data, output

    def finish(batch: tuple[list[PaddedImage], torch.Tensor, Output]) -> list[Labelled]:
        images, data, output = batch
        found = final_labels(output, data, [image.size for image in images], crf)
        return [Labelled(image, *labels) for image, labels in zip(images, found, strict=True)]

    yield from ahead(finish, outputs(), compute.workers if crf else 0)


def evaluate(
    network: MultiScale,
    items: Iterable[Item],
    settings: dict[str, dict],
    compute: Compute,
    progress: Callable[[int], None] = lambda images: None,
    trimap: float | None = None,
) -> Counts:
    """Scores a list of images, before and after the CRF where the row has one, in one pass of the network.

    Args:
        network: As for `label_maps`.
        items: With labels.
        settings: The row's; data.class_names and data.ignore_label too.
        compute: Where and how.
        progress: Called with the number of images just finished; what it raises ends the evaluation.
        trimap: Width of the band around the boundaries whose pixels are counted for themselves too, as of `trimap_band`; None for none.

    Raises:
        ValueError, FileNotFoundError: A file is unusable; the message names it.
    """
    classes, ignore = len(settings["data"]["class_names"]), settings["data"]["ignore_label"]
    # After the CRF and before it, of all pixels and of those in the band.
    counted = [[ConfusionMatrix(classes, ignore) for _ in range(2)] for _ in range(1 if trimap is None else 2)]
    for batch in label_maps(network, items, settings, compute):
        for image, *maps in batch:
            labels = [image.label]
            if trimap is not None:
                labels.append(torch.from_numpy(trimap_label(image.label.numpy(), trimap, ignore)))
            for label, matrices in zip(labels, counted, strict=True):
                for prediction, matrix in zip(maps, matrices, strict=True):
                    if prediction is not None:
                        matrix.add(prediction, label.to(prediction.device))
        progress(len(batch))
    found = [Counts(after.result(), before.result() if "crf" in settings else None) for after, before in counted]
    return found[0]._replace(trimap=found[1] if len(found) > 1 else None)

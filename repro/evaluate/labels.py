"""Testing as Caffe tests: pad to the test crop, score, merge, enlarge by 8, cut to the image, argmax; one confusion matrix over the set."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from repro import ops
from repro.data.lists import Item
from repro.data.stream import read_test_item
from repro.device import Compute
from repro.evaluate.metrics import ConfusionMatrix
from repro.models import MultiScale, Output, enlarged_scores


class PaddedImage(NamedTuple):
    """An image of a test batch: its item, its (H, W) uint8 label or None, and its size (height, width) within the padded crop."""

    item: Item
    label: torch.Tensor | None
    size: tuple[int, int]


def _read_ahead(read: Callable, items: Iterable, workers: int) -> Iterator:
    """Maps `read` over items in order, `workers` threads at most 2 results each ahead; 0 reads in this thread."""
    if workers == 0:
        yield from map(read, items)
        return
    items = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        pending = deque(pool.submit(read, item) for item in itertools.islice(items, 2 * workers))
        try:
            while pending:
                yield pending.popleft().result()
                pending.extend(pool.submit(read, item) for item in itertools.islice(items, 1))
        finally:
            for future in pending:
                future.cancel()


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
    read = _read_ahead(lambda item: (item, *read_test_item(item, mean, test["crop_size"])), items, compute.workers)
    for _, group in itertools.groupby(read, key=lambda entry: entry[1].shape):
        while batch := list(itertools.islice(group, test["batch_size"])):
            images = [PaddedImage(item, label, size) for item, _, label, size in batch]
            yield images, torch.cat([data for _, data, _, _ in batch]).to(compute.device)


@torch.no_grad()
def labels_of(output: Output, size: Sequence[int], sizes: Sequence[Sequence[int]]) -> torch.Tensor:
    """Labels every pixel of a padded batch; without a domain transform neither the merged nor the enlarged scores of all scales are ever kept.

    Args:
        output: Of the network.
        size: (P, P) of the padded batch, pixels, of the form 8k+1.
        sizes: (height, width) of each image within it.

    Returns:
        (N, P, P) uint8 classes (int16 beyond 256), the first of equal scores winning.

    Caffe: fc8_fusion, Interp with zoom_factor 8, DomainTransform where the network has one, argmax.
    """
    if output.edge is None:
        return ops.predict(output.scores, output.logits, output.mode, size=size)[0]
    valid_size = torch.tensor([list(one) for one in sizes], dtype=torch.int64, device=output.edge.device)
    return ops.predict([enlarged_scores(output, size, valid_size)], None, "average", size=size)[0]


def label_maps(
    network: MultiScale, items: Sequence[Item], settings: dict[str, dict], compute: Compute
) -> Iterator[list[tuple[PaddedImage, torch.Tensor]]]:
    """Labels the pixels of every image of a list.

    Args:
        network: On the device; put into evaluation mode.
        items: With labels or without.
        settings: The row's, as of `padded_batches`.
        compute: Where and how.

    Yields:
        Of one batch, every image and its (H, W) uint8 or int16 classes on the device.

    Raises:
        ValueError, FileNotFoundError: A file is unusable; the message names it.
    """
    network.eval()
    for images, data in padded_batches(items, settings, compute):
        with torch.no_grad(), compute.autocast():
            output = network(data)
        predictions = labels_of(output, data.shape[2:], [image.size for image in images])
        yield [(image, p[: image.size[0], : image.size[1]]) for image, p in zip(images, predictions, strict=True)]


def evaluate(
    network: MultiScale,
    items: Sequence[Item],
    settings: dict[str, dict],
    compute: Compute,
    progress: Callable[[int], None] = lambda images: None,
) -> np.ndarray:
    """Scores a list of images.

    Args:
        network: As for `label_maps`.
        items: With labels.
        settings: The row's; data.class_names and data.ignore_label too.
        compute: Where and how.
        progress: Called with the number of images just finished; what it raises ends the evaluation.

    Returns:
        (C, C) int64 confusion matrix: row = label, column = prediction.

    Raises:
        ValueError, FileNotFoundError: A file is unusable; the message names it.
    """
    counts = ConfusionMatrix(len(settings["data"]["class_names"]), settings["data"]["ignore_label"])
    for batch in label_maps(network, items, settings, compute):
        for image, prediction in batch:
            counts.add(prediction, image.label.to(prediction.device))
        progress(len(batch))
    return counts.result()

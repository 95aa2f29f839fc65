"""Testing as Caffe tests: pad to the test crop, score, enlarge by 8, cut to the image, argmax; one confusion matrix over the set."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from repro import ops
from repro.data.lists import Item
from repro.data.stream import read_test_item
from repro.evaluate.metrics import confusion_matrix
from repro.models import MultiScale


@torch.no_grad()
def predict(network: MultiScale, data: torch.Tensor) -> torch.Tensor:
    """Labels every pixel of a padded batch.

    Args:
        network: In evaluation mode.
        data: (N, 3, P, P) BGR minus the mean, P of the form 8k+1.

    Returns:
        (N, P, P) uint8 classes (int16 beyond 256), the first of equal scores winning.

    Caffe: fc8_fusion, Interp with zoom_factor 8, argmax.
    """
    merged = network(data).merged
    return ops.predict([merged], mode="average", size=data.shape[2:])[0]  # the average of one map is that map


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


def label_maps(
    network: MultiScale,
    items: Sequence[Item],
    *,
    mean_bgr: Sequence[float],
    crop_size: int,
    batch_size: int,
    device: torch.device,
    autocast: torch.dtype | None = None,
    workers: int = 0,
) -> Iterator[list[tuple[Item, torch.Tensor, torch.Tensor | None]]]:
    """Labels the pixels of every image of a list.

    Args:
        network: On `device`; put into evaluation mode.
        items: With labels or without.
        mean_bgr: Subtracted from each channel, grey levels.
        crop_size: Test crop, pixels; grows for a larger image.
        batch_size: Neighbours in the list whose padded sizes are equal are scored together.
        device: Where the network is.
        autocast: bfloat16, or None for float32.
        workers: Threads that read ahead.

    Yields:
        Of one batch, for every image: the item, its (H, W) uint8 or int16 classes on `device`, and its (H, W) uint8 label or None.

    Raises:
        ValueError, FileNotFoundError: A file is unusable; the message names it.
    """
    network.eval()
    read = _read_ahead(lambda item: (item, *read_test_item(item, tuple(mean_bgr), crop_size)), items, workers)
    for _, group in itertools.groupby(read, key=lambda entry: entry[1].shape):
        while batch := list(itertools.islice(group, batch_size)):
            data = torch.cat([data for _, data, _, _ in batch]).to(device)
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                predictions = predict(network, data)
            yield [
                (item, prediction[:height, :width], label)
                for prediction, (item, _, label, (height, width)) in zip(predictions, batch, strict=True)
            ]


def evaluate(
    network: MultiScale,
    items: Sequence[Item],
    *,
    num_classes: int,
    ignore_label: int,
    progress: Callable[[int], None] = lambda images: None,
    **how: Any,
) -> np.ndarray:
    """Scores a list of images.

    Args:
        network: As for `label_maps`.
        items: With labels.
        num_classes: Background included.
        ignore_label: The label that counts for nothing.
        progress: Called with the number of images just finished; what it raises ends the evaluation.
        how: The rest of what `label_maps` takes.

    Returns:
        (num_classes, num_classes) int64 confusion matrix: row = label, column = prediction.

    Raises:
        ValueError, FileNotFoundError: A file is unusable; the message names it.
    """
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    for batch in label_maps(network, items, **how):
        for _, prediction, label in batch:
            counts += confusion_matrix(prediction, label.to(prediction.device), num_classes, ignore_label).cpu()
        progress(len(batch))
    return counts.numpy()

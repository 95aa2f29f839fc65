"""Caffe's ImageSegData layer as an endless iterable of training batches, and the reading of single images at test."""

import os
import pickle
import signal
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from repro.data.caffe_rng import CaffeRNG, shuffle
from repro.data.lists import Item, read_item
from repro.data.transforms import TransformationParameter, transform
from repro.distributed import share
from repro.shell import log, one_line

CACHE_BYTES = 256 * 2**20
SHARED_MEMORY = Path("/dev/shm")
_PREFETCH = 2  # batches that each worker makes ahead
_QUEUE_BYTES = 2**20  # what the workers' queues and locks take of the shared memory, with room to spare
OUTPUT_STRIDE = 8  # Paper: section 2, a side of 8k + 1 pixels gives k + 1 scores.


class BatchPlan(NamedTuple):
    """What one batch is made of: indices into the items, (N,), and the raw draws of each, (N, draws per item) uint32."""

    indices: list[int]
    draws: np.ndarray


def plan_batches(
    num_items: int,
    batch_size: int,
    draws_per_item: int,
    shuffle_rng: CaffeRNG | None,
    transform_rng: CaffeRNG,
    start_batch: int,
    start_item: int = 0,
) -> Iterator[BatchPlan]:
    """Plans batch after batch, for ever; passing over the first ones costs only their random draws.

    Args:
        num_items: length of the list.
        batch_size: items in a batch; a batch runs on into the next pass over the list.
        draws_per_item: raw draws that one item's transform takes.
        shuffle_rng: shuffles the list at once, and its present order again after every pass; None: the list's order.
        transform_rng: gives the draws of the items, one after the other.
        start_batch: the number of batches passed over.
        start_item: where the first pass over the list starts, as by Caffe's rand_skip.

    Yields:
        BatchPlan number start_batch, start_batch + 1, ...

    Caffe: `ImageSegDataLayer::load_batch` (src/caffe/layers/image_seg_data_layer.cpp).
    """

    def next_order(order: list[int]) -> list[int]:
        return order if shuffle_rng is None else shuffle(order, shuffle_rng)

    passes, position = divmod(start_item + start_batch * batch_size, num_items)
    order = next_order(list(range(num_items)))
    for _ in range(passes if shuffle_rng is not None else 0):
        order = next_order(order)
    transform_rng.skip(start_batch * batch_size * draws_per_item)
    while True:
        indices: list[int] = []
        while len(indices) < batch_size:
            if position == num_items:
                order, position = next_order(order), 0
            taken = order[position : position + batch_size - len(indices)]
            indices += taken
            position += len(taken)
        yield BatchPlan(indices, transform_rng.draw(batch_size * draws_per_item).reshape(batch_size, draws_per_item))


class Batch(NamedTuple):
    """Training images.

    data: (N, 3, crop_size, crop_size) float32 in channels-last memory, BGR minus the mean, padding 0.
    label: (N, crop_size, crop_size) uint8, padding ignore_label.
    dim: (N, 2) int64 height and width of each image within its crop, before any scaling. Caffe: neither the mirroring of a padded crop nor the scale factor moves it.
    """

    data: torch.Tensor
    label: torch.Tensor
    dim: torch.Tensor


class _BatchMaker:
    """Makes planned batches; the dataset of DataLoader's workers, which index it with plans.

    Decoded items are kept, first come first kept, until cache_bytes are used.
    """

    def __init__(self, items: Sequence[Item], params: TransformationParameter, cache_bytes: int) -> None:
        self._items = items
        self._params = params
        self._cache_bytes = cache_bytes
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if index in self._cache:
            return self._cache[index]
        pair = read_item(self._items[index])
        num_bytes = pair[0].nbytes + pair[1].nbytes
        if num_bytes <= self._cache_bytes:
            self._cache[index] = pair
            self._cache_bytes -= num_bytes
        return pair

    def make(self, plan: BatchPlan) -> Batch:
        crop = self._params.crop_size
        data = np.empty((len(plan.indices), crop, crop, 3), np.float32)
        label = np.empty((len(plan.indices), crop, crop), np.uint8)
        dim = np.empty((len(plan.indices), 2), np.int64)
        for n, (index, draws) in enumerate(zip(plan.indices, plan.draws.tolist(), strict=True)):
            pair = self._read(index)
            item_data, label[n] = transform(*pair, self._params, draws, "TRAIN")
            data[n] = item_data.transpose(1, 2, 0)
            dim[n] = np.minimum(pair[0].shape[:2], crop)
        return Batch(torch.from_numpy(data).permute(0, 3, 1, 2), torch.from_numpy(label), torch.from_numpy(dim))

    def __getitem__(self, plan: BatchPlan) -> bytes | Exception:
        """Makes a batch and moves it to shared memory here, where a failure can be told: in the thread behind a queue it would be lost, and waited for."""
        # DataLoader would wrap an exception's message into a traceback, so it is handed over as a value.
        try:
            batch = self.make(plan)
        except (FileNotFoundError, ValueError) as error:
            return error
        try:
            return bytes(ForkingPickler.dumps(batch))
        except (RuntimeError, OSError) as error:
            return _lost(error)


def _lost(error: Exception) -> RuntimeError:
    return RuntimeError(
        f"ImageSegData: data workers must stay alive and hand their batches over; got {one_line(error)}; use fewer workers or give more (shared) memory"
    )


def workers_that_fit(workers: int, batch_bytes: int) -> int:
    """Looks at the shared memory, through which workers hand their batches over.

    Args:
        workers: how many are wanted.
        batch_bytes: size of a batch.

    Returns:
        How many find room for the batches that they make ahead, beside the one in use; a line is logged where they are fewer.
    """
    if workers == 0 or not SHARED_MEMORY.is_dir():
        return workers
    state = os.statvfs(SHARED_MEMORY)
    free = state.f_bavail * state.f_frsize
    fit = min(workers, max(0, ((free - _QUEUE_BYTES) // batch_bytes - 1) // _PREFETCH))
    if fit < workers:
        needed = (1 + _PREFETCH * workers) * batch_bytes + _QUEUE_BYTES
        log(
            f"ImageSegData: {workers} data workers need {needed / 2**20:.0f} MiB of shared memory; got {free / 2**20:.0f} MiB in {SHARED_MEMORY}; "
            f"{fit or 'none'} work ahead (docker: --shm-size)"
        )
    return fit


def _outlive_one_sigterm(worker: int) -> None:
    """Lets a worker pass over the SIGTERM that stops its whole process group: the training process saves, and ends its workers itself.

    A second one ends the worker: DataLoader sends as many as it needs to one that hangs.
    """

    def ignore_once(signum: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, ignore_once)


def _as_it_is(batch: bytes | Exception) -> bytes | Exception:
    return batch


class ImageSegData:
    """Caffe's ImageSegData layer in TRAIN phase: an endless iterable of batches (data, label, dim), see Batch.

    A batch holds this rank's share of batch_size images, shares differing by one at most. All random draws are made here, so the batches depend on neither `workers` nor the
    machine. Every `iter()` starts again at start_batch; what it started ends with the iterator.

    Args:
        items: the list; every item needs a label.
        batch_size: items in a batch of all ranks together.
        crop_size: side of the crop, pixels.
        mean_bgr: value subtracted from each channel, blue first, grey levels.
        mirror: whether items are mirrored with a chance of one half.
        scale_factors: factors of which one is drawn per item; empty: none.
        shuffle: whether the list is shuffled before every pass.
        ignore_label: label of the padding, 0 .. 255.
        seed: Caffe's random_seed, 0 .. 2**32 - 1.
        start_batch: number of batches to pass over, as those that an interrupted run has used.
        workers: processes that decode ahead; 0 decodes in this process; never more than the CPUs this process may use.
        cache: whether decoded items are kept, CACHE_BYTES of them at most over all workers.
        rank: which share of every batch is made here.
        world_size: number of shares, at most batch_size.

    Attributes:
        global_rng: Caffe's global generator as this layer's set-up leaves it; Dropout draws from it.

    Raises:
        ValueError: an argument is outside its range, an item has no label, or (while iterating) a file is unusable.
        FileNotFoundError: (while iterating) a file is missing.
        RuntimeError: (while iterating) a worker process died.

    Caffe: ImageSegDataLayer (src/caffe/layers/image_seg_data_layer.cpp), BaseDataLayer::LayerSetUp and
        BasePrefetchingDataLayer::LayerSetUp (src/caffe/layers/base_data_layer.cpp) for the order of the seeds.
    Deviates: DataLoader's processes read ahead instead of one thread.
    """

    def __init__(
        self,
        items: Sequence[Item],
        *,
        batch_size: int,
        crop_size: int,
        mean_bgr: tuple[float, float, float],
        mirror: bool,
        scale_factors: Sequence[float],
        shuffle: bool,
        ignore_label: int,
        seed: int,
        start_batch: int = 0,
        workers: int = 0,
        cache: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not items:
            raise ValueError("ImageSegData: items must not be empty; got none; give a list that names images")
        unlabelled = [item.name for item in items if item.label is None]
        if unlabelled:
            raise ValueError(
                f"ImageSegData: training items must have labels; got {len(unlabelled)} without, the first {unlabelled[0]}; train on a list with labels"
            )
        if batch_size < 1 or start_batch < 0 or workers < 0:
            raise ValueError(
                f"ImageSegData: batch_size must be at least 1, start_batch and workers at least 0; got {batch_size}, {start_batch}, {workers}; correct them"
            )
        if not 0 <= rank < world_size or world_size > batch_size:
            raise ValueError(
                f"ImageSegData: world_size must be at most batch_size {batch_size} and above rank; got world_size {world_size}, "
                f"rank {rank}; change batch_size or the number of processes"
            )
        self._items = items
        self._params = TransformationParameter(crop_size, tuple(mean_bgr), mirror, tuple(scale_factors), ignore_label)
        self._batch_size = batch_size
        self._start_batch = start_batch
        affinity = getattr(os, "sched_getaffinity", None)
        self._workers = min(workers, len(affinity(0)) if affinity else os.cpu_count() or 1)
        self._cache = cache
        self._slice = share(batch_size, rank, world_size)
        self.global_rng = CaffeRNG(seed)
        self.global_rng.skip(1)  # Caffe: a first seed for the transformer, which a second one replaces.
        self._shuffle_seed = int(self.global_rng.draw(1)[0]) if shuffle else None
        self._transform_seed = int(self.global_rng.draw(1)[0])
        self.global_rng.skip(1)  # Caffe: the seed of the prefetch thread's own global generator.

    def _plans(self) -> Iterator[BatchPlan]:
        plans = plan_batches(
            len(self._items),
            self._batch_size,
            self._params.draws_per_item("TRAIN"),
            None if self._shuffle_seed is None else CaffeRNG(self._shuffle_seed),
            CaffeRNG(self._transform_seed),
            self._start_batch,
        )
        return (BatchPlan(indices[self._slice], draws[self._slice]) for indices, draws in plans)

    def __iter__(self) -> Iterator[Batch]:
        crop, images = self._params.crop_size, self._slice.stop - self._slice.start
        # 4 bytes for each of the data's three channels, 1 for the label; 16 for the image's size.
        workers = workers_that_fit(self._workers, images * (crop * crop * 13 + 16))
        cache_bytes = CACHE_BYTES // max(workers, 1) if self._cache else 0
        maker = _BatchMaker(self._items, self._params, cache_bytes)
        return self._iterate_in_workers(maker, workers) if workers else map(maker.make, self._plans())

    def _iterate_in_workers(self, maker: _BatchMaker, workers: int) -> Iterator[Batch]:
        on_child = signal.getsignal(signal.SIGCHLD)
        try:
            # An "index" is a whole plan, so each worker makes whole batches. Its own generator keeps DataLoader off torch's global one, which
            # would make the net's random numbers depend on the number of workers.
            batches = iter(
                DataLoader(
                    maker,
                    batch_size=None,
                    sampler=self._plans(),
                    num_workers=workers,
                    prefetch_factor=_PREFETCH,
                    collate_fn=_as_it_is,
                    worker_init_fn=_outlive_one_sigterm,
                    generator=torch.Generator(),
                    # A fork of this process ends soon after it, however it ends: its watchdog looks at its parent, which a server's child is not of.
                    multiprocessing_context="fork" if sys.platform == "linux" else None,
                )
            )
        except OSError as error:
            raise _lost(error) from error
        # DataLoader's handler would tell of a dead worker wherever training just is, and without advice; `next` below tells it too.
        if signal.getsignal(signal.SIGCHLD) is not on_child:
            signal.signal(signal.SIGCHLD, on_child)
        try:
            while True:
                try:
                    batch = next(batches)
                    if isinstance(batch, bytes):
                        batch = pickle.loads(batch)
                except (RuntimeError, OSError, EOFError) as error:
                    # Raised below without its cause, whose traceback would keep the loader and its other workers alive.
                    batch = _lost(error)
                if isinstance(batch, Exception):
                    raise batch
                yield batch
        finally:
            del batches  # Ends the workers, also where somebody keeps an exception and with it this frame.


def test_side(size: tuple[int, int], crop: int) -> int:
    """Computes the side of the square to which an image is padded for the test: max(crop, the smallest 8k + 1 that holds it), pixels.

    Args:
        size: the image's (height, width).
        crop: smallest side of the square.
    """
    return max(crop, -(-(max(size) - 1) // OUTPUT_STRIDE) * OUTPUT_STRIDE + 1)


def read_test_item(
    item: Item, mean_bgr: tuple[float, float, float], crop: int
) -> tuple[torch.Tensor, torch.Tensor | None, tuple[int, int]]:
    """Reads an image for the test: mean subtracted, padded at the bottom and right to a square.

    Args:
        item: the item; its label may be missing.
        mean_bgr: value subtracted from each channel, blue first, grey levels.
        crop: smallest side of the square, pixels.

    Returns:
        data (1, 3, P, P) float32 in channels-last memory, padding 0, with P from `test_side`; label
        (H, W) uint8 or None; the image's size (H, W).

    Raises:
        FileNotFoundError, ValueError: as `read_item`.

    Caffe: ImageSegDataLayer in TEST phase pads in the same way.
    Deviates: Caffe cuts out the centre of an image larger than the crop; here the crop grows, so that every pixel is scored.
    """
    image, label = read_item(item)
    height, width = image.shape[:2]
    side = test_side((height, width), crop)
    data = np.zeros((1, side, side, 3), np.float32)
    np.subtract(image, np.asarray(mean_bgr, np.float32), out=data[0, :height, :width])
    label_tensor = None if label is None else torch.from_numpy(label.copy())
    return torch.from_numpy(data).permute(0, 3, 1, 2), label_tensor, (height, width)

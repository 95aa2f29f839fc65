"""Layers that make their tops themselves: those that read pictures, ImageSegData of the DeepLab forks and ImageData, and the table of all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from caffe_weights.files.solverstate import read_binaryproto
from repro.caffe.layers.arrays import DummyData, HDF5Data, MemoryData
from repro.caffe.layers.base import DataLayer, Shape
from repro.data.caffe_rng import CaffeRNG
from repro.data.lists import missing_advice, read_lines
from repro.data.pictures import MAX_PIXELS, size_error
from repro.data.stream import BatchPlan, plan_batches
from repro.data.transforms import (
    TransformationParameter,
    place,
    read_image_bgr,
    read_image_grey,
    read_label,
    resize_image,
    transform,
)

READERS = 4  # threads that decode pictures


class Entry(NamedTuple):
    """A line of a list: its picture, and its second column, "" where there is none."""

    image: Path
    second: str


class PictureLayer(DataLayer):
    """What both layers share: the list, Caffe's order of random draws, and threads that make the next batch while the net uses the last.

    Attributes:
        position: Batches that were handed out.

    Caffe: src/caffe/layers/base_data_layer.cpp (BaseDataLayer and BasePrefetchingDataLayer::LayerSetUp), image_seg_data_layer.cpp and image_data_layer.cpp.
    Deviates: batches are made one ahead, not three; the images of a list are looked for when the net is built, not when their turn comes.
    """

    def setup(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        images, changes = self.param.image_data_param, self.param.transform_param
        self._check(images, changes)
        self.source = self.context.root / images.source
        self._entries = [self._entry(number, line) for number, line in read_lines(self.source)]
        self.batch_size = images.batch_size
        self._params = self._transformation(changes)
        rng = self.context.rng
        random = changes.mirror or (self.context.phase == "TRAIN" and changes.crop_size > 0)
        if not random and self._params.draws_per_item(self.context.phase):
            raise self.fail(
                "a random crop or scale must come with mirror or, for training, crop_size, which alone make Caffe seed its generator",
                "neither",
            )
        if random:
            rng.skip(1)  # Caffe: a first seed for the transformer, which a second one replaces.
        self._shuffle_seed = int(rng.draw(1)[0]) if images.shuffle else None
        self._start = int(rng.draw(1)[0]) % images.rand_skip if images.rand_skip else 0
        if self._start >= len(self._entries):
            raise self.fail(
                f"rand_skip must leave one of the {len(self._entries)} images of {self.source}", self._start
            )
        self._transform_seed = int(rng.draw(1)[0]) if random else 0
        rng.skip(1)  # Caffe: the seed of the prefetch thread's own global generator.
        self._threads = ThreadPoolExecutor(min(READERS, os.cpu_count() or 1), f"{self.name}-prefetch")
        self.seek(0)
        return self._shapes()

    def seek(self, position: int) -> None:
        """Lets the next batch be number `position`, counted from 0."""
        self.position = position
        self._plans = self._planned(position)
        self._ahead: list[Future] = []

    def next(self) -> tuple[torch.Tensor, ...]:
        ahead = self._ahead or self._submit()
        items = [one.result() for one in ahead]
        self._ahead = self._submit()
        self.position += 1
        return self._stacked(items)[: self.tops]

    def _submit(self) -> list[Future]:
        plan = next(self._plans)
        return [
            self._threads.submit(self._item, self._entries[index], draws)
            for index, draws in zip(plan.indices, plan.draws.tolist(), strict=True)
        ]

    def _planned(self, position: int) -> Iterator[BatchPlan]:
        return plan_batches(
            len(self._entries),
            self.batch_size,
            self._params.draws_per_item(self.context.phase),
            None if self._shuffle_seed is None else CaffeRNG(self._shuffle_seed),
            CaffeRNG(self._transform_seed),
            position,
            self._start,
        )

    def _check(self, images, changes) -> None:
        if images.batch_size < 1:
            raise self.fail("batch_size must be at least 1", images.batch_size)
        if (images.new_height > 0) != (images.new_width > 0):
            raise self.fail(
                "new_height and new_width must be given together", f"{images.new_height} and {images.new_width}"
            )
        if images.new_height * images.new_width > MAX_PIXELS:
            raise self.fail(
                f"new_height * new_width must be at most {MAX_PIXELS}", images.new_height * images.new_width
            )
        if images.max_labels != 1:
            raise self.fail("max_labels of DeepLab v1's ImageData must be left out", images.max_labels)
        if not images.source:
            raise self.fail("image_data_param must name its list in source", "none")
        if ignored := images.set & {"scale", "mean_file", "crop_size", "mirror"}:
            words = ", ".join(sorted(ignored))
            self.context.log(
                f"{self.name}: {words} of image_data_param have no effect, as in Caffe; use transform_param"
            )

    def _transformation(self, changes) -> TransformationParameter:
        means = tuple(changes.mean_value)
        channels = 3 if self.param.image_data_param.is_color else 1
        if len(means) not in (0, 1, channels):
            raise self.fail(f"mean_value must be given once or {channels} times", f"{len(means)} values")
        means = means * channels if len(means) == 1 else means or (0.0,) * channels
        crop = self._crop(changes)
        factors = tuple(changes.scale_factors) if self.type == "ImageSegData" else ()
        ignore = self.param.image_data_param.ignore_label
        try:
            return TransformationParameter(crop, means, changes.mirror, factors, ignore, changes.scale)
        except ValueError as error:
            raise self.fail("transform_param must be usable", str(error)) from error

    def _crop(self, changes) -> tuple[int, int]:
        """Returns the crop's height and width, (0, 0) for none."""
        return changes.crop_size, changes.crop_size

    def _entry(self, number: int, line: str) -> Entry:
        """Finds a line's picture.

        Caffe puts the root folder before the name as it is; here the name must not lead out of that folder.
        """
        columns = line.split()
        image = self._path(columns[0], number)
        return Entry(image, columns[1] if len(columns) > 1 else "")

    def _path(self, name: str, number: int) -> Path:
        folder = self.param.image_data_param.root_folder
        root = self.context.root
        path = Path(os.path.normpath(root / (folder + name)))
        if folder and not path.is_relative_to(os.path.normpath(root / folder)):
            raise ValueError(
                f"{self.source}:{number}: a picture must lie in the root_folder {folder}; got {name[:80]!r}; correct the line"
            )
        if not path.exists():
            raise FileNotFoundError(
                f"{self.source}:{number}: {path} must exist; got no such file; {missing_advice(root / folder, path)}"
            )
        return path

    def _read(self, path: Path) -> np.ndarray:
        """Reads a picture, (H, W, 3) BGR or (H, W, 1), resized to new_height and new_width where these are given.

        Caffe: src/caffe/util/io.cpp, ReadImageToCVMat.
        """
        images = self.param.image_data_param
        image = read_image_bgr(path) if images.is_color else read_image_grey(path)[..., None]
        return self._resized(image)

    def _resized(self, image: np.ndarray) -> np.ndarray:
        size = self.param.image_data_param.new_height, self.param.image_data_param.new_width
        return resize_image(image, size) if any(size) and image.shape[:2] != size else image

    @property
    def _dtype(self) -> type[np.floating]:
        return np.float64 if self.context.dtype == torch.float64 else np.float32

    def _shapes(self) -> list[Shape]:
        """Returns the tops' shapes; the first picture that will be used gives channels, and the size where there is no crop."""
        raise NotImplementedError

    def _first(self) -> np.ndarray:
        return self._read(self._entries[next(self._planned(0)).indices[0]].image)

    def _item(self, entry: Entry, draws: Sequence[int]) -> tuple:
        """Makes one item's share of every top."""
        raise NotImplementedError

    def _stacked(self, items: Sequence[tuple]) -> tuple[torch.Tensor, ...]:
        """Makes a batch of its items."""
        raise NotImplementedError


class ImageSegData(PictureLayer):
    """Tops: data (N, C, H, W), label (N, 1, H, W), and dim (N, 1, 1, 2): each image's height and width, at most the crop's.

    A scale factor is drawn per item; smaller images are padded at the bottom and right, with the mean and with ignore_label. label_type: PIXEL reads an index
    image, IMAGE fills with the second column's number, NONE with ignore_label. DeepLab's files of 2014 are older than label_type: has_label: false is NONE, and
    without both a second column that is no number is PIXEL.

    Caffe: src/caffe/layers/image_seg_data_layer.cpp; DataTransformer::TransformImgAndSeg (src/caffe/data_transformer.cpp).
    Deviates: without label_type the later Caffe takes a label's file name for the number 0. Labels with a palette are read as indices
        (repro/data/transforms.py, read_label). Padding without mean_value, and without a crop an image of another size than the first, are refused: Caffe
        reads beyond its memory there.
    """

    MIN_TOPS, MAX_TOPS = 1, 3

    def _check(self, images, changes) -> None:
        super()._check(images, changes)
        if changes.has("mean_file"):
            raise self.fail("mean_file must not be given, as in Caffe", changes.mean_file, "give mean_value")
        if not 0 <= images.ignore_label <= 255:
            raise self.fail("ignore_label must lie in 0 .. 255", images.ignore_label)
        self._kind = images.label_type if images.has("label_type") else "" if images.has_label else "NONE"

    def _crop(self, changes) -> tuple[int, int]:
        sides = changes.has("crop_height"), changes.has("crop_width")
        if any(sides) and (not all(sides) or changes.has("crop_size")):
            raise self.fail("either crop_size or both crop_height and crop_width must be given", "another mixture")
        return (changes.crop_height, changes.crop_width) if all(sides) else super()._crop(changes)

    def _entry(self, number: int, line: str) -> Entry:
        image, second = super()._entry(number, line)
        self._kind = self._kind or self._kind_of(second)
        if self._kind == "NONE":
            return Entry(image, "")
        if not second:
            raise ValueError(
                f"{self.source}:{number}: a line must name an image and its label; got one column; add the label, or set label_type: NONE"
            )
        if self._kind == "PIXEL":
            return Entry(image, str(self._path(second, number)))
        self._image_label(second, f"{self.source}:{number}")
        return Entry(image, second)

    def _kind_of(self, second: str) -> str:
        """Returns the label_type that a file without one means, by the first line's second column."""
        if not second or second.lstrip("+-").isdecimal():
            return "IMAGE"
        self.context.log(f"{self.name}: without label_type the second column, {second[:80]}, is read as PIXEL")
        return "PIXEL"

    @staticmethod
    def _image_label(text: str, where: str) -> int:
        try:
            return min(max(int(text), 0), 255)  # Caffe: cv::Scalar is saturated to 8 bits
        except ValueError:
            raise ValueError(
                f"{where}: an image's label must be a whole number; got {text[:40]!r}; correct the line, or set label_type: PIXEL"
            ) from None

    def _shapes(self) -> list[Shape]:
        height, width, channels = self._first().shape
        self._size = self._params.crop if all(self._params.crop) else (height, width)
        n = self.batch_size
        return [(n, channels, *self._size), (n, 1, *self._size), (n, 1, 1, 2)][: self.tops]

    def _label(self, entry: Entry, image: np.ndarray) -> np.ndarray:
        if self._kind == "PIXEL":
            label = self._resized(read_label(Path(entry.second))[..., None])[..., 0]  # Caffe: bilinear, like the image
            if label.shape != image.shape[:2]:
                raise size_error(entry.image, entry.second, image.shape[:2], label.shape)
            return label
        fill = self.param.image_data_param.ignore_label
        if self._kind == "IMAGE":
            fill = self._image_label(entry.second, str(self.source))
        return np.full(image.shape[:2], fill, np.uint8)

    def _item(self, entry: Entry, draws: Sequence[int]) -> tuple[np.ndarray, np.ndarray, list[int]]:
        image = self._read(entry.image)
        label = self._label(entry, image)
        placed = place(label.shape, self._params, draws, self.context.phase)
        self._check_size(entry, (placed.height, placed.width))
        data, label = transform(image, label, self._params, draws, self.context.phase, self._dtype)
        return data, label, [min(side, most) for side, most in zip(image.shape, self._size, strict=False)]

    def _stacked(self, items: Sequence[tuple]) -> tuple[torch.Tensor, ...]:
        data, labels, dims = zip(*items, strict=True)
        dtype = self.context.dtype
        return (
            torch.from_numpy(np.stack(data)),
            torch.from_numpy(np.stack(labels)[:, None]).to(dtype),
            torch.tensor(dims, dtype=dtype).reshape(-1, 1, 1, 2),
        )

    def _check_size(self, entry: Entry, size: tuple[int, int]) -> None:
        if not all(self._params.crop):
            if size != self._size:
                raise self.fail(
                    f"without crop_size every image must have the first one's size {self._size}",
                    f"{size} of {entry.image}",
                    "give crop_size",
                )
        elif (size[0] < self._size[0] or size[1] < self._size[1]) and not self.param.transform_param.mean_value:
            raise self.fail(
                f"mean_value must be given where an image is smaller than the crop {self._size}, for padding is the mean",
                f"{size} of {entry.image}",
                "give mean_value",
            )


class ImageData(PictureLayer):
    """Tops: data (N, C, H, W), and label (N,): the number in the list's second column.

    Caffe: src/caffe/layers/image_data_layer.cpp; DataTransformer::Transform (src/caffe/data_transformer.cpp).
    """

    MIN_TOPS, MAX_TOPS = 1, 2

    def _check(self, images, changes) -> None:
        super()._check(images, changes)
        if not images.has_label:
            raise self.fail("has_label of DeepLab v1's ImageData must be left out", "false", "leave out the second top")
        self._mean: np.ndarray | None = None
        if changes.mean_file:
            if changes.mean_value:
                raise self.fail("mean_file and mean_value must not be given together", "both")
            mean = read_binaryproto(self.context.root / changes.mean_file)
            if mean.ndim != 4 or mean.shape[0] != 1:
                raise self.fail("mean_file must hold one image", f"shape {list(mean.shape)}", "name another file")
            self._mean = mean[0].transpose(1, 2, 0)

    def _entry(self, number: int, line: str) -> Entry:
        image, second = super()._entry(number, line)
        try:
            int(second)
        except ValueError:
            raise ValueError(
                f"{self.source}:{number}: a line must read 'image label', the label a whole number; got {line.strip()[:80]!r}; correct the line"
            ) from None
        return Entry(image, second)

    def _shapes(self) -> list[Shape]:
        height, width, channels = self._first().shape
        size = self._params.crop if all(self._params.crop) else (height, width)
        return [(self.batch_size, channels, *size), (self.batch_size,)][: self.tops]

    def _item(self, entry: Entry, draws: Sequence[int]) -> tuple[np.ndarray, int]:
        image = self._read(entry.image)
        if image.shape[0] < self._params.crop[0] or image.shape[1] < self._params.crop[1]:
            raise self.fail(f"images must not be smaller than crop_size {self._params.crop[0]}", entry.image)
        return self._transformed(image, draws, entry), int(entry.second)

    def _stacked(self, items: Sequence[tuple]) -> tuple[torch.Tensor, ...]:
        data, labels = zip(*items, strict=True)
        if sizes := sorted({one.shape[1:] for one in data[1:]} - {data[0].shape[1:]}):
            raise self.fail(f"without crop_size the images of a batch must have one size {data[0].shape[1:]}", sizes[0])
        return torch.from_numpy(np.stack(data)), torch.tensor(labels, dtype=self.context.dtype)

    def _transformed(self, image: np.ndarray, draws: Sequence[int], entry: Entry) -> np.ndarray:
        unused = np.zeros(image.shape[:2], np.uint8)
        if self._mean is None:
            return transform(image, unused, self._params, draws, self.context.phase, self._dtype)[0]
        if self._mean.shape != image.shape:
            raise self.fail(
                f"mean_file must have the images' size {image.shape[:2]}", f"{self._mean.shape[:2]}, {entry.image}"
            )
        placed = place(image.shape[:2], self._params, draws, self.context.phase)
        height, width = self._params.crop if all(self._params.crop) else image.shape[:2]
        rows, columns = slice(placed.h_off, placed.h_off + height), slice(placed.w_off, placed.w_off + width)
        data = (image[rows, columns] - self._mean[rows, columns].astype(self._dtype)) * self._dtype(self._params.scale)
        return data[:, :: -1 if placed.mirror else 1].transpose(2, 0, 1)


TYPES: dict[str, type[DataLayer]] = {
    "ImageSegData": ImageSegData,
    "ImageData": ImageData,
    "MemoryData": MemoryData,
    "DummyData": DummyData,
    "HDF5Data": HDF5Data,
}

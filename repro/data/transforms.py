"""Reading images and labels, and ImageSegData's transform: scale, pad, crop, subtract the mean, mirror."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from repro.data.pictures import decode, load_picture, open_picture

Phase = Literal["TRAIN", "TEST"]

# Pillow stretches grey of few bits to 0 .. 255: by how much, under its names for how pixels are stored.
_GREY_STEPS = {"L": 1, "L;4": 17, "L;2": 85}
_COEF_BITS = 11  # OpenCV: INTER_RESIZE_COEF_BITS
_COEF_SCALE = np.float32(1 << _COEF_BITS)


@dataclass(frozen=True)
class TransformationParameter:
    """The transform's settings under Caffe's names.

    Args:
        crop_size: side of the square crop, or its (height, width), pixels; (0, 0): images stay whole.
        mean_bgr: value subtracted from each channel, blue first, or the one value of grey images, grey levels.
        mirror: whether each item is mirrored left-right with a chance of one half.
        scale_factors: factors of which one is drawn per item; empty: sizes stay as they are.
        ignore_label: label of the padding.
        scale: factor of the values, after the mean is subtracted.

    Raises:
        ValueError: crop_size is below 1, mean_bgr has neither three values nor one, or a factor is not positive.

    Caffe: TransformationParameter (src/caffe/proto/caffe.proto); ignore_label is in ImageDataParameter there.
    """

    crop_size: int | tuple[int, int]
    mean_bgr: tuple[float, ...]
    mirror: bool
    scale_factors: tuple[float, ...] = ()
    ignore_label: int = 255
    scale: float = 1.0

    def __post_init__(self) -> None:
        if min(self.crop) < 1 and self.crop_size != (0, 0):
            raise ValueError(f"crop_size: must be at least 1; got {self.crop_size}; give the crop's side in pixels")
        if len(self.mean_bgr) not in (1, 3):
            raise ValueError(
                f"mean_bgr: must be three values, or one for grey; got {self.mean_bgr}; give blue, green, red"
            )
        if not all(0 < factor < np.inf for factor in self.scale_factors):
            raise ValueError(
                f"scale_factors: must be positive and finite; got {self.scale_factors}; leave out what is not"
            )

    @property
    def crop(self) -> tuple[int, int]:
        """The crop's (height, width)."""
        return self.crop_size if isinstance(self.crop_size, tuple) else (self.crop_size, self.crop_size)

    def draws_per_item(self, phase: Phase) -> int:
        """Returns how many raw draws one item takes: mirror, scale, and in TRAIN two offsets of the crop, even where only 0 is possible."""
        return int(self.mirror) + int(bool(self.scale_factors)) + (2 if phase == "TRAIN" and all(self.crop) else 0)


class Placement(NamedTuple):
    """What an item's draws decide; height and width are those after scaling, before padding, and offsets are after padding."""

    mirror: bool
    scale_index: int
    h_off: int
    w_off: int
    height: int
    width: int


def read_image_bgr(path: Path) -> np.ndarray:
    """Reads an image as OpenCV's IMREAD_COLOR does.

    Grey is repeated, alpha is dropped, palettes are applied and CMYK is converted by OpenCV's own formula; the EXIF orientation is
    ignored, as by the OpenCV of Caffe's days.

    Args:
        path: a file of one of the formats of `repro.data.pictures`.

    Returns:
        (H, W, 3) uint8, channels blue, green, red.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not decode completely, or is not an 8-bit image.

    Caffe: `ReadImageToCVMat` (src/caffe/util/io.cpp), without resizing.
    """
    image = load_picture(path)
    if image.mode == "CMYK":
        # OpenCV: icvCvt_CMYK2BGR_8u_C4C3R (modules/imgcodecs/src/utils.cpp), for which 255 is no ink; Pillow has 255 for full ink.
        ink = np.asarray(image, dtype=np.uint16)
        light = 255 - ink[..., 3:]
        rgb = (light - (ink[..., :3] * light >> 8)).astype(np.uint8)
    elif image.mode in ("RGB", "L", "1", "P", "RGBA", "LA"):
        image.info.pop("transparency", None)  # It would have no effect, but Pillow warns of it.
        rgb = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    else:
        raise ValueError(
            f"{path}: image must have 8-bit grey, colour or palette pixels; got mode {image.mode}; convert it"
        )
    return np.ascontiguousarray(rgb[..., ::-1])


def read_image_grey(path: Path) -> np.ndarray:
    """Reads an image as OpenCV's IMREAD_GRAYSCALE does: grey as it is, colour weighted with 14-bit factors.

    Returns:
        (H, W) uint8.

    Raises:
        FileNotFoundError, ValueError: As for `read_image_bgr`.

    OpenCV: RGB2Gray<uchar> (modules/imgproc/src/color.cpp).
    Deviates: OpenCV lets libjpeg and libpng convert colour files, which may round the other way.
    """
    blue, green, red = np.moveaxis(read_image_bgr(path).astype(np.int32), 2, 0)
    return (blue * 1868 + green * 9617 + red * 4899 + (1 << 13) >> 14).astype(np.uint8)


def read_label(path: Path) -> np.ndarray:
    """Reads a label image: one class id per pixel.

    Args:
        path: a single-channel PNG or TIFF of at most 8 bits, grey or with a palette.

    Returns:
        (H, W) uint8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not decode completely, or has other pixels.

    Deviates: palette files are read as indices, so PASCAL's own PNGs work; Caffe (IMREAD_GRAYSCALE) would turn the palette's colours to
        grey, and needs files with the palette removed. Grey of 2 or 4 bits is read as it is stored, where Caffe would stretch it to 0 .. 255.
    """
    with open_picture(path, "label") as image:
        if image.format not in ("PNG", "TIFF"):  # Others are stored with loss, or stretched by their readers.
            raise ValueError(f"{path}: label must be a PNG or TIFF; got {image.format}; save class ids as 8-bit PNG")
        stored = image.tile[0][3] if image.tile else image.mode  # No tile, no pixels: `decode` says so.
        stored = stored[0] if isinstance(stored, tuple) else stored
        step = _GREY_STEPS.get(stored) if image.mode == "L" else 1
        if image.mode not in ("L", "P") or step is None:
            got = f"mode {image.mode}" + (f" stored as {stored}" if image.mode == "L" else "")
            raise ValueError(
                f"{path}: label must have one 8-bit channel (grey or palette); got {got}; save class ids as 8-bit PNG"
            )
        decode(path, "label", image)
        return np.asarray(image) // np.uint8(step)


def _linear_taps(size_in: int, size_out: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lower source index (int64, may be -1) and the float32 fraction beyond it, for outputs start .. stop - 1."""
    ratio = 1.0 / (size_out / size_in)
    position = ((np.arange(start, stop) + 0.5) * ratio - 0.5).astype(np.float32)
    index = np.floor(position)
    return index.astype(np.int64), position - index


def _fixed_point(fraction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights of the lower and the upper source pixel, int32, 2048 being one."""
    lower = np.rint((np.float32(1) - fraction) * _COEF_SCALE).astype(np.int32)
    return lower, np.rint(fraction * _COEF_SCALE).astype(np.int32)


def resize_image(
    image: np.ndarray, size: tuple[int, int], window: tuple[slice, slice] = (slice(None), slice(None))
) -> np.ndarray:
    """Resizes an image as OpenCV's INTER_LINEAR does for 8-bit images: half-pixel centres, 11-bit weights, one rounding.

    Args:
        image: (H_in, W_in, C) uint8.
        size: (H_out, W_out), pixels.
        window: rows and columns of the result that are wanted; only these are computed.

    Returns:
        The window of the (H_out, W_out, C) uint8 result.

    Caffe: `DataTransformer::TransformImgAndSeg` calls cv::resize. OpenCV: HResizeLinear, and VResizeLinear<uchar, ..> with its products cut
        to 16 bits (modules/imgproc/src/imgwarp.cpp, resize.cpp), which is not the same as rounding the full product.
    """
    (height, width), (height_in, width_in) = size, image.shape[:2]
    x, fraction = _linear_taps(width_in, width, *window[1].indices(width)[:2])
    fraction[(x < 0) | (x >= width_in - 1)] = 0  # The border pixel is repeated.
    x = x.clip(0, width_in - 1)
    a0, a1 = (weight[:, None] for weight in _fixed_point(fraction))
    y, fraction = _linear_taps(height_in, height, *window[0].indices(height)[:2])
    b0, b1 = (weight[:, None, None] for weight in _fixed_point(fraction))
    y0, y1 = y.clip(0, height_in - 1), (y + 1).clip(0, height_in - 1)
    top = int(y0[0])
    source = image[top : int(y1[-1]) + 1].astype(np.int32)
    row = (source[:, x] * a0 + source[:, (x + 1).clip(0, width_in - 1)] * a1) >> 4
    return (((b0 * row[y0 - top] >> 16) + (b1 * row[y1 - top] >> 16) + 2) >> 2).astype(np.uint8)


def resize_label(
    label: np.ndarray, size: tuple[int, int], window: tuple[slice, slice] = (slice(None), slice(None))
) -> np.ndarray:
    """Resizes a label as OpenCV's INTER_NEAREST does: source index floor(i * (1 / (out / in))) in double, no half-pixel centres.

    Args:
        label: (H_in, W_in) uint8.
        size: (H_out, W_out), pixels.
        window: rows and columns of the result that are wanted.

    Returns:
        The window of the (H_out, W_out) uint8 result.

    Caffe: `DataTransformer::TransformImgAndSeg` calls cv::resize. OpenCV: resizeNN (modules/imgproc/src/imgwarp.cpp, resize.cpp).
    """
    y, x = (
        np.floor(np.arange(out)[part] * (1.0 / (out / n))).astype(np.int64).clip(0, n - 1)
        for n, out, part in zip(label.shape, size, window, strict=True)
    )
    return label[y[:, None], x]


def place(size: tuple[int, int], params: TransformationParameter, draws: Sequence[int], phase: Phase) -> Placement:
    """Turns an item's raw draws into what is done with it.

    Args:
        size: (height, width) of the image, pixels.
        params: the transform's settings.
        draws: `params.draws_per_item(phase)` raw draws, 0 .. 2**32 - 1, in the order mirror, scale, h_off, w_off.
        phase: TRAIN crops at random, TEST at the centre.

    Returns:
        The Placement; scale_index is -1 without scale factors.

    Raises:
        ValueError: the drawn factor leaves no pixel of the image.

    Caffe: `DataTransformer::TransformImgAndSeg` (src/caffe/data_transformer.cpp); every `Rand(n)` is a raw draw modulo n.
    """
    draw = iter(draws)
    mirror = params.mirror and int(next(draw)) % 2 == 1
    scale_index, (height, width) = -1, size
    if params.scale_factors:
        scale_index = int(next(draw)) % len(params.scale_factors)
        factor = np.float32(params.scale_factors[scale_index])
        # Caffe: `img_height *= scale` truncates the float32 product.
        height, width = int(np.float32(height) * factor), int(np.float32(width) * factor)
        if min(height, width) < 1:
            raise ValueError(
                f"scale_factors: must leave at least one pixel; got {factor} on {size}; leave out this factor"
            )
    if not all(params.crop):
        return Placement(mirror, scale_index, 0, 0, height, width)
    h_room, w_room = max(height - params.crop[0], 0), max(width - params.crop[1], 0)
    if phase == "TRAIN":
        h_off = int(next(draw)) % (h_room + 1)
        w_off = int(next(draw)) % (w_room + 1)
    else:
        h_off, w_off = h_room // 2, w_room // 2
    return Placement(mirror, scale_index, h_off, w_off, height, width)


def transform(
    image: np.ndarray,
    label: np.ndarray,
    params: TransformationParameter,
    draws: Sequence[int],
    phase: Phase,
    dtype: type[np.floating] = np.float32,
) -> tuple[np.ndarray, np.ndarray]:
    """Makes a network input of an image and its label: scale, pad at the bottom and right, crop, subtract the mean, mirror.

    Padding is the mean, so exactly 0 in the result, and ignore_label in the label. Only the pixels of the crop are resized.

    Args:
        image: (H, W, 3) uint8, BGR; or (H, W, 1), grey.
        label: (H, W) uint8.
        params: the transform's settings.
        draws: as for `place`.
        phase: as for `place`.
        dtype: of the data; the mean is float32 and subtracted in this precision.

    Returns:
        data (3, crop height, crop width), BGR, a view of memory whose channels come last; label (crop height, crop width) uint8. Both have the scaled image's
        size where there is no crop.

    Raises:
        ValueError: image and label differ in size, or as for `place`.

    Caffe: `DataTransformer::TransformImgAndSeg` (src/caffe/data_transformer.cpp).
    """
    if image.shape[:2] != label.shape:
        raise ValueError(
            f"transform: label must have its image's size {image.shape[:2]}; got {label.shape}; pair the right files"
        )
    placement = place(label.shape, params, draws, phase)
    size = placement.height, placement.width
    crop = params.crop if all(params.crop) else size
    window = (slice(placement.h_off, placement.h_off + crop[0]), slice(placement.w_off, placement.w_off + crop[1]))
    if placement.scale_index < 0 or size == label.shape:
        image, label = image[window], label[window]
    else:
        image, label = resize_image(image, size, window), resize_label(label, size, window)
    height, width = label.shape
    columns = slice(crop[1] - width, None) if placement.mirror else slice(width)
    flip = slice(None, None, -1 if placement.mirror else 1)
    data_out = np.zeros((*crop, image.shape[2]), dtype)
    label_out = np.full(crop, params.ignore_label, np.uint8)
    mean = np.asarray(params.mean_bgr, np.float32).astype(dtype, copy=False)
    np.subtract(image[:, flip], mean, out=data_out[:height, columns])
    if params.scale != 1:
        data_out *= dtype(params.scale)
    label_out[:height, columns] = label[:, flip]
    return data_out.transpose(2, 0, 1), label_out

"""torchvision's VGG-16: a state dictionary in .pth or .safetensors, OIHW, for RGB in 0..1 minus a mean, over a deviation."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from caffe_weights.files.model import check_shape
from caffe_weights.files.wire import map_file
from caffe_weights.importers.vgg16 import CLASSIFIER, CONVOLUTIONS, FC6_SIDE, Imported, dense_as_convolution

# torchvision/models/vgg.py: cfgs["D"] without batch normalisation, a ReLU after each convolution, pools between the levels.
_FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_NAMES = dict(zip(_FEATURES, CONVOLUTIONS, strict=True))
_DENSE = dict(zip((0, 3, 6), CLASSIFIER, strict=True))
# torchvision/models/vgg.py, VGG16_Weights.IMAGENET1K_V1.transforms (ImageClassification's defaults), red, green, blue.
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
DEEPLAB_MEAN_RGB = np.array([122.675, 116.669, 104.008])
# https://github.com/huggingface/safetensors, "Format": a length, a JSON header of that length, then the numbers.
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
MAX_HEADER = 100_000_000


def read(path: Path, state: Mapping[str, np.ndarray]) -> Imported:
    """Gives a state dictionary Caffe's names and conv1_1 Caffe's input; errors as for import_vgg16."""
    layers, left = {}, []
    for key in state:
        part, _, rest = key.partition(".")
        number, _, what = rest.partition(".")
        names = {"features": _NAMES, "classifier": _DENSE}.get(part, {})
        name = names.get(int(number)) if number.isdecimal() and len(number) < 4 else None
        bias = state.get(f"{part}.{number}.bias")
        if name is None or bias is None or what not in ("weight", "bias"):
            left.append(key)
        elif what == "weight":
            weight = state[key]
            if weight.ndim == 2:
                weight = dense_as_convolution(
                    weight, FC6_SIDE if name == "fc6" else 1, channels_last=False, where=f"{path}: {key}"
                )
            layers[name] = (weight, bias)
    if "conv1_1" in layers and layers["conv1_1"][0].shape[1:] == (3, 3, 3):
        layers["conv1_1"] = for_bgr(*layers["conv1_1"])
    return Imported(
        "torchvision",
        layers,
        "conv1_1's inputs turned from RGB to BGR, its range of 0..1 and its mean folded in",
        tuple(left),
    )


def for_bgr(weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Makes a first convolution for (RGB / 255 - MEAN) / DEVIATION one for BGR minus DeepLab's mean.

    Args:
        weight: (out, 3, kh, kw).
        bias: (out,).

    Returns:
        Both in float64, giving the same outputs wherever the kernel lies within the image.
    """
    scaled = weight.astype(np.float64) / DEVIATION[:, None, None]
    shift = (scaled * (DEEPLAB_MEAN_RGB / 255 - MEAN)[:, None, None]).sum((1, 2, 3))
    return (scaled / 255)[:, ::-1], bias + shift


def load_pth(path: Path) -> dict[str, np.ndarray]:
    """Reads a state dictionary by torch, weights only; errors as for import_vgg16."""
    try:
        import torch  # nothing else here needs it
    except ImportError:
        raise RuntimeError(f"{path}: a .pth needs torch; got none; pip install torch, or use .safetensors") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {str(key): value.double().numpy() for key, value in state.items()}
    except Exception as error:  # whatever torch says of another file
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: must be a state dictionary; got {reason}; use torchvision's vgg16") from error


def load_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Reads .safetensors; errors as for import_vgg16.

    Returns:
        Read-only views of the mapped file, those of other types left out.
    """
    data = map_file(path)

    def fail(problem: str) -> ValueError:
        return ValueError(f"{path}: {problem}; the file is damaged or no .safetensors")

    (length,) = struct.unpack_from("<Q", data.read(8).ljust(8, b"\xff"))
    if length > min(MAX_HEADER, len(data) - 8):
        raise fail(f"the header must lie within the file's {len(data)} bytes; got a length of {length}")
    try:
        header = json.loads(data[8 : 8 + length])
        entries = {
            key: (_DTYPES.get(entry["dtype"]), tuple(map(int, entry["shape"])), *map(int, entry["data_offsets"]))
            for key, entry in header.items()
            if key != "__metadata__"
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise fail(f"the header must be JSON of dtype, shape and data_offsets; got {type(error).__name__}") from None
    found = {}
    for key, (kind, shape, *offsets) in entries.items():
        if kind is None:
            continue
        start, stop = (8 + length + offset for offset in offsets) if len(offsets) == 2 else (0, 0)
        if not 8 + length <= start <= stop <= len(data):
            raise fail(f"{key!r}: data_offsets must be two places within the file; got {offsets}")
        dtype = np.dtype(kind)
        if problem := check_shape(shape, (stop - start) // dtype.itemsize):
            raise fail(f"{key!r}: {problem}")
        found[key] = np.frombuffer(data, dtype, (stop - start) // dtype.itemsize, start).reshape(shape)
    return found

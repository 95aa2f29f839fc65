"""NumPy archives of VGG-16: Frossard's vgg16_weights.npz (HWIO, RGB), or arrays in Caffe's own layout (OIHW, BGR)."""

import re
import zipfile
import zlib
from pathlib import Path

import numpy as np

from caffe_weights.importers.vgg16 import FC6_SIDE, Imported, dense_as_convolution

MAX_BYTES = 2**30  # of all arrays, unpacked; VGG-16 has 553 MB
_NAME = re.compile(r"(conv\d_\d|fc[678])_(W|b|weight|bias)")


def is_npz(path: Path) -> bool:
    """Says whether a zip archive holds NumPy arrays, as against a PyTorch checkpoint."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError):
        return False


def read(path: Path) -> Imported:
    """Reads an archive; errors as for import_vgg16. Nothing is unpickled."""
    with zipfile.ZipFile(path) as archive:
        if (size := sum(info.file_size for info in archive.infolist())) > MAX_BYTES:
            raise ValueError(f"{path}: must hold at most {MAX_BYTES} bytes; got {size}; use VGG-16")
    arrays: dict[str, dict[str, np.ndarray]] = {}
    left = []
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                if match := _NAME.fullmatch(name):
                    arrays.setdefault(match[1], {})[match[2]] = archive[name]
                else:
                    left.append(name)
    except (ValueError, OSError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: must be a whole .npz; got {reason!r}; fetch it again") from error
    frossards = "W" in arrays.get("conv1_1", {})
    names = ("W", "b") if frossards else ("weight", "bias")
    layers = {}
    for name, found in arrays.items():
        if set(found) != set(names):
            raise ValueError(
                f"{path}: layer {name!r} must have {names[0]} and {names[1]}; got {' '.join(sorted(found))}; use VGG-16"
            )
        weight = found[names[0]]
        if weight.ndim not in (2, 4) or weight.dtype.kind != "f":
            raise ValueError(
                f"{path}: layer {name!r} must have a weight of 2 or 4 axes; got {weight.dtype}{list(weight.shape)}; use VGG-16"
            )
        if weight.ndim == 4:
            kernel = weight.transpose(3, 2, 0, 1) if frossards else weight
        else:
            side, dense = FC6_SIDE if name == "fc6" else 1, weight.T if frossards else weight
            kernel = dense_as_convolution(dense, side, frossards, f"{path}: layer {name!r}")
        layers[name] = (kernel, found[names[1]])
    if not frossards:
        return Imported("npz in Caffe's layout", layers, "", tuple(left))
    if "conv1_1" in layers:
        weight, bias = layers["conv1_1"]
        layers["conv1_1"] = (weight[:, ::-1], bias)
    return Imported("npz, Frossard's", layers, "conv1_1's inputs turned from RGB to BGR", tuple(left))

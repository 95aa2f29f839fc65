"""Mean, spread and non-finite values of blobs, at the speed of reading them; and the comparison of two models."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from caffe_weights.files.model import Layer, Model, count_nonfinite, printable

_BLOCK = 2**16  # numbers; the copy of a block stays in the cache


@dataclass(frozen=True)
class Stats:
    """Mean and standard deviation (population) of a blob, over its finite values; and how many values are not finite."""

    mean: float
    std: float
    nonfinite: int


def blob_stats(blob: np.ndarray) -> Stats:
    """Computes the statistics of one blob.

    Each block is shifted by the blob's first value and summed in the blob's precision; blocks are added in Python's float64. The result
    is good to about 6 digits of the spread, in a fifth of the time of numpy's mean and std.
    """
    flat = blob.reshape(-1)
    if not flat.size:
        return Stats(math.nan, math.nan, 0)
    scratch, shift = np.empty(min(_BLOCK, flat.size), flat.dtype), flat[0]
    total = squares = 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, flat.size, _BLOCK):
            block = flat[start : start + _BLOCK]
            shifted = np.subtract(block, shift, out=scratch[: block.size])
            total += float(shifted.sum())
            squares += float(shifted.dot(shifted))
    if not math.isfinite(total + squares):
        return _careful(flat)
    mean = total / flat.size
    return Stats(float(shift) + mean, math.sqrt(max(0.0, squares / flat.size - mean * mean)), 0)


def _careful(flat: np.ndarray) -> Stats:
    """The same for a blob whose sums left float32: only its finite values, in float64."""
    finite = flat[np.isfinite(flat)].astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = (float(finite.mean()), float(finite.std())) if finite.size else (math.nan, math.nan)
    return Stats(mean, std, flat.size - finite.size)


def nonfinite_warning(model: Model) -> str:
    """Returns one line that counts a model's NaN and infinite values, "" where there are none."""
    counts = {name: count for name, blob in model.arrays() if (count := count_nonfinite(blob))}
    return f"{model.path}: {sum(counts.values())} values are NaN or infinite, in {' '.join(counts)}" if counts else ""


def differences(first: Model, second: Model) -> Iterator[str]:
    """Yields one line per difference between two models' blobs; layers without blobs do not count.

    Bitwise equality counts, so that 0 and -0 differ and equal NaNs do not.
    """
    a, b = first.with_blobs(), second.with_blobs()
    for name in [*a, *(name for name in b if name not in a)]:
        shown = printable(name)
        if name not in a or name not in b:
            yield f"{shown}: only in {(first if name in a else second).path}"
            continue
        if a[name].numbers != b[name].numbers:
            yield f"{shown}: blobs {_numbers(a[name])} against {_numbers(b[name])}"
            continue
        for index, x, y in zip(a[name].numbers, a[name].blobs, b[name].blobs, strict=True):
            if x.shape != y.shape or x.dtype != y.dtype:
                yield f"{shown}[{index}]: {list(x.shape)} {x.dtype} against {list(y.shape)} {y.dtype}"
            elif line := _values_differ(x.reshape(-1), y.reshape(-1)):
                yield f"{shown}[{index}]: {line}"


def _numbers(layer: Layer) -> str:
    return " ".join(map(str, layer.numbers))


def _values_differ(x: np.ndarray, y: np.ndarray) -> str:
    count, largest, bits = 0, 0.0, np.dtype(f"u{x.dtype.itemsize}")
    for start in range(0, x.size, _BLOCK):
        p, q = (np.array(flat[start : start + _BLOCK]) for flat in (x, y))
        changed = p.view(bits) != q.view(bits)
        if changed.any():
            count += int(np.count_nonzero(changed))
            with np.errstate(invalid="ignore", over="ignore"):
                largest = float(np.fmax(largest, np.abs(p[changed].astype(np.float64) - q[changed]).max()))
    return f"{count} of {x.size} values differ, by at most {largest:.9g}" if count else ""

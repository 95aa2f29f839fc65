"""MATLAB files of the distributions, read with a bound on what they unpack to."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from scipy.io import loadmat
from scipy.sparse import issparse

from repro.files import read_bytes

MAX_BYTES = 256 * 2**20  # packed or unpacked; a hundred times what a large annotation has
_HEADER, _TAG = 128, 8
_COMPRESSED = 15  # MAT-File Format, table 1-1: miCOMPRESSED
_CHUNK = 2**20
T = TypeVar("T")


def read_mat(path: Path, name: str, what: str, pick: Callable[[Any], T], **options: Any) -> T:
    """Reads one variable.

    Args:
        path: A level 5 .mat file.
        name: The variable.
        what: What the file must hold, for the message.
        pick: Picks what is wanted of the variable; whatever it raises is taken for a file of another content.
        options: Of `scipy.io.loadmat`.

    Returns:
        What `pick` returned.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no regular file, would unpack to more than MAX_BYTES, does not load, or has another content.
    """
    content = read_bytes(path, MAX_BYTES, "annotation", "complete the data folder")
    _check_unpacked(path, content)
    try:
        return pick(loadmat(io.BytesIO(content), variable_names=[name], **options)[name])
    except Exception as error:  # scipy raises OSError, ValueError, TypeError, NotImplementedError, zlib.error and more.
        got = " ".join(f"{type(error).__name__} {error}".split())[:300]
        raise ValueError(f"{path}: must hold {what}; got {got}; replace the file") from error


def _check_unpacked(path: Path, content: bytes) -> None:
    """Raises ValueError where the variables unpack to more than MAX_BYTES; what is no MAT file is left to scipy to refuse."""
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128], "<")
    position, left = _HEADER, MAX_BYTES
    while position + _TAG <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, position)
        position += _TAG
        if kind == _COMPRESSED:
            unpacker, packed = zlib.decompressobj(), content[position : position + size]
            while packed and not unpacker.eof:
                try:
                    left -= len(unpacker.decompress(packed, _CHUNK))
                except zlib.error:
                    return  # Broken, as scipy will say.
                if left < 0:
                    raise ValueError(
                        f"{path}: annotation must unpack to at most {MAX_BYTES} bytes; got more; replace the file"
                    )
                packed = unpacker.unconsumed_tail
        position += size


def dense_integers(value: Any) -> np.ndarray:
    """Sees that a field is a matrix of whole numbers.

    Returns:
        (H, W) of a real type.

    Raises:
        ValueError: It is text, a cell or a struct, sparse, complex, of another number of dimensions, or holds NaN, infinities or fractions; the message
            says only what it is.
    """
    if issparse(value):
        raise ValueError("a sparse matrix")
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biufc":
        raise ValueError("no numbers")
    if value.dtype.kind == "c":
        raise ValueError("complex numbers")
    if value.ndim != 2 or not value.size:
        raise ValueError(f"shape {value.shape}")
    if value.dtype.kind == "f" and not (np.isfinite(value).all() and (value == np.rint(value)).all()):
        raise ValueError("NaN, infinities or fractions")
    return value

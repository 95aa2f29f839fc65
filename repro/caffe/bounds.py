"""What a net may allocate: a prototxt that somebody else wrote cannot ask for more than the machine has."""

from __future__ import annotations

import os
from collections.abc import Sequence

from repro.caffe.layers.base import MAX_AXES, count

MAX_COUNT = 2**31 - 1  # elements of a blob or parameter; Caffe: Blob::Reshape counts in int
SHARE = 0.5  # of the machine's memory


def memory_bound() -> int:
    """Returns how many bytes all blobs and parameters may take together."""
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * SHARE)


class Bounds:
    """The bound of one net.

    Args:
        allow_large: Whether there is none.
        size: Bytes of an element.
        training: Whether every blob has a gradient too.
    """

    def __init__(self, allow_large: bool, size: int, training: bool):
        self._allow_large, self._size = allow_large, size * (2 if training else 1)
        self._total, self._limit = 0, memory_bound()

    def check(self, shape: Sequence[int], where: str) -> None:
        """Raises ValueError unless a blob of that shape may be.

        Deviates: Caffe lets a blob be empty until a layer divides by its size.
        """
        if len(shape) > MAX_AXES:
            raise ValueError(
                f"{where}: a blob must have at most {MAX_AXES} axes; got {len(shape)}; correct the prototxt"
            )
        if any(side < 1 for side in shape):
            raise ValueError(f"{where}: no blob may be empty; got shape {list(shape)}; correct the prototxt")
        if not self._allow_large and count(shape) > MAX_COUNT:
            raise ValueError(
                f"{where}: a blob must have fewer than 2^31 numbers; got shape {list(shape)}; correct it, or give --allow-large"
            )

    def add(self, shape: Sequence[int], where: str) -> None:
        """Counts a blob or parameter; raises ValueError where it or all together are too large."""
        self.check(shape, where)
        self._total += count(shape) * self._size
        if not self._allow_large and self._total > self._limit:
            raise ValueError(
                f"{where}: all blobs must fit half of the memory, {self._limit / 2**30:.1f} GiB; got {self._total / 2**30:.1f} GiB "
                f"with shape {list(shape)}; make it smaller, or give --allow-large"
            )

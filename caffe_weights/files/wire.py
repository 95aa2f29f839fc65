"""The protobuf wire format over a memory-mapped file: enough of it to walk Caffe's messages without copying them."""

import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from caffe_weights.files.kinds import HEAD, message_kind, other_kind

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_FIELDS = 1_000_000  # a genuine file has some hundreds; walking more than this would take seconds and end in nothing
MAX_PIECES = 4096  # runs into which one blob's numbers may be split

# Where to look, for one who has handed over another of Caffe's files.
_INSTEAD = {
    "a solver state": "its weights are in the .caffemodel that it names",
    "a model": "its momentum is in the .solverstate of the same iteration",
    "an image mean": "name another file",
}


def another_kind(path: Path, wanted: str, got: str) -> ValueError:
    """Makes the error for a file of another of Caffe's kinds."""
    return ValueError(f"{path}: must be {wanted}; got {got}; {_INSTEAD[got]}")


def map_file(path: Path) -> mmap.mmap:
    """Maps a regular, non-empty file read-only.

    Args:
        path: the file.

    Returns:
        The mapping; arrays that view it keep it alive.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is a directory, a device or empty.
    """
    try:
        mode = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: must be a file; got nothing there; check the path") from None
    if not stat.S_ISREG(mode.st_mode):
        kind = "a directory" if stat.S_ISDIR(mode.st_mode) else "something that is no regular file"
        raise ValueError(f"{path}: must be a file; got {kind}; name the file itself")
    if mode.st_size == 0:
        raise ValueError(f"{path}: must hold data; got an empty file; fetch or write it again")
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message: its number, wire type, and either its value or the place of its bytes.

    Attributes:
        number: field number.
        wire: wire type.
        value: the integer, for VARINT; else 0.
        start, stop: byte offsets of the payload in the file.
    """

    number: int
    wire: int
    value: int
    start: int
    stop: int


@dataclass
class WireFile:
    """A mapped file and the walk over its fields; every failure is a ValueError naming the file and the place."""

    path: Path
    data: mmap.mmap = field(init=False)
    octets: np.ndarray = field(init=False)  # (size,) uint8, the same memory
    walked: int = field(init=False, default=0)

    def __post_init__(self):
        self.path = Path(self.path)
        self.data = map_file(self.path)
        self.octets = np.frombuffer(self.data, np.uint8)
        if what := other_kind(self.data[:HEAD]):
            raise ValueError(f"{self.path}: must be a binary Caffe message; got {what}; name the Caffe file")

    def must_be(self, wanted: str) -> None:
        """Raises where the file is another message than "a model", "a solver state" or "an image mean"."""
        fields = set()
        try:
            for found in islice(self.fields(0, len(self.data), "file"), MAX_PIECES):
                fields.add((found.number, found.wire))
        except ValueError:  # damaged: the reader will say where
            pass
        self.walked = 0
        if (got := message_kind(fields)) not in ("", wanted):
            raise another_kind(self.path, wanted, got)

    def fail(self, where: str, position: int, problem: str) -> ValueError:
        """Makes the one error this reader raises, naming file, place and byte."""
        return ValueError(f"{self.path}: {where}, byte {position}: {problem}; the file is damaged or of another format")

    def varint(self, position: int, stop: int, where: str) -> tuple[int, int]:
        """Decodes a varint; returns its value (modulo 2**64, as protobuf does) and the position after it."""
        value = 0
        for shift in range(0, 70, 7):
            at = position + shift // 7
            if at >= stop:
                raise self.fail(where, position, f"a varint must end within its message; got {at - position} bytes")
            octet = self.data[at]
            value |= (octet & 0x7F) << shift
            if octet < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, at + 1
        raise self.fail(where, position, "a varint must have at most 10 bytes; got more")

    def field(self, position: int, stop: int, where: str) -> Field:
        """Decodes the field at `position`; its payload is checked to lie before `stop`."""
        self.walked += 1
        if self.walked > MAX_FIELDS:
            raise self.fail(where, position, f"the file must have at most {MAX_FIELDS} fields; got more")
        key, start = self.varint(position, stop, where)
        number, wire = key >> 3, key & 7
        if not 0 < number < 2**29:
            raise self.fail(where, position, f"a field number must lie in 1..2^29-1; got {number}")
        value = 0
        if wire == VARINT:
            value, end = self.varint(start, stop, where)
        elif wire == BYTES:
            length, start = self.varint(start, stop, where)
            end = start + length
        elif wire in (FIXED32, FIXED64):
            end = start + (4 if wire == FIXED32 else 8)
        else:
            raise self.fail(where, position, f"the wire type of field {number} must be 0, 1, 2 or 5; got {wire}")
        if end > stop:
            raise self.fail(
                where,
                position,
                f"field {number} must end within its message; got {end - start} bytes where {stop - start} are left",
            )
        return Field(number, wire, value, start, end)

    def fields(self, start: int, stop: int, where: str) -> Iterator[Field]:
        """Walks the fields of the message that lies between two offsets."""
        while start < stop:
            found = self.field(start, stop, where)
            yield found
            start = found.stop

    def text(self, found: Field, where: str) -> str:
        """Returns a string field; octets that are no UTF-8 come out as \\xNN, since protobuf 2 lets them pass."""
        self.expect(found, BYTES, where)
        if found.stop - found.start > 65536:
            raise self.fail(where, found.start, f"a name must have at most 65536 bytes; got {found.stop - found.start}")
        return self.data[found.start : found.stop].decode("utf-8", "backslashreplace")

    def expect(self, found: Field, wire: int, where: str) -> None:
        """Raises unless the field has this wire type."""
        if found.wire != wire:
            raise self.fail(where, found.start, f"field {found.number} must have wire type {wire}; got {found.wire}")

    def integers(self, found: Field, where: str) -> list[int]:
        """Returns the signed 64-bit integers of a repeated varint field, packed or not."""
        if found.wire == VARINT:
            return [_signed(found.value)]
        self.expect(found, BYTES, where)
        if found.stop - found.start > 10 * 64:
            raise self.fail(
                where, found.start, f"a shape must have at most 64 numbers; got {found.stop - found.start} bytes"
            )
        values, position = [], found.start
        while position < found.stop:
            value, position = self.varint(position, found.stop, where)
            values.append(_signed(value))
        return values

    def numbers(self, found: Field, stop: int, dtype: np.dtype, where: str) -> tuple[tuple[int, int, int], int]:
        """Takes a packed run, or the longest unpacked run, of floats that begins with a field.

        Args:
            found: the first field of the run.
            stop: end of the enclosing message.
            dtype: little-endian float32 or float64.
            where: the place, for errors.

        Returns:
            (offset, count, stride) of the numbers in the file, in bytes, and the position after the run.
        """
        width = dtype.itemsize
        if found.wire == BYTES:
            size = found.stop - found.start
            if size % width:
                raise self.fail(where, found.start, f"packed numbers must fill a multiple of {width} bytes; got {size}")
            return (found.start, size // width, width), found.stop
        self.expect(found, FIXED32 if width == 4 else FIXED64, where)
        # Unpacked: every number is preceded by the same one-octet key, so a run is a strided view.
        key, stride = found.number << 3 | found.wire, width + 1
        count, limit, step = 1, 1 + (stop - found.stop) // stride, 16
        while count < limit:
            first = found.stop + (count - 1) * stride
            block = self.octets[first : first + min(step, limit - count) * stride : stride]
            other = np.flatnonzero(block != key)
            if other.size:
                count += int(other[0])
                break
            count += block.size
            step *= 2
        return (found.start, count, stride), found.start + (count - 1) * stride + width

    def array(self, pieces: list[tuple[int, int, int]], dtype: np.dtype) -> np.ndarray:
        """Views the pieces that `numbers` found as one flat array: no copy unless there are several.

        Args:
            pieces: (offset, count, stride) each, in bytes.
            dtype: little-endian float32 or float64.

        Returns:
            (n,) read-only array; it may be unaligned.
        """
        views = [np.ndarray((n,), dtype, self.data, offset, (stride,)) for offset, n, stride in pieces if n]
        if not views:
            return np.zeros(0, dtype)
        return views[0] if len(views) == 1 else np.concatenate(views)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value

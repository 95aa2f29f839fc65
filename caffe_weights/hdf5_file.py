"""HDF5's classic layout, as much as Caffe writes of it, read in place.

Not through libhdf5: that library loops for ever or crashes on damaged files (seen with HDF5 2.0 and single changed octets), while a
downloaded file must end in an error. What Caffe writes is small: superblock 0, symbol-table groups, version 1 object headers, contiguous
datasets. Section numbers are those of the "HDF5 File Format Specification Version 3.0".
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from caffe_weights.model import MAX_COUNT, MAX_LAYERS, check_shape, printable
from caffe_weights.wire import map_file

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_MESSAGES = 1024  # in one object header; Caffe's have 6
MAX_NODES = 300_000  # tree nodes and object headers of one file
UNDEFINED = 2**64 - 1
DATASPACE, DATATYPE, LAYOUT, ATTRIBUTE, CONTINUATION, SYMBOL_TABLE = 0x1, 0x3, 0x8, 0xC, 0x10, 0x11

# IV.A.2.d, class 1: the property fields of IEEE little-endian floats; class 0 and 3 are told apart below.
_IEEE = {(4, 0, 32, 23, 8, 0, 23, 127): np.dtype("<f4"), (8, 0, 64, 52, 11, 0, 52, 1023): np.dtype("<f8")}


@dataclass(frozen=True)
class Node:
    """A group or dataset: its path in the file and the address of its object header."""

    path: str
    address: int


class Hdf5File:
    """A mapped HDF5 file; every failure is a ValueError naming file and object."""

    def __init__(self, path: Path):
        self.path = path
        self.data: mmap.mmap = map_file(path)
        self.walked = 0
        if self.data[:8] != SIGNATURE:
            raise self.fail("superblock", f"must begin with HDF5's signature; got {self.data[:8]!r}")
        version, offset_size, length_size = (self.data[i] if len(self.data) > i else 255 for i in (8, 13, 14))
        if version > 1 or (offset_size, length_size) != (8, 8):
            raise ValueError(
                f"{path}: superblock: must have version 0 or 1 and 8-byte addresses, as Caffe writes it; got version {version}, "
                f'{offset_size} bytes; copy the file with h5py.File(..., "w", libver="earliest")'
            )
        start = (
            24 if version == 0 else 28
        )  # III.A: base, free space, end of file, driver information; then the root's symbol table entry
        (base,) = self.unpack("<Q", start, "superblock")
        if base:
            raise self.fail("superblock", f"the base address must be 0; got {base}")
        self.root = Node("/", self.unpack("<Q", start + 40, "superblock")[0])

    def fail(self, where: str, problem: str) -> ValueError:
        """Make the one error this reader raises."""
        return ValueError(f"{self.path}: {printable(where)}: {problem}; the file is damaged or of another format")

    def unpack(self, form: str, at: int, where: str) -> tuple:
        """Unpack a struct at an address, which must lie in the file."""
        if at + struct.calcsize(form) > len(self.data):
            raise self.fail(where, f"addresses must lie within the file's {len(self.data)} bytes; got {at}")
        return struct.unpack_from(form, self.data, at)

    def visit(self, where: str) -> None:
        """Count a tree node, entry or object header, so that a loop of addresses ends."""
        self.walked += 1
        if self.walked > MAX_NODES:
            raise self.fail(where, f"a file must have at most {MAX_NODES} nodes; got more")

    def messages(self, node: Node) -> list[tuple[int, int, int]]:
        """List (type, address, size) of an object's header messages. Specification: IV.A.1.a."""
        self.visit(node.path)
        version, total, size = self.unpack("<BxHxxxxI", node.address, node.path)
        if version != 1:
            raise self.fail(node.path, f"an object header must have version 1; got {version}")
        blocks, found = [(node.address + 16, size)], []
        for start, length in blocks:  # grows by continuation messages
            if start + length > len(self.data):
                raise self.fail(
                    node.path,
                    f"an object header must lie within the file's {len(self.data)} bytes; got {start} + {length}",
                )
            at, stop = start, start + length
            while at + 8 <= stop and len(found) < total:
                kind, size = self.unpack("<HH", at, node.path)
                at += 8
                if at + size > stop or len(found) >= MAX_MESSAGES:
                    raise self.fail(
                        node.path,
                        f"header messages must fit their block, at most {MAX_MESSAGES}; got {size} bytes at {at}",
                    )
                found.append((kind, at, size))
                if kind == CONTINUATION:
                    blocks.append(self.unpack("<QQ", at, node.path))
                at += size
        return found

    def message(self, node: Node, kind: int) -> tuple[int, int] | None:
        """Return (address, size) of an object's only message of a type, None where it has none."""
        found = [(at, size) for what, at, size in self.messages(node) if what == kind]
        if len(found) > 1:
            raise self.fail(node.path, f"an object must have one message of type {kind}; got {len(found)}")
        return found[0] if found else None

    def members(self, group: Node) -> dict[str, Node]:
        """List a group's members by name, in HDF5's order (of the names' octets). Specification: III.A.1, III.B, III.D."""
        table = self.message(group, SYMBOL_TABLE)
        if table is None:
            raise self.fail(group.path, "must be a group; got another object")
        tree, heap = self.unpack("<QQ", table[0], group.path)
        signature, names_size, names_at = self.unpack("<4s4xQ8xQ", heap, group.path)
        if signature != b"HEAP" or names_at + names_size > len(self.data):
            raise self.fail(
                group.path, f"a group must have a heap of names within the file; got {signature!r} at {heap}"
            )
        members: dict[str, Node] = {}
        pending = [(tree, None)]
        while pending:
            address, level = pending.pop()
            self.visit(group.path)
            (signature,) = self.unpack("<4s", address, group.path)
            if signature == b"TREE" and level != 0:
                kind, own, used = self.unpack("<BBH", address + 4, group.path)
                if kind != 0 or (level is not None and own != level - 1):
                    raise self.fail(
                        group.path,
                        f"a group's tree must have type 0 and levels that fall to 0; got type {kind}, level {own}",
                    )
                words = self.unpack(f"<{2 * used + 1}Q", address + 24, group.path)
                pending += [(child, own) for child in reversed(words[1::2])]
            elif signature == b"SNOD" and level == 0:
                for entry in range(self.unpack("<H", address + 6, group.path)[0]):
                    self.visit(group.path)
                    name_at, header, cache = self.unpack("<QQI", address + 8 + 40 * entry, group.path)
                    name = self._name(names_at, names_size, name_at, group)
                    path = f"{group.path.rstrip('/')}/{name}"
                    if cache == 2 or header == UNDEFINED:
                        raise self.fail(path, "must be an object of this file; got a link")
                    if name in members or len(members) == MAX_LAYERS:
                        raise self.fail(
                            group.path,
                            f"names must differ, at most {MAX_LAYERS}; got {name!r} after {len(members)} others",
                        )
                    members[name] = Node(path, header)
            else:
                raise self.fail(
                    group.path, f"a group must consist of a tree of symbol nodes; got {signature!r} at {address}"
                )
        return members

    def _name(self, heap: int, size: int, offset: int, group: Node) -> str:
        end = self.data.find(b"\0", heap + offset, min(heap + size, heap + offset + 65536)) if offset < size else -1
        if end < 0:
            raise self.fail(group.path, f"a member's name must end within the heap; got offset {offset} of {size}")
        return self.data[heap + offset : end].decode("utf-8", "backslashreplace")

    def _space(self, at: int, where: str) -> tuple[int, ...]:
        """Return a dataspace's shape, () for a scalar. Specification: IV.A.2.b."""
        version, rank = self.unpack("<BB", at, where)
        if version != 1 or rank > 32:
            raise self.fail(
                where, f"must have a dataspace of version 1 and at most 32 axes; got version {version}, {rank} axes"
            )
        return self.unpack(f"<{rank}Q", at + 8, where)

    def _dtype(self, at: int, where: str) -> np.dtype | None:
        """Return the numpy type of a little-endian float or integer or a fixed string, None for others. Specification: IV.A.2.d."""
        head, bits, size = self.unpack("<BBxxI", at, where)
        kind = head & 15
        if kind == 1 and not bits & 0x41:
            return _IEEE.get((size, *self.unpack("<HHBBBBI", at + 8, where)))
        if kind == 0 and not bits & 1 and size in (1, 2, 4, 8):
            return np.dtype(f"<{'i' if bits & 8 else 'u'}{size}")
        return np.dtype(f"S{size}") if kind == 3 and 0 < size <= MAX_COUNT else None

    def array(self, node: Node, kinds: str = "f") -> np.ndarray:
        """View a dataset in place.

        Args:
            node: the dataset.
            kinds: numpy kinds allowed: "f" for blobs, "iu" integers, "S" fixed strings.

        Returns:
            Read-only array in the dataset's shape. Specification: IV.A.2.i, version 3, contiguous.
        """
        parts = {kind: at for kind, at, _ in self.messages(node) if kind in (DATASPACE, DATATYPE, LAYOUT)}
        if len(parts) != 3:
            raise self.fail(node.path, "must be a dataset; got another object")
        shape, dtype = self._space(parts[DATASPACE], node.path), self._dtype(parts[DATATYPE], node.path)
        if dtype is None or dtype.kind not in kinds:
            raise self.fail(
                node.path, f"must hold little-endian numbers of kind {kinds!r}; got {dtype or 'another type'}"
            )
        version, layout = self.unpack("<BB", parts[LAYOUT], node.path)
        if version != 3 or layout != 1:
            raise self.fail(
                node.path,
                f"must be stored in one piece (layout version 3, class 1); got version {version}, class {layout}",
            )
        address, size = self.unpack("<QQ", parts[LAYOUT] + 2, node.path)
        count = size // dtype.itemsize if address != UNDEFINED else 0
        if problem := check_shape(shape, count):
            raise self.fail(node.path, problem)
        if count and address + count * dtype.itemsize > len(self.data):
            raise self.fail(node.path, f"must lie within the file's {len(self.data)} bytes; got {address} + {size}")
        return np.frombuffer(self.data, dtype, count, address if count else 0).reshape(shape)

    def text(self, node: Node) -> dict[str, str]:
        """Return an object's attributes that are fixed strings. Specification: IV.A.2.m."""
        found = {}
        for kind, at, size in self.messages(node):
            if kind != ATTRIBUTE:
                continue
            version, *sizes = self.unpack("<BxHHH", at, node.path)
            if version not in (1, 2, 3):
                raise self.fail(node.path, f"an attribute must have version 1, 2 or 3; got {version}")
            name_at = at + (9 if version == 3 else 8)
            name_size, type_size, space_size = ((s + 7) // 8 * 8 if version == 1 else s for s in sizes)
            value_at = name_at + name_size + type_size + space_size
            dtype = self._dtype(name_at + name_size, node.path)
            if dtype is None or dtype.kind != "S":
                continue
            if value_at + dtype.itemsize > at + size:
                raise self.fail(
                    node.path, f"an attribute must lie within its message of {size} bytes; got {dtype.itemsize}"
                )
            name, value = self.data[name_at : name_at + sizes[0]], self.data[value_at : value_at + dtype.itemsize]
            found[name.split(b"\0")[0].decode("utf-8", "backslashreplace")] = value.rstrip(b"\0").decode(
                "utf-8", "backslashreplace"
            )
        return found

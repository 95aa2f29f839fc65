"""An HDF5 file as a tree whose datasets are viewed in place.

libhdf5 may crash or loop on a damaged file, so it describes the file in a process of its own (hdf5_child.py), with limits; no values pass
between the two: they are mapped here, where the description says. Starting that process takes 0.2 s, whatever the file's size.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from caffe_weights.files.model import check_shape, printable
from caffe_weights.files.wire import map_file

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SECONDS = 300  # on the clock, for a file system that stalls; processor time is limited in hdf5_child.py
CHILD = Path(__file__).with_name("hdf5_child.py")
NUMBERS = {"<f4", "<f8", "<i4", "<i8", "<u4", "<u8"}


def is_hdf5(path: Path) -> bool:
    """Says whether a file begins as HDF5 does."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(SIGNATURE)) == SIGNATURE


@dataclass(frozen=True)
class Node:
    """A group or dataset: its path in the file, and what hdf5_child.py says of it."""

    path: str
    entry: dict


class Hdf5File:
    """A mapped HDF5 file; every failure is a ValueError that names file and object.

    Attributes:
        path: the file.
        data: its mapping.
        root: the group "/".
    """

    def __init__(self, path: Path):
        self.path = path
        self.data = map_file(path)
        self.root = Node("/", self._described())

    def fail(self, where: str, problem: str) -> ValueError:
        """Makes the one error this reader raises."""
        return ValueError(f"{self.path}: {printable(where)}: {problem}; the file is damaged or of another format")

    def _described(self) -> dict:
        command = [sys.executable, "-P", str(CHILD), os.path.abspath(self.path)]
        try:
            child = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise self.fail("/", f"libhdf5 must come to an end; got none within {SECONDS} s") from None
        if child.returncode < 0:  # a signal: SIGXCPU where it loops, SIGSEGV or SIGABRT where it crashes
            raise self.fail("/", f"libhdf5 must come to an end; got signal {-child.returncode}")
        if child.returncode:
            reason = child.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason"]
            raise RuntimeError(f"{self.path}: h5py must be able to run; got {reason[0]}; pip install h5py")
        described = json.loads(child.stdout)
        if "error" in described:
            raise self.fail("/", f"libhdf5 must be able to read it; got {described['error']!r}")
        return described

    def members(self, group: Node) -> dict[str, Node]:
        """Lists a group's members by name, in HDF5's order (of the names' octets)."""
        if "members" not in group.entry:
            raise self.fail(group.path, f"must be a group; got {group.entry.get('other', 'a dataset')}")
        return {name: Node(f"{group.path.rstrip('/')}/{name}", entry) for name, entry in group.entry["members"].items()}

    def text(self, group: Node) -> dict[str, str]:
        """Returns a group's attributes that are one string."""
        return group.entry["text"]

    def array(self, node: Node, kinds: str = "f") -> np.ndarray:
        """Views a dataset in place.

        Args:
            node: the dataset.
            kinds: numpy kinds allowed: "f" for blobs, "iu" integers, "S" fixed strings.

        Returns:
            Read-only array in the dataset's shape, possibly unaligned.

        Raises:
            ValueError: it is no dataset, has another type, lies in pieces or elsewhere, or its numbers are not all there.
        """
        entry = node.entry
        if "dtype" not in entry:
            raise self.fail(node.path, f"must be a dataset; got {entry.get('other', 'a group')}")
        dtype = np.dtype(entry["dtype"])
        if dtype.kind not in kinds or not (dtype.kind == "S" or entry["dtype"] in NUMBERS):
            raise self.fail(node.path, f"must hold little-endian numbers of kind {kinds!r}; got {entry['dtype']}")
        if entry["layout"] != "contiguous":
            raise ValueError(
                f"{self.path}: {printable(node.path)}: must be stored in one piece within the file; got {entry['layout']} storage; "
                "rewrite the file with h5repack -l CONTI -f NONE"
            )
        count = entry["size"] // dtype.itemsize if entry["at"] is not None else 0
        if problem := check_shape(tuple(entry["shape"]), count):
            raise self.fail(node.path, problem)
        if count and entry["at"] + count * dtype.itemsize > len(self.data):
            raise self.fail(node.path, f"must lie within the file's {len(self.data)} bytes; got {entry['at']}")
        return np.frombuffer(self.data, dtype, count, entry["at"] if count else 0).reshape(entry["shape"])

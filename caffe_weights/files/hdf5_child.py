"""Describes an HDF5 file to the program that started it: `python hdf5_child.py FILE`, JSON on stdout.

libhdf5 loops for ever or crashes on some damaged files (seen with HDF5 2.0 and single changed octets). It runs here, in a process of its own
with limits of time and memory, and reads no values: the answer says where in the file each dataset lies, and the caller maps them there.

The answer is a group, or {"error": text}:
  group    {"text": {attribute: value}, "members": {name: group, dataset or {"other": what}}}
  dataset  {"dtype": numpy's name, "shape": [...], "at": byte offset or null, "size": bytes stored, "layout": "contiguous" or another}
"""

import json
import os
import resource
import sys

import h5py
import numpy as np

MAX_OBJECTS = 65536  # groups and datasets of one file; a genuine one has some hundreds
MAX_DEPTH = 32
MAX_TEXT = 65536
MEMORY = 256 * 2**20  # beyond what the libraries have taken: libhdf5's caches and this answer
SECONDS = 10  # of processor time; MAX_OBJECTS take half of it
BYTES_A_SECOND = 50e6  # for which there is more time; only the metadata are read, so this is ample
LAYOUTS = {h5py.h5d.CONTIGUOUS: "contiguous", h5py.h5d.CHUNKED: "chunked", h5py.h5d.COMPACT: "compact"}


def main(path: str) -> None:
    """Prints the answer for one file."""
    try:
        limit(os.stat(path).st_size)
        with h5py.File(path, "r", locking=False) as file:
            answer = group(file, [0], ())
    except Exception as error:  # whatever libhdf5 says of a damaged file
        answer = {"error": " ".join(f"{error}".split())[:200] or type(error).__name__}
    json.dump(answer, sys.stdout)


def limit(size: int) -> None:
    """Limits this process's processor time and memory by the size of the file in bytes."""
    seconds = int(SECONDS + resource.getrusage(resource.RUSAGE_SELF).ru_utime + size / BYTES_A_SECOND)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm", encoding="ascii") as statm:
            taken = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))


def group(this, seen: list[int], above: tuple[int, ...]) -> dict:
    """Describes a group and all below it.

    Args:
        this: the h5py.Group.
        seen: one number, the objects so far.
        above: addresses of the groups that hold it.
    """
    address = h5py.h5o.get_info(this.id).addr
    if address in above or len(above) > MAX_DEPTH:
        raise ValueError(f"groups must nest at most {MAX_DEPTH} deep and not in themselves; got {this.name}")
    members = {}
    for name in this:
        seen[0] += 1
        if seen[0] > MAX_OBJECTS:
            raise ValueError(f"a file must have at most {MAX_OBJECTS} groups and datasets; got more")
        link = this.get(name, getlink=True)
        value = this.get(name) if isinstance(link, h5py.HardLink) else None
        if isinstance(value, h5py.Group):
            members[readable(name)] = group(value, seen, (*above, address))
        elif isinstance(value, h5py.Dataset):
            members[readable(name)] = dataset(value)
        else:  # a link could lead to another file
            members[readable(name)] = {"other": "a link" if value is None else "another object"}
    return {"text": text(this), "members": members}


def dataset(this) -> dict:
    """Describes a dataset."""
    space, plist = this.id.get_space(), this.id.get_create_plist()
    layout = LAYOUTS.get(plist.get_layout(), "virtual")
    if plist.get_external_count():
        layout = "external"
    elif space.get_simple_extent_type() == h5py.h5s.NULL:
        layout = "null"
    contiguous = layout == "contiguous"
    return {
        "dtype": this.dtype.str,
        "shape": list(this.shape or ()),
        "at": this.id.get_offset() if contiguous else None,
        "size": this.id.get_storage_size() if contiguous else 0,
        "layout": layout,
    }


def text(this) -> dict[str, str]:
    """Returns the attributes that are one string."""
    found = {}
    for name in this.attrs:
        attribute = h5py.h5a.open(this.id, name.encode("utf-8", "surrogateescape"))
        if attribute.shape == () and attribute.dtype.kind in "SO" and attribute.get_storage_size() <= MAX_TEXT:
            value = this.attrs[name]
            if isinstance(value, bytes | str | np.bytes_):
                found[readable(name)] = readable(value)[:MAX_TEXT]
    return found


def readable(name: str | bytes) -> str:
    """Returns a string with octets that are no UTF-8 as \\xNN."""
    octets = name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")
    return octets.rstrip(b"\0").decode("utf-8", "backslashreplace")


if __name__ == "__main__":
    main(sys.argv[1])

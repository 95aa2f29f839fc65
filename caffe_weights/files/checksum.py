"""Which file is it: SHA-256, and the list of known files in sources.toml."""

import hashlib
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from caffe_weights.files.wire import map_file

SOURCES = Path(__file__).parents[1] / "sources.toml"


def sha256(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file in hexadecimal.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is a directory, a device or empty.
    """
    map_file(Path(path)).close()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Source:
    """A known file: address of origin, licence, use; size in bytes and sha256 only where somebody has verified them."""

    file: str
    url: str
    licence: str
    used_by: str
    size: int | None = None
    sha256: str | None = None
    note: str = ""


def known_sources() -> dict[str, Source]:
    """Reads sources.toml; returns its entries by file name."""
    with open(SOURCES, "rb") as file:
        return {entry["file"]: Source(**entry) for entry in tomllib.load(file)["source"]}


def verify(path: str | os.PathLike, name: str | None = None) -> tuple[bool, str]:
    """Checks a file against sources.toml.

    Args:
        path: the file.
        name: the entry's file name, where it differs from the path's.

    Returns:
        Whether its sha256 is the recorded one, and one line that says what was checked and what could not be, for lack of a recorded value.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: the entry is unknown, or size or sha256 differ.
    """
    path = Path(path)
    entries = known_sources()
    wanted = name or path.name
    actual = sha256(path)
    if wanted not in entries:
        same = [source.file for source in entries.values() if source.sha256 == actual]
        if not same:
            raise ValueError(
                f"{path}: must be a known file; got {wanted!r}, sha256 {actual}; choose --as from {', '.join(entries)}"
            )
        return True, f"{path}: is {same[0]} (sha256 {actual})"
    source = entries[wanted]
    size = path.stat().st_size
    for what, got, expected in (("size", size, source.size), ("sha256", actual, source.sha256)):
        if expected is not None and got != expected:
            raise ValueError(
                f"{path}: the {what} of {wanted} must be {expected}; got {got}; fetch it again from {source.url}"
            )
    if source.sha256 is not None:
        return True, f"{path}: verified: sha256 as recorded (size {size}, sha256 {actual})"
    compared = "only the size, which is as recorded" if source.size is not None else "nothing"
    return False, (
        f"{path}: not verified: no sha256 of {wanted} is recorded, compared is {compared} (size {size}, sha256 {actual})"
    )

"""Naming data by their content, so that a record says which very pictures and labels it was measured on."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from repro.data.lists import Item
from repro.files import regular_file, write_json


def fingerprint(items: Sequence[Item], memory: Path | None = None) -> str:
    """Names a list of data: SHA-256 over each item's name and the SHA-256 of its files' bytes, in the list's order.

    Another order, another list, another name and any other byte of a file give another fingerprint. Where the files lie plays no part. With a memory,
    a file is taken for unread only if its path, size, inode, or time of modification or of change is another than when it was last read.

    Args:
        items: the items.
        memory: a JSON file that keeps what was read, or None; made and brought up to date here.

    Returns:
        64 hexadecimal digits.

    Raises:
        FileNotFoundError, ValueError: a file is missing, or no regular file.
    """
    files = [file for item in items for file in (item.image, item.label) if file is not None]
    sha256 = dict(zip(files, _read_all(files, memory), strict=True))
    digest = hashlib.sha256()
    for item in items:
        label = "-" if item.label is None else sha256[item.label]
        digest.update(f"{item.name}\t{sha256[item.image]}\t{label}\n".encode())
    return digest.hexdigest()


def data_fingerprint(train: Sequence[Item], val: Sequence[Item], memory: Path | None = None) -> str:
    """Names what a run is trained and tested on: SHA-256 of both lists' fingerprints.

    Args:
        train, val: the lists.
        memory: as for `fingerprint`.
    """
    return hashlib.sha256((fingerprint(train, memory) + fingerprint(val, memory)).encode()).hexdigest()


def require_unchanged(train: Sequence[Item], val: Sequence[Item], data_sha256: str, memory: Path | None = None) -> None:
    """Sees that the data are still those that were named, before a result is said to be of them.

    Args:
        train, val: the lists.
        data_sha256: what `data_fingerprint` returned for them.
        memory: as for `fingerprint`; only files that changed are read again.

    Raises:
        ValueError: they are others, or some are gone.
    """
    try:
        found = data_fingerprint(train, val, memory)
    except FileNotFoundError as error:
        raise ValueError(f"data: must stay as they are while they are used; got {error}") from error
    if found != data_sha256:
        raise ValueError(
            f"data: must stay as they are while they are used; got other files now ({found[:12]}) than at the start ({data_sha256[:12]}); "
            "leave the data folder alone, and run again"
        )


def _read_all(files: Sequence[Path], memory: Path | None) -> list[str]:
    """Returns every file's SHA-256, from the memory where that still holds."""
    known: dict[str, list] = {}
    if memory is not None:
        try:
            document = json.loads(memory.read_text(encoding="utf-8"))
            known = document if isinstance(document, dict) else {}
        except (OSError, ValueError):
            pass  # It is only a memory.
    keys = [str(file.absolute()) for file in files]
    states = []
    for file in files:
        found = regular_file(file, "file", "complete the data folder")
        states.append([found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino])
    # A folder whose name is no UTF-8 is not remembered: JSON cannot hold it.
    kept = {
        key: entry[-1]
        for key, state in zip(keys, states, strict=True)
        if isinstance(entry := known.get(key), list) and entry[:-1] == state
    }
    unread = list(dict.fromkeys(key for key in keys if key not in kept))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        bar = tqdm(
            threads.map(_sha256, unread),
            "reading data",
            len(unread),
            unit="file",
            delay=2,
            disable=not sys.stderr.isatty(),
            leave=False,
        )
        kept |= dict(zip(unread, bar, strict=True))
    if memory is not None and unread:
        fresh = {key: [*state, kept[key]] for key, state in zip(keys, states, strict=True) if key.isprintable()}
        write_json(memory, known | fresh)
    return [kept[key] for key in keys]


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

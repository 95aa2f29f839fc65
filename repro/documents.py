"""JSON documents that anybody may have put there, read with suspicion."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

MOST_BYTES = 32 << 20  # of a file that is read whole: a record of a million iterations has 20 MiB
LARGEST = 1e30  # of a number in a document: sums and squares of such stay finite, and a chart can hold them


def document_bytes(path: Path) -> bytes:
    """Reads a file that anybody may have put there: a regular one of at most MOST_BYTES, so that no pipe or device is waited for.

    Raises:
        ValueError: It cannot be read, or is no such file; the reason alone.
    """
    try:
        # Opening a pipe without O_NONBLOCK would wait for a writer.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError("no regular file")
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    if len(data) > MOST_BYTES:
        raise ValueError(f"larger than {MOST_BYTES >> 20} MiB")
    return data


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _check(value: Any) -> None:
    """Raises ValueError where a document holds a number too large to compute with, or text that no file can hold."""
    if isinstance(value, dict):
        for key, entry in value.items():
            _check(key)
            _check(entry)
    elif isinstance(value, list):
        for entry in value:
            _check(entry)
    elif isinstance(value, str):
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ValueError("a string holds half of a surrogate pair")
    elif isinstance(value, int | float) and not abs(value) <= LARGEST:
        raise ValueError(f"a number is larger than {LARGEST:g}")


def parse_json(data: bytes) -> Any:
    """Reads a document: UTF-8, every number finite and at most LARGEST, every string such that it can be written again.

    Raises:
        ValueError: It is no such document; the reason alone, on one line.
    """
    try:
        document = json.loads(data.decode("utf-8"), parse_constant=_refuse)
        _check(document)
        return document
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except ValueError as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error


def is_number(value: Any) -> bool:
    """Tells whether a value of a document is a finite number, which True is not."""
    return type(value) in (int, float) and math.isfinite(value)

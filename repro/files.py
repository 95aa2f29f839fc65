"""Files: written whole or not at all, read only where they are regular and of a size that can be meant, and named so that they stay in place."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caffe_weights.files.atomic import replacing

MAX_NAME_BYTES = 200  # A file system's 255, less what is put around a name while its file is written.
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def write_text(path: Path, text: str) -> None:
    """Writes a text file, with its folder: a killed program leaves the old file or the new one."""
    write_together({path: text})


def write_together(files: Mapping[Path, str]) -> None:
    """Writes text files that belong together, with their folders: none is replaced before all are written, and a failure replaces none."""
    with contextlib.ExitStack() as stack:
        for path, text in reversed(
            files.items()
        ):  # the stack is emptied from its end: the first file is replaced first
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(replacing(path)).write_text(text, encoding="utf-8")


def write_json(path: Path, document: Any) -> None:
    """Writes a document with sorted keys, as `write_text` does.

    Raises:
        ValueError: It holds NaN or an infinity, which JSON has no word for.
    """
    write_text(path, json_text(document))


def json_text(document: Any) -> str:
    """Lays a document out as `write_json` writes it.

    Raises:
        ValueError: It holds NaN or an infinity.
    """
    return json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n"


def regular_file(path: Path, what: str = "file", advice: str = "correct the path") -> os.stat_result:
    """Sees that a path leads to a regular file: a FIFO would be waited for, a device has no end.

    Args:
        path: The file.
        what: What it is, for the message.
        advice: What to do where it is missing, for the message.

    Returns:
        Its size, times and inode.

    Raises:
        FileNotFoundError: There is nothing.
        ValueError: It is of another kind, or its name cannot be looked up.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"{path}: {what} must exist; got no such file; {advice}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{str(path)[:300]}: {what} must be a file; got {reason}; correct the path") from error
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "another kind")
        raise ValueError(f"{path}: {what} must be a regular file; got {kind}; name a file")
    return found


def read_bytes(path: Path, limit: int, what: str = "file", advice: str = "correct the path") -> bytes:
    """Reads a regular file whole, its size being looked at first.

    Args:
        path: The file.
        limit: How many bytes it may have.
        what, advice: As for `regular_file`.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is no regular file, is larger, or cannot be read.
    """
    size = regular_file(path, what, advice).st_size
    try:
        if size <= limit:
            with open(path, "rb") as file:
                content = file.read(limit + 1)  # A file may grow, and those of /proc have no size.
            if len(content) <= limit:
                return content
            size = len(content)
    except OSError as error:
        raise ValueError(f"{path}: {what} must be readable; got {error.strerror}; correct its permissions") from error
    raise ValueError(f"{path}: {what} must have at most {limit} bytes; got {size}; name the right file")


def check_name(name: Any, where: str) -> str:
    """Sees that an id, a stem or a table's name is one component of a path and one word of a list, so that what is named after it stays in its folder.

    Args:
        name: The name.
        where: Where it stands, for the message.

    Returns:
        The name.

    Raises:
        ValueError: It is no text or empty, has a slash, a backslash, white space or a control character, starts with a dot, is no UTF-8, or has more than
            MAX_NAME_BYTES bytes.
    """
    must = (
        f"{where}: a name must be one word of at most {MAX_NAME_BYTES} bytes without / and \\ that starts with no dot"
    )
    if isinstance(name, str):
        plain = name[:1] not in ("", ".") and not any(c in "/\\" or c.isspace() or not c.isprintable() for c in name)
        # Text that came from bytes which are no UTF-8 has surrogates, which no file of ours can hold; they are not printable either.
        if plain and len(name.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES:
            return name
    shown = ascii(name)
    raise ValueError(f"{must}; got {shown if len(shown) <= 80 else shown[:80] + '...'}; rename it")

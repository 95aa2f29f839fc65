"""Writing a file whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path beside `path` to write to, and moves it there once everything is written.

    A writer that fails or is killed leaves the old file, or none; a killed one may leave `.<name>.<random>.part`.

    Args:
        path: where the file shall be.

    Yields:
        The temporary path.

    Raises:
        FileNotFoundError: the folder is missing.
        ValueError: `path` is a directory.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: its folder must exist; got no folder {path.parent}; create it")
    if path.is_dir():
        raise ValueError(f"{path}: must name a file to write; got a directory; add a file name")
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(part, 0o666 & ~_umask())  # mkstemp gives 0600
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

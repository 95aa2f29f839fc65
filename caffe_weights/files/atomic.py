"""Writing a file whole or not at all."""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path beside `path` to write to, and moves it there once everything is written and on disk.

    A writer that fails or is killed leaves the old file, or none; a killed one may leave `.<process>.<random>.part`. An old file's
    permissions are kept; a new one's are what the process's umask leaves of 0666. A symbolic link stays, what it points to is replaced.

    Args:
        path: where the file shall be.

    Yields:
        The temporary path, of an empty file that no other process has.

    Raises:
        FileNotFoundError: the folder is missing.
        ValueError: `path` is a directory, a device or a pipe.
        OSError: it cannot be written, for want of space or permission; the message names `path`.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: its folder must exist; got no folder {path.parent}; create it")
    target = Path(os.path.realpath(path))
    mode = target.stat().st_mode if target.exists() else None
    if mode is not None and not stat.S_ISREG(mode):
        kind = "a directory; add a file name" if stat.S_ISDIR(mode) else "a device or pipe; write to a file"
        raise ValueError(f"{path}: must name a file to write; got {kind}")
    part = target.parent / f".{os.getpid()}.{secrets.token_hex(8)}.part"
    try:
        # The umask applies here; asking for it would change it for other threads.
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        if mode is not None:
            os.chmod(part, stat.S_IMODE(mode))
        os.replace(part, target)
    except OSError as error:
        if error.filename not in (None, str(part)):  # about another file
            raise
        reason = error.strerror or " ".join(str(error).split())[:200]
        failed = OSError(f"{path}: must be written whole; got {reason}; free space or choose another place")
        failed.errno = error.errno
        raise failed from error
    finally:
        part.unlink(missing_ok=True)

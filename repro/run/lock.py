"""One process at a time in a row's folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder for this process; the system lets go of it when the process ends, however it ends.

    Args:
        folder: Made where it is missing. Its file `lock` says who holds it.

    Raises:
        RuntimeError: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    # A record lock belongs to the process: data workers that outlive a killed one do not hold it.
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.stat(path)  # gone where the one that held it has just ended and taken the file away
        except OSError as error:
            file.seek(0)
            raise RuntimeError(
                f"{folder}: one process at a time must be at work here; got another, {file.read(200).strip() or 'unnamed'}; "
                "wait for it, stop it, or choose another --out"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
            path.unlink(missing_ok=True)

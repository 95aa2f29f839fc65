"""What every conversion of a data set shares: finding files, making labels in parallel, going on where it stopped, counting."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from caffe_weights.files.atomic import replacing
from repro.data.palette import write_label
from repro.files import write_json

_CHUNK = 8
_STAMP = "prepared.json"


class Job(NamedTuple):
    """One image to take over and, where there is one, its label to make from `source`."""

    image: Path
    image_out: Path
    label_out: Path | None
    source: Any = None


def find_folder(where: Path, below: Sequence[str], holds: str, what: str) -> Path:
    """Finds a distribution's folder, wherever in it the user has pointed.

    Args:
        where: the folder given by the user.
        below: folders under it to look into, "" being itself.
        holds: a file or folder that the right one holds.
        what: the distribution's name, for the message.

    Returns:
        The first of those folders that holds it.

    Raises:
        FileNotFoundError: none does.
    """
    for folder in below:
        if (where / folder / holds).exists():
            return where / folder
    places = ", ".join(str(where / folder / holds) for folder in below)
    raise FileNotFoundError(f"{where}: must be {what}; got none of {places}; give the folder of the unpacked archive")


def read_ids(path: Path) -> list[str]:
    """Reads the first word of every line, as VOC's and SBD's image sets have it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text, or holds no id, or one twice.
    """
    try:
        ids = [line.split()[0] for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: list must exist; got no such file; complete the data folder") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: list must be UTF-8 text; got {error.reason}; save it as text") from error
    if not ids or len(set(ids)) < len(ids):
        got = "none" if not ids else f"{next(name for name in ids if ids.count(name) > 1)!r} twice"
        raise ValueError(f"{path}: list must hold ids, each once; got {got}; correct the list")
    return ids


def require_files(files: Sequence[Path], what: str) -> None:
    """Sees that every file exists before any work is done.

    Raises:
        FileNotFoundError: some are missing; their number and the first three are named.
    """
    missing = [file for file in files if not file.is_file()]
    if missing:
        first = ", ".join(map(str, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise FileNotFoundError(
            f"{what}: every file must exist; got {len(missing)} of {len(files)} missing: {first}; complete the data folder"
        )


def claim(out: Path, settings: Mapping[str, Any]) -> None:
    """Writes down what a folder's labels are made from, and refuses to mix them with labels made from something else.

    Args:
        out: the folder to prepare; made if it is missing.
        settings: whatever decides the pixels of the labels.

    Raises:
        ValueError: the folder was prepared with other settings, or cannot be made.
    """
    stamp = out / _STAMP
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = json.loads(stamp.read_text(encoding="utf-8")) if stamp.exists() else None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{out}: must be a folder to write to; got {' '.join(str(error).split())}; name another"
        ) from error
    if found == settings:
        return
    if found is not None:
        raise ValueError(
            f"{out}: must be prepared from one source; got labels of {found}, now {dict(settings)}; name another folder"
        )
    write_json(stamp, settings)


def _take_over(image: Path, out: Path) -> None:
    """Links an image into place, or copies it where the file system cannot link; what is there stays."""
    try:
        os.link(image, out)
    except FileExistsError:
        return
    except OSError:
        with replacing(out) as part:
            shutil.copyfile(image, part)


def _image_size(path: Path) -> tuple[int, int]:
    """Reads (height, width) from an image's header."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and more, depending on what is broken.
        raise ValueError(f"{path}: image must decode; got {' '.join(str(error).split())}; replace the file") from error


def _do(make_label: Callable[[Any], np.ndarray | None], job: Job) -> bool:
    """Does one job, the label last, so that a label in place means a finished job; False where there is no label to make."""
    if job.label_out is not None:
        label = make_label(job.source)
        if label is None:
            return False
        size = _image_size(job.image)
        if label.shape != size:
            raise ValueError(
                f"{job.image}: label must have its image's (height, width) {size}; got {label.shape} for "
                f"{job.label_out.name}; pair the right files"
            )
    _take_over(job.image, job.image_out)
    if job.label_out is not None:
        write_label(job.label_out, label)
    return True


def _start_worker() -> None:
    """Lets a worker leave Ctrl-C to the parent, and end with the parent even where that is killed."""

    def end_with_parent() -> None:
        parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=end_with_parent, daemon=True).start()


def _finished(job: Job) -> bool:
    return job.image_out.exists() and (job.label_out is None or job.label_out.exists())


def convert(jobs: Sequence[Job], make_label: Callable[[Any], np.ndarray | None], workers: int, what: str) -> list[bool]:
    """Does all jobs that are not yet done, in parallel, with a progress bar on stderr.

    Args:
        jobs: what is to be made.
        make_label: makes a label, (H, W) uint8, of a job's source, or None where the image is to be left out; a function
            that can be pickled.
        workers: processes; 1 works in this one.
        what: the bar's title.

    Returns:
        For every job whether its files are there; False where `make_label` gave None.

    Raises:
        ValueError, FileNotFoundError: as `make_label`; a label has another size than its image, or an image does not open.
        RuntimeError: a process was killed.
    """
    done = [_finished(job) for job in jobs]
    todo = [index for index, finished in enumerate(done) if not finished]
    for folder in {path.parent for job in jobs for path in (job.image_out, job.label_out) if path is not None}:
        folder.mkdir(parents=True, exist_ok=True)
    # A log gets a line every five seconds, a terminal a smooth bar.
    interval = 0.1 if sys.stderr.isatty() else 5.0
    bar = partial(tqdm, total=len(jobs), initial=len(jobs) - len(todo), desc=what, unit="image", mininterval=interval)
    work = partial(_do, make_label)
    if workers <= 1 or len(todo) <= _CHUNK:
        results = [work(jobs[index]) for index in bar(todo)]
    else:
        pool = ProcessPoolExecutor(
            workers, get_context("spawn"), _start_worker
        )  # not forked: the caller may run threads
        try:
            results = list(bar(pool.map(work, (jobs[index] for index in todo), chunksize=_CHUNK)))
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"{what}: all worker processes must live; got one that was killed; use fewer --workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    for index, made in zip(todo, results, strict=True):
        done[index] = made
    return done


def count_line(list_name: str, count: int, expected: int | None) -> str:
    """Says how many images a list has, beside how many it should have."""
    if expected is None or count == expected:
        return f"{list_name}: {count} images" + (" as expected" if expected is not None else "")
    return f"{list_name}: {count} images, DIFFERS from the expected {expected} by {count - expected:+d}"

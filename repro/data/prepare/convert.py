"""What every conversion of a data set shares: finding files, making labels in parallel, going on where it stopped, counting."""

import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from caffe_weights.files.atomic import replacing
from repro.data.lists import read_lines
from repro.data.palette import write_label
from repro.data.pictures import SUFFIXES, find_picture, open_picture, size_error, stem_of
from repro.data.pool import work_through
from repro.files import check_name, write_json

IMAGES = "JPEGImages"
_PARTS = ("trainval", "train", "val", "test")  # What lists are for, by how their names begin.
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


def id_of(file_name: str, where: str) -> str:
    """Names an image in lists: its file's name without suffixes, white space as underscores.

    Raises:
        ValueError: `check_name` does not allow it.
    """
    return check_name("_".join(stem_of(file_name).split()), where)


def read_ids(path: Path) -> list[str]:
    """Reads the id of every line: its first word, as VOC's and SBD's image sets have it, or the stem of DeepLab's pairs `/JPEGImages/x.jpg /labels/x.png`.

    Raises:
        FileNotFoundError, ValueError: As `read_lines`; also ValueError if a line has no id that `check_name` allows, or an id comes twice.
    """
    ids: dict[str, int] = {}
    for number, line in read_lines(path):
        where, words = f"{path}:{number}", line.split()
        if "\\" in line:
            raise ValueError(
                f"{where}: a line must have / between folders; got {line.strip()[:80]!r}; write / for every backslash"
            )
        # VOC's second word is 1, 0 or -1.
        paths = [word for word in words[:2] if word.lower().endswith(SUFFIXES)]
        stems = {stem_of(word.rpartition("/")[2]) for word in paths} or {words[0]}
        if len(stems) > 1:
            raise ValueError(f"{where}: a pair must be of one id; got {line.strip()[:80]!r}; correct the list")
        name = check_name(stems.pop(), where)
        if name in ids:
            raise ValueError(f"{where}: ids must differ; got {name!r} again, first in line {ids[name]}; remove one")
        ids[name] = number
    return list(ids)


def make_job(image: Path, out: Path, labels: str | None, name: str, source: Any = None) -> Job:
    """Makes the job of an image whose id is `name`, for the folders JPEGImages and `labels` of `out`."""
    label_out = None if labels is None else out / labels / f"{name}.png"
    return Job(image, out / IMAGES / f"{name}{image.suffix.lower()}", label_out, source)


def find_photo(folder: Path, name: str) -> Path:
    """Finds the photo of an id, whatever its suffix; where there is none, names the .jpg that is missing."""
    return find_picture(folder, name) or folder / f"{name}.jpg"


def shared_images(lists: Mapping[str, Collection[str]]) -> list[str]:
    """Says which lists share images that must not: what is trained on is not tested on.

    Args:
        lists: The ids of each list; by its name it is one of training, validation or test (train, train_aug, val, ..), or (trainval, ..) of none.

    Returns:
        One line for each such pair.
    """
    parts = {name: next((part for part in _PARTS if Path(name).stem.startswith(part)), "") for name in lists}
    lines = []
    for a, b in combinations(lists, 2):
        if "" in (parts[a], parts[b]) or "trainval" in (parts[a], parts[b]) or parts[a] == parts[b]:
            continue
        both = sorted(set(lists[a]) & set(lists[b]))
        if both:
            lines.append(
                f"lists: {a} and {b} must share no image; got {len(both)} in both, such as {both[0]}; correct them"
            )
    return lines


def require_apart(lists: Mapping[str, Collection[str]]) -> None:
    """Raises ValueError where `shared_images` finds anything."""
    for line in shared_images(lists):
        raise ValueError(line)


def require_files(files: Sequence[Path], what: str) -> None:
    """Sees that every file exists before any work is done.

    Raises:
        FileNotFoundError: some are missing; their number and the first three are named.
    """
    missing = [file for file in files if not os.path.isfile(file)]
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
    """Links an image into place, or copies it where the file system cannot link; what is there stays, unless it leads nowhere."""
    source = image.resolve()  # A link to a symbolic link would be one that leads elsewhere from here.
    if out.is_symlink() and not out.exists():
        out.unlink()
    try:
        os.link(source, out)
    except FileExistsError:
        return
    except OSError:
        with replacing(out) as part:
            shutil.copyfile(source, part)


def _image_size(path: Path) -> tuple[int, int]:
    """Reads (height, width) from an image's header."""
    with open_picture(path) as image:
        return image.height, image.width


def _do(make_label: Callable[[Any], np.ndarray | None], job: Job) -> bool:
    """Does one job, the label last, so that a label in place means a finished job; False where there is no label to make."""
    if job.label_out is not None:
        label = make_label(job.source)
        if label is None:
            return False
        size = _image_size(job.image)
        if label.shape != size:
            raise size_error(job.image, f"{job.image}, {job.label_out.name}", size, label.shape)
    _take_over(job.image, job.image_out)
    if job.label_out is not None:
        write_label(job.label_out, label)
    return True


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
    work = partial(_do, make_label)
    results = work_through(work, [jobs[index] for index in todo], workers, _CHUNK, what, "image", len(jobs) - len(todo))
    for index, made in zip(todo, results, strict=True):
        done[index] = made
    return done


def count_line(list_name: str, count: int, expected: int | None) -> str:
    """Says how many images a list has, beside how many it should have."""
    if expected is None or count == expected:
        return f"{list_name}: {count} images" + (" as expected" if expected is not None else "")
    return f"{list_name}: {count} images, DIFFERS from the expected {expected} by {count - expected:+d}"

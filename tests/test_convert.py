"""What conversions share: files found and refused, parallel work, going on where it stopped."""

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repro.data.palette import voc_palette, write_label
from repro.data.prepare.convert import (
    Job,
    claim,
    convert,
    count_line,
    find_folder,
    find_photo,
    id_of,
    make_job,
    read_ids,
    require_apart,
    require_files,
    shared_images,
)


def fails(error, message):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def make_jobs(tmp_path, count=3, size=(4, 5)):
    """Makes images of one size and jobs whose source is the label's value."""
    (tmp_path / "in").mkdir(exist_ok=True)
    jobs = []
    for value in range(count):
        image = tmp_path / "in" / f"{value}.png"
        Image.fromarray(np.full((*size, 3), value, np.uint8)).save(image)
        jobs.append(Job(image, tmp_path / "out/i" / f"{value}.png", tmp_path / "out/l" / f"{value}.png", value))
    return jobs


def constant_label(value):
    return np.full((4, 5), value, np.uint8)


def label_of_odd_values(value):
    return constant_label(value) if value % 2 else None


def label_that_interrupts(value):
    if value == 1:
        raise ValueError("one is broken")
    return constant_label(value)


def label_that_kills(value):
    os.kill(os.getpid(), signal.SIGKILL)


def label_that_waits(folder):
    (Path(folder) / f"{os.getpid()}.pid").touch()
    time.sleep(60)


def alive(process):
    """Says whether a process runs; one that nobody has waited for yet (Z) does not."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def values(jobs):
    return [np.asarray(Image.open(job.label_out)).tolist() for job in jobs]


def test_labels_are_index_pngs_with_vocs_palette(tmp_path):
    label = np.array([[0, 1, 80], [254, 255, 15]], np.uint8)
    write_label(tmp_path / "a.png", label)
    image = Image.open(tmp_path / "a.png")
    assert image.mode == "P"
    assert np.array_equal(np.asarray(image), label)
    assert image.getpalette() == voc_palette()
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("workers", [1, 2])
def test_parallel_work_gives_the_same_files(tmp_path, workers):
    jobs = make_jobs(tmp_path, 20)
    assert convert(jobs, label_of_odd_values, workers, "test") == [value % 2 == 1 for value in range(20)]
    assert values(jobs[1::2]) == [constant_label(value).tolist() for value in range(1, 20, 2)]
    assert (
        sorted(os.listdir(tmp_path / "out/l"))
        == sorted(os.listdir(tmp_path / "out/i"))
        == sorted(f"{v}.png" for v in range(1, 20, 2))
    )


def test_images_are_linked(tmp_path):
    (job,) = make_jobs(tmp_path, 1)
    convert([job], constant_label, 1, "test")
    assert job.image_out.samefile(job.image)


def test_images_are_copied_where_they_cannot_be_linked(tmp_path, monkeypatch):
    (job,) = make_jobs(tmp_path, 1)

    def link(*_):
        raise OSError("other file system")

    monkeypatch.setattr("os.link", link)
    convert([job], constant_label, 1, "test")
    assert not job.image_out.samefile(job.image)
    assert job.image_out.read_bytes() == job.image.read_bytes()


def test_symbolic_links_are_followed(tmp_path):
    """A relative one would lead elsewhere from the output folder, and a prepared one that leads nowhere is replaced."""
    (job,) = make_jobs(tmp_path, 1)
    link = tmp_path / "links" / "0.png"
    link.parent.mkdir()
    link.symlink_to("../in/0.png")
    job.image_out.parent.mkdir(parents=True)
    job.image_out.symlink_to("../in/0.png")
    assert not job.image_out.exists()
    assert convert([job._replace(image=link)], constant_label, 1, "test") == [True]
    assert not job.image_out.is_symlink()
    assert job.image_out.samefile(job.image)


def test_a_folder_can_be_prepared_in_place(tmp_path):
    (job,) = make_jobs(tmp_path, 1)
    job = job._replace(image_out=job.image)
    assert convert([job], constant_label, 1, "test") == [True]
    assert job.label_out.is_file()


def test_images_without_labels(tmp_path):
    (job,) = make_jobs(tmp_path, 1)
    assert convert([job._replace(label_out=None)], label_that_kills, 1, "test") == [True]
    assert job.image_out.is_file()
    assert not job.label_out.parent.exists()


def test_work_goes_on_where_it_stopped(tmp_path):
    jobs = make_jobs(tmp_path)
    with fails(ValueError, "one is broken"):
        convert(jobs, label_that_interrupts, 1, "test")
    assert [job.label_out.exists() for job in jobs] == [True, False, False]
    before = jobs[0].label_out.stat().st_mtime_ns
    assert convert(jobs, constant_label, 1, "test") == [True, True, True]
    assert jobs[0].label_out.stat().st_mtime_ns == before
    # All are finished: nothing is made any more.
    assert convert(jobs, label_that_kills, 1, "test") == [True, True, True]


def test_a_killed_process_is_named(tmp_path):
    with fails(RuntimeError, "test: all worker processes must live; got one that was killed; use fewer --workers"):
        convert(make_jobs(tmp_path, 10), label_that_kills, 2, "test")


def test_no_process_outlives_a_killed_program(tmp_path):
    jobs = [job._replace(source=str(tmp_path)) for job in make_jobs(tmp_path, 20)]
    script = "import pickle, sys; sys.path[:0] = sys.argv[1:3]; import test_convert as t; t.convert(pickle.load(sys.stdin.buffer), t.label_that_waits, 2, '')"
    here = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(here), str(here.parent)], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    process.stdin.write(pickle.dumps(jobs))
    process.stdin.close()
    while len(list(tmp_path.glob("*.pid"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    workers = [Path("/proc") / path.stem for path in tmp_path.glob("*.pid")]
    deadline = time.monotonic() + 20
    while any(alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(alive(worker) for worker in workers)


def test_broken_image(tmp_path):
    (job,) = make_jobs(tmp_path, 1)
    job.image.write_bytes(b"no image")
    message = f"{job.image}: image must decode; got none of JPEG, PNG, BMP, WEBP, GIF, TIFF, PPM; replace the file"
    with fails(ValueError, message):
        convert([job], constant_label, 1, "test")
    assert os.listdir(job.label_out.parent) == []


def test_label_of_another_size(tmp_path):
    (job,) = make_jobs(tmp_path, 1, size=(5, 4))
    message = (
        f"{job.image}, 0.png: label must have its image's (height, width) (5, 4); got (4, 5); pair the right files"
    )
    with fails(ValueError, message):
        convert([job], constant_label, 1, "test")
    assert not job.image_out.exists()


def test_find_folder(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").touch()
    assert find_folder(tmp_path, ("", "a/b"), "file", "X") == tmp_path / "a/b"
    message = (
        f"{tmp_path}: must be X; got none of {tmp_path}/no, {tmp_path}/a/no; give the folder of the unpacked archive"
    )
    with fails(FileNotFoundError, message):
        find_folder(tmp_path, ("", "a"), "no", "X")


def test_read_ids(tmp_path):
    path = tmp_path / "train.txt"
    with fails(FileNotFoundError, f"{path}: list must exist; got no such file; complete the data folder"):
        read_ids(path)
    path.write_text("2008_01  1\n\n2008_02 -1\r\n")
    assert read_ids(path) == ["2008_01", "2008_02"]
    path.write_text("a\nb\n\na\n")
    with fails(ValueError, f"{path}:4: ids must differ; got 'a' again, first in line 1; remove one"):
        read_ids(path)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("2008_01", "2008_01"),
        ("2008_01 -1", "2008_01"),
        ("2008_01.jpg", "2008_01"),
        ("2008_01.JPG", "2008_01"),
        ("/JPEGImages/2008_01.jpg /pascal_person_part/gt/2008_01.png", "2008_01"),
        ("JPEGImages/2008_01.jpg", "2008_01"),
        ("/home/me/VOC/JPEGImages/2008_01.jpg", "2008_01"),
        ("../../2008_01.jpg", "2008_01"),
    ],
)
def test_forms_of_an_id(tmp_path, line, name):
    (tmp_path / "train.txt").write_text(f"{line}\n")
    assert read_ids(tmp_path / "train.txt") == [name]


MUST = "a name must be one word of at most 200 bytes without / and \\ that starts with no dot"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/tmp/x", f"{MUST}; got '/tmp/x'; rename it"),
        ("../x", f"{MUST}; got '../x'; rename it"),
        ("..", f"{MUST}; got '..'; rename it"),
        (".jpg", f"{MUST}; got ''; rename it"),
        ("x" * 201, f"{MUST}; got '{'x' * 79}...; rename it"),
        (
            "JPEGImages\\x.jpg",
            "a line must have / between folders; got 'JPEGImages\\\\x.jpg'; write / for every backslash",
        ),
        ("/a/x.jpg /b/y.png", "a pair must be of one id; got '/a/x.jpg /b/y.png'; correct the list"),
    ],
)
def test_ids_that_are_none(tmp_path, line, told):
    path = tmp_path / "train.txt"
    path.write_text(f"a\n{line}\n")
    with fails(ValueError, f"{path}:2: {told}"):
        read_ids(path)


@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".jpeg", ".bmp"])
def test_photos_of_any_suffix(tmp_path, suffix):
    Image.new("RGB", (5, 4)).save(tmp_path / f"a{suffix}", format="BMP" if suffix == ".bmp" else "JPEG")
    job = make_job(find_photo(tmp_path, "a"), tmp_path / "out", "l", "a", 3)
    assert job == Job(
        tmp_path / f"a{suffix}", tmp_path / f"out/JPEGImages/a{suffix.lower()}", tmp_path / "out/l/a.png", 3
    )
    assert convert([job], constant_label, 1, "test") == [True]
    assert find_photo(tmp_path, "b") == tmp_path / "b.jpg"


def test_names_of_ids():
    assert id_of("IMG 0001 (2).JPG.jpg", "x") == "IMG_0001_(2)"
    with fails(ValueError, f"x: {MUST}; got ''; rename it"):
        id_of(".jpg", "x")


def test_lists_that_share_images():
    lists = {"train": "ab", "train_aug": "abc", "trainval_aug": "abcd", "val": "cd", "test": "e"}
    assert shared_images(lists) == [
        "lists: train_aug and val must share no image; got 1 in both, such as c; correct them"
    ]
    with fails(ValueError, shared_images(lists)[0]):
        require_apart(lists)
    require_apart(lists | {"val": "d"})
    require_apart({"mine": "a", "yours": "a"})


def test_missing_files_are_counted(tmp_path):
    (tmp_path / "a").touch()
    missing = [tmp_path / name for name in "bcde"]
    first = ", ".join(map(str, missing[:3]))
    message = f"X: every file must exist; got 4 of 5 missing: {first}, ...; complete the data folder"
    with fails(FileNotFoundError, message):
        require_files([tmp_path / "a", *missing], "X")


def test_a_folder_holds_labels_of_one_source(tmp_path):
    out = tmp_path / "new/out"
    claim(out, {"dataset": "voc"})
    claim(out, {"dataset": "voc"})
    message = f"{out}: must be prepared from one source; got labels of {{'dataset': 'voc'}}, now {{'dataset': 'coco'}}; name another folder"
    with fails(ValueError, message):
        claim(out, {"dataset": "coco"})
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match=f"^{tmp_path}/file: must be a folder to write to; got .*File exists.*; name another$"
    ):
        claim(tmp_path / "file", {})
    (out / "prepared.json").write_text("{")
    with pytest.raises(ValueError, match=f"^{out}: must be a folder to write to; got Expecting .*; name another$"):
        claim(out, {"dataset": "voc"})


def test_count_line():
    assert count_line("val", 1831, 1817) == "val: 1831 images, DIFFERS from the expected 1817 by +14"
    assert count_line("val", 1817, 1817) == "val: 1817 images as expected"
    assert count_line("val", 3, None) == "val: 3 images"

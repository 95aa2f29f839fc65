"""The folder of a synthetic data set: laid out, cached, never replaced, and drawn by processes that end with the program."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repro.data.lists import check_items, read_items
from repro.data.palette import voc_palette
from repro.data.synthetic import dataset as synthetic
from repro.data.synthetic.cache import draw_data
from repro.data.synthetic.dataset import class_names, write_dataset


def contents(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_dataset_is_laid_out_as_the_real_one_and_read_by_its_loader(tmp_path, capsys):
    root = write_dataset(tmp_path / "new" / "set", 3, 2, (41, 57), seed=5)
    assert root == tmp_path / "new" / "set"
    assert "drawing train" in capsys.readouterr().err
    assert sorted(p.name for p in root.iterdir()) == [
        "ImageSets",
        "JPEGImages",
        "README.txt",
        "SegmentationPart",
        "complete.json",
    ]
    for split, count in (("train", 3), ("val", 2)):
        items = read_items(root, split, "JPEGImages", "SegmentationPart")
        assert len(items) == count
        check_items(items, num_classes=len(class_names), ignore_label=255, workers=0, progress=False)
        for item in items:
            with Image.open(item.image) as image, Image.open(item.label) as label:
                assert (image.mode, image.size) == ("RGB", (57, 41))
                assert (label.mode, label.size) == ("P", (57, 41))
                assert label.getpalette() == voc_palette()
                assert set(np.unique(np.asarray(label))) <= {*range(7), 255}
    readme = (root / "README.txt").read_text()
    assert "ynthetic" in readme
    assert "Not comparable with the paper's data" in readme
    assert all(name in readme for name in class_names)
    assert not [p for p in root.parent.iterdir() if p != root]


def test_palette_is_vocs():
    palette = np.array(voc_palette()).reshape(256, 3)
    assert palette[:8].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [0, 0, 128],
        [128, 0, 128],
        [0, 128, 128],
        [128, 128, 128],
    ]
    assert palette[15].tolist() == [192, 128, 128]
    assert palette[255].tolist() == [224, 224, 192]


def test_dataset_depends_on_seed_and_not_on_workers(tmp_path):
    write_dataset(tmp_path / "one", 3, 1, (33, 33), seed=5)
    write_dataset(tmp_path / "two", 3, 1, (33, 33), seed=5, workers=2)
    write_dataset(tmp_path / "other", 3, 1, (33, 33), seed=6)
    one, two, other = (contents(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    pictures = [name for name in one if name.endswith(".png")]
    assert len(pictures) == 8
    assert not any(one[name] == other[name] for name in pictures if "JPEG" in name)
    assert one["JPEGImages/train_00000.png"] != one["JPEGImages/val_00000.png"]


def test_dataset_is_drawn_once_and_never_replaced(tmp_path, monkeypatch):
    root = write_dataset(tmp_path / "set", 2, 1, (33, 33), seed=5)
    before = contents(root)
    monkeypatch.setattr(synthetic, "_save", lambda *_, **__: pytest.fail("drawn again"))
    assert write_dataset(root, 2, 1, (33, 33), seed=5) == root
    other = (
        f"{root}: must be absent, empty or the synthetic set of these parameters; got other files; name another folder"
    )
    for what in ((3, 1, (33, 33), 5), (2, 1, (33, 34), 5), (2, 1, (33, 33), 6)):
        with pytest.raises(ValueError, match=f"^{re.escape(other)}$"):
            write_dataset(root, *what)
    monkeypatch.setattr(synthetic, "VERSION", -1)
    with pytest.raises(ValueError, match=f"^{re.escape(other)}$"):
        write_dataset(root, 2, 1, (33, 33), seed=5)
    assert contents(root) == before
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("name", ["JPEGImages/train_00000.png", "SegmentationPart/val_00000.png", "ImageSets/val.txt"])
def test_a_file_that_was_swapped_is_noticed(tmp_path, name):
    root = write_dataset(tmp_path / "set", 2, 1, (33, 33), seed=5)
    content = bytearray((root / name).read_bytes())
    content[-1] ^= 1  # of the same length, at the same time
    stat = (root / name).stat()
    (root / name).write_bytes(content)
    os.utime(root / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    told = f"{root}: must hold its pictures as they were drawn; got others; delete the folder, and they are drawn again"
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        write_dataset(root, 2, 1, (33, 33), seed=5)


def test_the_quicker_of_two_processes_wins(tmp_path, monkeypatch):
    draw, seen = synthetic._save, []

    def save(index, **options):
        if not seen:
            seen.append(index)
            write_dataset(tmp_path / "set", 2, 1, (33, 33), seed=5)
            seen.append((tmp_path / "set").stat().st_ino)
        draw(index, **options)

    monkeypatch.setattr(synthetic, "_save", save)
    write_dataset(tmp_path / "set", 2, 1, (33, 33), seed=5)
    assert (tmp_path / "set").stat().st_ino == seen[1]
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_every_set_has_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path))
    settings = {"num_train": 1, "num_val": 1, "size": [33, 33], "seed": 5}
    others = [{}, {"num_train": 2}, {"num_val": 2}, {"size": [33, 34]}, {"seed": 6}]
    folders = [draw_data({"synthetic": settings | other}) for other in others]
    assert len(set(folders)) == len(others)
    assert sorted(tmp_path.iterdir()) == sorted(folders)
    assert draw_data({"synthetic": settings}) == folders[0]


PROGRAM = """
import sys
from repro.data.synthetic.cache import draw_data
if __name__ == "__main__":
    if "ignoring" in sys.argv:  # as repro.run does with the first one
        import signal
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
    try:
        draw_data({"synthetic": {"num_train": 20000, "num_val": 1, "size": [161, 161], "seed": 1}})
    except KeyboardInterrupt:
        sys.exit(130)
"""


def processes_of(group):
    """Lists the living processes of a group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("when", ["while the workers start", "while they draw"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_drawing_stops_at_once_and_leaves_no_process(tmp_path, when, number):
    """The signals of a terminal and of a service go to the whole group; SIGKILL to the parent alone."""
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "REPRO_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen(
        [sys.executable, tmp_path / "program.py", "ignoring"],
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60

    def reached():
        if when == "while the workers start":
            return len(processes_of(process.pid)) >= 3  # itself, multiprocessing's tracker, and a worker
        return list((tmp_path / "cache").glob(".person-part-*/SegmentationPart/*.png"))

    while not reached():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    began = time.monotonic()
    if number == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == (-number if number == signal.SIGKILL else 130)
    while processes_of(process.pid) and time.monotonic() < began + 20:
        time.sleep(0.01)
    assert not processes_of(process.pid)
    if number != signal.SIGKILL:  # after which a worker that is just starting may say that it lost its parent
        assert time.monotonic() - began < 5
        assert b"Traceback" not in errors
        assert not list((tmp_path / "cache").iterdir())


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "_save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "set", 2, 1, (33, 33), seed=5)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"mine")
    with pytest.raises(
        ValueError,
        match=r"photos: must be absent, empty or the synthetic set of these parameters; got other files; name ano",
    ):
        write_dataset(tmp_path / "photos", 2, 1, (33, 33), seed=5)
    assert contents(tmp_path) == {"photos/a.jpg": b"mine"}
    (tmp_path / "empty").mkdir()
    write_dataset(tmp_path / "empty", 1, 1, (33, 33), seed=5)
    assert (tmp_path / "empty" / "complete.json").exists()


@pytest.mark.parametrize(("num_train", "num_val", "size"), [(0, 1, (33, 33)), (1, 0, (33, 33)), (1, 1, (33, 8))])
def test_sizes_that_cannot_be_drawn_are_refused(tmp_path, num_train, num_val, size):
    message = rf"at least 16 x 16; got {num_train}, {num_val} and {size[0]} x {size[1]}; correct the protocol"
    with pytest.raises(ValueError, match=message):
        write_dataset(tmp_path / "set", num_train, num_val, size, seed=5)
    assert not list(tmp_path.iterdir())

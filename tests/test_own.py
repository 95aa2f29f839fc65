"""Own data in one command: laid out, listed, checked, and with a protocol that repro.run accepts."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import main as run

from repro.data.__main__ import main
from repro.data.lists import read_items
from repro.data.prepare.own import find_pairs, parse_classes, split
from repro.protocol import load_protocol

SIZE = (33, 40)


def fails(error, message):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


@pytest.fixture
def folders(tmp_path):
    """Ten photos with names and suffixes as people have them, and their labels."""
    for folder in ("photos", "labels"):
        (tmp_path / folder).mkdir()
    random = np.random.default_rng(0)
    for n in range(10):
        stem, suffix = (f"IMG {n:04}", ".JPG") if n % 2 else (f"img{n}", ".png")
        Image.fromarray(random.integers(0, 256, (*SIZE, 3), np.uint8)).save(tmp_path / "photos" / f"{stem}{suffix}")
        label = random.integers(0, 3, SIZE).astype(np.uint8)
        label[0] = 255
        Image.fromarray(label).save(tmp_path / "labels" / f"{stem}.png")
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    return tmp_path


def command(root, *more, classes="background,cat,dog"):
    place = ["--images", str(root / "photos"), "--labels", str(root / "labels"), "--out", str(root / "out")]
    return ["own", *place, "--classes", classes, "--workers", "1", *more]


def one_line(capsys):
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


def test_own_data_run(folders, capsys):
    """From two folders to a trained network."""
    assert main(command(folders)) == 0
    output = capsys.readouterr().out
    assert output.startswith("train: 8 images, drawn from 10 sorted ids with seed 1\nval: 2 images, drawn from 10 ")
    assert "images read: 10, of which usable: 10\n" in output
    assert output.endswith("nothing is wrong\n")
    out = folders / "out"
    items = [item for name in ("train", "val") for item in read_items(out, name, "JPEGImages", "Labels")]
    assert sorted(item.name for item in items) == sorted(f"IMG_{n:04}" if n % 2 else f"img{n}" for n in range(10))
    assert {item.image.suffix for item in items} == {".jpg", ".png"}
    protocol = load_protocol(str(out / "own.toml"))
    assert [row.id for row in protocol.runnable] == ["baseline", "attention3-extra"]
    assert all(row.paper is None for row in protocol.rows)
    assert protocol.row("attention3-extra").settings["model"]["scales"] == [1, 0.75, 0.5]
    small = [
        "transform.crop_size=33",
        "test.crop_size=41",
        "solver.max_iter=2",
        "solver.batch_size=2",
        "model.width=0.03125",
    ]
    arguments = [
        str(out / "own.toml"),
        "--data-root",
        str(out),
        "--weights",
        "none",
        "--device",
        "cpu",
        "--workers",
        "0",
    ]
    assert run([*arguments, "--out", str(folders / "runs"), *(f"--set={one}" for one in small)]) == 0
    assert "attention3-extra" in capsys.readouterr().out


def test_the_same_command_again_keeps_what_was_edited(folders, capsys):
    assert main(command(folders)) == 0
    path = folders / "out" / "own.toml"
    path.write_text(path.read_text().replace("max_iter = 6000", "max_iter = 50"))
    assert main(command(folders)) == 0
    assert f"{path}: there already, left as it is\n" in capsys.readouterr().out
    assert "max_iter = 50" in path.read_text()
    # Labels of other classes would be mixed with those that are there.
    assert main(command(folders, classes="background,cat,dog,cow")) == 2
    assert "must be prepared from one source" in one_line(capsys)


def test_lists_and_a_file_of_classes(folders, capsys):
    (folders / "classes.txt").write_text("background\n\nblack cat\ndog\n")
    (folders / "train.txt").write_text("img0\nimg2.png\n")
    (folders / "val.txt").write_text("/photos/img4.png /labels/img4.png\n")
    lists = ["--train-list", str(folders / "train.txt"), "--val-list", str(folders / "val.txt")]
    assert main(command(folders, *lists, classes=str(folders / "classes.txt"))) == 0
    assert (folders / "out/ImageSets/train.txt").read_text() == "img0\nimg2\n"
    assert (folders / "out/ImageSets/val.txt").read_text() == "img4\n"
    assert load_protocol(str(folders / "out/own.toml")).rows[0].settings["data"]["class_names"] == [
        "background",
        "black cat",
        "dog",
    ]
    assert "train: 2 images, as listed\n" in capsys.readouterr().out
    assert main(command(folders, *lists[:2])) == 2
    assert one_line(capsys) == "--train-list, --val-list: must be given both or not at all; got --train-list; give both"
    (folders / "val.txt").write_text("img0\n")
    assert main(command(folders, *lists)) == 2
    assert one_line(capsys) == "lists: train and val must share no image; got 1 in both, such as img0; correct them"
    (folders / "val.txt").write_text("gone\n")
    assert main(command(folders, *lists)) == 2
    told = f"--images: {folders}/photos must hold every listed image; got none for 1, such as gone; complete it"
    assert one_line(capsys) == told


def test_what_is_wrong_with_the_data(folders, capsys):
    assert main(command(folders, classes="background,cat")) == 2
    assert re.fullmatch(
        r".*labels/.*\.png: class ids must be 0 \.\. 1 or 255 \(ignored\); got 2 in \d+ pixels; correct the label or the number of classes",
        one_line(capsys),
    )
    (folders / "labels/img4.png").unlink()
    assert main(command(folders)) == 2
    told = f"labels of {folders}/photos: every file must exist; got 1 of 10 missing: {folders}/labels/img4.png; complete the data folder"
    assert one_line(capsys) == told


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("", "''"),
        ("background", "1 of them"),
        ("a,,b", "''"),
        ("a,b,a", "'a'"),
        ("a\x00b,c", "'a\\x00b'"),
        (",".join(map(str, range(256))), "256 of them"),
    ],
)
def test_classes_that_are_none(text, got):
    told = f"--classes: must be 2 .. 255 different names, background first, or a file of them; got {got}; correct it"
    with fails(ValueError, told):
        parse_classes(text)


def test_splits():
    names = [f"{n:03}" for n in range(50)]
    drawn = split(names, 0.2, 1)
    assert (len(drawn["train"]), len(drawn["val"])) == (40, 10)
    assert sorted(drawn["train"] + drawn["val"]) == names
    assert drawn == split(names, 0.2, 1) != split(names, 0.2, 2)
    assert {name: len(ids) for name, ids in split(names[:2], 0.9, 1).items()} == {"train": 1, "val": 1}
    for share in (0, 1, float("nan")):
        with fails(ValueError, f"--val-share: must lie between 0 and 1; got {share}; correct it"):
            split(names, share, 1)
    with fails(ValueError, "--seed: must be 0 .. 4294967295; got -1; choose a seed of 32 bits"):
        split(names, 0.2, -1)
    with fails(ValueError, "--images: must be two or more, to train and to validate on; got 1; add some"):
        split(names[:1], 0.2, 1)


def test_folders_that_are_none(folders):
    photos, labels = folders / "photos", folders / "labels"
    with fails(FileNotFoundError, "--images: nowhere must be a folder; got no such folder; correct the path"):
        find_pairs(Path("nowhere"), labels)
    with fails(FileNotFoundError, "--labels: nowhere must be a folder; got no such folder; correct the path"):
        find_pairs(photos, Path("nowhere"))
    (folders / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=f"^--images: {folders}/empty must hold images; got none of .jpg, "):
        find_pairs(folders / "empty", labels)
    (photos / "img0.jpg").write_bytes(b"")
    told = f"--images: {photos} must hold images of different names without suffix; got 'img0.png' beside 'img0.jpg'; rename one"
    with fails(ValueError, told):
        find_pairs(photos, labels)

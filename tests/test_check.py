"""Looking a data set over: everything that is wrong is listed, what is right is counted and pictured."""

import numpy as np
import pytest
from PIL import Image

from repro.data.lists import Item
from repro.data.palette import voc_palette
from repro.data.prepare.check import NUM_TILES, TILE, check_dataset, draw_tile, histogram_lines

NAMES = ("background", "cat", "dog")


def write_item(root, name, image=None, label=None):
    for folder in ("images", "labels"):
        (root / folder).mkdir(exist_ok=True)
    image = np.zeros((8, 9, 3), np.uint8) if image is None else image
    label = np.zeros((8, 9), np.uint8) if label is None else label
    Image.fromarray(image).save(root / "images" / f"{name}.png")
    Image.fromarray(label).save(root / "labels" / f"{name}.png")


def check(root, **lists):
    return check_dataset(root, "images", "labels", lists, NAMES, 255, 2, root / "sheet.png")


def test_a_sound_set(tmp_path):
    label = np.array([[0] * 9] * 4 + [[2] * 9] * 3 + [[255] * 9], np.uint8)
    write_item(tmp_path, "a", label=label)
    write_item(tmp_path, "b")
    (tmp_path / "train.txt").write_text("a\nb\n")
    (tmp_path / "trainval.txt").write_text("/images/b.png /labels/b.png\n")
    (tmp_path / "more.txt").write_text("/images/a.png\n")
    findings = check(tmp_path, train=2, trainval=1, more=None)
    assert findings.problems == []
    assert findings.report == [
        "train: 2 images as expected",
        "trainval: 1 images as expected",
        "more: 1 images, 1 of them without label",
        "images read: 3, of which usable: 3",
        "class  name                    pixels   share %   images",
        "    0  background                 108    80.000        2",
        "    1  cat                          0     0.000        0",
        "    2  dog                         27    20.000        1",
        "  255  (ignored)                    9         -        1",
        f"contact sheet: {tmp_path}/sheet.png",
    ]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (3 * TILE[1], TILE[0] + 14)


def test_everything_that_is_wrong_is_listed(tmp_path):
    write_item(tmp_path, "fine")
    write_item(tmp_path, "range", label=np.array([[3] * 5 + [200] * 4] * 8, np.uint8))
    write_item(tmp_path, "size", label=np.zeros((9, 8), np.uint8))
    write_item(tmp_path, "colour", label=np.zeros((8, 9, 3), np.uint8))
    write_item(tmp_path, "deep", label=np.zeros((8, 9), np.uint16))
    write_item(tmp_path, "cut")
    image = tmp_path / "images/cut.png"
    image.write_bytes(image.read_bytes()[:40])
    lines = ["fine", "range", "size", "colour", "deep", "cut", "gone", "fine", "a b c"]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    findings = check(tmp_path, train=9, other=None)
    images, labels, path = tmp_path / "images", tmp_path / "labels", tmp_path / "train.txt"
    found = {
        "missing image": f"{images}/gone.jpg: must exist; got no such file (line 7 of {path}); complete the data",
        "missing label": f"{labels}/gone.png: must exist; got no such file (line 7 of {path}); complete the data",
        "twice": f"{path}:8: names must differ; got 'fine' again; remove one",
        "line": f"{path}:9: a line must be an id or '/image [/label]'; got 'a b c'; correct the line",
        "count": "train: 6 images, DIFFERS from the expected 9 by -3",
        "no list": "list other: one of ",
        "range": f"{labels}/range.png: class ids must be 0 .. 2 or 255 (ignored); got 200 and 72 such pixels; correct the label or the number of classes",
        "size": f"{labels}/size.png: label must have its image's (height, width) (8, 9); got (9, 8)",
        "colour": f"{labels}/colour.png: label must have one 8-bit channel (grey or palette); got mode RGB",
        "deep": f"{labels}/deep.png: label must have one 8-bit channel (grey or palette); got mode I;16",
        "cut": f"{images}/cut.png: image must decode; got ",
    }
    assert len(findings.problems) == len(found)
    for what, start in found.items():
        assert sum(problem.startswith(start) for problem in findings.problems) == 1, what
    assert all("\n" not in problem for problem in findings.problems)
    assert "images read: 6, of which usable: 1" in findings.report


def test_empty_and_unreadable_lists(tmp_path):
    (tmp_path / "train.txt").write_text("\n\n")
    (tmp_path / "val.txt").write_bytes(b"\xff\xfe")
    findings = check(tmp_path, train=None, val=None)
    assert findings.problems[0] == f"{tmp_path}/train.txt: list must name at least one image; got none; fill the list"
    assert findings.problems[1].startswith(f"{tmp_path}/val.txt: list must be UTF-8 text; got ")
    assert findings.report == ["train: 0 images", "val: 0 images", "images read: 0, of which usable: 0"]
    assert not (tmp_path / "sheet.png").exists()


def test_lists_that_share_images(tmp_path):
    for name in "abc":
        write_item(tmp_path, name)
    for name, text in {"train_aug": "a\nb\n", "val": "b\nc\n", "trainval": "a\nb\nc\n"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    assert check(tmp_path, train_aug=2, val=2, trainval=3).problems == [
        "lists: train_aug and val must share no image; got 1 in both, such as b; correct them"
    ]


def test_a_subset_may_be_declared(tmp_path):
    write_item(tmp_path, "a")
    (tmp_path / "train.txt").write_text("a\n")
    place = (tmp_path, "images", "labels", {"train": 5}, NAMES, 255, 2, tmp_path / "sheet.png")
    assert check_dataset(*place).problems == ["train: 1 images, DIFFERS from the expected 5 by -4"]
    findings = check_dataset(*place, subset=True)
    assert findings.problems == []
    assert findings.report[0] == "train: 1 images, DIFFERS from the expected 5 by -4"


def test_histogram_without_labelled_pixels():
    histogram = np.zeros(256, np.int64)
    histogram[255] = 7
    assert histogram_lines([histogram], ["a"], 255)[1:] == [
        "    0  a                            0     0.000        0",
        "  255  (ignored)                    7         -        1",
    ]


def test_overlay(tmp_path):
    label = np.zeros((150, 200), np.uint8)
    label[:50], label[100:] = 2, 255
    write_item(tmp_path, "a", np.full((150, 200, 3), (60, 90, 120), np.uint8), label)
    tile = np.asarray(draw_tile(Item("a", tmp_path / "images/a.png", tmp_path / "labels/a.png"), 255))
    dog = voc_palette()[6:9]
    assert tile[75, 100].tolist() == [60, 90, 120]
    assert tile[10, 100].tolist() == [(60 + 2 * dog[0]) // 3, (90 + 2 * dog[1]) // 3, (120 + 2 * dog[2]) // 3]
    assert tile[140, 100].tolist() == [(60 + 510) // 3, (90 + 510) // 3, (120 + 510) // 3]
    assert tile[150:].max() > 200  # the name


@pytest.mark.parametrize("count", [1, NUM_TILES + 30])
def test_the_sheet_has_a_limited_number_of_pictures(tmp_path, count):
    write_item(tmp_path, "a")
    for index in range(1, count):
        for folder in ("images", "labels"):
            (tmp_path / folder / f"{index}.png").hardlink_to(tmp_path / folder / "a.png")
    (tmp_path / "train.txt").write_text("".join(f"{index or 'a'}\n" for index in range(count)))
    assert check(tmp_path, train=count).problems == []
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == ((200, 164) if count == 1 else (1200, 4 * 164))

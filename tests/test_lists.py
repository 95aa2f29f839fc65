"""Lists of images and labels: the forms they come in, and what is refused."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repro.data.fingerprint import fingerprint
from repro.data.lists import LIST_PLACES, Item, check_items, read_item, read_items

GOLDEN = Path(__file__).parent / "golden" / "data_stream"


def write_item(root, name, image=None, label=None, suffix=".jpg"):
    """Writes images/<name> and labels/<name>.png, 8 x 9 pixels where nothing is given."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(exist_ok=True)
    image = np.zeros((8, 9, 3), np.uint8) if image is None else image
    label = np.zeros((8, 9), np.uint8) if label is None else label
    Image.fromarray(image).save(root / "images" / f"{name}{suffix}")
    Image.fromarray(label).save(root / "labels" / f"{name}.png")
    return Item(name, root / "images" / f"{name}{suffix}", root / "labels" / f"{name}.png")


def write_list(root, text, place="train.txt"):
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def fails(error, message):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def test_ids(tmp_path):
    expected = [write_item(tmp_path, "a"), write_item(tmp_path, "2007_01", suffix=".png")]
    write_list(tmp_path, "\ufeffa\n\n 2007_01 \r\n")
    assert read_items(tmp_path, "train", "images", "labels") == expected


def test_jpeg_comes_before_png(tmp_path):
    write_item(tmp_path, "a", suffix=".png")
    item = write_item(tmp_path, "a")
    write_list(tmp_path, "a\n")
    assert read_items(tmp_path, "train", "images", "labels") == [item]


def test_ids_without_labels(tmp_path):
    item = write_item(tmp_path, "a")
    write_list(tmp_path, "a\n")
    assert read_items(tmp_path, "train", "images", None) == [item._replace(label=None)]


def test_deeplab_pairs(tmp_path):
    item = write_item(tmp_path, "a.b")
    write_list(tmp_path, "/images/a.b.jpg /labels/a.b.png\n")
    assert read_items(tmp_path, "train", "unused", "unused") == [item]


def test_deeplab_test_list(tmp_path):
    item = write_item(tmp_path, "a")
    write_list(tmp_path, "/images/a.jpg\n")
    assert read_items(tmp_path, "train", "unused", "unused") == [item._replace(label=None)]


def test_caffes_own_list():
    items = read_items(GOLDEN, "list", "", "")
    assert [item.name for item in items] == [f"img{i}" for i in range(6)]
    assert items[5] == Item("img5", GOLDEN / "img5.jpg", GOLDEN / "lab5.png")


def test_lists_are_looked_up_in_order(tmp_path):
    for name in "abcde":
        write_item(tmp_path, name)
    for name, place in reversed(list(zip("abcde", LIST_PLACES, strict=True))):
        write_list(tmp_path, name, place.format("train"))
        assert [item.name for item in read_items(tmp_path, "train", "images", "labels")] == [name]


def test_list_given_as_a_path(tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    write_item(data, "a")
    outside = write_list(tmp_path, "a", "mine.txt")
    assert len(read_items(data, str(outside), "images", "labels")) == 1
    monkeypatch.chdir(tmp_path)
    assert len(read_items(data, "mine.txt", "images", "labels")) == 1
    write_list(data, "a", "lists/inside.txt")
    assert len(read_items(data, "lists/inside.txt", "images", "labels")) == 1


def test_missing_list_names_all_places(tmp_path):
    places = ", ".join(str(tmp_path / place.format("val")) for place in LIST_PLACES)
    message = (
        f"list val: one of {places} must exist; got none of them; put the list there or give its path ending in .txt"
    )
    with fails(FileNotFoundError, message):
        read_items(tmp_path, "val", "images", "labels")


@pytest.mark.parametrize("text", ["", "\n  \n"])
def test_empty_list(tmp_path, text):
    path = write_list(tmp_path, text)
    with fails(ValueError, f"{path}: list must name at least one image; got none; fill the list"):
        read_items(tmp_path, "train", "images", "labels")


def test_list_that_is_not_text(tmp_path):
    path = tmp_path / "train.txt"
    path.write_bytes(b"ab\xff\xfe\n")
    with fails(ValueError, f"{path}: list must be UTF-8 text; got invalid start byte at byte 2; save it as text"):
        read_items(tmp_path, "train", "images", "labels")


@pytest.mark.parametrize("line", ["a 1", "a b", "/images/a.jpg /labels/a.png extra.png", "/images/a.jpg 1"])
def test_malformed_line(tmp_path, line):
    write_item(tmp_path, "a")
    path = write_list(tmp_path, f"\na\n{line}\n")
    with fails(ValueError, f"{path}:3: a line must be an id or '/image [/label]'; got {line!r}; correct the line"):
        read_items(tmp_path, "train", "images", "labels")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            r"images\a.jpg labels\a.png",
            r"a line must have / between folders; got 'images\\a.jpg labels\\a.png'; write / for every backslash",
        ),
        (
            "b" * 251,
            f"a name must be one word of at most 200 bytes without / and \\ that starts with no dot; got '{'b' * 79}...; rename it",
        ),
        (
            f"/images/{'b' * 251}.jpg",
            f"a name must be one word of at most 200 bytes without / and \\ that starts with no dot; got '{'b' * 79}...; rename it",
        ),
        (
            "..",
            "a name must be one word of at most 200 bytes without / and \\ that starts with no dot; got '..'; rename it",
        ),
        ("/" + "b/" * 2048, "a line must have at most 4096 characters; got 4097; correct the line"),
    ],
)
def test_lines_that_name_nothing(tmp_path, line, told):
    write_item(tmp_path, "a")
    path = write_list(tmp_path, f"a\n{line}\n")
    with fails(ValueError, f"{path}:2: {told}"):
        read_items(tmp_path, "train", "images", "labels")


def test_names_of_200_bytes_are_read(tmp_path):
    item = write_item(tmp_path, "é" * 100)
    write_list(tmp_path, "é" * 100)
    assert read_items(tmp_path, "train", "images", "labels") == [item]


def test_folders_whose_names_are_no_utf8(tmp_path):
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    root.mkdir()
    item = write_item(root, "a")
    write_list(root, "a")
    assert read_items(root, "train", "images", "labels") == [item]
    check_items([item], 7, 255, 1)
    assert fingerprint([item], tmp_path / "memory.json") == fingerprint([item])


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".bmp", ".webp"])
def test_ids_of_photos_with_other_suffixes(tmp_path, suffix):
    item = write_item(tmp_path, "a", suffix=suffix)
    for line in ("a", f"a{suffix}"):
        write_list(tmp_path, line)
        assert read_items(tmp_path, "train", "images", "labels") == [item]


def test_absolute_paths_get_a_hint(tmp_path):
    item = write_item(tmp_path, "a")
    path = write_list(tmp_path, f"{item.image} {item.label}\n")
    hint = f"name {item.image} as it lies below {tmp_path}, for that folder is put before every line"
    with pytest.raises(FileNotFoundError, match=rf"got 2 of 2 missing: .*; {re.escape(hint)}$"):
        read_items(tmp_path, "train", "images", "labels")
    assert path.is_file()


@pytest.mark.parametrize(("make", "kind"), [(os.mkfifo, "a FIFO"), (os.mkdir, "a folder")])
def test_lists_that_are_no_files(tmp_path, make, kind):
    make(tmp_path / "train.txt")
    with fails(ValueError, f"{tmp_path}/train.txt: list must be a regular file; got {kind}; name a file"):
        read_items(tmp_path, "train", "images", "labels")


def test_lists_beyond_all_measure(tmp_path, monkeypatch):
    monkeypatch.setattr("repro.data.lists.MAX_LIST_BYTES", 10)
    path = write_list(tmp_path, "a" * 11)
    with fails(ValueError, f"{path}: list must have at most 10 bytes; got 11; name the right file"):
        read_items(tmp_path, "train", "images", "labels")


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_label_of_a_turned_photo_gets_a_hint(tmp_path, orientation):
    item = write_item(tmp_path, "a", label=np.zeros((9, 8), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (9, 8)).save(item.image, exif=exif)
    advice = "pair the right files"
    if orientation == 6:
        advice = f"{item.image} has an EXIF orientation, which is ignored as in Caffe: turn its pixels (such as by ImageMagick's -auto-orient), or the label back"
    with fails(ValueError, f"{item.label}: label must have its image's (height, width) (8, 9); got (9, 8); {advice}"):
        read_item(item)


def test_duplicate_names(tmp_path):
    write_item(tmp_path, "a")
    path = write_list(tmp_path, "a\nb\n/images/a.jpg\n")
    with fails(ValueError, f"{path}:3: names must differ; got 'a' again, first in line 1; remove one"):
        read_items(tmp_path, "train", "images", "labels")


def test_missing_files_are_counted(tmp_path):
    write_item(tmp_path, "a")
    path = write_list(tmp_path, "a\nb\nc\n")
    (tmp_path / "labels" / "a.png").unlink()
    missing = ", ".join(str(tmp_path / name) for name in ("labels/a.png", "images/b.jpg", "labels/b.png"))
    message = f"{path}: every listed file must exist; got 5 of 6 missing: {missing}, ...; complete the data folder"
    with fails(FileNotFoundError, message):
        read_items(tmp_path, "train", "images", "labels")


def test_one_missing_file(tmp_path):
    write_item(tmp_path, "a").label.unlink()
    path = write_list(tmp_path, "a\n")
    message = f"{path}: every listed file must exist; got 1 of 2 missing: {tmp_path / 'labels/a.png'}; complete the data folder"
    with fails(FileNotFoundError, message):
        read_items(tmp_path, "train", "images", "labels")


def test_read_item(tmp_path):
    item = write_item(tmp_path, "a", label=np.full((8, 9), 3, np.uint8))
    image, label = read_item(item)
    assert (image.shape, label.shape, label.max()) == ((8, 9, 3), (8, 9), 3)
    assert read_item(item._replace(label=None))[1] is None


@pytest.mark.parametrize("progress", [True, False])
def test_sound_items_pass(tmp_path, progress, capsys):
    label = np.array([[0, 6, 255]], np.uint8).repeat(8, 0).repeat(3, 1)
    items = [write_item(tmp_path, f"i{n}", label=label) for n in range(5)]
    check_items([*items, items[0]._replace(label=None)], 7, 255, workers=2, progress=progress)
    assert capsys.readouterr().out == ""


def faulty(root, kind):
    """Writes an item with the fault and returns it with the part of the message that tells it."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    if kind == "truncated image":
        item = write_item(root, "bad", image=noise)
        item.image.write_bytes(item.image.read_bytes()[:-40])
        return item, rf"{re.escape(str(item.image))}: image must decode; got OSError [^\n]+; replace the file"
    if kind == "truncated label":
        item = write_item(root, "bad", label=noise[..., 0])
        item.label.write_bytes(item.label.read_bytes()[:80])
        return item, rf"{re.escape(str(item.label))}: label must decode; got [^\n]+; replace the file"
    if kind == "size":
        item = write_item(root, "bad", label=np.zeros((9, 8), np.uint8))
        told = "label must have its image's (height, width) (8, 9); got (9, 8); pair the right files"
    elif kind == "class":
        item = write_item(root, "bad", label=np.array([[0, 7, 255]], np.uint8).repeat(8, 0).repeat(3, 1))
        told = (
            "class ids must be 0 .. 6 or 255 (ignored); got 7 in 24 pixels; correct the label or the number of classes"
        )
    elif kind == "rgb label":
        item = write_item(root, "bad", label=noise)
        told = "label must have one 8-bit channel (grey or palette); got mode RGB; save class ids as 8-bit PNG"
    elif kind == "16-bit label":
        item = write_item(root, "bad", label=np.zeros((8, 9), np.uint16))
        told = "label must have one 8-bit channel (grey or palette); got mode I;16; save class ids as 8-bit PNG"
    else:
        item = write_item(root, "bad")
        item.label.unlink()
        told = "label must exist; got no such file; complete the data folder"
    return item, re.escape(f"{item.label}: {told}")


@pytest.mark.parametrize(
    "kind", ["truncated image", "truncated label", "size", "class", "rgb label", "16-bit label", "gone"]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_faulty_items_are_told_in_one_line(tmp_path, kind, workers):
    good = [write_item(tmp_path, f"good{n}") for n in range(3)]
    item, told = faulty(tmp_path, kind)
    with pytest.raises(ValueError, match=rf"^data: all 5 items must be usable; got 2 that are not, the first: {told}$"):
        check_items([*good, item, item._replace(name="again")], 7, 255, workers)


def test_first_fault_is_the_first_in_the_list(tmp_path, monkeypatch):
    slow, quick = write_item(tmp_path, "slow"), write_item(tmp_path, "quick")

    def read(item):
        time.sleep(0.05 if item is slow else 0)
        raise ValueError(item.name)

    monkeypatch.setattr("repro.data.lists.read_item", read)
    with fails(ValueError, "data: all 2 items must be usable; got 2 that are not, the first: slow"):
        check_items([slow, quick], 7, 255, workers=2)


def test_other_ignore_label(tmp_path):
    item = write_item(tmp_path, "a", label=np.full((8, 9), 255, np.uint8))
    with pytest.raises(ValueError, match=r"class ids must be 0 .. 6 or 254 \(ignored\); got 255 in 72 pixels"):
        check_items([item], 7, 254, 1)


def test_interrupting_the_check_ends_it_at_once(tmp_path):
    write_item(tmp_path, "a")
    program = (
        "import signal, time; from pathlib import Path; import repro.data.lists as lists\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def read(item):\n    time.sleep(0.05)\n    return None, None\n"
        "lists.read_item = read\n"
        "item = lists.Item('a', Path('a'), None)\n"
        "print('started', flush=True)\n"
        "lists.check_items([item] * 10000, 7, 255, 2)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        process.stdout.readline()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in stderr
    assert process.returncode != 0


def test_check_leaves_no_threads(tmp_path):
    before = threading.active_count()
    item, _ = faulty(tmp_path, "size")
    with pytest.raises(ValueError, match="usable"):
        check_items([item] * 5, 7, 255, 3)
    assert threading.active_count() == before


@pytest.mark.data
@pytest.mark.parametrize(("list_name", "count"), [("train_aug", 1500), ("val", 245)])
def test_real_voc_images_pass(list_name, count):
    root = Path(os.environ.get("REPRO_DATA", "")) / "voc12_subset"
    if "REPRO_DATA" not in os.environ or not root.is_dir():
        pytest.skip("needs REPRO_DATA, a folder with voc12_subset/ (JPEGImages, SegmentationClassAug, ImageSets) in it")
    items = read_items(root, list_name, "JPEGImages", "SegmentationClassAug")
    assert len(items) == count
    check_items(items, 21, 255, workers=2, progress=False)

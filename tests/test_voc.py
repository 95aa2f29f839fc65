"""VOC 2012 and SBD: SegmentationClassAug and DeepLab's lists."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_array

from repro.data.lists import read_items
from repro.data.prepare.voc import CLASS_NAMES, EXPECTED, derive_lists, make_label, prepare_voc, read_sbd_label
from repro.protocol import load_protocol

PROTOCOLS = Path(__file__).parents[1] / "protocols"
SIZE = (6, 7)


def fails(error, message):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def label_of(seed, size=SIZE):
    return np.random.default_rng(seed).integers(0, 21, size).astype(np.uint8)


def write_sbd_label(path, label):
    """Writes a .mat as SBD's `cls` has it: the struct GTcls with Boundaries (sparse), Segmentation, CategoriesPresent."""
    boundaries = np.empty((20, 1), object)
    boundaries[:] = [[csc_array(label > 0)] for _ in range(20)]
    present = np.unique(label).reshape(-1, 1)
    fields = {"Boundaries": boundaries, "Segmentation": label, "CategoriesPresent": present}
    savemat(path, {"GTcls": fields}, do_compression=True)


def write_distributions(root):
    """Writes VOC 2012 with images t1 t2 (train), v1 (val), s1 s2 (not segmented), x1 (test), and SBD with t1, v1, s1, s2."""
    voc, sbd = root / "VOCdevkit/VOC2012", root / "benchmark_RELEASE/dataset"
    for folder in (voc / "JPEGImages", voc / "SegmentationClass", voc / "ImageSets/Segmentation", sbd / "cls"):
        folder.mkdir(parents=True)
    names = ("t1", "t2", "v1", "s1", "s2", "x1")
    for seed, name in enumerate(names):
        Image.fromarray(np.full((*SIZE, 3), seed, np.uint8)).save(voc / "JPEGImages" / f"{name}.jpg")
        if name in ("t1", "t2", "v1"):
            label = label_of(seed)
            label[0] = 255
            image = Image.fromarray(label).convert("P")
            image.putpalette([value for value in range(256) for _ in range(3)])
            image.save(voc / "SegmentationClass" / f"{name}.png")
        if name in ("t1", "v1", "s1", "s2"):
            write_sbd_label(sbd / "cls" / f"{name}.mat", label_of(100 + seed))
    sets = {"train": "t2\nt1\n", "val": "v1\n", "test": "x1\n"}
    for name, text in sets.items():
        (voc / "ImageSets/Segmentation" / f"{name}.txt").write_text(text)
    (sbd / "train.txt").write_text("s2\nv1\n")
    (sbd / "val.txt").write_text("t1\ns1\n")
    return voc, sbd


@pytest.fixture
def distributions(tmp_path):
    return write_distributions(tmp_path)


def test_labels_and_lists(tmp_path, distributions):
    out = tmp_path / "out"
    report = prepare_voc(tmp_path, tmp_path, out, 1)
    pair = "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png\n".format
    lists = {"train": ["t1", "t2"], "val": ["v1"], "train_aug": ["s1", "s2", "t1", "t2"]}
    lists["trainval_aug"] = [*lists["train_aug"], "v1"]
    for name, ids in lists.items():
        assert (out / "list" / f"{name}.txt").read_text() == "".join(map(pair, ids))
    assert (out / "list/test.txt").read_text() == "/JPEGImages/x1.jpg\n"
    # VOC's own labels come first, with their ignored borders; SBD's serve the other images.
    names = ("t1", "t2", "v1", "s1", "s2")
    for seed, name in enumerate(names):
        expected = label_of(seed if name[0] in "tv" else 100 + seed)
        if name[0] in "tv":
            expected[0] = 255
        assert np.array_equal(np.asarray(Image.open(out / "SegmentationClassAug" / f"{name}.png")), expected), name
    assert len(read_items(out, "trainval_aug", "", "")) == 5
    assert [item.label for item in read_items(out, "test", "", "")] == [None]
    assert report == [
        "train: 2 images, DIFFERS from the expected 1464 by -1462",
        "val: 1 images, DIFFERS from the expected 1449 by -1448",
        "train_aug: 4 images, DIFFERS from the expected 10582 by -10578",
        "trainval_aug: 5 images, DIFFERS from the expected 12031 by -12026",
        "test: 1 images, DIFFERS from the expected 1456 by -1455",
        "labels: 3 of VOC 2012, 2 of SBD",
    ]


def test_without_vocs_test_archive(tmp_path, distributions):
    voc, _ = distributions
    (voc / "ImageSets/Segmentation/test.txt").unlink()
    report = prepare_voc(tmp_path, tmp_path, tmp_path / "out", 1)
    assert (
        f"test: not made, for {voc}/ImageSets/Segmentation/test.txt is missing (it comes with VOC's test archive)"
        in report
    )
    assert not (tmp_path / "out/list/test.txt").exists()


def test_missing_image_stops_before_any_work(tmp_path, distributions):
    voc, _ = distributions
    image = voc / "JPEGImages/s1.jpg"
    image.unlink()
    message = f"VOC 2012 and SBD: every file must exist; got 1 of 11 missing: {image}; complete the data folder"
    with fails(FileNotFoundError, message):
        prepare_voc(tmp_path, tmp_path, tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()


def test_broken_label_leaves_no_lists(tmp_path, distributions):
    _, sbd = distributions
    (sbd / "cls/s1.mat").write_bytes((sbd / "cls/s1.mat").read_bytes()[:150])
    with pytest.raises(
        ValueError, match=f"^{sbd}/cls/s1.mat: must hold SBD's GTcls.Segmentation; got .*; replace the file$"
    ):
        prepare_voc(tmp_path, tmp_path, tmp_path / "out", 1)
    assert not (tmp_path / "out/list").exists()
    assert "s1.png" not in os.listdir(tmp_path / "out/SegmentationClassAug")


def test_no_distribution(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path}: must be PASCAL VOC 2012; got none of "):
        prepare_voc(tmp_path, tmp_path, tmp_path / "out", 1)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ({"GTinst": 1}, "KeyError 'GTcls'"),
        ({"GTcls": {"Boundaries": 1}}, "ValueError no field of name Segmentation"),
    ],
)
def test_mat_of_another_kind(tmp_path, content, got):
    savemat(tmp_path / "a.mat", content)
    message = f"{tmp_path}/a.mat: must hold SBD's GTcls.Segmentation; got {got}; replace the file"
    with fails(ValueError, message):
        read_sbd_label(tmp_path / "a.mat")


def test_sbd_class_out_of_range(tmp_path):
    label = label_of(0)
    label[0, 0], label[0, 1] = 21, 0
    write_sbd_label(tmp_path / "a.mat", label)
    got = "shape (6, 7), values 0 .. 21"
    message = f"{tmp_path}/a.mat: Segmentation must be (height, width) class ids 0 .. 20; got {got}; replace the file"
    with fails(ValueError, message):
        read_sbd_label(tmp_path / "a.mat")


def test_empty_sbd_label(tmp_path):
    savemat(tmp_path / "a.mat", {"GTcls": {"Segmentation": np.zeros((0, 0))}})
    message = (
        f"{tmp_path}/a.mat: Segmentation must be (height, width) class ids 0 .. 20; got shape (0, 0); replace the file"
    )
    with fails(ValueError, message):
        read_sbd_label(tmp_path / "a.mat")


NAN = float("nan")


@pytest.mark.parametrize(
    ("segmentation", "got"),
    [
        ("text", "no numbers"),
        (np.array([["text", 1]], object), "no numbers"),
        ({"a": 1}, "no numbers"),
        (csc_array(np.eye(3)), "a sparse matrix"),
        (np.array([[1, 2j]]), "complex numbers"),
        (np.array([[1, NAN]]), "NaN, infinities or fractions"),
        (np.array([[1, np.inf]]), "NaN, infinities or fractions"),
        (np.array([[1, 2.5]]), "NaN, infinities or fractions"),
        (np.zeros((2, 2, 2)), "shape (2, 2, 2)"),
        (np.array([[-1, 2.0]]), "shape (1, 2), values -1.0 .. 2.0"),
    ],
    ids=["text", "cell", "struct", "sparse", "complex", "NaN", "infinite", "fraction", "three dimensions", "negative"],
)
def test_sbd_fields_of_another_kind(tmp_path, segmentation, got):
    savemat(tmp_path / "a.mat", {"GTcls": {"Segmentation": segmentation}})
    message = f"{tmp_path}/a.mat: Segmentation must be (height, width) class ids 0 .. 20; got {got}; replace the file"
    with fails(ValueError, message):
        read_sbd_label(tmp_path / "a.mat")


def test_sbd_label_in_doubles(tmp_path):
    label = label_of(3)
    savemat(tmp_path / "a.mat", {"GTcls": {"Segmentation": label.astype(np.float64)}})
    assert np.array_equal(read_sbd_label(tmp_path / "a.mat"), label)


def test_sbd_label_that_unpacks_to_too_much(tmp_path, monkeypatch):
    """The size is seen while unpacking, before anything of it is kept."""
    path = tmp_path / "a.mat"
    savemat(path, {"other": np.zeros(2**20), "GTcls": {"Segmentation": np.zeros((3000, 1000))}}, do_compression=True)
    assert path.stat().st_size < 2**17
    assert read_sbd_label(path).shape == (3000, 1000)
    monkeypatch.setattr("repro.data.prepare.mat.MAX_BYTES", 30 * 2**20)
    with fails(ValueError, f"{path}: annotation must unpack to at most {30 * 2**20} bytes; got more; replace the file"):
        read_sbd_label(path)
    monkeypatch.setattr("repro.data.prepare.mat.MAX_BYTES", 100)
    with fails(
        ValueError, f"{path}: annotation must have at most 100 bytes; got {path.stat().st_size}; name the right file"
    ):
        read_sbd_label(path)


@pytest.mark.parametrize(("make", "kind"), [(os.mkfifo, "a FIFO"), (os.mkdir, "a folder")])
def test_sbd_label_that_is_no_file(tmp_path, make, kind):
    make(tmp_path / "a.mat")
    with fails(ValueError, f"{tmp_path}/a.mat: annotation must be a regular file; got {kind}; name a file"):
        read_sbd_label(tmp_path / "a.mat")


@pytest.mark.parametrize("name", ["../../x", "/tmp/x"])
def test_ids_that_leave_the_folder_write_nothing(tmp_path, distributions, name):
    voc, _ = distributions
    path = voc / "ImageSets/Segmentation/train.txt"
    path.write_text(f"t1\n{name}\n")
    with pytest.raises(ValueError, match=f"^{path}:2: a name must be one word .* got {name!r}; rename it$"):
        prepare_voc(tmp_path, tmp_path, tmp_path / "deep/er/out", 1)
    assert not (tmp_path / "deep").exists()


def test_lists_that_share_images(tmp_path, distributions):
    voc, _ = distributions
    (voc / "ImageSets/Segmentation/val.txt").write_text("v1\nt2\n")
    with fails(ValueError, "lists: train and val must share no image; got 1 in both, such as t2; correct them"):
        prepare_voc(tmp_path, tmp_path, tmp_path / "out", 1)


def test_voc_class_out_of_range(tmp_path):
    Image.fromarray(np.array([[0, 255, 21]], np.uint8)).save(tmp_path / "a.png")
    message = f"{tmp_path}/a.png: class ids must be 0 .. 20 or 255; got 21; use VOC's SegmentationClass"
    with fails(ValueError, message):
        make_label(tmp_path / "a.png")


def test_rgb_label(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=f"^{tmp_path}/a.png: label must have one 8-bit channel"):
        make_label(tmp_path / "a.png")


def test_classes_are_the_protocols():
    data = load_protocol("table3").row("baseline").settings["data"]
    assert tuple(data["class_names"]) == CLASS_NAMES
    assert (EXPECTED[data["train_list"]], EXPECTED[data["val_list"]]) == (data["num_train"], data["num_val"])


@pytest.mark.data
def test_deeplabs_own_lists(data_root):
    """The order and the set rule give DeepLab's files; SBD's ids are taken from them, with some that VOC has too."""
    folder = data_root / "voc12_lists"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}, DeepLab's list files")
    own = {
        name: [Path(line.split()[0]).stem for line in (folder / f"{name}.txt").read_text().splitlines()]
        for name in EXPECTED
    }
    assert {name: len(ids) for name, ids in own.items()} == EXPECTED
    train, val = own["train"], own["val"]
    sbd = [*sorted(set(own["train_aug"]) - set(train), reverse=True), *train[::3], *val[::2]]
    derived = derive_lists(train[::-1], val[::-1], sbd)
    assert derived == {name: own[name] for name in derived}
    assert own["test"] == sorted(own["test"])


@pytest.mark.data
def test_deeplabs_own_labels_follow_the_rule(data_root):
    """Ignored borders, which only VOC's labels have, are on exactly the images that VOC segments."""
    labels, folder = data_root / "voc12_subset/SegmentationClassAug", data_root / "voc12_lists"
    if not (labels.is_dir() and folder.is_dir()):
        pytest.skip(f"needs {labels} and {folder}")
    vocs = {
        Path(line.split()[0]).stem
        for name in ("train", "val")
        for line in (folder / f"{name}.txt").read_text().splitlines()
    }
    chosen = sorted(labels.glob("*.png"))[::25]
    assert [(255 in np.asarray(Image.open(path))) for path in chosen] == [path.stem in vocs for path in chosen]

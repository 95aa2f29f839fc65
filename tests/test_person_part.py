"""PASCAL-Person-Part: parts merged to six, ready-made labels of another class order, the lists."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_array

from repro.data.lists import read_items
from repro.data.prepare.person_part import (
    CLASS_NAMES,
    CLASS_OF,
    EXPECTED,
    parse_class_order,
    prepare_person_part,
    read_index_png,
    read_parts,
)

PROTOCOLS = Path(__file__).parents[1] / "protocols"
SIZE = (8, 9)
OTHER_ORDER = "head,torso,lower_arms,upper_arms,lower_legs,upper_legs"


def fails(error, message):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def box(top, bottom, size=SIZE):
    mask = np.zeros(size, np.uint8)
    mask[top:bottom] = 1
    return mask


def struct_array(rows, fields):
    """Makes MATLAB's 1 x n struct array."""
    array = np.empty((1, len(rows)), [(field, object) for field in fields])
    for index, row in enumerate(rows):
        array[0, index] = row
    return array


def write_annotation(path, *objects):
    """Writes a .mat as PASCAL-Part has it; an object is (class, [(part name, mask), ...])."""
    rows = []
    for name, parts in objects:
        parts_array = struct_array(parts, ("part_name", "mask")) if parts else np.zeros((0, 0))
        rows.append((name, 15, box(0, 8), parts_array))
    anno = struct_array(
        [(path.stem, struct_array(rows, ("class", "class_ind", "mask", "parts")))], ("imname", "objects")
    )
    savemat(path, {"anno": anno}, do_compression=True)
    return path


def write_voc2010(root, names):
    (root / "JPEGImages").mkdir(parents=True)
    for name in names:
        Image.new("RGB", SIZE[::-1]).save(root / "JPEGImages" / f"{name}.jpg")


def test_the_last_part_wins(tmp_path):
    first = ("person", [("head", box(0, 3)), ("neck", box(2, 4)), ("lhand", box(3, 5))])
    car = ("car", [("wheel_1", box(0, 8))])
    second = ("person", [("ruarm", box(4, 6)), ("rfoot", box(7, 8))])
    label = read_parts(write_annotation(tmp_path / "a.mat", first, car, second))
    # Rows 2, 3 and 4 are claimed twice; the later part, or the later person, has them. Row 6 belongs to nobody.
    assert label.dtype == np.uint8
    assert label.tolist() == [[row] * 9 for row in (1, 1, 2, 4, 3, 3, 0, 6)]


def test_every_part_has_its_class(tmp_path):
    # PASCAL-Part's 24 names for parts of persons.
    by_class = [[], ["ebrow", "ear", "eye"], [], ["uarm"], ["larm", "hand"], ["uleg"], ["lleg", "foot"]]
    expected = {f"{side}{part}": index for index, parts in enumerate(by_class) for part in parts for side in "lr"}
    expected |= {"head": 1, "hair": 1, "nose": 1, "mouth": 1, "torso": 2, "neck": 2}
    assert expected == CLASS_OF
    assert len(CLASS_OF) == 24
    for part, index in CLASS_OF.items():
        path = write_annotation(tmp_path / "a.mat", ("person", [(part, box(0, 8))]))
        assert np.unique(read_parts(path)).tolist() == [index]


@pytest.mark.parametrize(
    "objects",
    [(), [("car", [("wheel_1", box(0, 2))])], [("person", [])], [("person", [("head", box(0, 0))])]],
    ids=["nothing", "other classes", "a person without parts", "empty masks"],
)
def test_no_part_of_a_person(tmp_path, objects):
    assert read_parts(write_annotation(tmp_path / "a.mat", *objects)) is None


def test_broken_annotation(tmp_path):
    path = write_annotation(tmp_path / "a.mat", ("person", [("head", box(0, 2))]))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(
        ValueError, match=rf"^{path}: must hold PASCAL-Part's anno\.objects\.parts; got .*; replace the file$"
    ):
        read_parts(path)


def test_mat_of_another_kind(tmp_path):
    savemat(tmp_path / "a.mat", {"GTcls": 1})
    with fails(
        ValueError,
        f"{tmp_path}/a.mat: must hold PASCAL-Part's anno.objects.parts; got KeyError 'anno'; replace the file",
    ):
        read_parts(tmp_path / "a.mat")


def test_unknown_part(tmp_path):
    path = write_annotation(tmp_path / "a.mat", ("person", [("tail", box(0, 2))]))
    with fails(
        ValueError, f"{path}: a person's parts must be among the 24 of PASCAL-Part; got 'tail'; replace the file"
    ):
        read_parts(path)


def test_masks_of_two_sizes(tmp_path):
    path = write_annotation(tmp_path / "a.mat", ("person", [("head", box(0, 2)), ("neck", box(0, 2, (3, 3)))]))
    with fails(ValueError, f"{path}: all masks must have one size; got (3, 3) beside (8, 9); replace the file"):
        read_parts(path)


@pytest.mark.parametrize(
    ("mask", "got"),
    [
        ("text", "no numbers"),
        ({"a": 1}, "no numbers"),
        (csc_array(np.eye(3)), "no numbers"),
        (np.array([[1, 2j]]), "complex numbers"),
        (np.array([[1, np.nan]]), "NaN, infinities or fractions"),
        (np.array([[1, 0.5]]), "NaN, infinities or fractions"),
    ],
    ids=["text", "struct", "sparse", "complex", "NaN", "fraction"],
)
def test_masks_of_another_kind(tmp_path, mask, got):
    path = write_annotation(tmp_path / "a.mat", ("person", [("head", mask)]))
    with fails(ValueError, f"{path}: the mask of head must be a matrix of 0 and 1; got {got}; replace the file"):
        read_parts(path)


def test_class_order():
    assert parse_class_order(OTHER_ORDER) == (1, 2, 4, 3, 6, 5)
    assert parse_class_order("Head, torso, upper arms, lower-arms, upper legs, lower legs") == (1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize("text", ["", "head,torso", OTHER_ORDER + ",head", OTHER_ORDER.replace("torso", "head")])
def test_wrong_class_order(text):
    every = "head,torso,upper_arms,lower_arms,upper_legs,lower_legs"
    message = f"--class-order: must name each of {every} once; got {text!r}; put these names in the labels' order"
    with fails(ValueError, message):
        parse_class_order(text)


def test_index_pngs_of_another_order(tmp_path):
    Image.fromarray(np.array([[0, 1, 2, 3, 4, 5, 6, 255]], np.uint8)).save(tmp_path / "a.png")
    label = read_index_png(tmp_path / "a.png", parse_class_order(OTHER_ORDER))
    assert label.tolist() == [[0, 1, 2, 4, 3, 6, 5, 255]]
    label = read_index_png(
        tmp_path / "a.png", parse_class_order("torso,upper_arms,head,lower_arms,upper_legs,lower_legs")
    )
    assert label.tolist() == [[0, 2, 3, 1, 4, 5, 6, 255]]
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "a.png")
    assert read_index_png(tmp_path / "a.png", (1, 2, 3, 4, 5, 6)) is None


def test_index_png_out_of_range(tmp_path):
    Image.fromarray(np.array([[0, 1, 7]], np.uint8)).save(tmp_path / "a.png")
    with fails(ValueError, f"{tmp_path}/a.png: class ids must be 0 .. 6 or 255; got 7; give labels of person parts"):
        read_index_png(tmp_path / "a.png", (1, 2, 3, 4, 5, 6))


@pytest.fixture
def sources(tmp_path):
    """VOC 2010 with images a b c d, of which a and b show persons, c does not and d is not annotated."""
    voc, parts = tmp_path / "VOC2010", tmp_path / "parts"
    write_voc2010(voc, "abcd")
    (voc / "ImageSets/Main").mkdir(parents=True)
    (voc / "ImageSets/Main/train.txt").write_text("a\nc\nd\n")
    (voc / "ImageSets/Main/val.txt").write_text("b\n")
    parts.mkdir()
    write_annotation(parts / "a.mat", ("person", [("head", box(0, 8))]))
    write_annotation(parts / "b.mat", ("person", [("luleg", box(0, 8))]))
    write_annotation(parts / "c.mat", ("boat", []))
    return voc, parts


BY_RULE = {"train": None, "val": None}


def test_split_rule(tmp_path, sources):
    _, parts = sources
    out = tmp_path / "out"
    report = prepare_person_part(tmp_path, parts, out, None, BY_RULE, 1)
    assert (out / "ImageSets/train.txt").read_text() == "a\n"
    assert (out / "ImageSets/val.txt").read_text() == "b\n"
    assert sorted(path.name for path in out.rglob("*.*g")) == ["a.jpg", "a.png", "b.jpg", "b.png"]
    assert np.unique(np.asarray(Image.open(out / "SegmentationPart/b.png"))).tolist() == [5]
    assert report == [
        "train: 2 of VOC 2010's 3 images are annotated",
        "val: 1 of VOC 2010's 1 images are annotated",
        "train: 1 images, DIFFERS from the expected 1716 by -1715",
        "train: 1 annotated images show no part of a person and are left out: c",
        "val: 1 images, DIFFERS from the expected 1817 by -1816",
    ]
    assert prepare_person_part(tmp_path, parts, out, None, BY_RULE, 1) == report


def test_lists_of_ids(tmp_path, sources):
    voc, parts = sources
    (tmp_path / "mine.txt").write_text("b\n")
    (tmp_path / "yours.txt").write_text("a\n")
    lists = {"train": tmp_path / "mine.txt", "val": tmp_path / "yours.txt"}
    report = prepare_person_part(voc, parts, tmp_path / "out", None, lists, 1)
    assert (tmp_path / "out/ImageSets/train.txt").read_text() == "b\n"
    assert len(report) == 2
    (tmp_path / "yours.txt").write_text("a\nd\n")
    with fails(
        FileNotFoundError,
        f"VOC 2010 and its parts: every file must exist; got 1 of 6 missing: {parts}/d.mat; complete the data folder",
    ):
        prepare_person_part(voc, parts, tmp_path / "out", None, lists, 1)
    (tmp_path / "yours.txt").write_text("a\nb\n")
    with fails(ValueError, "lists: train and val must share no image; got 1 in both, such as b; correct them"):
        prepare_person_part(voc, parts, tmp_path / "out", None, lists, 1)


def test_lists_of_pairs(tmp_path, sources):
    """As Person-Part is distributed."""
    voc, parts = sources
    for name, i in (("train", "b"), ("val", "a")):
        (tmp_path / f"{name}.txt").write_text(f"/JPEGImages/{i}.jpg /pascal_person_part/gt/{i}.png\n")
    lists = {name: tmp_path / f"{name}.txt" for name in ("train", "val")}
    prepare_person_part(voc, parts, tmp_path / "out", None, lists, 1)
    assert (tmp_path / "out/ImageSets/train.txt").read_text() == "b\n"


def test_photos_that_are_relative_symbolic_links(tmp_path, sources):
    voc, parts = sources
    (voc / "JPEGImages").rename(voc / "pool")
    (voc / "JPEGImages").mkdir()
    for name in "abcd":
        (voc / "JPEGImages" / f"{name}.jpg").symlink_to(f"../pool/{name}.jpg")
    prepare_person_part(voc, parts, tmp_path / "far/away/out", None, BY_RULE, 1)
    for split in BY_RULE:
        assert len(read_items(tmp_path / "far/away/out", split, "JPEGImages", "SegmentationPart")) == 1


def test_ready_made_labels(tmp_path, sources):
    voc, _ = sources
    labels, out = tmp_path / "labels", tmp_path / "out"
    labels.mkdir()
    for name, value in (("a", 3), ("b", 6), ("c", 0)):
        Image.fromarray(np.full(SIZE, value, np.uint8)).save(labels / f"{name}.png")
    order = parse_class_order(OTHER_ORDER)
    prepare_person_part(voc, labels, out, order, BY_RULE, 1)
    assert np.unique(np.asarray(Image.open(out / "SegmentationPart/a.png"))).tolist() == [4]
    assert np.unique(np.asarray(Image.open(out / "SegmentationPart/b.png"))).tolist() == [5]
    assert (out / "ImageSets/train.txt").read_text() == "a\n"
    with pytest.raises(ValueError, match=f"^{out}: must be prepared from one source; got labels of "):
        prepare_person_part(voc, labels, out, (1, 2, 3, 4, 5, 6), BY_RULE, 1)
    own = out / "SegmentationPart"
    with fails(
        ValueError, f"{own}: must not be what is written; got it as --out's SegmentationPart; name another folder"
    ):
        prepare_person_part(voc, own, out, order, BY_RULE, 1)


def test_no_annotations(tmp_path, sources):
    voc, _ = sources
    message = f"{voc}: must hold annotations; got no *.mat there; give the folder with these files"
    with fails(FileNotFoundError, message):
        prepare_person_part(voc, voc, tmp_path / "out", None, BY_RULE, 1)


def test_classes_are_the_protocols():
    data = tomllib.loads((PROTOCOLS / "table1.toml").read_text())["common"]["data"]
    assert tuple(data["class_names"]) == CLASS_NAMES
    assert (EXPECTED["train"], EXPECTED["val"]) == (data["num_train"], data["num_val"])


@pytest.mark.data
def test_real_annotations_pixel_for_pixel(tmp_path, data_root):
    """Real .mat files convert to the merged maps exactly; no border rule is needed."""
    samples = data_root / "person_part_samples"
    if not samples.is_dir():
        pytest.skip(f"needs {samples}, PASCAL-Part samples with merged maps")
    names = sorted(path.stem for path in (samples / "Annotations_Part").glob("*.mat"))
    (tmp_path / "train.txt").write_text("\n".join(names[::2]))
    (tmp_path / "val.txt").write_text("\n".join(names[1::2]))
    lists = {name: tmp_path / f"{name}.txt" for name in ("train", "val")}
    prepare_person_part(samples, samples / "Annotations_Part", tmp_path / "out", None, lists, 1)
    merged = {path.name: np.asarray(Image.open(path)) for path in (samples / "PersonPart_merged").glob("*.png")}
    made = {path.name: np.asarray(Image.open(path)) for path in (tmp_path / "out/SegmentationPart").glob("*.png")}
    assert len(merged) == 4
    assert made.keys() == merged.keys()
    assert {name: int((made[name] != merged[name]).sum()) for name in merged} == dict.fromkeys(merged, 0)


@pytest.mark.data
def test_public_lists_keep_vocs_split_apart(data_root):
    """What the split rule is inferred from: no listed training image is in VOC's val, and the other way round."""
    samples, folder = data_root / "person_part_samples", data_root / "voc12_lists"
    if not (samples.is_dir() and folder.is_dir()):
        pytest.skip(f"needs {samples} and {folder}")
    voc = {
        name: {Path(line.split()[0]).stem for line in (folder / f"{name}.txt").read_text().splitlines()}
        for name in ("train", "val")
    }
    part = {name: set(next(samples.glob(f"*_{name}_id_*.txt")).read_text().split()) for name in ("train", "val")}
    shared = {(a, b): len(part[a] & voc[b]) for a in part for b in voc}
    assert shared == {("train", "train"): 224, ("train", "val"): 0, ("val", "train"): 0, ("val", "val"): 235}

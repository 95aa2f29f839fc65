"""MS-COCO: instances drawn into label maps, the random subset, and what is refused."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from repro.data.pictures import MAX_PIXELS
from repro.data.prepare.check import check_dataset
from repro.data.prepare.coco import (
    CATEGORIES,
    CLASS_NAMES,
    CLASS_OF,
    draw_subset,
    make_label,
    prepare_coco,
    read_instances,
)
from repro.data.prepare.coco_masks import decompressed

# Of pycocotools itself under NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = (10, 12)
PERSON, DOG, BRUSH = 1, 18, 90


def fails(error, message):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def square(left, top, right, bottom):
    """Makes a polygon that covers the columns left .. right - 1 and the rows top .. bottom - 1."""
    return [[left, top, right, top, right, bottom, left, bottom]]


def runs(mask):
    """Makes uncompressed runs, down the columns, zeros first."""
    flat = np.asarray(mask, bool).ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [not flat[-1]]])))
    return {"counts": np.diff(np.concatenate([[0], edges])).tolist(), "size": list(np.shape(mask))}


def annotation(category, segmentation, image=7, crowd=0, number=1):
    return {"id": number, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": crowd}


def write_json(root, annotations, ids=(7,), name="instances_val.json", **changes):
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in ids]
    categories = [{"id": i, "name": CATEGORIES[i]} for i in (PERSON, DOG, BRUSH)]
    path = root / name
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories, **changes}))
    return path


def write_images(root, ids):
    (root / "images").mkdir(exist_ok=True)
    for i in ids:
        Image.new("RGB", SIZE[::-1]).save(root / "images" / f"{i:012d}.jpg")
    return root / "images"


def label_of(root, *annotations):
    """Writes and reads the annotations of one image, and draws them."""
    pytest.importorskip("pycocotools", reason="needs pycocotools, the extra `coco`")
    return make_label((SIZE, read_instances(write_json(root, list(annotations))).of_image[7]))


def test_classes():
    assert len(CLASS_NAMES) == 81
    assert list(CATEGORIES) == sorted(CATEGORIES)
    assert (CLASS_OF[PERSON], CLASS_OF[DOG], CLASS_OF[BRUSH]) == (1, 17, 80)
    assert (CLASS_NAMES[0], CLASS_NAMES[17], CLASS_NAMES[80]) == ("background", "dog", "toothbrush")


def test_smaller_objects_lie_over_larger_ones(tmp_path):
    large, small = annotation(PERSON, square(0, 0, 8, 8)), annotation(DOG, square(6, 6, 10, 10))
    expected = np.zeros(SIZE, np.uint8)
    expected[0:8, 0:8] = 1
    expected[6:10, 6:10] = 17
    for order in ((large, small), (small, large)):
        assert np.array_equal(label_of(tmp_path, *order), expected)


def test_of_equal_areas_the_later_one_is_seen(tmp_path):
    both = annotation(PERSON, square(0, 0, 4, 4)), annotation(BRUSH, square(0, 0, 4, 4))
    assert label_of(tmp_path, *both)[0, 0] == 80
    assert label_of(tmp_path, *both[::-1])[0, 0] == 1


def test_crowds_count_as_their_class_under_everything_else(tmp_path):
    crowd = np.zeros(SIZE, bool)
    crowd[2:4, 2:4] = True
    label = label_of(tmp_path, annotation(DOG, square(3, 0, 12, 10)), annotation(PERSON, runs(crowd), crowd=1))
    assert label[2:4, 2].tolist() == [1, 1]
    assert np.unique(label[:, 3:]).tolist() == [17]
    assert label[:, :2].max() == 0


def test_forms_of_segmentation_agree(tmp_path):
    mask = np.zeros(SIZE, bool)
    mask[1:5, 2:6] = mask[6:9, 7:11] = True
    polygons = annotation(DOG, square(2, 1, 6, 5) + square(7, 6, 11, 9))
    assert np.array_equal(label_of(tmp_path, polygons) == 17, mask)
    assert np.array_equal(label_of(tmp_path, annotation(DOG, runs(mask))) == 17, mask)
    from pycocotools import mask as api

    compressed = api.encode(np.asfortranarray(mask, dtype=np.uint8))
    text = compressed["counts"].decode()
    assert decompressed(text) == runs(mask)["counts"]
    assert np.array_equal(label_of(tmp_path, annotation(DOG, {**compressed, "counts": text})) == 17, mask)


def test_no_annotation_is_all_background():
    label = make_label((SIZE, []))
    assert (label.shape, label.dtype, label.max()) == (SIZE, np.uint8, 0)


def test_mask_of_another_size(tmp_path):
    wrong = annotation(DOG, runs(np.ones((3, 4))))
    message = f"{tmp_path}/instances_val.json: annotation 1 of image 7: mask must have its image's size (10, 12); got [3, 4]; correct it"
    with fails(ValueError, message):
        label_of(tmp_path, wrong)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"height": "10"},
            "image 7: height and width must be whole numbers from 1 on, of at most {} pixels; got '10' and 12",
        ),
        (
            {"height": 10.5},
            "image 7: height and width must be whole numbers from 1 on, of at most {} pixels; got 10.5 and 12",
        ),
        ({"width": 0}, "image 7: height and width must be whole numbers from 1 on, of at most {} pixels; got 10 and 0"),
        (
            {"width": float("inf")},
            "image 7: height and width must be whole numbers from 1 on, of at most {} pixels; got 10 and inf",
        ),
        (
            {"width": 10**9},
            "image 7: height and width must be whole numbers from 1 on, of at most {} pixels; got 10 and 1000000000",
        ),
        ({"id": "7"}, "image '7': id must be a whole number and file_name text; got '7' and '000000000007.jpg'"),
        ({"file_name": 7}, "image 7: id must be a whole number and file_name text; got 7 and 7"),
    ],
)
def test_images_are_looked_at(tmp_path, changes, told):
    image = {"id": 7, "file_name": "000000000007.jpg", "height": 10, "width": 12} | changes
    path = write_json(tmp_path, [annotation(DOG, square(0, 0, 2, 2))], images=[image])
    with fails(ValueError, f"{path}: {told.format(MAX_PIXELS)}; correct it"):
        read_instances(path)


def test_sizes_may_be_written_with_a_point(tmp_path):
    image = {"id": 7, "file_name": "000000000007.jpg", "height": 10.0, "width": 12.0}
    found = read_instances(write_json(tmp_path, [annotation(DOG, square(0, 0, 2, 2))], images=[image]))
    assert [type(found.images[0][side]) for side in ("height", "width")] == [int, int]


def test_read_instances(tmp_path):
    segmentation = [[1, 1, 5, 5], *square(0, 0, 3, 3)]
    first, second = annotation(DOG, segmentation, image=9), annotation(PERSON, square(0, 0, 2, 2), image=9, number=2)
    images, of_image, dropped = read_instances(write_json(tmp_path, [first, second], ids=(9, 7)))
    assert [image["id"] for image in images] == [7, 9]
    assert [found["id"] for found in of_image[9]] == [1, 2]
    assert of_image[9][0]["segmentation"] == square(0, 0, 3, 3)
    assert dropped == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (annotation(12, square(0, 0, 2, 2)), "category must be one of COCO's 80; got 12; correct it"),
        (annotation(DOG, square(0, 0, 2, 2), image=8), "image must be listed; got an unknown id; correct it"),
        (annotation([DOG], square(0, 0, 2, 2)), "category must be one of COCO's 80; got [18]; correct it"),
        (annotation(DOG, square(0, 0, 2, 2), image="7"), "image must be listed; got an unknown id; correct it"),
        (
            {"id": 1, "image_id": 7, "category_id": DOG},
            "segmentation must be a list of polygons, each a list, or runs; got None; correct it",
        ),
    ],
)
def test_wrong_annotations(tmp_path, wrong, message):
    path = write_json(tmp_path, [wrong])
    with fails(ValueError, f"{path}: annotation 1 of image {wrong['image_id']!r}: {message}"):
        read_instances(path)


def test_wrong_files(tmp_path):
    path = tmp_path / "no.json"
    with fails(FileNotFoundError, f"{path}: annotations must exist; got no such file; give COCO's instances_*.json"):
        read_instances(path)
    path.mkdir()
    with fails(ValueError, f"{path}: annotations must be a regular file; got a folder; name a file"):
        read_instances(path)
    path.rmdir()
    must = f"{path}: must be a COCO instance file; got {{}}; give COCO's instances_*.json"
    path.write_text("")
    with fails(ValueError, must.format("JSONDecodeError Expecting value: line 1 column 1 (char 0)")):
        read_instances(path)
    path.write_text('{"images": []}')
    with fails(ValueError, must.format("KeyError 'annotations'")):
        read_instances(path)
    path.write_text("[1]")
    with fails(ValueError, must.format("TypeError list indices must be integers or slices, not str")):
        read_instances(path)
    distinct = "must hold annotations of distinct images; got {}; give COCO's instances_*.json"
    with fails(ValueError, f"{tmp_path}/instances_val.json: " + distinct.format("none")):
        read_instances(write_json(tmp_path, []))
    with fails(ValueError, f"{tmp_path}/instances_val.json: " + distinct.format("an image id twice")):
        read_instances(write_json(tmp_path, [annotation(DOG, square(0, 0, 2, 2))], ids=(7, 7)))
    path = write_json(tmp_path, [annotation(DOG, square(0, 0, 2, 2))], categories=[{"id": 1, "name": "unicorn"}])
    with fails(ValueError, f"{path}: categories must be COCO's 80; got category 1 'unicorn'; correct it"):
        read_instances(path)


def test_subset():
    chosen = draw_subset(4, 50, 1)
    # Fixed for ever: records name only the seed.
    assert chosen == sorted(np.random.RandomState(1).permutation(50)[:4].tolist()) == [27, 35, 38, 40]
    assert draw_subset(4, 50, 2) != chosen
    assert draw_subset(50, 50, 1) == list(range(50))
    for count in (0, 51):
        with fails(ValueError, f"--count: must be 1 .. 50, the images of the file; got {count}; correct it"):
            draw_subset(count, 50, 1)
    with fails(ValueError, "--seed: must be 0 .. 4294967295; got -1; choose a seed of 32 bits"):
        draw_subset(4, 50, -1)


def test_prepare(tmp_path):
    pytest.importorskip("pycocotools", reason="needs pycocotools, the extra `coco`")
    ids = (30, 10, 20)
    polygons = [*square(0, 0, 4, 4), [1, 1, 2, 2]]
    annotations = [annotation(DOG, polygons, 10), annotation(PERSON, runs(np.ones(SIZE)), 20, crowd=1, number=2)]
    path, out = write_json(tmp_path, annotations, ids), tmp_path / "out"
    report = prepare_coco(path, write_images(tmp_path, ids), out, "val", None, 1, 1)
    assert (out / "ImageSets/val.txt").read_text() == "".join(f"{i:012d}\n" for i in sorted(ids))
    sums = [int((np.asarray(Image.open(out / "SegmentationClass" / f"{i:012d}.png")) > 0).sum()) for i in (10, 20, 30)]
    assert sums == [16, 120, 0]
    assert report == [
        "val: 3 images, DIFFERS from the expected 1500 by -1497",
        "val: all images of the file",
        "val: 2 annotations, 1 of them crowds; 1 images without any",
        f"{path}: 1 polygons of fewer than three corners left out",
    ]
    shared = "lists: val and train must share no image; got 2 in both, such as 000000000010; correct them"
    with fails(ValueError, shared):
        prepare_coco(path, tmp_path / "images", out, "train", 2, 5, 1)
    out = tmp_path / "other"
    report = prepare_coco(path, tmp_path / "images", out, "train", 2, 5, 1)
    chosen = [sorted(ids)[place] for place in draw_subset(2, 3, 5)]
    assert (out / "ImageSets/train.txt").read_text() == "".join(f"{i:012d}\n" for i in chosen)
    assert report[1] == "train: drawn from 3 sorted ids with seed 5"
    missing = tmp_path / "images/000000000020.jpg"
    missing.unlink()
    with fails(
        FileNotFoundError,
        f"images of {path}: every file must exist; got 1 of 3 missing: {missing}; complete the data folder",
    ):
        prepare_coco(path, tmp_path / "images", out, "val", None, 1, 1)


@pytest.mark.parametrize(
    ("file_name", "on_disk", "made"),
    [
        ("COCO_val2014_000000000007.jpg", "COCO_val2014_000000000007.jpg", "COCO_val2014_000000000007.jpg"),
        ("IMG 0001.jpg", "IMG 0001.jpg", "IMG_0001.jpg"),
        ("photo.jpg.jpg", "photo.jpg.jpg", "photo.jpg"),
        ("a.JPG", "a.JPG", "a.jpg"),
        ("a.png", "a.png", "a.png"),
        ("val2014/a.jpg", "a.jpg", "a.jpg"),
        ("val2014/a.jpg", "val2014/a.jpg", "a.jpg"),
    ],
)
def test_what_is_prepared_passes_the_check(tmp_path, file_name, on_disk, made):
    pytest.importorskip("pycocotools", reason="needs pycocotools, the extra `coco`")
    image = {"id": 7, "file_name": file_name, "height": SIZE[0], "width": SIZE[1]}
    path = write_json(tmp_path, [annotation(DOG, square(0, 0, 2, 2))], images=[image])
    (tmp_path / "images" / on_disk).parent.mkdir(parents=True)
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "images" / on_disk)
    prepare_coco(path, tmp_path / "images", tmp_path / "out", "val", None, 1, 1)
    assert [file.name for file in (tmp_path / "out/JPEGImages").iterdir()] == [made]
    place = (tmp_path / "out", "JPEGImages", "SegmentationClass", {"val": 1}, CLASS_NAMES, 255, 1, tmp_path / "s.png")
    assert check_dataset(*place).problems == []


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            ["x.jpg", "x.png"],
            "file_name of image 2: images must have different names without suffix; got 'x.png' beside 'x.jpg'; rename one",
        ),
        (
            ["a/x.jpg", "b/x.jpg"],
            "file_name of image 2: images must have different names without suffix; got 'x.jpg' beside 'x.jpg'; rename one",
        ),
        (["../x.jpg"], "file_name of image 1: must be an image (.jpg, .jpeg, "),
        (["/etc/x.jpg"], "file_name of image 1: must be an image (.jpg, .jpeg, "),
        (["x.svg"], "file_name of image 1: must be an image (.jpg, .jpeg, "),
        (["..jpg"], "file_name of image 1: a name must be one word of at most 200 bytes "),
        (["a\\x.jpg"], "file_name of image 1: a name must be one word of at most 200 bytes "),
        (["x" * 201 + ".jpg"], "file_name of image 1: a name must be one word of at most 200 bytes "),
        (["\ud800.jpg"], "file_name of image 1: a name must be one word of at most 200 bytes "),
    ],
)
def test_names_that_cannot_be_listed(tmp_path, names, told):
    pytest.importorskip("pycocotools", reason="needs pycocotools, the extra `coco`")
    images = [{"id": n, "file_name": name, "height": 10, "width": 12} for n, name in enumerate(names, 1)]
    path = write_json(tmp_path, [annotation(DOG, square(0, 0, 2, 2), image=1)], images=images)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: {told}')}"):
        prepare_coco(path, tmp_path, tmp_path / "out", "val", None, 1, 1)
    assert not (tmp_path / "out").exists()


def test_without_pycocotools(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    with pytest.raises(
        RuntimeError,
        match=r"^coco: pycocotools must be installed; got .*; pip install pycocotools \(the extra `coco`\)$",
    ):
        prepare_coco(tmp_path / "x.json", tmp_path, tmp_path / "out", "val", None, 1, 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.data
def test_real_instances_pixel_for_pixel(tmp_path, data_root):
    """50 real images against a reference that asks, of every pixel, which of COCO's own masks hold it."""
    coco = pytest.importorskip("pycocotools.coco", reason="needs pycocotools, the extra `coco`")
    folder = data_root / "tiny_coco"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}, COCO images with instances")
    path = folder / "annotations/instances_val2017.json"
    prepare_coco(path, folder / "val2017", tmp_path, "val", None, 1, 1)
    api = coco.COCO(str(path))
    order = sorted(api.getCatIds())
    assert [CATEGORIES[i] for i in order] == [category["name"] for category in api.loadCats(order)]
    for i in api.getImgIds():
        annotations = api.loadAnns(api.getAnnIds(i))
        made = np.asarray(Image.open(tmp_path / "SegmentationClass" / f"{i:012d}.png"))
        if not annotations:
            assert made.max() == 0
            continue
        masks = np.stack([api.annToMask(found) for found in annotations]).astype(bool)
        area = masks.sum((1, 2)) + np.where([found["iscrowd"] for found in annotations], 2 * made.size, 0)
        # The smallest holder of a pixel has it; of equal ones the last; a crowd counts as larger than any object.
        holder = len(area) - 1 - np.where(masks, area[:, None, None], 4 * made.size)[::-1].argmin(0)
        classes = np.array([1 + order.index(found["category_id"]) for found in annotations])
        assert np.array_equal(made, np.where(masks.any(0), classes[holder], 0)), i

"""What users bring, damaged: weights, photos, lists, labels, annotations. Refused in one line or used; never a traceback, a hang, or a file elsewhere."""

import json
import random
import shutil

import numpy as np
import pytest
import scipy.io
import test_coco as coco
import test_person_part as person_part
import tiny
from attack import attack
from mutations import SPECIAL, mutated, special
from PIL import Image

import caffe_weights
from caffe_weights.files.hdf5 import write_hdf5
from repro.models import build
from repro.models.weights import save_caffemodel
from repro.protocol import load_protocol

pytestmark = pytest.mark.slow

ROW = "max2"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A finished run with its data, and weights of its network in two formats."""
    folder = tmp_path_factory.mktemp("ran")
    assert tiny.main([*tiny.run_command(folder), "--row", ROW]) == 0
    model = load_protocol(str(folder / "tiny.toml")).row(ROW).settings["model"]
    save_caffemodel(build(model, 3, 1), folder / "w.caffemodel")
    write_hdf5(caffe_weights.read_caffemodel(folder / "w.caffemodel"), folder / "w.h5", "test")
    return folder


def dry_run(ran, case, root, *more):
    command = [str(ran / "tiny.toml"), "--data-root", str(root), "--device", "cpu", "--row", ROW, "--out"]
    return attack(case, "run", [*command, str(case / "out"), *(more or ("--weights", "none", "--dry-run"))], ran)


@pytest.mark.parametrize("use", ["run", "list", "convert"])
@pytest.mark.parametrize("seed", range(66))
def test_weights(ran, tmp_path, seed, use):
    source = ran / ("w.h5" if use == "convert" and seed % 3 == 0 else "w.caffemodel")
    path = tmp_path / source.name
    path.write_bytes(mutated(source.read_bytes(), seed))
    if use == "run":
        assert dry_run(ran, tmp_path, ran / "data", "--weights", str(path), "--dry-run").code in (0, 2)
    elif use == "list":
        attack(tmp_path, "weights", ["list", str(path)])
    else:
        other = ".caffemodel" if source.suffix == ".h5" else ".h5"
        attack(tmp_path, "weights", ["convert", str(path), str(tmp_path / "out" / f"made{other}")])


@pytest.mark.parametrize("use", ["run", "list", "convert"])
@pytest.mark.parametrize("kind", SPECIAL)
def test_weights_that_are_no_files(ran, tmp_path, kind, use):
    path = tmp_path / "w.caffemodel"
    special(path, kind)
    if use == "run":
        ending = dry_run(ran, tmp_path, ran / "data", "--weights", str(path), "--dry-run")
    else:
        target = [str(tmp_path / "out" / "made.h5")] if use == "convert" else []
        ending = attack(tmp_path, "weights", [use, str(path), *target])
    assert ending.code == 2


@pytest.mark.parametrize("place", ["JPEGImages/train1.jpg", "Labels/val0.png", "ImageSets/train.txt"])
@pytest.mark.parametrize("seed", [*range(33), *SPECIAL])
def test_training_data(ran, tmp_path, place, seed):
    shutil.copytree(ran / "data", tmp_path / "data")
    path = tmp_path / "data" / place
    if isinstance(seed, str):
        special(path, seed)
    else:
        path.write_bytes(mutated(path.read_bytes(), seed))
    assert dry_run(ran, tmp_path, tmp_path / "data").code in (0, 2)


IDS = ["../x", "/etc/passwd", "a/../../x", "\0", "\udcff", "x" * 300, "-rf", "a b", "train0 train1", "con", ".", "", "$(touch x)", "train0\r", "\u202ea"]  # fmt: skip


@pytest.mark.parametrize("name", IDS, ids=ascii)
def test_names_in_lists(ran, tmp_path, name):
    shutil.copytree(ran / "data", tmp_path / "data")
    (tmp_path / "data" / "ImageSets" / "train.txt").write_bytes(
        f"train0\n{name}\n".encode(errors="surrogateescape") * 2
    )
    assert dry_run(ran, tmp_path, tmp_path / "data").code in (0, 2)


FORMATS = ("jpg", "png", "bmp", "gif", "tif", "webp", "ppm")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("seed", range(22))
def test_photos(ran, tmp_path, suffix, seed):
    """One photo of two is damaged: the other is labelled, whatever is said of the first."""
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(seed).integers(0, 255, (24, 31, 3), np.uint8)
    for name in ("bad", "good"):
        Image.fromarray(noise).save(folder / f"{name}.{suffix}")
    path = folder / f"bad.{suffix}"
    path.write_bytes(mutated(path.read_bytes(), seed))
    out = tmp_path / "out" / "labels"
    command = ["--run", str(ran / "out"), "--row", ROW, "--images", str(folder), "--labels-out", str(out)]
    assert attack(tmp_path, "visualize", [*command, "--device", "cpu"], ran).code in (0, 1, 2)
    assert (out / "good.png").is_file()


@pytest.mark.parametrize("seed", [*range(44), *SPECIAL])
def test_label_maps(ran, tmp_path, seed):
    pred = tmp_path / "pred"
    pred.mkdir()
    for n, shape in enumerate(((36, 30), (33, 40), (36, 30))):
        Image.fromarray(np.zeros(shape, np.uint8)).save(pred / f"val{n}.png")
    if isinstance(seed, str):
        special(pred / "val0.png", seed)
    else:
        (pred / "val0.png").write_bytes(mutated((pred / "val0.png").read_bytes(), seed))
    table, root = str(ran / "tiny.toml"), str(ran / "data")
    ending = attack(tmp_path, "evaluate", ["--pred", str(pred), "--table", table, "--data-root", root], ran)
    assert ending.code in (0, 2)


def spoiled_json(value, dice):
    """Replaces one value, anywhere in a JSON document, by one that does not belong there."""
    bad = dice.choice((None, -1, 1e308, 10**40, "", "../../x.jpg", "\udcff", [], [[]], {}, True, "x" * 4000))
    places = []

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(value)
    node, key = dice.choice(places)
    node[key] = bad


@pytest.mark.parametrize("seed", range(66))
def test_coco(tmp_path, seed):
    pytest.importorskip("pycocotools", reason="needs pycocotools, the extra `coco`")
    images = coco.write_images(tmp_path, (7,))
    polygon = coco.annotation(coco.PERSON, coco.square(1, 1, 5, 5))
    counts = coco.annotation(coco.DOG, {"size": list(coco.SIZE), "counts": [4, 6, coco.SIZE[0] * coco.SIZE[1] - 10]})
    path = coco.write_json(tmp_path, [polygon, counts | {"iscrowd": 1, "id": 2}])
    if seed % 2:
        path.write_bytes(mutated(path.read_bytes(), seed))
    else:
        document = json.loads(path.read_text())
        spoiled_json(document, random.Random(seed))
        path.write_text(json.dumps(document))
    command = ["prepare", "coco", "--annotations", str(path), "--images", str(images), "--list", "val"]
    assert attack(tmp_path, "data", [*command, "--out", str(tmp_path / "out" / "coco")]).code in (0, 2)


MATS = {
    "text": "x",
    "number": 3.0,
    "cell": np.array([1, "a"], object),
    "nan": np.full((4, 4), np.nan),
    "complex": np.ones((4, 4)) * 1j,
    "three axes": np.zeros((2, 2, 2)),
    "empty": np.zeros((0, 0)),
    "struct": {"a": {"b": {"c": 1}}},
}


@pytest.mark.parametrize("name", [*range(44), *MATS, *SPECIAL])
def test_annotations(tmp_path, name):
    voc, parts = tmp_path / "VOC2010", tmp_path / "parts"
    person_part.write_voc2010(voc, "ab")
    parts.mkdir()
    for one in "ab":
        person_part.write_annotation(parts / f"{one}.mat", ("person", [("head", person_part.box(0, 8))]))
        (tmp_path / f"{one}.txt").write_text(f"{one}\n")
    path = parts / "a.mat"
    if name in MATS:
        scipy.io.savemat(path, {"anno": MATS[name]})
    elif isinstance(name, str):
        special(path, name)
    else:
        path.write_bytes(mutated(path.read_bytes(), name))
    lists = ["--train-list", str(tmp_path / "a.txt"), "--val-list", str(tmp_path / "b.txt")]
    command = ["prepare", "person-part", "--voc2010", str(voc), "--parts", str(parts), *lists]
    assert attack(tmp_path, "data", [*command, "--out", str(tmp_path / "out" / "pp")]).code in (0, 2)

"""What a run needs from outside: found, counted, checked and fingerprinted before training."""

import contextlib
import dataclasses
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SUBMISSION, items_of, write_data, write_protocol

import caffe_weights
from caffe_weights.files.checksum import known_sources
from repro.data.lists import Item
from repro.data.synthetic.cache import cache_folder
from repro.device import Compute
from repro.models import build
from repro.models.weights import save_caffemodel
from repro.protocol import load_protocol
from repro.run import inputs
from repro.run.inputs import (
    Given,
    Inputs,
    check_once,
    dataset_root,
    expected_files,
    find_weights,
    load_weights,
    prepare,
    read_lists,
    source_key,
)
from repro.run.options import Options
from repro.run.plan import Job

CPU = Compute(torch.device("cpu"))

SYNTHETIC = (
    "[common.test]",
    "[common.synthetic]\nnum_train = 4\nnum_val = 3\nsize = [33, 41]\nseed = 5\n\n[common.test]",
)


def fails(error, message):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


@pytest.fixture
def root(tmp_path):
    return write_data(tmp_path / "data")


@pytest.fixture
def protocol(tmp_path):
    return load_protocol(write_protocol(tmp_path))


@pytest.fixture
def row(protocol):
    return protocol.rows[0]


@contextlib.contextmanager
def misses(message, row, root):
    with pytest.raises(FileNotFoundError) as caught:
        yield
    assert str(caught.value) == message
    assert caught.value.__notes__ == expected_files(row, root)


def test_expected_files(row, tmp_path):
    lines = [
        "images and labels: DIR/JPEGImages/ and DIR/Labels/",
        "lists: train.txt (4 images) and val.txt (3) in DIR/ImageSets/ or DIR/list/",
        "obtained: drawn by the test",
        "weights: DIR/tiny.caffemodel, or --weights FILE",
        "obtained: nobody has it",
    ]
    assert expected_files(row, None) == lines
    assert expected_files(row, tmp_path) == [line.replace("DIR", str(tmp_path)) for line in lines]


@pytest.mark.parametrize("name", ["table1", "table3"])
def test_expected_files_of_the_paper_say_how_they_are_obtained(name):
    text = " ".join(expected_files(load_protocol(name).rows[0], None))
    wanted = {"table1": ["VOC 2010", "PASCAL-Part"], "table3": ["VOC 2012", "SBD", "train_aug.txt (10582 images)"]}[
        name
    ]
    for word in [*wanted, "vgg16_20M.caffemodel", known_sources()["vgg16_20M.caffemodel"].url]:
        assert word in text


def test_cache_folder(monkeypatch):
    monkeypatch.setenv("REPRO_CACHE", "/a")
    assert cache_folder() == Path("/a")
    monkeypatch.delenv("REPRO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_folder() == Path("/b/attention-to-scale")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/c")
    assert cache_folder() == Path("/c/.cache/attention-to-scale")


def test_weights_are_looked_for_in_order(row, root, tmp_path, monkeypatch):
    bundled = tmp_path / "bundled"
    bundled.mkdir()
    monkeypatch.setattr(inputs, "BUNDLED_WEIGHTS", bundled)
    assert find_weights(row, [root], "none") is None
    end = "must exist; got no such file; give one as --weights"
    with misses(f"weights: {root}/tiny.caffemodel or {bundled}/tiny.caffemodel {end}", row, root):
        find_weights(row, [root], None)
    with misses(f"weights: {bundled}/tiny.caffemodel {end}", row, None):
        find_weights(row, [], None)
    with misses(f"weights: {tmp_path}/mine.caffemodel {end}", row, root):
        find_weights(row, [root], f"{tmp_path}/mine.caffemodel")
    for place in (bundled, root):
        (place / "tiny.caffemodel").write_bytes(b"")
        assert find_weights(row, [root], None) == place / "tiny.caffemodel"
    (tmp_path / "mine.caffemodel").write_bytes(b"")
    assert find_weights(row, [root], f"{tmp_path}/mine.caffemodel") == tmp_path / "mine.caffemodel"
    (root / "tiny.caffemodel").unlink()
    (tmp_path / "tiny.caffemodel").write_bytes(b"")
    assert find_weights(row, [root, tmp_path], None) == tmp_path / "tiny.caffemodel"  # in the common root


def test_lists(row, root):
    train, val, deviates = read_lists(row, root, subset=False)
    assert (train, val, deviates) == (items_of(root, "train"), items_of(root, "val"), {})
    assert read_lists(row, root, subset=True)[2] == {}


def test_a_list_of_another_length(row, root):
    (root / "ImageSets" / "val.txt").write_text("val0\nval1\n")
    message = "val: must list 3 images as the protocol says; got 2; add --subset to declare a subset, which the record and the table will state"
    with fails(ValueError, message):
        read_lists(row, root, subset=False)
    train, val, deviates = read_lists(row, root, subset=True)
    assert (len(train), len(val), deviates) == (4, 2, {"data.num_val": 2})


def test_a_list_without_labels(row, root):
    (root / "ImageSets" / "val.txt").write_text("".join(f"/JPEGImages/val{n}.jpg\n" for n in range(3)))
    with fails(ValueError, "val: every image must have a label; got 3 without, the first val0; use a list with labels"):
        read_lists(row, root, subset=False)


@pytest.mark.parametrize(
    "missing", ["ImageSets/train.txt", "ImageSets/val.txt", "JPEGImages/train1.jpg", "Labels/val2.png"]
)
def test_missing_files_come_with_what_is_expected(row, root, missing):
    (root / missing).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(Path(missing).stem)) as caught:
        read_lists(row, root, subset=True)
    assert caught.value.__notes__ == expected_files(row, root)


def test_files_are_decoded_once(row, root, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(inputs, "check_items", lambda *args, **kwargs: calls.append((args, kwargs)))
    items = items_of(root, "val")
    check_once(items, "a", row, Options(tmp_path, CPU))
    assert calls == [((items, 3, 255), {"workers": 1})]
    check_once(items, "a", row, Options(tmp_path, Compute(torch.device("cpu"), workers=2)))
    assert len(calls) == 1
    check_once(items, "b", row, Options(tmp_path, Compute(torch.device("cpu"), workers=2)))
    assert calls[1][1] == {"workers": 2}
    row.settings["data"]["class_names"].append("another")
    check_once(items, "b", row, Options(tmp_path, Compute(torch.device("cpu"), workers=2)))
    (tmp_path / "data_checked-b.json").write_text("{")
    check_once(items, "b", row, Options(tmp_path, Compute(torch.device("cpu"), workers=2)))
    assert len(calls) == 4


def test_a_failed_check_is_not_remembered(row, root, tmp_path):
    items = items_of(root, "val")
    Image.new("L", (3, 3)).save(items[0].label)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"data: all 3 items must be usable; got 1 that are not, the first: .*val0\.png"
        ):
            check_once(items, "a", row, Options(tmp_path, CPU))
    assert not list(tmp_path.glob("data_checked*"))


def test_prepare(protocol, row, root, tmp_path):
    without = prepare(Job(protocol, row, 1), Given(root, "none"), Options(tmp_path, CPU))
    assert (without.weights, without.weights_sha256, without.deviates) == (None, None, {"weights": "none"})
    assert (without.train, without.val) == (items_of(root, "train"), items_of(root, "val"))
    (root / "tiny.caffemodel").write_bytes(b"abc")
    found = prepare(Job(protocol, row, 1), Given(root, None), Options(tmp_path, CPU))
    assert (found.weights, found.weights_sha256, found.deviates) == (
        root / "tiny.caffemodel",
        hashlib.sha256(b"abc").hexdigest(),
        {},
    )
    assert found.data_sha256 == without.data_sha256
    (marker,) = tmp_path.glob("data_checked*")
    assert json.loads(marker.read_text())["data_sha256"] == found.data_sha256
    (tmp_path / "other.caffemodel").write_bytes(b"abc")
    (root / "ImageSets" / "train.txt").write_text("train0\n")
    other = prepare(Job(protocol, row, 1), Given(root, f"{tmp_path}/other.caffemodel", True), Options(tmp_path, CPU))
    assert other.deviates == {"weights.file": "other.caffemodel", "data.num_train": 1}
    assert other.data_sha256 != found.data_sha256


def test_the_data_root_must_be_given_for_real_data(protocol, row, tmp_path):
    with misses("tiny: --data-root must be given; got none; name the data's folder", row, None):
        prepare(Job(protocol, row, 1), Given(None, "none"), Options(tmp_path, CPU))


def test_synthetic_data_are_drawn_into_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))
    calls = []
    monkeypatch.setattr(
        "repro.data.synthetic.cache.write_dataset",
        lambda root, *args, **kwargs: calls.append((root, args)) or write_data(root),
    )
    protocol = load_protocol(write_protocol(tmp_path, SYNTHETIC))
    found = prepare(Job(protocol, protocol.rows[0], 1), Given(None, "none"), Options(tmp_path, CPU))
    ((folder, what),) = calls
    assert (folder.parent, what) == (tmp_path / "cache", (4, 3, (33, 41), 5))
    assert re.fullmatch("person-part-synthetic-[0-9a-f]{16}", folder.name)
    assert found.train == items_of(calls[0][0], "train")
    prepare(Job(protocol, protocol.rows[0], 1), Given(write_data(tmp_path / "own"), "none"), Options(tmp_path, CPU))
    assert len(calls) == 1


def test_weights_are_loaded_and_reported(row, tmp_path):
    source, target = (build(row.settings["model"], 3, seed) for seed in (1, 2))
    save_caffemodel(source, tmp_path / "tiny.caffemodel")
    assert load_weights(target, tmp_path / "tiny.caffemodel") == "tiny.caffemodel (V2): 16 layers loaded"
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))
    attention = build(row.settings["model"] | {"merge": "attention", "scales": [1, 0.5]}, 3, 2)
    assert (
        load_weights(attention, tmp_path / "tiny.caffemodel")
        == "tiny.caffemodel (V2): 16 layers loaded; the filler stays in att_conv1, att_fc"
    )
    assert load_weights(target, None) == "no weights loaded: the backbone starts from its filler"


def test_another_tasks_classifier_is_left_out_and_reported(row, tmp_path):
    source, target = (build(row.settings["model"], classes, seed=1) for classes in (1000, 3))
    save_caffemodel(source, tmp_path / "imagenet.caffemodel")
    fc8 = target.net.fc8.weight.clone()
    report = load_weights(target, tmp_path / "imagenet.caffemodel")
    assert report == "imagenet.caffemodel (V2): 15 layers loaded; of the file unused: fc8; the filler stays in fc8"
    assert torch.equal(target.net.fc8.weight, fc8)
    assert torch.equal(target.net.fc7.weight, source.net.fc7.weight)


def test_a_data_set_below_a_common_root(tmp_path):
    assert dataset_root(tmp_path, "voc2012", several=False) == tmp_path
    assert dataset_root(tmp_path, "voc2012", several=True) == tmp_path / "voc2012"
    (tmp_path / "voc2012").mkdir()
    assert dataset_root(tmp_path, "voc2012", several=False) == tmp_path / "voc2012"
    assert dataset_root(tmp_path, "", several=True) == tmp_path


def test_a_submission_tests_images_without_labels(tmp_path, root):
    (root / "ImageSets" / "test.txt").write_text("/JPEGImages/val1.jpg /Labels/val1.png\nval0\n")
    row = load_protocol(write_protocol(tmp_path, SUBMISSION)).rows[0]
    assert "lists: train.txt (4 images) and test.txt (2) in" in "".join(expected_files(row, None))
    train, tested, deviates = read_lists(row, root, subset=False)
    assert train == items_of(root, "train")
    assert tested == [
        Item("val1", root / "JPEGImages/val1.jpg", None),
        Item("val0", root / "JPEGImages/val0.jpg", None),
    ]
    assert deviates == {}
    (root / "ImageSets" / "test.txt").write_text("val0\n")
    with fails(
        ValueError,
        "test: must list 2 images as the protocol says; got 1; add --subset to declare a subset, which the record and the table will state",
    ):
        read_lists(row, root, subset=False)
    assert read_lists(row, root, subset=True)[2] == {"submission.num": 1}


def test_an_evaluation_reads_no_training_list(row, root):
    row.settings["solver"]["max_iter"] = 0
    (root / "ImageSets" / "train.txt").unlink()
    assert read_lists(row, root, subset=False) == ([], items_of(root, "val"), {})


def test_an_evaluation_needs_every_layer(row, tmp_path):
    network = build(row.settings["model"], 3, seed=1)
    with fails(
        ValueError,
        "weights: an evaluation (solver.max_iter = 0) needs trained weights; got none; give them as --weights",
    ):
        load_weights(network, None, complete=True)
    path = tmp_path / "tiny.caffemodel"
    save_caffemodel(network, path)
    attention = build(row.settings["model"] | {"merge": "attention", "scales": [1, 0.5]}, 3, 2)
    with fails(
        ValueError,
        f"{path}: must have every layer of a network that is only evaluated (solver.max_iter = 0); got none that fits for att_conv1, att_fc; give its trained weights",
    ):
        load_weights(attention, path, complete=True)
    passed_over = tmp_path / "other.caffemodel"
    layers = caffe_weights.read_caffemodel(path).with_blobs()
    blobs = {n.replace("fc8", "score"): ("Convolution", layer.blobs) for n, layer in layers.items()}
    caffe_weights.write_caffemodel(passed_over, blobs)
    with pytest.raises(ValueError, match=r"got none that fits for fc8 \(the file also has score\); give its trained"):
        load_weights(network, passed_over, complete=True)
    assert load_weights(network, path, complete=True) == "tiny.caffemodel (V2): 16 layers loaded"


def test_rows_that_read_the_same_share_their_inputs(tmp_path):
    rows = load_protocol(write_protocol(tmp_path)).rows
    assert len({source_key(row) for row in rows}) == 1
    other = load_protocol(write_protocol(tmp_path), ["weights.file=b.caffemodel"]).rows[0]
    evaluated = load_protocol(write_protocol(tmp_path), ["solver.max_iter=0"]).rows[0]
    submitted = load_protocol(write_protocol(tmp_path, SUBMISSION)).rows[0]
    assert len({source_key(row) for row in (rows[0], other, evaluated, submitted)}) == 4


def test_what_a_stage_deviates_in_is_inherited(tmp_path):
    (tmp_path / "a.caffemodel").write_bytes(b"abc")
    before = Inputs([], [], "d", None, None, {"data.num_val": 2})
    after = before.after_stage(tmp_path / "a.caffemodel", {"weights": "none"})
    assert (after.weights, after.weights_sha256) == (tmp_path / "a.caffemodel", hashlib.sha256(b"abc").hexdigest())
    assert after.deviates == {"data.num_val": 2, "stage.weights": "none"}
    assert before.weights is None


def test_rows_of_several_data_sets_need_a_common_root(protocol, row, root, tmp_path):
    row = dataclasses.replace(row, dataset="coco")
    message = f"{root}/coco: must be the folder of this data set, for tiny baseline; got no such folder; put it there"
    with misses(message, row, root / "coco"):
        prepare(Job(protocol, row, 1), Given(root, "none", several=True), Options(tmp_path, CPU))


def break_16_bit(root):
    Image.fromarray(np.zeros((36, 30), np.uint16)).save(root / "Labels" / "val0.png")
    return f"{root}/Labels/val0.png: label must have one 8-bit channel (grey or palette); got mode I;16"


def break_rgb(root):
    Image.new("RGB", (30, 36)).save(root / "Labels" / "val0.png")
    return f"{root}/Labels/val0.png: label must have one 8-bit channel (grey or palette); got mode RGB"


def break_16_bit_image(root):
    Image.fromarray(np.zeros((36, 30), np.uint16)).save(root / "JPEGImages" / "x.png")
    (root / "JPEGImages" / "x.png").rename(root / "JPEGImages" / "val0.jpg")
    return f"{root}/JPEGImages/val0.jpg: image must have 8-bit grey, colour or palette pixels; got mode I;16"


@pytest.mark.parametrize("harm", [break_16_bit, break_rgb, break_16_bit_image])
def test_pixels_of_another_kind_are_found_before_training(protocol, row, root, tmp_path, harm):
    message = harm(root)
    with pytest.raises(
        ValueError, match=rf"^data: all 7 items must be usable; got 1 that are not, the first: {re.escape(message)}"
    ):
        prepare(Job(protocol, row, 1), Given(root, "none"), Options(tmp_path, CPU))

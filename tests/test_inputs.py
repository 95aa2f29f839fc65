"""What a run needs from outside: found, counted, checked and fingerprinted before training."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import items_of, write_data, write_protocol

from repro import inputs
from repro.data import synthetic
from repro.inputs import cache_folder, check_once, expected_files, find_weights, load_weights, prepare, read_lists
from repro.models import build
from repro.protocol import load_protocol
from repro.weights import save_caffemodel

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


def test_expected_files(row, tmp_path):
    text = (
        "expected under DIR: JPEGImages/, Labels/ and the lists train.txt (4) and val.txt (3) in ImageSets/ or list/ [drawn by the test]; "
        "expected for --weights: tiny.caffemodel [nobody has it; addresses in caffe_weights/sources.toml]"
    )
    assert expected_files(row, None) == text
    assert expected_files(row, tmp_path) == text.replace("DIR", str(tmp_path))


@pytest.mark.parametrize("name", ["table1", "table3"])
def test_expected_files_of_the_paper_say_how_they_are_obtained(name):
    text = expected_files(load_protocol(name).rows[0], None)
    wanted = {"table1": ["VOC 2010", "PASCAL-Part"], "table3": ["VOC 2012", "SBD", "train_aug.txt (10582)"]}[name]
    for word in [*wanted, "vgg16_20M.caffemodel"]:
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
    assert find_weights(row, root, "none") is None
    expected = expected_files(row, root)
    with fails(
        FileNotFoundError,
        f"weights: {root}/tiny.caffemodel or {bundled}/tiny.caffemodel must exist; got no such file; {expected}",
    ):
        find_weights(row, root, None)
    with fails(
        FileNotFoundError,
        f"weights: {bundled}/tiny.caffemodel must exist; got no such file; {expected_files(row, None)}",
    ):
        find_weights(row, None, None)
    with fails(FileNotFoundError, f"weights: {tmp_path}/mine.caffemodel must exist; got no such file; {expected}"):
        find_weights(row, root, f"{tmp_path}/mine.caffemodel")
    for place in (bundled, root):
        (place / "tiny.caffemodel").write_bytes(b"")
        assert find_weights(row, root, None) == place / "tiny.caffemodel"
    (tmp_path / "mine.caffemodel").write_bytes(b"")
    assert find_weights(row, root, f"{tmp_path}/mine.caffemodel") == tmp_path / "mine.caffemodel"


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
    with pytest.raises(
        FileNotFoundError, match=f"{re.escape(Path(missing).stem)}.*; {re.escape(expected_files(row, root))}$"
    ):
        read_lists(row, root, subset=True)


def test_files_are_decoded_once(row, root, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(inputs, "check_items", lambda *args, **kwargs: calls.append((args, kwargs)))
    items = items_of(root, "val")
    check_once(items, "a", row, tmp_path, workers=0)
    assert calls == [((items, 3, 255), {"workers": 1})]
    check_once(items, "a", row, tmp_path, workers=2)
    assert len(calls) == 1
    check_once(items, "b", row, tmp_path, workers=2)
    assert calls[1][1] == {"workers": 2}
    row.settings["data"]["class_names"].append("another")
    check_once(items, "b", row, tmp_path, workers=2)
    (tmp_path / "data_checked.json").write_text("{")
    check_once(items, "b", row, tmp_path, workers=2)
    assert len(calls) == 4


def test_a_failed_check_is_not_remembered(row, root, tmp_path):
    items = items_of(root, "val")
    Image.new("L", (3, 3)).save(items[0].label)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"data: all 3 items must be usable; got 1 that are not, the first: .*val0\.png"
        ):
            check_once(items, "a", row, tmp_path, workers=0)
    assert not (tmp_path / "data_checked.json").exists()


def test_prepare(protocol, row, root, tmp_path):
    without = prepare(protocol, row, root, "none", False, tmp_path, 0)
    assert (without.weights, without.weights_sha256, without.deviates) == (None, None, {"weights": "none"})
    assert (without.train, without.val) == (items_of(root, "train"), items_of(root, "val"))
    (root / "tiny.caffemodel").write_bytes(b"abc")
    found = prepare(protocol, row, root, None, False, tmp_path, 0)
    assert (found.weights, found.weights_sha256, found.deviates) == (
        root / "tiny.caffemodel",
        hashlib.sha256(b"abc").hexdigest(),
        {},
    )
    assert found.data_sha256 == without.data_sha256
    assert json.loads((tmp_path / "data_checked.json").read_text())["data_sha256"] == found.data_sha256
    (tmp_path / "other.caffemodel").write_bytes(b"abc")
    (root / "ImageSets" / "train.txt").write_text("train0\n")
    other = prepare(protocol, row, root, f"{tmp_path}/other.caffemodel", True, tmp_path, 0)
    assert other.deviates == {"weights.file": "other.caffemodel", "data.num_train": 1}
    assert other.data_sha256 != found.data_sha256


def test_the_data_root_must_be_given_for_real_data(protocol, row, tmp_path):
    with fails(FileNotFoundError, f"tiny: --data-root must be given; got none; {expected_files(row, None)}"):
        prepare(protocol, row, None, "none", False, tmp_path, 0)


def test_synthetic_data_are_drawn_into_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))
    calls = []
    monkeypatch.setattr(
        synthetic, "write_dataset", lambda root, *args, **kwargs: calls.append((root, args)) or write_data(root)
    )
    protocol = load_protocol(write_protocol(tmp_path, SYNTHETIC))
    found = prepare(protocol, protocol.rows[0], None, "none", False, tmp_path, 0)
    assert calls == [(tmp_path / "cache" / "person-part-synthetic", (4, 3, (33, 41), 5))]
    assert found.train == items_of(calls[0][0], "train")
    prepare(protocol, protocol.rows[0], write_data(tmp_path / "own"), "none", False, tmp_path, 0)
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
    assert report == "imagenet.caffemodel (V2): 15 layers loaded; the filler stays in fc8"
    assert torch.equal(target.net.fc8.weight, fc8)
    assert torch.equal(target.net.fc7.weight, source.net.fc7.weight)

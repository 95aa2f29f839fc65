"""The band around the boundaries of a label, by hand; and the IoU of its pixels, before and after the CRF."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CRF, items_of, main, run_command, write_protocol

from repro.device import Compute
from repro.evaluate.__main__ import main as evaluate_program
from repro.evaluate.labels import evaluate, label_maps
from repro.evaluate.metrics import iou
from repro.evaluate.trimap import trimap_band, trimap_label
from repro.records.store import BEFORE_CRF, read_record, record_path
from repro.solver.snapshot import trained_network

CPU = Compute(torch.device("cpu"))


def drawn(text):
    """Reads a band: # is inside."""
    return np.array([[letter == "#" for letter in line] for line in text.split()])


def label_of(text):
    """Reads a label: digits are classes, x is ignored."""
    return np.array([[255 if letter == "x" else int(letter) for letter in line] for line in text.split()], np.uint8)


@pytest.mark.parametrize(
    ("label", "width", "band"),
    [
        # Two classes that meet: the pixels on both sides of the line, then two deep.
        ("00001111 00001111", 1, "...##... ...##..."),
        ("00001111 00001111", 2, "..####.. ..####.."),
        # VOC's border of ignored pixels: both sides of it. What is inside the border counts nowhere, whatever the band says.
        ("000x1111", 1, "..###..."),
        ("000x1111", 2, ".#####.."),
        # The distance is Euclidean: diagonal neighbours are 1.41 away.
        ("0000 0000 0010 0000", 1, ".... ..#. .### ..#."),
        ("0000 0000 0010 0000", 1.5, ".... .### .### .###"),
        ("0000 0000 0010 0000", 2, "..#. .### #### .###"),
        # A third class is a boundary too; a label of one class has none, and the image's edge is none.
        ("01200", 1, "####."),
        ("1111 1111", 5, ".... ...."),
        ("xxxx", 5, "...."),
    ],
)
def test_bands_by_hand(label, width, band):
    found = trimap_band(label_of(label), width)
    assert found.dtype == bool
    assert found.astype(int).tolist() == drawn(band).astype(int).tolist()


def test_a_band_is_what_its_definition_says():
    """Pixel by pixel: is another label at most so far away?"""
    label = np.random.default_rng(3).choice(np.array([0, 0, 0, 0, 1, 255], np.uint8), (9, 11))
    label[:6, :7] = 2
    rows, columns = np.mgrid[:9, :11]
    for width in (1, 2, 2.5, 5):
        for y, x in np.ndindex(label.shape):
            near = (rows - y) ** 2 + (columns - x) ** 2 <= width**2
            assert trimap_band(label, width)[y, x] == (label[near] != label[y, x]).any()
    banded = trimap_label(label, 1, 255)
    assert banded.dtype == np.uint8
    assert np.array_equal(banded == 255, ~trimap_band(label, 1) | (label == 255))


@pytest.mark.parametrize("width", [0, -1, float("nan")])
def test_what_is_no_width(width):
    with pytest.raises(
        ValueError, match=f"^trimap: the band's width must be above 0 pixels; got {width}; give one such"
    ):
        trimap_band(np.zeros((2, 2), np.uint8), width)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ran")
    command = run_command(folder)
    write_protocol(folder, CRF)
    assert main([*command, "--row", "max2", "--set", "solver.max_iter=2", "--set", "solver.base_lr=0.0"]) == 0
    return folder


def test_both_ious_of_the_band(ran):
    folder = record_path(ran / "out", "tiny", "max2", 1).parent
    record = read_record(folder / "record.json")
    network, items = trained_network(record, folder / "snapshot.pt"), items_of(ran / "data", "val")
    counts = evaluate(network, items, record["settings"], CPU, trimap=2)
    assert counts.confusion.tolist() == record["confusion"]
    assert counts.before_crf.tolist() == record[BEFORE_CRF]["confusion"]
    by_hand = np.zeros((2, 3, 3), np.int64)
    for (one,) in label_maps(network, items, record["settings"] | {"test": {"crop_size": 41, "batch_size": 1}}, CPU):
        label = np.asarray(Image.open(one.image.item.label))
        kept = trimap_band(label, 2) & (label != 255)
        for matrix, found in zip(by_hand, (one.labels, one.before_crf), strict=True):
            np.add.at(matrix, (label[kept], found.numpy()[kept]), 1)
    assert np.array_equal(counts.trimap.confusion, by_hand[0])
    assert np.array_equal(counts.trimap.before_crf, by_hand[1])
    assert 0 < by_hand[0].sum() < counts.confusion.sum()
    assert counts.trimap.trimap is None


def test_the_program_tests_a_recorded_row(ran, tmp_path, capsys):
    folder = record_path(ran / "out", "tiny", "max2", 1).parent
    record = read_record(folder / "record.json")
    command = ["--run", str(folder), "--data-root", str(ran / "data"), "--device", "cpu"]
    assert evaluate_program([*command, "--trimap", "5", "--confusion", str(tmp_path / "c.csv")]) == 0
    head, *lines, mean, last = capsys.readouterr().out.splitlines()
    assert re.split("  +", head.strip()) == ["before CRF", "after CRF", "trimap 5 before CRF", "trimap 5 after CRF"]
    values = [float(value) for value in mean.split()[2:]]
    assert values[:2] == [round(one["value"], 2) for one in (record[BEFORE_CRF], record)]
    network = trained_network(record, folder / "snapshot.pt")
    near = evaluate(network, items_of(ran / "data", "val"), record["settings"], CPU, trimap=5).trimap
    assert values[2:] == [round(100 * iou(counts).mean(), 2) for counts in (near.before_crf, near.confusion)]
    assert [line.split()[0] for line in lines] == ["background", "box", "ball"]
    assert last == f"3 images, {np.sum(record['confusion'])} pixels with a label"
    assert (tmp_path / "c.csv").read_text().splitlines()[1] == ",".join(
        ["background", *map(str, record["confusion"][0])]
    )
    (ran / "data" / "ImageSets" / "one.txt").write_text("val1\n")
    assert evaluate_program([*command, "--list", "one", "--workers", "0"]) == 0
    assert "1 images, " in capsys.readouterr().out


def test_the_program_bands_label_maps(ran, tmp_path, capsys):
    """Perfect but for a shift of one pixel: wrong near the boundaries alone."""
    for path in (ran / "data" / "Labels").glob("val*.png"):
        label = np.asarray(Image.open(path))
        shifted = np.roll(np.where(label == 255, 0, label), 1, axis=1)
        Image.fromarray(shifted.astype(np.uint8)).save(tmp_path / path.name)
    command = [
        "--pred",
        str(tmp_path),
        "--table",
        f"{ran}/tiny.toml",
        "--data-root",
        str(ran / "data"),
        "--trimap",
        "1",
    ]
    assert evaluate_program(command) == 0
    head, *lines, mean, _ = capsys.readouterr().out.splitlines()
    assert re.split("  +", head.strip()) == ["IoU", "trimap 1"]
    whole, near = (float(value) for value in mean.split()[2:])
    assert near < whole - 20
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trimap", "0"], "trimap: the band's width must be above 0 pixels; got 0.0; give one such as 5"),
        (["--workers", "-1"], "--workers: must be 0..1024; got -1; use 0 for no threads"),
        (
            ["--table", "table3"],
            "--table: goes with --pred alone; got --run, whose record names the protocol; leave it out",
        ),
        (
            ["--run", "{ran}/out"],
            "{ran}/out: must be the folder of a recorded row; got no record.json in it; give one ",
        ),
    ],
)
def test_what_the_program_refuses(ran, capsys, arguments, message):
    folder = record_path(ran / "out", "tiny", "max2", 1).parent
    arguments = [text.format(ran=ran) for text in arguments]
    assert (
        evaluate_program(["--run", str(folder), "--data-root", str(ran / "data"), "--device", "cpu", *arguments]) == 2
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message.format(ran=ran)}")


def test_label_maps_need_a_table(tmp_path, capsys):
    assert evaluate_program(["--pred", str(tmp_path), "--data-root", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(
        "error: --pred: needs --table, the protocol of the label maps; got none; "
    )

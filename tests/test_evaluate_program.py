"""`python -m repro.evaluate`: somebody else's label maps against the labels."""

import csv
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny import write_data, write_protocol

from repro.evaluate.__main__ import main


@pytest.fixture
def command(tmp_path):
    root = write_data(tmp_path / "data")
    (tmp_path / "pred").mkdir()
    for path in (root / "Labels").glob("val*.png"):
        shutil.copy(path, tmp_path / "pred")
    for path in (tmp_path / "pred").iterdir():  # what is ignored in the label must be a class here
        label = np.asarray(Image.open(path))
        Image.fromarray(np.where(label == 255, 0, label).astype(np.uint8)).save(path)
    return ["--pred", str(tmp_path / "pred"), "--table", write_protocol(tmp_path), "--data-root", str(root)]


def test_the_labels_themselves_are_perfect(command, capsys):
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == ["background  100.00", "box         100.00", "ball        100.00", "mean IoU    100.00"]
    assert lines[4].startswith("3 images, ")


def test_the_confusion_matrix_is_written(command, tmp_path, capsys):
    path = tmp_path / "pred" / "val1.png"
    label = np.asarray(Image.open(tmp_path / "data" / "Labels" / "val1.png"))
    wrong = np.where(label == 1, 2, np.where(label == 255, 0, label)).astype(np.uint8)
    Image.fromarray(wrong).save(path)
    assert main([*command, "--confusion", str(tmp_path / "c.csv")]) == 0
    with open(tmp_path / "c.csv") as file:
        header, *rows = csv.reader(file)
    assert header == ["label", "background", "box", "ball"]
    counts = np.array([[int(value) for value in row[1:]] for row in rows])
    assert counts[1, 2] == (label == 1).sum() > 0
    assert counts.sum() - np.trace(counts) == counts[1, 2]
    box = 100 * counts[1, 1] / (counts[1].sum() + counts[:, 1].sum() - counts[1, 1])
    assert f"box         {box:6.2f}" in capsys.readouterr().out


def test_another_list(command, tmp_path, capsys):
    (tmp_path / "data" / "ImageSets" / "one.txt").write_text("val2\n")
    assert main([*command, "--list", "one"]) == 0
    assert "1 images, " in capsys.readouterr().out


def harm_missing(pred):
    (pred / "val1.png").unlink()
    return "must hold a PNG of each of the 3 images; got none of 1, the first val1.png; complete it, or choose --list"


def harm_size(pred):
    Image.new("L", (3, 4)).save(pred / "val0.png")
    return (
        "val0.png: must have its label's (height, width) (36, 30); got (4, 3); write label maps at the images' own size"
    )


def harm_class(pred):
    Image.fromarray(np.full((36, 30), 7, np.uint8)).save(pred / "val0.png")
    return "val0.png: classes must be 0..2; got 7; check the protocol's class_names"


@pytest.mark.parametrize("harm", [harm_missing, harm_size, harm_class])
def test_what_is_refused_in_one_line(command, tmp_path, harm, capsys):
    message = harm(tmp_path / "pred")
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(message)

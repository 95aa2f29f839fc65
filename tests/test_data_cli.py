"""The commands of `python -m repro.data`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repro.data.__main__ import main

ROOT = Path(__file__).parents[1]
SIZE = (40, 50)
ORDER = "head,torso,lower_arms,upper_arms,lower_legs,upper_legs"


@pytest.fixture
def labels(tmp_path):
    """Index PNGs and images of 40 items, and lists of the first 30 and the last 10."""
    for folder in ("JPEGImages", "labels"):
        (tmp_path / folder).mkdir()
    for index in range(40):
        random = np.random.default_rng(index)
        Image.new("RGB", SIZE[::-1]).save(tmp_path / "JPEGImages" / f"{index}.jpg")
        Image.fromarray(random.integers(1, 7, SIZE).astype(np.uint8)).save(tmp_path / "labels" / f"{index}.png")
    (tmp_path / "train.txt").write_text("".join(f"{index}\n" for index in range(30)))
    (tmp_path / "val.txt").write_text("".join(f"{index}\n" for index in range(30, 40)))
    return tmp_path


def command(root, out, *more):
    lists = ["--train-list", str(root / "train.txt"), "--val-list", str(root / "val.txt")]
    source = ["--voc2010", str(root), "--index-pngs", str(root / "labels"), "--class-order", ORDER]
    return ["prepare", "person-part", *source, *lists, "--out", str(out), *more]


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".part")
    }


def one_line(capsys):
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("error: ")


def test_prepare_and_check(labels, capsys, monkeypatch):
    monkeypatch.chdir(labels)
    assert main(command(labels, labels / "out", "--workers", "1")) == 0
    report = capsys.readouterr().out.splitlines()
    assert report == [
        "train: 30 images, DIFFERS from the expected 1716 by -1686",
        "val: 10 images, DIFFERS from the expected 1817 by -1807",
    ]
    assert main(["check", "person-part", "--data-root", "out", "--workers", "1"]) == 1
    output = capsys.readouterr().out
    assert "    6  lower legs " in output
    assert output.endswith("2 things are wrong:\n" + "".join(f"  {line}\n" for line in report))
    assert (labels / "contact_sheet.png").is_file()
    folder = ["check", "out", "--labels", "SegmentationPart", "--list", "train", "--list", "val"]
    assert main([*folder, "--classes", "7", "--sheet", "mine.png"]) == 0
    assert capsys.readouterr().out.endswith("contact sheet: mine.png\nnothing is wrong\n")
    assert main([*folder, "--classes", "6"]) == 1
    assert (
        "40 things are wrong:\n  out/SegmentationPart/0.png: class ids must be 0 .. 5 or 255" in capsys.readouterr().out
    )
    assert main(["check", "person-part", "--data-root", "out", "--list", "train", "--classes", "256"]) == 1
    assert capsys.readouterr().out.count("things are wrong") == 1


def test_killed_runs_go_on(labels):
    assert main(command(labels, labels / "whole", "--workers", "1")) == 0
    whole, out = contents(labels / "whole"), labels / "out"
    # A label that takes its time lets the program be killed in the middle.
    script = (
        "import sys, time; from repro.data.prepare import person_part; from repro.data.__main__ import main\n"
        "whole = person_part.read_index_png\n"
        "def slow(*a):\n    time.sleep(0.02); return whole(*a)\n"
        "person_part.read_index_png = slow\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    counts = []
    while len(counts) < 3:
        process = subprocess.Popen(
            [sys.executable, "-c", script, *command(labels, out, "--workers", "1")], cwd=ROOT, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and len(list(out.glob("SegmentationPart/[0-9]*.png"))) < (counts or [0])[-1] + 5:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        counts.append(len(list(out.glob("SegmentationPart/[0-9]*.png"))))
        assert not (out / "ImageSets/train.txt").exists()
    assert counts[0] < counts[1] < counts[2] < 40
    assert main(command(labels, out, "--workers", "2")) == 0
    assert contents(out) == whole


def test_ctrl_c(labels, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("repro.data.__main__.prepare_person_part", interrupt)
    assert main(command(labels, labels / "out")) == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on where it stopped\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("check voc --data-root . --workers 0", "--workers: must be at least 1; got 0; give a number of processes"),
        (
            "check cat --data-root .",
            "check: data set must be one of voc, person-part, coco; got 'cat'; correct the name",
        ),
        (
            "check . --labels x",
            "check: a folder needs --labels, --list and --classes; got no --list, --classes; add them",
        ),
        ("check voc --data-root . --classes 257", "--classes: must be 1 .. 256; got 257; give the number of classes"),
        (
            "check voc --data-root . --ignore-label 256",
            "--ignore-label: must be 0 .. 255; got 256; give an 8-bit label",
        ),
        (
            "check voc --data-root nowhere",
            "nowhere: data folder must exist; got no such folder; give the prepared folder",
        ),
        (
            "prepare person-part --voc2010 . --index-pngs labels --out out",
            "--class-order: must come with --index-pngs, and only there; got --index-pngs alone; say the labels' class order",
        ),
        (
            f"prepare person-part --voc2010 . --parts labels --class-order {ORDER} --out out",
            "--class-order: must come with --index-pngs, and only there; got --parts with it; say the labels' class order",
        ),
        (
            "prepare coco --annotations instances.json --images . --out out",
            "--list: must be given where the file's name does not tell; got instances.json; add it",
        ),
        (
            "prepare voc --voc nowhere --sbd . --out out",
            "nowhere: must be PASCAL VOC 2012; got none of nowhere/ImageSets",
        ),
    ],
)
def test_wrong_input_is_one_line(labels, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(labels)
    assert main(arguments.split()) == 2
    assert one_line(capsys).startswith(message)
    assert not (labels / "out").exists()


def test_broken_data_is_one_line(labels, capsys):
    Image.new("RGB", SIZE[::-1]).save(labels / "labels/3.png")
    assert main(command(labels, labels / "out", "--workers", "2")) == 2
    assert one_line(capsys).startswith(
        f"{labels}/labels/3.png: label must have one 8-bit channel (grey or palette); got mode RGB"
    )
    assert not (labels / "out/ImageSets").exists()
    assert main(command(labels, labels / "out", "--traceback")) == 2
    assert "Traceback" in capsys.readouterr().err


def test_coco(labels, capsys, monkeypatch):
    pytest.importorskip("pycocotools", reason="needs pycocotools, the extra `coco`")
    images = [{"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in range(40)]
    document = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    path = labels / "instances_val2014.json"
    path.write_text(json.dumps(document))
    arguments = [
        "prepare",
        "coco",
        "--annotations",
        str(path),
        "--images",
        str(labels / "JPEGImages"),
        "--out",
        str(labels / "out"),
    ]
    assert main(arguments) == 2
    assert one_line(capsys).startswith(f"{path}: must hold annotations")
    document["annotations"] = [
        {"id": 1, "image_id": 3, "category_id": 1, "segmentation": {"counts": [0, 2000], "size": SIZE}, "iscrowd": 1}
    ]
    path.write_text(json.dumps(document))
    assert main([*arguments, "--count", "6", "--seed", "4"]) == 0
    assert "val: drawn from 40 sorted ids with seed 4\n" in capsys.readouterr().out
    assert len((labels / "out/ImageSets/val.txt").read_text().splitlines()) == 6
    monkeypatch.setattr("repro.data.__main__.prepare_coco", lambda *given: [given[3]])
    for name in ("train", "train2014"):
        assert main([*arguments, "--list", name]) == 0
        assert capsys.readouterr().out == f"{name}\n"


def test_a_subset_is_checked_as_one(labels, capsys, monkeypatch):
    monkeypatch.chdir(labels)
    assert main(command(labels, labels / "out", "--workers", "1")) == 0
    check = ["check", "person-part", "--data-root", "out", "--workers", "1"]
    assert main([*check, "--subset"]) == 0
    output = capsys.readouterr().out
    assert "train: 30 images, DIFFERS from the expected 1716 by -1686\n" in output
    (labels / "out/ImageSets/val.txt").unlink()
    assert main([*check, "--subset"]) == 0
    assert "val" not in capsys.readouterr().out
    assert main([*check, "--subset", "--list", "val"]) == 1
    (labels / "out/ImageSets/val.txt").write_text("3\n")
    assert main([*check, "--subset"]) == 1
    assert (
        "  lists: train and val must share no image; got 1 in both, such as 3; correct them\n"
        in capsys.readouterr().out
    )


def test_program(labels):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-m", "repro.data", *command(labels, labels / "out", "--workers", "2")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=labels,
    )
    assert result.returncode == 0
    assert result.stdout.count("\n") == 2
    assert "person-part: 100%" in result.stderr
    assert len(contents(labels / "out")) == 40 * 2 + 3

"""Every program on a disk that is too small: one line, nothing half-written, what was there before stays whole."""

import contextlib
import os
import shutil
import subprocess

import numpy as np
import pytest
import report_cases as cases
import tiny
from attack import attack
from PIL import Image

pytestmark = pytest.mark.slow

ROW = "max2"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A finished run, its data, and a good part of a set of records."""
    folder = tmp_path_factory.mktemp("ran")
    assert tiny.main([*tiny.run_command(folder), "--row", ROW]) == 0
    for seed in range(1, 9):
        cases.write(folder / "records", "demo", "attention2", 40.0, seed)
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    for name in ("images", "labels", "pred"):
        (folder / name).mkdir()
    for n in range(6):
        Image.fromarray(noise).save(folder / "images" / f"{n}.jpg")
        Image.fromarray(noise[..., 0] % 3).save(folder / "labels" / f"{n}.png")
    for path in (folder / "data" / "Labels").glob("val*.png"):
        label = np.asarray(Image.open(path))
        Image.fromarray(np.where(label == 255, 0, label)).save(folder / "pred" / path.name)
    return folder


@pytest.fixture
def small(tmp_path):
    """Makes folder/out a file system of so many bytes."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small tmpfs")
    out = tmp_path / "out"
    out.mkdir()

    def mount(size):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(out)], capture_output=True)
        if done.returncode:
            pytest.skip(f"needs the right to mount a tmpfs; got {done.stderr.decode().strip()}")
        return out

    yield mount
    subprocess.run(["umount", str(out)], check=False, capture_output=True)


def fill(out):
    """Fills a disk to its last byte."""
    with open(out / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(512)):
            pass


def command_of(program, ran, out):
    """A command that writes into a folder, and the files by which it is known to have ended well."""
    tiny_run = [str(ran / "tiny.toml"), "--data-root", str(ran / "data"), "--weights", "none", "--device", "cpu"]
    snapshot = ran / "out" / "tiny" / f"{ROW}-seed1" / "snapshot.pt"
    photos = ["--run", str(ran / "out"), "--row", ROW, "--device", "cpu", "--images", str(ran / "images")]
    return {
        "run": [*tiny_run, "--workers", "0", "--row", ROW, "--out", str(out)],
        "report": ["--runs", str(ran / "records"), "--out", str(out / "report")],
        "visualize": [*photos, "--out", str(out / "pictures"), "--labels-out", str(out / "labels"), "--gallery"],
        "export": [str(snapshot), str(out / "caffe"), "--data-root", str(ran / "data")],
        "evaluate": ["--pred", str(ran / "pred"), "--table", str(ran / "tiny.toml"), "--data-root", str(ran / "data"), "--confusion", str(out / "counts.csv")],
        "data": ["own", "--images", str(ran / "images"), "--labels", str(ran / "labels"), "--classes", "a,b,c", "--out", str(out / "own")],
        "weights": ["convert", str(ran / "caffe" / "model.caffemodel"), str(out / "w.h5")],
    }[program]  # fmt: skip


@pytest.mark.parametrize("size", ["0", "8k", "32k", "128k", "512k", "2m"])
@pytest.mark.parametrize("program", ["run", "report", "visualize", "export", "evaluate", "data", "weights"])
def test_small_disks(ran, tmp_path, small, program, size):
    if program == "weights" and not (ran / "caffe").exists():
        assert attack(tmp_path / "made", "export", command_of("export", ran, tmp_path / "made" / "out")).code == 0
        shutil.copytree(tmp_path / "made" / "out" / "caffe", ran / "caffe")
        os.rename(next((ran / "caffe").glob("*.caffemodel")), ran / "caffe" / "model.caffemodel")
    out = small(4096 if size == "0" else size)
    if size == "0":
        fill(out)
    ending = attack(tmp_path, program, command_of(program, ran, out), inputs=ran)
    assert ending.code in (0, 2)
    if ending.code:
        assert "No space left on device" in ending.err or "must be a folder that can be written" in ending.err
    for path in out.rglob("*"):
        assert_whole(path)


def assert_whole(path):
    """What is there can be read to its end."""
    if path.suffix == ".html":
        assert path.read_text().rstrip().endswith("</html>")
    elif path.suffix == ".png":
        with Image.open(path) as picture:
            picture.load()
    elif path.suffix == ".json":
        assert path.read_text().rstrip().endswith(("}", "]"))


def test_an_old_report_stays_whole_where_the_new_one_does_not_fit(ran, tmp_path, small):
    out = small("4m")
    command = command_of("report", ran, out)
    assert attack(tmp_path, "report", command, inputs=ran).code == 0
    old = {path: path.read_bytes() for path in (out / "report").rglob("*") if path.is_file()}
    fill(out)
    assert attack(tmp_path, "report", command, inputs=ran).code == 2
    assert {path: path.read_bytes() for path in (out / "report").rglob("*") if path.is_file()} == old

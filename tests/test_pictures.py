"""Opening pictures: which formats, how large, and that nothing else is tried."""

import os
import re
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import pytest
from PIL import Image

from repro.data.lists import Item, check_items
from repro.data.pictures import FORMATS, MAX_PIXELS, SUFFIXES, find_picture, load_picture, open_picture, stem_of
from repro.data.transforms import read_image_bgr, read_label
from repro.visualize.photos import read_photo

ROOT = Path(__file__).parents[1]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
EVERY = ", ".join(FORMATS)


def fails(error, message):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def write_bomb(path, width, height):
    """Writes a PNG that claims so many grey pixels and has a handful of bytes."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_formats(tmp_path, name):
    for suffix in FORMATS[name]:
        if suffix == ".pgm":
            Image.new("L", (5, 4)).save(tmp_path / "a", format=name)
        else:
            Image.new("RGB", (5, 4)).save(tmp_path / "a", format=name)
        with open_picture(tmp_path / "a") as image:  # whatever the file's name says
            assert (image.format, image.size) == (name, (5, 4))
        assert load_picture(tmp_path / "a").getpixel((0, 0)) in ((0, 0, 0), 0)


READERS = {"open": open_picture, "image": read_image_bgr, "label": read_label, "photo": read_photo}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".eps"])
def test_a_program_that_looks_like_a_photo_is_not_run(tmp_path, monkeypatch, reader, suffix):
    """Pillow hands PostScript to Ghostscript, here one that says so."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "bin/gs").chmod(0o755)
    path = tmp_path / f"x{suffix}"
    path.write_bytes(EPS)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    what = "label" if reader == "label" else "image"
    with fails(ValueError, f"{path}: {what} must decode; got none of {EVERY}; replace the file"):
        READERS[reader](path)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("size", [(MAX_PIXELS + 1, 1), (10000, 9000), (10000, 20000), (30000, 30000)])
def test_bombs_are_one_line_before_anything_is_allocated(tmp_path, reader, size):
    path = write_bomb(tmp_path / "a.png", *size)
    what = "label" if reader == "label" else "image"
    told = rf"^{re.escape(str(path))}: {what} must have at most {MAX_PIXELS} pixels; got [^\n]+; shrink it$"
    with pytest.raises(ValueError, match=told):
        READERS[reader](path)


def test_bombs_are_seen_where_warnings_are_silenced_and_in_threads(tmp_path):
    path = write_bomb(tmp_path / "a.png", 10000, 9000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fails(ValueError, f"{path}: image must have at most {MAX_PIXELS} pixels; got 10000 x 9000; shrink it"):
            open_picture(path)
    with pytest.raises(
        ValueError, match=r"got 3 that are not, the first: .*a\.png: image must have at most \d+ pixels"
    ):
        check_items([Item(str(n), path, None) for n in range(3)], 2, 255, 3, progress=False)


def test_a_program_says_one_line_of_a_bomb(tmp_path):
    write_bomb(tmp_path / "a.png", 10000, 9000)
    script = "import sys; from pathlib import Path; from repro.data.transforms import read_image_bgr as r; from repro.shell import exit_code; sys.exit(exit_code(lambda: r(Path('a.png')) and 0))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    assert re.fullmatch(r"error: a\.png: image must have at most [^\n]+; shrink it\n", done.stderr)


def test_no_other_file_meets_pillow():
    """Image.open stands in one place of the package."""
    found = [
        path.relative_to(ROOT).as_posix()
        for folder in ("repro", "caffe_weights")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"\bImage\.open\(|\bimread\(", path.read_text(encoding="utf-8"))
    ]
    assert found == ["repro/data/pictures.py"]


@pytest.mark.parametrize(("make", "kind"), [(os.mkfifo, "a FIFO"), (os.mkdir, "a folder")])
def test_special_files(tmp_path, make, kind):
    make(tmp_path / "a.png")
    with fails(ValueError, f"{tmp_path}/a.png: image must be a regular file; got {kind}; name a file"):
        open_picture(tmp_path / "a.png")


def test_pictures_are_found_by_their_stem(tmp_path):
    for suffix in reversed(SUFFIXES):
        for name in (f"a{suffix.upper()}", f"a{suffix}"):
            (tmp_path / name).touch()
            assert find_picture(tmp_path, "a") == tmp_path / name
    assert find_picture(tmp_path, "b") is None
    assert find_picture(tmp_path, "b" * 300) is None


@pytest.mark.parametrize(
    ("name", "stem"), [("a", "a"), ("a.jpg", "a"), ("a.jpg.JPG", "a"), ("a.b.png", "a.b"), (".jpg", ""), ("jpg", "jpg")]
)
def test_stems(name, stem):
    assert stem_of(name) == stem

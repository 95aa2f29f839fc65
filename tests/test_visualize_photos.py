"""Photos and video frames: what can be read, what is drawn, what is skipped, and the gallery; with the network of a tiny run."""

import os
import re
import shutil
from html.parser import HTMLParser
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import main as run_main
from tiny import run_command

from repro.data.lists import Item
from repro.data.palette import voc_palette
from repro.data.stream import read_test_item
from repro.models.weights import save_caffemodel
from repro.protocol import load_protocol
from repro.records.store import read_record
from repro.solver.snapshot import trained_network
from repro.visualize import photos as photos_module
from repro.visualize.__main__ import UNSEEN, main
from repro.visualize.draw import class_colours, draw_strips, overlay
from repro.visualize.network import Seen, caffe_network, look
from repro.visualize.photos import Drawer, Photo, find_photos, padded, read_photo, shrunk

ROW = "attention3-extra"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ran")
    assert run_main([*run_command(folder), "--row", ROW]) == 0
    return folder


@pytest.fixture
def network(ran):
    folder = ran / "out" / "tiny" / f"{ROW}-seed1"
    return trained_network(read_record(folder / "record.json"), folder / "snapshot.pt")


@pytest.fixture
def drawer(ran, network):
    settings = load_protocol(str(ran / "tiny.toml")).row(ROW).settings
    return Drawer(network, settings, torch.device("cpu"), "a network", 41, "")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, size in (("frame10.png", (30, 41)), ("frame2.jpg", (90, 60)), ("one pixel.png", (1, 1))):
        Image.fromarray(random.integers(0, 255, (*size, 3), np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    return folder


def command(ran, folder, out, *more):
    return [
        "--run",
        str(ran / "out"),
        "--row",
        ROW,
        "--images",
        str(folder),
        "--out",
        str(out),
        "--device",
        "cpu",
        *more,
    ]


def test_files_are_sorted_as_people_count(photos):
    found, others = find_photos(photos)
    assert [path.name for path in found] == ["frame2.jpg", "frame10.png", "one pixel.png"]
    assert others == 1
    with pytest.raises(FileNotFoundError, match=r"--images: .*none must be a folder of images; got no such folder"):
        find_photos(photos / "none")
    shutil.rmtree(photos)
    photos.mkdir()
    with pytest.raises(FileNotFoundError, match=r"must hold images \(\.jpg, \.png, \.\.\.\); got 0 other files"):
        find_photos(photos)


GREY = np.array([[0, 60], [120, 240]], np.uint8)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(GREY), GREY),
        (Image.fromarray(GREY.astype(np.uint16) * 200), np.array([[0, 63], [127, 255]])),  # 16 bit: stretched
        (Image.fromarray(np.dstack([GREY, GREY, GREY, np.full_like(GREY, 255)])), GREY),
        (Image.fromarray(np.dstack([GREY, np.zeros_like(GREY)])), np.full_like(GREY, 255)),  # transparent: white
        (Image.fromarray(GREY).convert("P"), GREY),
        (Image.fromarray(GREY > 100), np.array([[0, 0], [255, 255]])),
        (Image.merge("CMYK", [*[Image.new("L", (2, 2))] * 3, Image.fromarray(255 - GREY)]), GREY),
    ],
    ids=["L", "I;16", "RGBA", "LA", "P", "1", "CMYK"],
)
def test_every_kind_of_pixel_is_read(image, expected, tmp_path):
    path = tmp_path / ("a.tif" if image.mode == "CMYK" else "a.png")
    image.save(path)
    found = read_photo(path)
    assert (found.dtype, found.shape) == (np.uint8, (2, 2, 3))
    assert np.abs(found.astype(int) - np.asarray(expected, int)[..., None]).max() <= 1


def test_a_turned_camera_is_turned_back(tmp_path):
    image = Image.fromarray(np.repeat(GREY[..., None], 3, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned left
    image.save(tmp_path / "a.png", exif=exif)
    assert (read_photo(tmp_path / "a.png")[..., 0] == np.rot90(GREY, -1)).all()


def test_large_photos_are_shrunk():
    image = np.zeros((90, 60, 3), np.uint8)
    assert shrunk(image, 45).shape == (45, 30, 3)
    assert shrunk(image, 90) is image
    assert shrunk(np.zeros((1000, 1, 3), np.uint8), 10).shape == (10, 1, 3)


@pytest.mark.parametrize("size", [(30, 41), (1, 1), (50, 42)])
def test_the_networks_input_is_the_tests(size, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected, _, found = read_test_item(Item("a", tmp_path / "a.png", None), (1.0, 2.0, 3.0), 41)
    assert found == size
    assert torch.equal(padded(pixels, (1.0, 2.0, 3.0), 41), expected)


def test_a_picture_shows_labels_and_weights(drawer, photos, tmp_path, monkeypatch):
    label = np.random.default_rng(2).choice(3, (30, 41), p=[0.5, 0.2, 0.3]).astype(np.uint8)
    edge = np.linspace(0, 3, 30 * 41, dtype=np.float32).reshape(30, 41)
    shown, looked, before = [], [], 2 - label

    def keep_look(network, data, sizes, settings, compute):
        ((_, _, maps, *none),) = look(network, data, sizes, settings, compute)
        assert (sizes, none) == ([(30, 41)], [None, None])
        looked.append((data, maps))
        return [Seen(label, None, maps, edge, before)]

    monkeypatch.setattr(photos_module, "look", keep_look)
    monkeypatch.setattr(photos_module, "draw_strips", lambda *args: shown.append(args) or draw_strips(*args))
    picture, new = Photo(drawer, photos / "frame10.png").draw(tmp_path)
    assert new
    assert picture.path == tmp_path / "frame10.png.png"
    with Image.open(picture.path) as image:
        assert image.size == picture.size[::-1]
    ((strip,), title, subtitle, legend, _) = shown[0]
    assert title == "frame10.png"
    pixels = np.asarray(Image.open(photos / "frame10.png"))
    ((data, maps),) = looked
    assert torch.equal(data, padded(pixels, drawer.settings["transform"]["mean_bgr"], 41))
    assert (strip.panels[0].pixels == pixels).all()
    for panel, title, one in zip(strip.panels[1:3], ("before the CRF", "labels"), (before, label), strict=True):
        assert panel.title == title
        assert (panel.pixels == overlay(pixels, one, class_colours(3))).all()
    np.testing.assert_array_equal(np.stack([panel.pixels for panel in strip.panels[3:6]]), maps)
    assert (strip.panels[6].title, strip.panels[6].span) == ("edge map", (0, 3))
    assert (strip.panels[6].pixels == edge).all()
    assert [name for name, _ in legend] == ["ball", "box"]  # the larger share first, without background
    found = f"ball {100 * (label == 2).mean():.1f} %, box {100 * (label == 1).mean():.1f} %"
    assert subtitle.lower() == f"{found}."
    means = ", ".join(f"scale {s} {maps[i].mean():.2f}" for i, s in enumerate(("1", "0.75", "0.5")))
    assert picture.alt == f"frame10.png: {found}; mean weight {means}"


def test_a_picture_is_drawn_anew_only_when_something_changed(drawer, photos, tmp_path):
    photo = photos / "frame10.png"
    first, _ = Photo(drawer, photo).draw(tmp_path)
    assert Photo(drawer, photo).draw(tmp_path) == (first, False)
    for other in (drawer._replace(identity="another"), drawer._replace(max_side=20), drawer._replace(note="Note.")):
        assert Photo(other, photo).draw(tmp_path)[1]
        assert Photo(drawer, photo).draw(tmp_path)[1]
    shutil.copy(photos / "one pixel.png", photo)
    assert Photo(drawer, photo).draw(tmp_path)[1]
    for damage in (b"", b"\x89PNG\r\n\x1a\n", first.path.read_bytes()[:60]):
        first.path.write_bytes(damage)
        assert Photo(drawer, photo).draw(tmp_path)[1]


def test_a_folder_of_photos(ran, photos, tmp_path, capsys):
    out = tmp_path / "made" / "out"
    assert main(command(ran, photos, out)) == 0
    assert capsys.readouterr().out == f"{out}: 3 drawn, 0 there already, 0 unusable, 1 other files passed over\n"
    assert sorted(path.name for path in out.iterdir()) == ["frame10.png.png", "frame2.jpg.png", "one pixel.png.png"]
    stamps = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    (photos / "new.png").write_bytes((photos / "frame10.png").read_bytes())
    assert main(command(ran, photos, out)) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 1 drawn, 3 there already, 0 unusable")
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_unusable_photos_are_named_and_the_rest_goes_on(ran, photos, tmp_path, capsys):
    (photos / "a text.png").write_text("no image")
    whole = (photos / "frame2.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    assert main(command(ran, photos, tmp_path / "out")) == 1
    out, err = capsys.readouterr()
    assert "3 drawn, 0 there already, 2 unusable" in out
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2
    assert (
        "a text.png: image must decode; got none of JPEG, PNG, BMP, WEBP, GIF, TIFF, PPM; replace the file" in lines[0]
    )
    assert "cut.jpg: image must decode; got OSError" in lines[1]


def test_names_that_are_long_or_no_utf8_stop_no_gallery(ran, photos, tmp_path, capsys):
    content = (photos / "frame10.png").read_bytes()
    long = "x" * 251 + ".png"
    odd = os.fsdecode(b"caf\xe9.png")
    for name in (long, odd):
        (photos / name).write_bytes(content)
    assert main(command(ran, photos, tmp_path / "out", "--gallery")) == 0
    assert "5 drawn, 0 there already, 0 unusable" in capsys.readouterr().out
    page = Page((tmp_path / "out/index.html").read_text(encoding="utf-8"))
    files = {os.fsdecode(unquote_to_bytes(image["src"])): image["alt"] for image in page.images}
    assert all((tmp_path / "out" / name).is_file() for name in files)
    assert files[f"{odd}.png"].startswith("caf\ufffd.png: ")
    (short,) = [name for name in files if name.startswith("x")]
    assert re.fullmatch("x{40}-[0-9a-f]{16}\\.png", short)
    assert files[short].startswith(f"{long}: ")
    assert main(command(ran, photos, tmp_path / "out", "--gallery")) == 0
    assert "0 drawn, 5 there already, 0 unusable" in capsys.readouterr().out


def test_label_maps_beside_or_without_pictures(drawer, ran, photos, tmp_path, capsys):
    """Index PNGs in the photo's size, whatever the network's, with VOC's palette, for whoever scores or edits them."""
    labels, small = tmp_path / "labels", ["--max-side", "30"]
    assert main(command(ran, photos, tmp_path / "out", "--labels-out", str(labels), *small)) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines() == [
        f"{labels}: 3 labelled, 0 there already, 0 unusable, 1 other files passed over",
        f"{tmp_path / 'out'}: 3 drawn, 0 there already, 0 unusable, 1 other files passed over",
    ]
    assert sorted(path.name for path in labels.iterdir()) == ["frame10.png", "frame2.png", "one pixel.png"]
    with Image.open(labels / "frame2.png") as image:
        assert (image.mode, image.size) == ("P", (60, 90))
        assert image.getpalette() == voc_palette()
        found = np.asarray(image)
    seen = Photo(drawer._replace(max_side=30), photos / "frame2.jpg").looked.seen.prediction
    assert seen.shape == (30, 20)
    assert (found[1::3, 1::3] == seen).all()  # every third pixel is one of the network's
    stamps = {path: path.stat().st_mtime_ns for path in labels.iterdir()}
    alone = [*command(ran, photos, "", *small)[:6], "--device", "cpu", "--labels-out", str(labels), *small]
    assert main(alone) == 0
    assert capsys.readouterr().out.startswith(f"{labels}: 0 labelled, 3 there already")
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert main(alone[:-2]) == 0  # the row's test crop
    assert capsys.readouterr().out.startswith(f"{labels}: 3 labelled, 0 there already")


def test_label_maps_must_have_names_and_a_folder_of_their_own(ran, photos, tmp_path, capsys):
    for out, message in ((photos, "the folder of the images"), (tmp_path / "out", "the folder of --out")):
        assert main(command(ran, photos, tmp_path / "out", "--labels-out", str(out))) == 2
        assert f"--labels-out: must not be {message}; got {out} for both; name another" in capsys.readouterr().err
    shutil.copy(photos / "frame10.png", photos / "frame2.png")
    assert main(command(ran, photos, tmp_path / "out", "--labels-out", str(tmp_path / "labels"))) == 2
    assert (
        "--labels-out: photos must have different names without suffix; got 'frame2.png' beside 'frame2.jpg'; rename one"
        in capsys.readouterr().err
    )


def test_a_row_of_several_tables_needs_its_table(ran, photos, tmp_path, capsys):
    for table in ("tiny", "other"):
        shutil.copytree(ran / "out" / "tiny", tmp_path / "out" / table)
    arguments = ["--run", str(tmp_path / "out"), *command(ran, photos, tmp_path / "pictures")[2:]]
    assert main(arguments) == 2
    assert "got 2; choose with --table, --row and --seed among other/attention3" in capsys.readouterr().err
    assert main([*arguments, "--table", "other"]) == 0


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.images, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data):
        self.text += data


def test_the_gallery(ran, photos, tmp_path, capsys):
    hostile = "<b>\"100 %&'#?.png"
    shutil.copy(photos / "frame10.png", photos / hostile)
    assert main(command(ran, photos, tmp_path / "out", "--gallery")) == 0
    index = tmp_path / "out" / "index.html"
    assert capsys.readouterr().out.startswith(f"{index}\n")
    page = Page(index.read_text(encoding="utf-8"))
    assert not {"script", "b", "iframe"} & set(page.tags)
    assert hostile in page.text
    order = [hostile, "frame2.jpg", "frame10.png", "one pixel.png"]
    assert [unquote(image["src"]) for image in page.images] == [f"{name}.png" for name in order]
    for image in page.images:
        assert not set("#? ") & set(image["src"])
        with Image.open(tmp_path / "out" / unquote(image["src"])) as picture:
            assert (int(image["width"]), int(image["height"])) == picture.size
        assert image["alt"].startswith(unquote(image["src"])[: -len(".png")] + ": ")
    assert UNSEEN not in page.text
    before = index.read_bytes()
    assert main(command(ran, photos, tmp_path / "out", "--gallery")) == 0
    assert index.read_bytes() == before


def test_a_caffemodel_serves_without_a_run(ran, network, photos, tmp_path):
    model = tmp_path / "trained.caffemodel"
    save_caffemodel(network, model)
    arguments = ["--weights", str(model), "--table", str(ran / "tiny.toml"), "--row", ROW, "--device", "cpu"]
    assert main([*arguments, "--images", str(photos), "--out", str(tmp_path / "a")]) == 0
    assert main(command(ran, photos, tmp_path / "b")) == 0
    for name in ("frame10.png.png", "frame2.jpg.png"):
        a, b = (np.asarray(Image.open(tmp_path / folder / name)) for folder in "ab")
        assert (a == b).all()
    row = load_protocol(str(ran / "tiny.toml")).row("max2")
    assert caffe_network(row, model).merge == "max"
    del network.attention
    save_caffemodel(network, model)
    with pytest.raises(
        ValueError, match=r"must hold every layer of row attention3-extra; got none for att_conv1, att_fc"
    ):
        caffe_network(load_protocol(str(ran / "tiny.toml")).row(ROW), model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--images: needs --row, --out or --labels-out, and either --run or --weights; got others"),
        (["--row", ROW, "--out", "OUT"], "--images: needs --row, --out or --labels-out, and either"),
        (
            ["--row", ROW, "--out", "OUT", "--run", "RUN", "--weights", "x"],
            "--images: needs --row, --out or --labels-out, and either",
        ),
        (
            ["--row", ROW, "--out", "OUT", "--weights", "x"],
            "--weights: needs --table, the protocol of its row; got none",
        ),
        (["--row", "max9", "--out", "OUT", "--run", "RUN"], "must have a record of 'max9'; got 0; choose with --table"),
        (["--row", ROW, "--out", "OUT", "--run", "RUN", "--seed", "7"], "of 'attention3-extra', seed 7; got 0; choose"),
        (
            ["--row", ROW, "--out", "OUT", "--run", "RUN", "--max-side", "0"],
            "--max-side: must be at least 1 pixel; got 0",
        ),
        (
            ["--row", ROW, "--labels-out", "OUT", "--run", "RUN", "--gallery"],
            "--gallery: needs --out, the folder of its pictures; got none; add it",
        ),
        (["--row", ROW, "--out", "PHOTOS", "--run", "RUN"], "--out: must not be the folder of the images; got"),
    ],
)
def test_what_photos_lack_is_one_line(arguments, message, ran, photos, tmp_path, capsys):
    places = {"RUN": str(ran / "out"), "OUT": str(tmp_path / "out"), "PHOTOS": str(photos)}
    given = [places.get(argument, argument) for argument in arguments]
    assert main(["--images", str(photos), "--device", "cpu", *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1

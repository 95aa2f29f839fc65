"""The VOC server's archive: what is in it, and how it goes on after a stop."""

import hashlib
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SUBMISSION, main, run_command, write_protocol

from repro.data.lists import Item
from repro.data.palette import voc_palette
from repro.evaluate import archive as submission
from repro.evaluate.labels import Labelled, PaddedImage
from repro.records.store import read_record
from repro.run import __main__ as run_module
from repro.run import row as row_module

NAMES = ["val0", "val2"]
INSIDE = "results/VOC2012/Segmentation/comp6_test_cls"


@pytest.fixture
def tiny(tmp_path):
    command = [*run_command(tmp_path), "--row", "max2"]
    write_protocol(tmp_path, SUBMISSION)
    (tmp_path / "data" / "ImageSets" / "test.txt").write_text("".join(f"/JPEGImages/{n}.jpg\n" for n in NAMES[::-1]))
    return command


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "out" / "tiny" / "max2-seed1"


def contents(path):
    with tarfile.open(path) as archive:
        return {entry.name: archive.extractfile(entry).read() for entry in archive}


def test_a_row_without_labels_writes_an_archive(tiny, folder, tmp_path, capsys):
    assert main(tiny) == 0
    out, err = capsys.readouterr()
    record = read_record(folder / "record.json")
    archive = folder / "max2-seed1.tgz"
    assert record["submission"] == {
        "archive": "max2-seed1.tgz",
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
        "score": None,
    }
    assert (record["value"], record["per_class"], record["confusion"], record["n_images"]) == (None, {}, [], 2)
    assert record["deviates"] == {"weights": "none"}
    assert len(record["loss_curve"]) == 6
    assert "max2-seed1.tgz is written, no score yet" in err
    assert "no score yet" in out
    with tarfile.open(archive) as opened:
        assert [(e.name, e.mtime, e.uid, e.mode) for e in opened] == [
            (f"{INSIDE}/{name}.png", 0, 0, 0o644) for name in NAMES
        ]
    for name, content in contents(archive).items():
        path = folder / name
        assert path.read_bytes() == content
        with Image.open(path) as image, Image.open(tmp_path / "data" / "JPEGImages" / f"{path.stem}.jpg") as photo:
            assert image.mode == "P"
            assert image.size == photo.size
            assert image.getpalette() == voc_palette()
            assert set(np.unique(image)) <= {0, 1, 2}
    assert main(tiny) == 0
    assert ": recorded, max2-seed1.tgz is written, no score yet" in capsys.readouterr().err


def test_label_maps_are_the_networks_prediction(tiny, folder, monkeypatch):
    shown = {}
    real = row_module.label_maps

    def label_maps(network, items, settings, compute):
        assert not any(item.label for item in items)
        for batch in real(network, items, settings, compute):
            shown.update({image.item.name: labels.numpy() for image, labels, _ in batch})
            yield batch

    monkeypatch.setattr(row_module, "label_maps", label_maps)
    assert main(tiny) == 0
    assert set(shown) == set(NAMES)
    for name, prediction in shown.items():
        np.testing.assert_array_equal(Image.open(folder / INSIDE / f"{name}.png"), prediction)


def test_it_goes_on_image_by_image(tiny, folder, capsys, monkeypatch):
    assert main([*tiny, "--out", str(folder.parents[2] / "whole")]) == 0
    whole = next((folder.parents[2] / "whole").glob("tiny/*/*.tgz")).read_bytes()
    real = row_module.write_label_maps

    def stop_after_one(batches, where, before, progress):
        real(batches, where, before, lambda images: (setattr(run_module, "_stop_asked", True), progress(images)))

    monkeypatch.setattr(row_module, "write_label_maps", stop_after_one)
    assert main([*tiny, "--set", "test.batch_size=1"]) == 130
    done = list((folder / INSIDE).iterdir())
    assert [path.name for path in done] == ["val2.png"]  # the list's first
    assert not (folder / "record.json").exists()
    (folder / INSIDE / "val0.png").write_bytes(b"\x89PNG damaged")
    stamp = done[0].stat().st_mtime_ns
    monkeypatch.setattr(row_module, "write_label_maps", real)
    capsys.readouterr()
    assert main([*tiny, "--set", "test.batch_size=1"]) == 0
    assert "1 of 2 images are labelled already" in capsys.readouterr().err
    assert done[0].stat().st_mtime_ns == stamp
    assert (folder / "max2-seed1.tgz").read_bytes() == whole


def test_label_maps_of_another_run_are_not_taken(tiny, folder, capsys):
    assert main(tiny) == 0
    (folder / "record.json").unlink()
    (folder / "snapshot.pt").unlink()
    capsys.readouterr()
    assert main([*tiny, "--set", "solver.gamma=0.5"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {folder / INSIDE}: must hold label maps of this very run; got those of another (settings, data, weights or seed differ); "
        "delete the folder, or choose another --out"
    )
    (folder / "submission.json").write_text("{")
    with pytest.raises(ValueError, match="must hold label maps of this very run"):
        submission.unfinished([folder], [], "a")


def test_archives_depend_on_nothing_but_the_label_maps(tmp_path):
    items = [Item(name, tmp_path / name, None) for name in ("b", "a")]
    archives = []
    for place, order in (("x", items), ("y", items[::-1])):
        folder = tmp_path / place
        assert submission.unfinished([folder], order, "one") == order
        batches = [
            [Labelled(PaddedImage(item, None, (2, 3)), torch.full((2, 3), ord(item.name) % 3))] for item in order
        ]
        submission.write_label_maps(iter(batches), folder)
        assert submission.unfinished([folder], order, "one") == []
        archives.append(submission.write_archive(folder, order, folder / "x.tgz"))
    assert archives[0] == archives[1]
    assert (tmp_path / "x" / "x.tgz").read_bytes()[3:8] == bytes(5)  # gzip's flags (no name) and time
    assert list(contents(tmp_path / "y" / "x.tgz")) == [f"{INSIDE}/a.png", f"{INSIDE}/b.png"]


def test_a_broken_test_image_is_found_before_training(tiny, folder, tmp_path, capsys):
    (tmp_path / "data" / "JPEGImages" / "val0.jpg").write_bytes(b"\xff\xd8 no image")
    assert main(tiny) == 2
    assert f"the first: {tmp_path}/data/JPEGImages/val0.jpg: image must decode" in capsys.readouterr().err
    assert not folder.exists()

"""The test loop, with a network whose scores are known."""

import re
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from repro.data.lists import Item
from repro.device import Compute
from repro.evaluate.labels import evaluate
from repro.evaluate.postprocess import final_labels
from repro.models import Output

MEAN = (10.0, 20.0, 30.0)


class Known(nn.Module):
    """Scores every 8th pixel: class c by how near its blue is to 40 c; keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, data):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.seen.append(data)
        blue = data[:, 0, ::8, ::8] + MEAN[0]
        return Output([torch.stack([-(blue - 40 * c).abs() for c in range(3)], dim=1)], None, "average")


def write(root, name, height, width, seed):
    random = np.random.default_rng(seed)
    image = random.integers(0, 120, (height, width, 3), dtype=np.uint8)
    label = random.choice(np.array([0, 1, 2, 255], np.uint8), (height, width))
    Image.fromarray(image).save(root / f"{name}.png")
    Image.fromarray(label).save(root / f"{name}_label.png")
    return Item(name, root / f"{name}.png", root / f"{name}_label.png")


@pytest.fixture
def items(tmp_path):
    sizes = [(12, 17), (17, 9), (10, 10), (30, 11), (16, 16)]
    return [write(tmp_path, f"i{n}", *size, seed=n) for n, size in enumerate(sizes)]


def run(items, network=None, crop_size=17, batch_size=2, ignore_label=255, workers=0, progress=lambda images: None):
    settings = {
        "data": {"class_names": ["a", "b", "c"], "ignore_label": ignore_label},
        "transform": {"mean_bgr": MEAN},
        "test": {"crop_size": crop_size, "batch_size": batch_size},
    }
    counts = evaluate(network or Known(), items, settings, Compute(torch.device("cpu"), workers=workers), progress)
    assert counts.before_crf is None
    return counts.confusion


def expected_counts(items, crop=17):
    """Does the same by hand, image by image, with another library's bilinear."""
    counts = np.zeros((3, 3), np.int64)
    for item in items:
        bgr = np.asarray(Image.open(item.image))[..., ::-1].astype(np.float32)
        label = np.asarray(Image.open(item.label))
        height, width = label.shape
        side = max(crop, -(-(max(height, width) - 1) // 8) * 8 + 1)
        blue = np.full((side, side), MEAN[0], np.float32)  # padding is the mean
        blue[:height, :width] = bgr[..., 0]
        scores = torch.tensor(np.stack([-np.abs(blue[::8, ::8] - 40 * c) for c in range(3)]))[None]
        classes = (
            F.interpolate(scores, size=(side, side), mode="bilinear", align_corners=True)[0]
            .argmax(0)
            .numpy()[:height, :width]
        )
        for a, b in zip(label.ravel(), classes.ravel(), strict=True):
            if a != 255:
                counts[a, b] += 1
    return counts


def test_counts_are_those_made_by_hand(items):
    counts = run(items)
    assert counts.dtype == np.int64
    assert np.array_equal(counts, expected_counts(items))
    assert counts.sum() == sum((np.asarray(Image.open(item.label)) != 255).sum() for item in items)
    assert np.count_nonzero(counts) == 9


def test_padding_at_the_bottom_and_right_with_the_mean(items):
    network = Known()
    run(items[:1], network)
    (data,) = network.seen
    assert data.shape == (1, 3, 17, 17)
    image = np.asarray(Image.open(items[0].image))[..., ::-1].astype(np.float32) - np.array(MEAN, np.float32)
    assert np.array_equal(data[0, :, :12, :17], image.transpose(2, 0, 1))
    assert not data[0, :, 12:].any()


def test_neighbours_of_equal_padded_size_are_scored_together(items):
    network, progress = Known(), []
    counts = run(items, network, progress=progress.append)
    assert [tuple(data.shape) for data in network.seen] == [
        (2, 3, 17, 17),
        (1, 3, 17, 17),
        (1, 3, 33, 33),
        (1, 3, 17, 17),
    ]
    assert progress == [2, 1, 1, 1]
    for batch_size in (1, 3, 9):
        assert np.array_equal(run(items, batch_size=batch_size), counts)


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_workers_change_nothing(items, workers):
    before = threading.active_count()
    here, ahead = Known(), Known()
    assert np.array_equal(run(items * 3, ahead, workers=workers), run(items * 3, here))
    assert all(torch.equal(a, b) for a, b in zip(ahead.seen, here.seen, strict=True))  # in the list's order
    assert threading.active_count() == before


def test_a_larger_crop_scores_the_same_pixels(items):
    assert np.array_equal(run(items, crop_size=41), expected_counts(items, crop=41))


def test_ignore_label_is_the_callers(items, tmp_path):
    label = np.zeros((9, 9), np.uint8)
    label[0] = 2
    Image.fromarray(label).save(tmp_path / "l.png")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "i.png")
    counts = run([Item("i", tmp_path / "i.png", tmp_path / "l.png")], ignore_label=2)
    assert counts.tolist() == [[72, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_predict_takes_the_first_of_equal_scores():
    network = Known().eval()
    data = torch.full((1, 3, 9, 9), 20.0 - MEAN[0])  # blue 20 is as near to class 0 as to class 1
    with torch.no_grad():
        ((classes, before),) = final_labels(network(data), data, [(9, 9)], None)
    assert classes.dtype == torch.uint8
    assert classes.shape == (9, 9)
    assert before is None
    assert not classes.any()


def test_no_images():
    assert run([]).tolist() == [[0, 0, 0]] * 3


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_file_is_named(items, workers):
    items[2].image.write_bytes(items[2].image.read_bytes()[:60])
    before = threading.active_count()
    with pytest.raises(ValueError, match=f"^{re.escape(str(items[2].image))}: image must decode; got "):
        run(items, workers=workers)
    items[2].image.unlink()
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(str(items[2].image))}: image must exist"):
        run(items, workers=workers)
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_what_progress_raises_ends_the_evaluation(items, workers):
    network = Known()

    def progress(images):
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run(items, network, workers=workers, progress=progress)
    assert len(network.seen) == 1
    assert threading.active_count() == before

"""The confusion matrix and intersection over union, by hand and against a loop."""

import re

import numpy as np
import pytest
import torch

from repro.evaluate.metrics import ConfusionMatrix, iou


def confusion_matrix(prediction, label, num_classes, ignore_label=255):
    counts = ConfusionMatrix(num_classes, ignore_label)
    counts.add(prediction, label)
    return counts.result()


def test_by_hand():
    label = torch.tensor([[0, 0, 0, 1], [1, 1, 2, 255]], dtype=torch.uint8)
    prediction = torch.tensor([[0, 0, 1, 1], [1, 0, 2, 0]])
    expected = np.array([[2, 1, 0], [1, 2, 0], [0, 0, 1]])  # rows are labels
    counts = confusion_matrix(prediction, label, 3)
    assert counts.dtype == np.int64
    assert np.array_equal(counts, expected)
    assert iou(expected) == pytest.approx([2 / 4, 2 / 4, 1])
    assert np.array_equal(confusion_matrix(torch.tensor([1]), torch.tensor([0]), 2), [[0, 1], [0, 0]])


def test_union_holds_misses_and_false_alarms():
    assert iou([[10, 5], [0, 5]]) == pytest.approx([10 / 15, 5 / 10])


def test_a_class_with_empty_union_counts_zero():
    values = iou(np.diag([3, 0, 1]))
    assert values.tolist() == [1, 0, 1]
    assert values.dtype == np.float64
    assert iou(np.zeros((2, 2), np.int64)).tolist() == [0, 0]


def test_counts_beyond_float32_are_exact():
    assert iou([[2**40, 1], [0, 1]])[0] == 2**40 / (2**40 + 1)


@pytest.mark.parametrize("ignore_label", [255, 4])
def test_agrees_with_a_loop(ignore_label):
    random = np.random.default_rng(1)
    label = random.integers(0, 5 if ignore_label == 4 else 4, (3, 17, 23))
    label[random.random(label.shape) < 0.2] = ignore_label
    prediction = random.integers(0, 4, label.shape)
    expected = np.zeros((4, 4), np.int64)
    for a, b in zip(label.ravel(), prediction.ravel(), strict=True):
        if a != ignore_label:
            expected[a, b] += 1
    assert np.array_equal(confusion_matrix(torch.tensor(prediction), torch.tensor(label), 4, ignore_label), expected)
    for c, value in enumerate(iou(expected)):
        truth, found = (label == c), (prediction == c) & (label != ignore_label)
        assert value == pytest.approx((truth & found).sum() / (truth | found).sum())


def test_all_ignored():
    label = torch.full((4, 4), 255, dtype=torch.uint8)
    assert confusion_matrix(torch.zeros(4, 4, dtype=torch.int64), label, 3).sum() == 0


OUTSIDE = "confusion matrix: labels and predictions must be 0..2, labels or 255; got "


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        (
            [[0, 0]],
            [[0], [0]],
            "confusion_matrix: prediction must have the shape of label [2, 1]; got [1, 2]; cut to the image's size",
        ),
        ([0, 0], [0, 3], f"{OUTSIDE}1 pixels with another; check the number of classes"),
        ([-1, 7], [0, 1], f"{OUTSIDE}2 pixels with another; check the number of classes"),
    ],
)
def test_what_is_refused(prediction, label, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        confusion_matrix(torch.tensor(prediction), torch.tensor(label), 3)


@pytest.mark.parametrize("seed", range(6))
def test_the_metric_is_that_of_scikit_learn(seed):
    sklearn = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn: pip install -e .[test]")
    random = np.random.default_rng(seed)
    classes = int(random.integers(2, 22))
    # The last class neither occurs nor is predicted; 255 is ignored whatever was predicted there.
    label = random.integers(0, classes - 1, (3, 40, 50)) if classes > 2 else np.zeros((3, 40, 50), np.int64)
    prediction = random.integers(0, max(classes - 1, 1), label.shape)
    prediction = np.where(random.random(label.shape) < 0.6, label, prediction)
    label[random.random(label.shape) < 0.1] = 255
    counts = ConfusionMatrix(classes)
    assert not counts.result().any()
    for p, y in zip(prediction, label, strict=True):  # image by image, as a run counts
        counts.add(torch.from_numpy(p), torch.from_numpy(y.astype(np.uint8)))
    ours = counts.result()
    valid = label != 255
    theirs = sklearn.confusion_matrix(label[valid], prediction[valid], labels=range(classes))
    assert np.array_equal(ours, theirs)
    jaccard = sklearn.jaccard_score(
        label[valid], prediction[valid], labels=range(classes), average=None, zero_division=0.0
    )
    values = iou(ours)
    assert values == pytest.approx(jaccard, rel=1e-15)
    assert values[-1] == 0
    assert values.mean() == pytest.approx(jaccard.mean(), rel=1e-15)

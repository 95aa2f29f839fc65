"""Attention against object size: objects, their sizes and weights, and bins, on made-up labels."""

import math

import numpy as np
import pytest

from repro.visualize.sizes import SizedObject, components, size_bins, sized_objects


def label_of(*boxes, size=(40, 50)):
    label = np.zeros(size, np.uint8)
    for value, top, left, height, width in boxes:
        label[top : top + height, left : left + width] = value
    return label


def test_a_size_is_the_root_of_the_area_and_a_weight_the_mean_over_the_object():
    label = label_of((1, 2, 3, 4, 4), (2, 20, 10, 9, 9))
    ramp = np.tile(np.linspace(0, 1, 50, dtype=np.float32), (40, 1))
    found = sized_objects(label, np.stack([ramp, 1 - ramp]), 255, parts=False)
    assert [one.size for one in found] == [4, 9]
    for one, columns in zip(found, (range(3, 7), range(10, 19)), strict=True):
        mean = np.mean([c / 49 for c in columns])
        assert one.weight == pytest.approx([mean, 1 - mean], abs=1e-6)


def test_objects_are_regions_of_one_class_or_of_all_parts():
    label = label_of((1, 0, 0, 4, 4), (2, 4, 0, 4, 4), (1, 20, 20, 2, 2), (1, 22, 22, 2, 2), (255, 8, 0, 9, 9))
    numbers, count = components(label, 255, parts=False)
    assert count == 3  # touching corners are connected
    assert sorted(np.bincount(numbers.ravel())[1:].tolist()) == [8, 16, 16]
    assert numbers[21, 21] == numbers[22, 22]
    numbers, count = components(label, 255, parts=True)
    assert count == 2  # the two parts on each other are one object
    assert numbers[0, 0] == numbers[7, 0] != 0
    for parts in (False, True):
        assert not components(label, 255, parts)[0][(label == 0) | (label == 255)].any()
        assert sized_objects(label_of(), np.zeros((2, 40, 50), np.float32), 255, parts) == []


def test_bins_are_half_octaves_with_mean_and_deviation():
    weights = ([0.2, 0.8], [0.4, 0.6], [0.9, 0.1])
    bins = size_bins(
        SizedObject(size, np.array(w)) for size, w in zip((4, 5.6, 2 * math.sqrt(2)), weights, strict=True)
    )
    assert [one["n_objects"] for one in bins] == [1, 2]
    assert [one["size_min"] for one in bins] == pytest.approx([2 * math.sqrt(2), 4])
    assert [one["size_max"] for one in bins] == pytest.approx([4, 4 * math.sqrt(2)])
    assert bins[0]["mean_weight"] == pytest.approx([0.9, 0.1])
    assert bins[0]["std"] == [0, 0]
    assert bins[1]["mean_weight"] == pytest.approx([0.3, 0.7])
    assert bins[1]["std"] == pytest.approx([0.1, 0.1])
    assert size_bins([]) == []


@pytest.mark.parametrize("area", [1, 2, 4, 8, 32, 128, 2**11])
def test_an_area_on_an_edge_opens_its_bin(area):
    (only,) = size_bins([SizedObject(math.sqrt(area), np.ones(2))])
    assert only["size_min"] == pytest.approx(math.sqrt(area))

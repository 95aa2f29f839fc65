"""COCO's regions: which are refused, and that the others are drawn as pycocotools draws them."""

import re

import numpy as np
import pytest

from repro.data.prepare.coco_masks import checked_segmentation, decompressed, draw

# Of pycocotools itself under NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = (10, 12)


def runs_of(mask):
    """Counts runs down the columns, zeros first."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [not flat[-1]]])))
    return np.diff(np.concatenate([[0], edges])).tolist()


SQUARE = [1, 1, 5, 1, 5, 5, 1, 5]
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("segmentation", "told"),
    [
        ("circle", "segmentation must be a list of polygons, each a list, or runs; got 'circle'"),
        (None, "segmentation must be a list of polygons, each a list, or runs; got None"),
        (SQUARE, f"segmentation must be a list of polygons, each a list, or runs; got {SQUARE}"),
        ([SQUARE, 3], f"segmentation must be a list of polygons, each a list, or runs; got {[SQUARE, 3]}"),
        ([[*SQUARE, 1]], f"a polygon must be x, y, x, y, ...; got {[*SQUARE, 1]}"),
        ([[*SQUARE, "1", 1]], f"a polygon must be x, y, x, y, ...; got {[*SQUARE, '1', 1]}"),
        ([[*SQUARE, True, 1]], f"a polygon must be x, y, x, y, ...; got {[*SQUARE, True, 1]}"),
        ([[*SQUARE, [1], 1]], f"a polygon must be x, y, x, y, ...; got {[*SQUARE, [1], 1]}"),
        ([[*SQUARE, NAN, 1]], "a polygon's coordinates must lie within 24 pixels of 0; got nan"),
        ([[*SQUARE, INF, 1]], "a polygon's coordinates must lie within 24 pixels of 0; got inf"),
        ([[*SQUARE, 208543216.0, 1]], "a polygon's coordinates must lie within 24 pixels of 0; got 208543216.0"),
        ([[*SQUARE, 1, -(10**400)]], "a polygon's coordinates must lie within 24 pixels of 0; got -1000"),
        ([], "segmentation must not be empty; got no region"),
        ([[1, 1, 5, 5]], "segmentation must not be empty; got no region"),
        ({"counts": [], "size": [10, 12]}, "segmentation must not be empty; got no region"),
        ({"counts": [100, 50], "size": [10, 12]}, "runs must fill the image's 120 pixels; got 150"),
        ({"counts": [100, 10], "size": [10, 12]}, "runs must fill the image's 120 pixels; got 110"),
        ({"counts": [130, -10], "size": [10, 12]}, "counts must be runs of 0 and more pixels; got [130, -10]"),
        ({"counts": [60.5, 59.5], "size": [10, 12]}, "counts must be runs of 0 and more pixels; got [60.5, 59.5]"),
        ({"counts": 120, "size": [10, 12]}, "counts must be runs of 0 and more pixels; got 120"),
        ({"counts": "1", "size": [10, 12]}, "runs must fill the image's 120 pixels; got 1"),
        ({"counts": "h3P", "size": [10, 12]}, "counts must be compressed runs; got 'h3P', which ends within one"),
        ({"counts": "h3 ", "size": [10, 12]}, "counts must be compressed runs; got 'h3 '"),
        ({"counts": "o" * 90, "size": [10, 12]}, f"counts must be compressed runs; got '{'o' * 79}..."),
        ({"counts": [120], "size": [12, 10]}, "mask must have its image's size (10, 12); got [12, 10]"),
        ({"counts": [120]}, "mask must have its image's size (10, 12); got None"),
    ],
)
def test_regions_are_looked_at_before_they_are_drawn(segmentation, told):
    with pytest.raises(ValueError, match=f"^{re.escape(told)}[^\n]*$"):
        checked_segmentation(segmentation, SIZE)


def test_compressed_runs_are_pycocotools():
    api = pytest.importorskip("pycocotools.mask", reason="needs pycocotools, the extra `coco`")
    random = np.random.default_rng(0)
    for share in (0.001, 0.02, 0.5, 1.0):
        # Long and short runs, growing and shrinking, one beyond every number of 5-bit digits.
        mask = random.random((180, 211)) < share
        text = api.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode()
        assert decompressed(text) == runs_of(mask)
        assert np.array_equal(draw(decompressed(text), mask.shape), mask)


def test_coordinates_a_little_outside_are_clipped():
    pytest.importorskip("pycocotools", reason="needs pycocotools, the extra `coco`")
    region, dropped = checked_segmentation([[-3, -2, 15.5, -2, 15.5, 4, -3, 4], [1, 1, 2, 2]], SIZE)
    assert dropped == 1
    mask = draw(region, SIZE)
    assert mask[:4].all()
    assert not mask[4:].any()

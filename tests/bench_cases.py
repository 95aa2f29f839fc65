"""Small cases of every op, for the benchmark's tests."""

from repro.bench.cases import BACKWARD, BOTH, FORWARD, Case

ALL = (FORWARD, BACKWARD, BOTH)
SMALL = [
    Case("interp", "up", ALL, 2, 3, (5,), 17),
    Case("interp", "down", ALL, 1, 2, (17,), 9),
    *(Case("merge_scores", mode, (FORWARD, BOTH), 2, 4, (11, 8, 6), 11, mode) for mode in ("attention", "average", "max")),
    *(Case("predict", mode, (FORWARD,), 1, 5, (9, 7, 5), 65, mode) for mode in ("attention", "average", "max")),
    Case("segmentation_loss", "own", (FORWARD, BOTH), 2, 4, (9,), 65, shrink=8),
    Case("segmentation_loss", "resampled", (FORWARD, BOTH), 2, 4, (7,), 65, shrink=8),
    Case("domain_transform", "filtered", (FORWARD, BOTH), 2, 4, (13,), 13),
    Case("confusion_matrix", "counts", (FORWARD,), 1, 4, (), 65),
    Case("dense_crf", "wide", (FORWARD,), 1, 4, (40,), 40, height=30),
]  # fmt: skip

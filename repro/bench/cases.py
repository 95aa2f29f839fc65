"""What is measured: the ops at the sizes of the paper's training crops, of its test crops and of one large image."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from repro.models import OUTPUT_STRIDE
from repro.models.multiscale import scaled_size

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward+backward"

# The protocols' transform.crop_size, solver.batch_size and test.crop_size, and the number of class names of each table's data.
CROP, BATCH, TEST_CROP = 321, 30, 513
CLASSES = {"table1": 7, "table3": 21, "table6": 81}
COCO_CROP = 641  # the smallest 8k+1 square that holds COCO's images of up to 640 pixels a side
LARGE = 2049
MANY_LARGE = f"large-{LARGE}-3-batch16"  # over 260 MB forward: beyond any cache
CPU_THREADS = 2  # with which the CPU's targets are meant
TINY = 33  # an image whose maps are so small that a call's own cost is all there is
SCALES = {1: (1,), 2: (1, 0.5), 3: (1, 0.75, 0.5)}
VOC_IMAGE = (375, 500)  # (height, width) of most of VOC's images
# The authors' CRF for DeepLab-LargeFOV, in ten iterations.
CRF = {"iterations": 10, "pos_w": 3, "pos_xy_std": 3, "bi_w": 5, "bi_xy_std": 50, "bi_rgb_std": 10}
FC7 = 1024  # channels of the features that the attention head resamples


@dataclass(frozen=True)
class Case:
    """One op at one shape. All maps are square, a side stands for (side, side), but for dense_crf's, whose side is the width.

    op: Name in repro.ops.
    name: Unique for its op.
    directions: Of FORWARD, BACKWARD and BOTH, those that are measured.
    batch, channels: N and C of the maps.
    sides: Of the input maps, pixels, the finest first; none for confusion_matrix.
    side: Of the result, pixels; for segmentation_loss and confusion_matrix of the image.
    mode: Of the merge, or "".
    shrink: Of the labels, or 0.
    height: Of dense_crf's maps, or 0.
    """

    op: str
    name: str
    directions: tuple[str, ...]
    batch: int
    channels: int
    sides: tuple[int, ...]
    side: int
    mode: str = ""
    shrink: int = 0
    height: int = 0

    @property
    def logit_channels(self) -> int:
        """Channels of the attention logits, or of the domain transform's edge map; 0 where there is neither."""
        if self.op == "domain_transform":
            return 1
        return len(self.sides) if self.mode == "attention" else 0

    @property
    def grid(self) -> int:
        """Side of the labels that segmentation_loss reads, pixels."""
        return (self.side - 1) // self.shrink + 1


def map_side(side: int, scale: float) -> int:
    """Computes the side of the score map of a scaled input: 41, 31 and 21 of 321."""
    return (scaled_size(side, scale) - 1) // OUTPUT_STRIDE + 1


def map_sides(side: int, scales: int) -> tuple[int, ...]:
    return tuple(map_side(side, scale) for scale in SCALES[scales])


def _interp_cases() -> list[Case]:
    both = (FORWARD, BACKWARD, BOTH)
    shapes = [(f"{table}-test-{TEST_CROP}", c, TEST_CROP) for table, c in CLASSES.items()]
    shapes += [
        (f"table6-test-{COCO_CROP}", CLASSES["table6"], COCO_CROP),
        (f"large-{LARGE}", CLASSES["table3"], LARGE),
    ]
    enlarged = [Case("interp", name, both, 1, c, (map_side(side, 1),), side) for name, c, side in shapes]
    # The net's scaled inputs, which need no gradient, and the features that the attention head resamples.
    scaled = [
        Case("interp", f"table3-train-input-{scale:g}", (FORWARD,), BATCH, 3, (CROP,), scaled_size(CROP, scale))
        for scale in (0.75, 0.5)
    ]
    features = [
        Case("interp", f"table3-train-fc7-{scale:g}", both, BATCH, FC7, (map_side(CROP, scale),), map_side(CROP, 1))
        for scale in (0.75, 0.5)
    ]
    tiny = Case("interp", "tiny", both, 1, CLASSES["table1"], map_sides(TINY, 1), TINY)
    return [*enlarged, *scaled, *features, tiny]


def _merge_cases() -> list[Case]:
    def case(name: str, batch: int, channels: int, side: int, scales: int, mode: str) -> Case:
        sides = map_sides(side, scales)
        name += "" if mode == "attention" else f"-{mode}"
        return Case("merge_scores", name, (FORWARD, BOTH), batch, channels, sides, sides[0], mode)

    train = [
        case(f"{table}-train-{scales}", BATCH, c, CROP, scales, "attention")
        for table, c in CLASSES.items()
        for scales in (2, 3)
    ]
    train += [
        case(f"{table}-train-3", BATCH, c, CROP, 3, mode) for mode in ("average", "max") for table, c in CLASSES.items()
    ]
    test = [case(f"{table}-test-{TEST_CROP}-3", 1, c, TEST_CROP, 3, "attention") for table, c in CLASSES.items()]
    coco = case(f"table6-test-{COCO_CROP}-3", 1, CLASSES["table6"], COCO_CROP, 3, "attention")
    large = [case(f"large-{LARGE}-3", 1, CLASSES["table3"], LARGE, 3, "attention")]
    large += [case(MANY_LARGE, 16, CLASSES["table3"], LARGE, 3, "attention")]
    tiny = [case("tiny", 1, CLASSES["table1"], TINY, 2, mode) for mode in ("attention", "average", "max")]
    return [*train, *test, coco, *large, *tiny]


def _predict_cases() -> list[Case]:
    def case(name: str, channels: int, side: int, scales: int = 3, mode: str = "attention") -> Case:
        name = f"{name}-{side}-{scales}" + ("" if mode == "attention" or scales == 1 else f"-{mode}")
        return Case("predict", name, (FORWARD,), 1, channels, map_sides(side, scales), side, mode)

    c = CLASSES["table3"]
    return [
        *(case(f"{table}-test", channels, TEST_CROP) for table, channels in CLASSES.items()),
        case("table3-test", c, TEST_CROP, scales=1, mode="average"),
        case("table3-test", c, TEST_CROP, scales=2),
        *(case("table3-test", c, TEST_CROP, mode=mode) for mode in ("average", "max")),
        case("table6-test", CLASSES["table6"], COCO_CROP),
        case("large", c, LARGE),
        Case("predict", "tiny", (FORWARD,), 1, CLASSES["table1"], map_sides(TINY, 2), TINY, "attention"),
    ]


def _loss_cases() -> list[Case]:
    def case(
        name: str, channels: int, scale: float, shrink: int = OUTPUT_STRIDE, batch: int = BATCH, side: int = CROP
    ) -> Case:
        sides = (map_side(side, scale),)
        return Case("segmentation_loss", name, (FORWARD, BOTH), batch, channels, sides, side, shrink=shrink)

    return [
        *(case(f"{table}-train", c, 1) for table, c in CLASSES.items()),
        case("table3-train-0.75", CLASSES["table3"], 0.75),  # resampled to the finest map: labels cannot shrink by 3/4
        case("table3-train-0.5", CLASSES["table3"], 0.5, shrink=2 * OUTPUT_STRIDE),
        case("tiny", CLASSES["table1"], 1, batch=1, side=TINY),
    ]


def _confusion_cases() -> list[Case]:
    shapes = [(f"{table}-test-{TEST_CROP}", c, TEST_CROP) for table, c in CLASSES.items()]
    shapes += [(f"large-{LARGE}", CLASSES["table3"], LARGE)]
    return [Case("confusion_matrix", name, (FORWARD,), 1, c, (), side) for name, c, side in shapes]


def _filter_cases() -> list[Case]:
    name, sides = f"table3-test-{TEST_CROP}", (TEST_CROP,)
    return [Case("domain_transform", name, (FORWARD, BOTH), 1, CLASSES["table3"], sides, TEST_CROP)]


def _crf_cases() -> list[Case]:
    height, width = VOC_IMAGE
    name = f"table4-test-{height}x{width}"
    return [Case("dense_crf", name, (FORWARD,), 1, CLASSES["table3"], (width,), width, height=height)]


CASES = [
    *_interp_cases(),
    *_merge_cases(),
    *_predict_cases(),
    *_loss_cases(),
    *_filter_cases(),
    *_confusion_cases(),
    *_crf_cases(),
]
OPS = list(dict.fromkeys(case.op for case in CASES))


def select(ops: Sequence[str], names: Sequence[str]) -> list[Case]:
    """Finds the cases of these ops and names; an empty list means all.

    Raises:
        ValueError: An op or a name is unknown, or no case has both.
    """
    for option, given, known in (("--op", ops, OPS), ("--case", names, list(dict.fromkeys(c.name for c in CASES)))):
        for name in given:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else "choose one of these"
                raise ValueError(f"{option}: must be one of {', '.join(known)}; got {name!r}; {hint}")
    chosen = [case for case in CASES if (not ops or case.op in ops) and (not names or case.name in names)]
    if not chosen:
        raise ValueError(
            f"--op, --case: at least one case must have both; got {', '.join(ops)} and {', '.join(names)}; leave one of the options out"
        )
    return chosen


def ideal_bytes(case: Case, direction: str, itemsize: int) -> int:
    """Counts what an ideal algorithm moves: every input that it must read once, every result once.

    Args:
        case: The case.
        direction: FORWARD, BACKWARD or BOTH.
        itemsize: Of a score, bytes.

    Returns:
        Bytes. Backward reads the result's gradient and, where the derivative depends on them, the inputs again. segmentation_loss has its gradient
        from the forward pass; of the labels it needs only those of its grid.
    """
    if case.op == "dense_crf":  # scores and probabilities, and three bytes of image a pixel
        return case.batch * case.height * case.side * (2 * case.channels * itemsize + 3)
    maps = case.batch * case.channels * sum(side**2 for side in case.sides) * itemsize
    if case.op == "confusion_matrix":
        return 2 * case.batch * case.side**2 + 8 * case.channels**2
    if case.op == "segmentation_loss":
        return maps * (1 if direction == FORWARD else 2) + case.batch * case.grid**2 + 8
    logits = case.batch * case.logit_channels * case.sides[0] ** 2 * itemsize
    if case.op == "predict":
        return maps + logits + case.batch * case.side**2
    result = case.batch * case.channels * case.side**2 * itemsize
    forward = maps + logits + result
    read_again = maps + logits if case.mode in ("attention", "max") or case.op == "domain_transform" else 0
    backward = result + read_again + maps + logits
    return {FORWARD: forward, BACKWARD: backward, BOTH: forward + backward}[direction]

"""NaN, infinity and numbers near the limits of float32: the kernels and the references do what csrc/ops.h promises, for every element type.

Truth is the float64 reference of the same stored numbers, itself held to values by hand."""

import math

import pytest
import torch

from repro import ops
from repro.ops import reference

NAN, INF = math.nan, math.inf
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
DTYPES = pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
ROUNDING = {torch.float32: 2e-5, torch.float64: 1e-9, torch.bfloat16: 2e-2, torch.float16: 3e-3}
# What stands in one pixel of one class: the rest are small numbers.
BAD = {"nan": NAN, "inf": INF, "-inf": -INF, "large": 0.4, "-large": -0.4}  # the last two times the type's largest
VALUES = pytest.mark.parametrize("bad", BAD)
PLACES = pytest.mark.parametrize(
    "place", [(0, 0, 0), (4, -1, -1), (slice(None), 1, 1)], ids=["first", "last", "every class"]
)
MODES = pytest.mark.parametrize("mode", ["attention", "average", "max"])
CLASSES, SIZES = 5, [(5, 4), (3, 3), (5, 7), (2, 4)]  # the first is copied; of the last two one axis is


def maps(channels, sizes, dtype):
    return [torch.randn(1, channels, *size).to(dtype) for size in sizes]


def spoilt(x, bad, place):
    """The map with one value in one place."""
    x = x.clone()
    x[0][place] = BAD[bad] * (torch.finfo(x.dtype).max if "large" in bad else 1)
    return x


def assert_same(actual, truth, dtype, what):
    """The same NaN, the same infinities, and finite numbers but for rounding to the dtype."""
    actual, truth = actual.double(), truth.double()
    assert torch.equal(actual.isnan(), truth.isnan()), f"{what}: NaN"
    kept = ~truth.isnan()
    actual, truth = actual[kept], truth[kept]
    assert torch.equal(actual.isinf() * actual.sign(), truth.isinf() * truth.sign()), f"{what}: infinity"
    finite = truth.isfinite()
    error = (actual[finite] - truth[finite]).abs() / (1 + truth[finite].abs())
    assert (error <= ROUNDING[dtype]).all(), f"{what}: {error.max():.1e}"


def differentiate(results, leaves):
    """Gradients of the sum of all results; zeros where there are none."""
    ones = [torch.ones_like(result) for result in results]
    found = torch.autograd.grad(results, leaves, ones, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]


def compare(run, inputs, dtype):
    """Results and gradients of `run(implementation, leaves)`: of the kernel and of the reference in the dtype against the reference in float64."""
    found = {}
    for name, implementation, computed in (
        ("truth", reference, torch.float64), ("kernel", ops, dtype), ("reference", reference, dtype),
    ):  # fmt: skip
        leaves = [x.to(computed, copy=True).requires_grad_() for x in inputs]
        results = run(implementation, leaves)
        found[name] = [*(result.detach() for result in results), *differentiate(results, leaves)]
    for name in found:
        for k, (actual, truth) in enumerate(zip(found[name], found["truth"], strict=True)):
            assert_same(actual, truth, dtype, f"{name}, result {k}")


@DTYPES
@VALUES
@PLACES
@pytest.mark.parametrize("size", [(5, 4), (9, 7), (5, 7), (3, 4), (1, 1)], ids=str)
def test_interp(bad, place, size, dtype):
    x = spoilt(*maps(CLASSES, [(5, 4)], dtype), bad, place)

    compare(lambda implementation, leaves: [implementation.interp(leaves[0], size)], [x], dtype)


@DTYPES
@VALUES
@PLACES
@MODES
@pytest.mark.parametrize("which", [0, 1, 2])
def test_merge_scores(bad, place, mode, which, dtype):
    scores = maps(CLASSES, SIZES, dtype)
    scores[which] = spoilt(scores[which], bad, place)
    logits = maps(len(SIZES), [(3, 3)], dtype) if mode == "attention" else []

    def run(implementation, leaves):
        results = implementation.merge_scores(leaves[:4], *leaves[4:], mode=mode)
        return [result for result in results if result is not None]

    if "large" in bad and mode == "attention":  # its gradient is a difference of large numbers
        with torch.no_grad():
            truth = run(reference, [x.double() for x in (*scores, *logits)])
            for implementation in (ops, reference):
                for actual, expected in zip(run(implementation, [*scores, *logits]), truth, strict=True):
                    assert_same(actual, expected, dtype, mode)
        return
    compare(run, [*scores, *logits], dtype)


@DTYPES
@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("place", [(0, 0, 0), (1, 1, 2), (slice(None), 2, 1)], ids=["first", "other", "every scale"])
def test_merge_scores_where_a_logit_is_no_number(bad, place, dtype):
    scores, logits = maps(CLASSES, SIZES, dtype), spoilt(*maps(len(SIZES), [(5, 4)], dtype), bad, place)

    compare(lambda module, leaves: module.merge_scores(leaves[:4], leaves[4]), [*scores, logits], dtype)


@DTYPES
@VALUES
@PLACES
@pytest.mark.parametrize("size", [(5, 4), (9, 7), (5, 7), (33, 4)], ids=str)
def test_predict(bad, place, size, dtype):
    x = spoilt(*maps(CLASSES, [(5, 4)], dtype), bad, place)
    arguments = {"mode": "average", "size": size, "probability": True}
    labels, probability = reference.predict([x.double()], **arguments)
    found = {"kernel": ops.predict([x], **arguments), "reference": reference.predict([x], **arguments)}
    for name, (actual, sureness) in found.items():
        assert torch.equal(actual, labels), name
        if "large" in bad:  # beside whose rounding the classes' differences are small
            assert not sureness.isnan().any(), name
        else:
            assert_same(sureness, probability, torch.float32, name)


@DTYPES
@VALUES
@PLACES
@pytest.mark.parametrize("labelled", [0, 4, 255])
@pytest.mark.parametrize(("shrink", "image"), [(1, (5, 4)), (2, (17, 13))])
def test_segmentation_loss(bad, place, labelled, shrink, image, dtype):
    x = spoilt(*maps(CLASSES, [(5, 4)], dtype), bad, place)
    labels = torch.randint(0, CLASSES, (1, *image))
    labels[:, : image[0] // 2] = labelled

    compare(lambda module, leaves: [module.segmentation_loss(leaves[0], labels, shrink)], [x], dtype)


MODULES = pytest.mark.parametrize("module", [ops, reference], ids=["kernel", "reference"])


def assert_equal(actual, expected):
    torch.testing.assert_close(
        actual.flatten(), torch.tensor(expected, dtype=actual.dtype), rtol=1e-6, atol=0, equal_nan=True
    )


@MODULES
def test_interp_by_hand(module):
    row = torch.tensor([[[[0.0, INF, 2.0]]]])
    assert_equal(module.interp(row, (1, 5)), [NAN, INF, INF, INF, 2])  # 1 * 0 + 0 * inf; 1 * inf + 0 * 2
    assert_equal(module.interp(row, (1, 3)), [0, INF, 2])
    assert_equal(module.interp(row, (2, 3)), [0, NAN, 2, 0, NAN, 2])  # rows: 1 * inf + 0 * inf
    assert_equal(module.interp(torch.tensor([[[[0.0, NAN, 2.0]]]]), (1, 5)), [NAN, NAN, NAN, NAN, 2])


@MODULES
@pytest.mark.parametrize(
    ("values", "merged", "winner"),
    [
        ([NAN, 1.0], 1, 1),
        ([1.0, NAN], NAN, 1),
        ([NAN, NAN], NAN, 1),
        ([1.0, 2.0, NAN], 2, 1),
        ([3.0, 2.0, NAN, 4.0], 4, 3),
        ([3.0, NAN, 4.0], NAN, 1),
        ([-INF, -INF], -INF, 1),
        ([INF, INF, INF], INF, 1),
    ],
    ids=str,
)
def test_the_maximum_by_hand(module, values, merged, winner):
    """Caffe, src/caffe/layers/eltwise_layer.cpp, MAX: `if (a > b) a else b` for maps 0 and 1, then `if (b > top) b`."""
    leaves = [torch.full((1, 1, 1, 1), value, requires_grad=True) for value in values]
    result, _ = module.merge_scores(leaves, mode="max")
    assert_equal(result, [merged])
    taken = torch.autograd.grad(result.sum(), leaves, allow_unused=True)
    assert [int(g is not None and g.item() == 1) for g in taken] == [int(s == winner) for s in range(len(values))]


@MODULES
@pytest.mark.parametrize(
    ("values", "label"),
    [
        ([NAN, 1.0, 2.0], 2),
        ([1.0, NAN, 0.0], 0),
        ([NAN, NAN], 0),
        ([NAN, -INF], 0),
        ([-INF, NAN, -5.0], 2),
        ([1.0, INF], 1),
    ],
    ids=str,
)
def test_the_label_by_hand(module, values, label):
    scores = torch.tensor(values).reshape(1, -1, 1, 1)
    labels, probability = module.predict([scores], mode="average", probability=True)
    assert labels.item() == label
    assert probability.isnan().all()


@MODULES
@pytest.mark.parametrize(
    ("values", "label", "loss", "gradient"),
    [
        ([0.0, 1e17], 0, 87.336544750553, [-1, 1]),
        ([0.0, 1e17], 1, 0, [0, 0]),
        ([-3e38, 3e38, 0.0], 0, 87.336544750553, [-1, 1, 0]),
        ([0.0, -INF], 0, 0, [0, 0]),
        ([0.0, -INF], 1, 87.336544750553, [1, -1]),
        ([0.0, INF], 0, NAN, [NAN, NAN]),
        ([0.0, INF], 1, NAN, [NAN, NAN]),
        ([-INF, -INF], 1, NAN, [NAN, NAN]),
        ([NAN, 0.0], 1, NAN, [NAN, NAN]),
        ([NAN, INF], 255, 0, [0, 0]),
    ],
    ids=str,
)
def test_the_loss_by_hand(module, values, label, loss, gradient):
    scores = torch.tensor(values).reshape(1, -1, 1, 1).requires_grad_()
    result = module.segmentation_loss(scores, torch.full((1, 1, 1), label), 1)
    assert_equal(result, [loss])
    assert_equal(torch.autograd.grad(result, scores)[0], gradient)


@MODULES
@pytest.mark.parametrize("lowest", [-1e300, -1e39])
def test_float64_scores_below_float32s_range(module, lowest):
    scores = torch.full((1, 3, 1, 1), lowest, dtype=torch.float64)
    labels = torch.zeros(1, 1, 1, dtype=torch.uint8)
    assert module.segmentation_loss(scores, labels, 1).item() == pytest.approx(math.log(3))


@pytest.mark.gpu
@DTYPES
@VALUES
def test_all_of_it_on_a_gpu(bad, dtype):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device and a torch built for it")
    with torch.device("cuda"):  # where every tensor of the tests above is made then
        for place in [(0, 0, 0), (4, -1, -1), (slice(None), 1, 1)]:
            for size in [(5, 4), (9, 7), (33, 4), (1, 1)]:
                test_interp(bad, place, size, dtype)
                test_predict(bad, place, size, dtype)
            for mode in ("attention", "average", "max"):
                test_merge_scores(bad, place, mode, 1, dtype)
            for shrink, image in ((1, (5, 4)), (2, (17, 13))):
                for labelled in (0, 4, 255):
                    test_segmentation_loss(bad, place, labelled, shrink, image, dtype)
        if bad in ("nan", "inf", "-inf"):
            for place in [(0, 0, 0), (1, 1, 2), (slice(None), 2, 1)]:
                test_merge_scores_where_a_logit_is_no_number(bad, place, dtype)

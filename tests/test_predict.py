"""predict: by hand, against Caffe's maps and labels, against the float64 reference, and as an operator."""

import numpy as np
import pytest
import torch
from conftest import golden
from drawn import given, settings, st
from op_inputs import LAYOUTS, SIZES, laid_out, peak

from repro.ops import interp, predict, reference

MERGE, TEST_PHASE, INTERP = golden("merge.npz"), golden("net_thin_test.npz"), golden("interp.npz")
IMPLEMENTATIONS = pytest.mark.parametrize("op", [predict, reference.predict], ids=["kernel", "reference"])
EPSILON = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}


def assert_best_within(labels, large, tolerance):
    """Each label's score in the float64 map is the best but for the tolerance, and its label the best's where the gap is wider."""
    large = large.double()
    picked = large.gather(1, labels.long()[:, None])[:, 0]
    ordered = large.sort(dim=1, descending=True).values
    assert peak(ordered[:, 0] - picked) <= tolerance
    if large.shape[1] > 1:
        clear = ordered[:, 0] - ordered[:, 1] > tolerance
        assert torch.equal(labels.long()[clear], large.argmax(dim=1)[clear])


@IMPLEMENTATIONS
def test_by_hand(op, device):
    fine = torch.tensor([[[[1.0, 2.0, 3.0]], [[0.0, 2.5, 0.0]]]], device=device)
    coarse = torch.tensor([[[[0.0, 4.0]], [[1.0, -1.0]]]], device=device)  # resampled: 0 2 4 and 1 0 -1
    assert op([fine], mode="average")[0].tolist() == [[[0, 1, 0]]]
    assert op([fine, coarse], mode="max")[0].tolist() == [[[0, 1, 0]]]
    assert op([coarse, fine], mode="average")[0].tolist() == [[[0, 0]]]  # 0.5 3.5 and 0.5 -0.5
    logits = torch.tensor([[[[-200.0, 0.0, 200.0]], [[200.0, 0.0, -200.0]]]], device=device)
    labels, probability = op([fine, coarse], logits, probability=True)  # 0 2 3 and 1 1.25 0
    assert labels.tolist() == [[[1, 0, 0]]]
    assert probability.flatten().tolist() == pytest.approx([1 / (1 + np.exp(-gap)) for gap in (1, 0.75, 3)], rel=1e-6)
    labels, probability = op([fine], mode="average", size=(1, 5), crop=(1, 4))  # 1 1.5 2 2.5 3 and 0 1.25 2.5 1.25 0
    assert labels.tolist() == [[[0, 0, 1, 0]]]
    assert labels.dtype == torch.uint8
    assert probability is None


@IMPLEMENTATIONS
@pytest.mark.parametrize("variant", [key.split("/")[0] for key in TEST_PHASE if key.endswith("/argmax")])
def test_labels_equal_caffes_test_phase(op, variant, device):
    scores = torch.tensor(TEST_PHASE[f"{variant}/fc8_fusion"], device=device)
    expected = TEST_PHASE[f"{variant}/argmax"]
    labels, _ = op([scores], mode="average", size=expected.shape[1:])
    assert np.array_equal(labels.cpu().numpy(), expected)


@IMPLEMENTATIONS
@pytest.mark.parametrize("case", MERGE["case_names"].tolist())
def test_labels_of_caffes_merged_maps(op, case, device):
    mode = case.split("_")[0]
    scores = [torch.tensor(MERGE[f"{case}/score{s}"], device=device) for s in range(8) if f"{case}/score{s}" in MERGE]
    logits = torch.tensor(MERGE[f"{case}/logits"], device=device) if mode == "attention" else None
    merged = torch.tensor(MERGE[f"{case}/merged"])
    labels, probability = op(scores, logits, mode, probability=True)
    assert_best_within(labels.cpu(), merged, 1e-6 * peak(merged))
    expected = torch.softmax(merged.double(), dim=1).amax(dim=1)
    assert peak(probability.cpu() - expected) < 2e-6 * max(1.0, peak(merged))


@pytest.mark.parametrize("case", INTERP["case_names"].tolist())
def test_labels_of_caffes_enlarged_maps(case, device):
    pads = [int(p) for p in INTERP[f"{case}/params"][4:]]
    x = torch.tensor(INTERP[f"{case}/x"], device=device)
    x = x[:, :, -pads[0] : x.shape[2] + pads[1], -pads[0] : x.shape[3] + pads[1]]
    y = INTERP[f"{case}/y"]
    labels, _ = predict([x], mode="average", size=y.shape[2:])
    assert np.array_equal(labels.cpu().numpy(), y.argmax(axis=1))  # the kernel's scores are Caffe's to the last bit


@st.composite
def predictions(draw):
    sizes = draw(st.lists(SIZES, min_size=1, max_size=5))
    size = draw(st.none() | SIZES)
    height, width = size or sizes[0]
    crop = draw(st.none() | st.tuples(st.integers(1, height), st.integers(1, width)))
    mode = draw(st.sampled_from(["attention", "average", "max"]))
    return (
        mode,
        draw(st.integers(0, 3)),
        draw(st.integers(1, 25)),
        sizes,
        draw(SIZES),
        size,
        crop,
        draw(st.sampled_from(LAYOUTS)),
    )


@settings(max_examples=70, deadline=None)
@given(predictions())
def test_any_shape_and_stride_agrees_with_the_float64_reference(device, case):
    mode, n, c, sizes, logits_size, size, crop, layout = case
    torch.manual_seed(sum(map(sum, sizes)))
    scores = [laid_out(torch.randn(n, c, *hw).to(device), layout) for hw in sizes]
    logits = laid_out(torch.randn(n, len(sizes), *logits_size).to(device), layout) if mode == "attention" else None
    wide = [score.double() for score in scores], None if logits is None else logits.double()
    merged = reference.merge_scores(*wide, mode)[0]
    height, width = size or sizes[0]
    large = reference.interp(merged, (height, width))[:, :, : (crop or size or sizes[0])[0], : (crop or (0, width))[1]]
    expected = torch.softmax(large, dim=1).amax(dim=1)
    largest = max(peak(score) for score in scores)
    for inputs, dtype in (((scores, logits), torch.float32), (wide, torch.float64)):
        labels, probability = predict(*inputs, mode, size, crop, probability=True)
        tolerance = 64 * EPSILON[dtype] * largest
        assert_best_within(labels, large, tolerance)
        assert probability.dtype == dtype
        assert peak(probability - expected) <= tolerance + 64 * EPSILON[dtype]
        assert torch.equal(predict(*inputs, mode, size, crop)[0], labels)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 25), st.tuples(st.integers(1, 9), st.integers(1, 40)), st.sampled_from([1, 2, 4]), st.integers(0, 99)
)
def test_the_first_of_equal_scores_wins(device, c, hw, zoom, seed):
    scores = torch.tensor(np.random.RandomState(seed).randint(-1, 2, (2, c, *hw)), dtype=torch.float32)
    size = tuple((side - 1) * zoom + 1 for side in hw)
    large = reference.interp(scores, size).numpy()  # exact: weights are multiples of 1/4
    labels, _ = predict([scores.to(device)], mode="average", size=size)
    assert np.array_equal(labels.cpu().numpy(), large.argmax(axis=1))


def test_a_crop_is_the_top_left_corner(device):
    scores = [torch.randn(2, 7, *hw, device=device) for hw in ((9, 11), (5, 6))]
    whole = predict(scores, mode="average", size=(65, 81), probability=True)
    for height, width in ((1, 1), (65, 33), (40, 81), (17, 64), (64, 80)):
        part = predict(scores, mode="average", size=(65, 81), crop=(height, width), probability=True)
        assert torch.equal(part[0], whole[0][:, :height, :width])
        assert torch.equal(part[1], whole[1][:, :height, :width])


@IMPLEMENTATIONS
@pytest.mark.parametrize(("classes", "dtype"), [(1, torch.uint8), (256, torch.uint8), (257, torch.int16)])
def test_labels_beyond_256_classes_are_int16(op, classes, dtype, device):
    scores = torch.zeros(1, classes, 1, 2, device=device)
    scores[0, -1] = 1
    labels, _ = op([scores], mode="average", size=(2, 3))
    assert labels.dtype == dtype
    assert (labels == classes - 1).all()


def test_as_many_classes_as_int16_can_name(device):
    scores = torch.zeros(1, 32767, 1, 1, device=device)
    scores[0, 32766] = 1
    assert predict([scores], mode="average")[0].tolist() == [[[32766]]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_storage_enlarges_the_stored_merge_in_float32(dtype, device):
    scores = [torch.randn(2, 21, *hw, device=device).to(dtype) for hw in ((9, 11), (5, 6))]
    labels, probability = predict(scores, mode="average", size=(33, 41), probability=True)
    merged = reference.merge_scores(scores, None, "average")[0].float()
    assert_best_within(labels.cpu(), interp(merged, (33, 41)).cpu(), 0.0)
    assert probability.dtype == torch.float32


def test_large_scores_leave_the_probability_finite(device):
    scores = torch.tensor([1000.0, 999.0, -1000.0], device=device).reshape(1, 3, 1, 1)
    labels, probability = predict([scores], mode="average", probability=True)
    assert labels.item() == 0
    assert probability.item() == pytest.approx(1 / (1 + np.exp(-1)), rel=1e-6)


def test_no_images(device):
    labels, probability = predict(
        [torch.zeros(0, 3, 4, 5, device=device)], mode="max", size=(9, 9), crop=(8, 7), probability=True
    )
    assert labels.shape == (0, 8, 7)
    assert probability.shape == (0, 8, 7)


def test_labels_have_no_gradient(device):
    scores = torch.randn(1, 3, 4, 5, device=device, requires_grad=True)
    labels, probability = predict([scores], mode="average", probability=True)
    assert not labels.requires_grad
    assert not probability.requires_grad


@pytest.mark.parametrize("mode", ["attention", "average", "max"])
def test_opcheck(mode, device):
    scores = [torch.randn(2, 7, *hw, device=device) for hw in ((9, 9), (7, 6))]
    logits = torch.randn(2, 2, 5, 5, device=device) if mode == "attention" else None
    for probability in (True, False):
        torch.library.opcheck(torch.ops.repro.predict.default, (scores, logits, mode, (17, 17), (16, 13), probability))


def test_compiles_without_a_graph_break(device):
    def label(scores, logits):
        return predict([score * 2 for score in scores], logits, size=(33, 33), crop=(30, 33), probability=True)

    scores = [torch.randn(2, 7, *hw, device=device) for hw in ((9, 9), (5, 5))]
    logits = torch.randn(2, 2, 9, 9, device=device)
    compiled = torch.compile(label, backend="aot_eager", fullgraph=True)(scores, logits)
    assert all(torch.equal(a, b) for a, b in zip(compiled, label(scores, logits), strict=True))


@pytest.mark.slow
def test_more_than_two_to_the_31_pixels():
    scores = torch.tensor([[[[0.0, 3.0], [1.0, 0.0]], [[1.0, 2.0], [0.0, 1.0]]]])  # the winners: 1 0 / 0 1
    labels, _ = predict([scores], mode="average", size=(2**15 + 1, 2**16 + 1))
    assert labels.numel() > 2**31
    assert labels[0, [0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [1, 0, 0, 1]
    columns = torch.arange(2**16 + 1)
    clear = (columns - 2**15).abs() > 1  # where neither class is within rounding of the other
    assert torch.equal(labels[0, -1][clear], (columns > 2**15).to(torch.uint8)[clear])


ONE = torch.zeros(1, 2, 3, 3)


@pytest.mark.parametrize(
    ("scores", "arguments", "message"),
    [
        ([], {}, r"predict: scores must hold 1 to 8 maps; got 0"),
        ([ONE] * 9, {}, r"predict: scores must hold 1 to 8 maps; got 9"),
        ([ONE[0]], {"size": (3, 3)}, r"predict: scores\[0\] must have 4 dimensions .* got shape \[2, 3, 3\]"),
        ([ONE.int()], {}, r"predict: scores\[0\] must be float32, float64, bfloat16 or float16; got Int"),
        ([ONE, ONE[:, :1]], {}, r"predict: scores\[1\] must have N=1 and C=2 as scores\[0\]; got shape \[1, 1, 3, 3\]"),
        ([ONE, ONE.double()], {}, r"predict: scores\[1\] must have the dtype of scores\[0\]"),
        ([ONE, ONE.to("meta")], {}, r"predict: all tensors must be on one device; got cpu, meta; move them"),
        ([ONE], {"mode": "sum"}, r'predict: mode must be "attention", "average" or "max"; got "sum"'),
        ([ONE], {"mode": "attention"}, r"predict: logits must be given for mode \"attention\" .* got none"),
        ([ONE], {"mode": "attention", "logits": ONE}, r"predict: logits must have shape \(N=1, S=1, H, W\); got shape"),
        ([ONE], {"size": (0, 3)}, r"predict: size must be \(height, width\), both at least 1; got \[0, 3\]"),
        ([ONE], {"crop": (0, 3)}, r"predict: crop must be \(height, width\), both at least 1; got \[0, 3\]"),
        ([ONE], {"crop": (4, 3)}, r"predict: crop must lie within size \[3, 3\]; got \[4, 3\]; enlarge size or cut"),
        ([ONE], {"size": (5, 5), "crop": (5, 6)}, r"predict: crop must lie within size \[5, 5\]; got \[5, 6\]"),
        ([ONE[:, :0]], {}, r"predict: scores must have 1 to 32767 classes; got 0; check the channels"),
        ([ONE[:, :1].expand(1, 32768, 3, 3)], {}, r"predict: scores must have 1 to 32767 classes; got 32768"),
    ],
)
def test_messages(scores, arguments, message):
    with pytest.raises(ValueError, match=message):
        predict(scores, **({"mode": "average"} | arguments))

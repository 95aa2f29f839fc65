"""segmentation_loss: by hand, against Caffe, against the float64 reference, and as an operator."""

import math

import pytest
import torch
from conftest import assert_close, assert_equals_caffe, cpu_kernels_only, cuda_kernels_only, golden
from drawn import given, settings, st
from op_inputs import LAYOUTS, SIZES, assert_rounded_like_reference, laid_out, largest_adjoint, peak

from repro.ops import interp, reference, segmentation_loss

CAFFE = golden("softmax_loss.npz")
IMPLEMENTATIONS = pytest.mark.parametrize(
    "op", [segmentation_loss, reference.segmentation_loss], ids=["kernel", "reference"]
)
LARGEST_TERM = -math.log(torch.finfo(torch.float32).tiny)


@IMPLEMENTATIONS
def test_by_hand(op, device):
    scores = torch.tensor([[[[0.0, 3.0]], [[0.0, 0.0]]]], device=device).requires_grad_()
    labels = torch.full((1, 1, 5), 255, dtype=torch.uint8, device=device)
    labels[0, 0, 0], labels[0, 0, 4], labels[0, 0, 1] = 1, 0, 7  # the 7 is no class, but is not looked at either
    loss = op(scores, labels, shrink=4)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx((math.log(2) + math.log1p(math.exp(-3))) / 2, rel=1e-6)
    loss.backward()
    p = 1 / (1 + math.exp(-3))
    expected = [0.25, (p - 1) / 2, -0.25, (1 - p) / 2]
    assert scores.grad.flatten().tolist() == pytest.approx(expected, rel=1e-5)
    enlarged = op(scores, labels, shrink=2)  # resampled: 0 1.5 3 against 1, ignored, 0
    assert enlarged.item() == pytest.approx(loss.item(), rel=1e-6)


@IMPLEMENTATIONS
@pytest.mark.parametrize("case", CAFFE["case_names"].tolist())
def test_equals_caffe(op, case, device):
    labels = torch.tensor(CAFFE[f"{case}/label"][:, 0], device=device)
    for label_type in (torch.uint8, torch.int64):
        results = []
        for dtype in (torch.float32, torch.float64):
            x = torch.tensor(CAFFE[f"{case}/x"]).to(device=device, dtype=dtype).requires_grad_()
            loss = op(x, labels.to(label_type), shrink=1)
            (loss * float(CAFFE[f"{case}/loss_weight"])).backward()
            results.append((loss, x.grad))
        for name, low, high in zip(("loss", "dx"), *results, strict=True):
            assert_equals_caffe(low, high, CAFFE, f"{case}/{name}")


@st.composite
def supervisions(draw):
    grid = draw(SIZES)
    return (
        draw(st.integers(0, 3)),
        draw(st.integers(1, 25)),
        draw(st.sampled_from([grid, draw(SIZES)])),
        grid,
        draw(st.sampled_from([1, 2, 3, 8])),
        draw(st.sampled_from([0.0, 0.3, 1.0])),
        draw(st.sampled_from([torch.uint8, torch.int32, torch.int64])),
        draw(st.sampled_from([1.0, 30.0])),
        draw(st.sampled_from(LAYOUTS)),
    )


@settings(max_examples=70, deadline=None)
@given(supervisions())
def test_any_shape_and_stride_agrees_with_the_float64_reference(device, case):
    n, c, size, grid, shrink, ignored, label_type, spread, layout = case
    torch.manual_seed(sum(size) + sum(grid) + c)
    x = spread * torch.randn(n, c, *size).to(device)
    image = [(side - 1) * shrink + 1 for side in grid]
    labels = torch.randint(0, c, (n, *image)).masked_fill(torch.rand(n, *image) < ignored, 255)
    labels = laid_out(labels.to(device, label_type)[:, None], layout)[:, 0]
    results = []
    for op, dtype in (
        (segmentation_loss, torch.float32),
        (reference.segmentation_loss, torch.float32),
        (reference.segmentation_loss, torch.float64),
        (segmentation_loss, torch.float64),
    ):
        leaf = x.to(dtype, copy=True).requires_grad_()
        loss = op(laid_out(leaf, layout), labels, shrink)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    valid = (labels[:, ::shrink, ::shrink] != 255).double()[:, None]
    images = max(n, 1) if layout == "expanded" else 1  # each adds to the first one's gradient
    summed = images * largest_adjoint(valid, size) / max(1.0, float(valid.sum()))
    # A score's rounding moves a probability by as much as itself: 30 units in the last place where scores are 30 apart.
    magnitudes = 4 * (1 + peak(x)), 4 * (1 + spread) * summed
    for kernel, low, high, kernel64, magnitude in zip(*results, magnitudes, strict=True):
        assert_rounded_like_reference(kernel, low, high, magnitude)
        assert_rounded_like_reference(kernel64, high, high, 1e-7 * magnitude)


def test_nothing_to_count(device):
    scores = torch.randn(2, 3, 5, 5, device=device, requires_grad=True)
    loss = segmentation_loss(scores, torch.full((2, 9, 9), 255, device=device), 2)
    loss.backward()
    assert loss.item() == 0
    assert not scores.grad.any()
    empty = torch.zeros(0, 3, 5, 5, device=device, requires_grad=True)
    loss = segmentation_loss(empty, torch.zeros(0, 9, 9, dtype=torch.uint8, device=device), 2)
    loss.backward()
    assert loss.item() == 0
    assert empty.grad.shape == empty.shape


@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_probability_is_floored_in_the_loss_but_not_in_the_gradient(op, dtype, device):
    scores = torch.tensor([[[[0.0, 0.0, 0.0, 0.0]], [[86.0, 88.0, 500.0, 0.0]]]], dtype=dtype, device=device)
    labels = torch.zeros(1, 1, 4, dtype=torch.uint8, device=device)
    for end, expected in ((1, 86.0), (2, LARGEST_TERM), (3, LARGEST_TERM), (4, math.log(2))):
        leaf = scores[..., end - 1 : end].clone().requires_grad_()
        loss = op(leaf, labels[..., :1], 1)
        assert loss.item() == pytest.approx(expected, rel=1e-7)
        loss.backward()
        assert leaf.grad.flatten().tolist() == pytest.approx([-1, 1] if end < 4 else [-0.5, 0.5])


def test_many_classes_and_long_rows_overflow_nowhere(device):
    scores = torch.zeros(1, 30000, 1, 150, device=device)
    labels = torch.arange(150, device=device)[None, None] * 199
    labels[0, 0, 9] = -1
    loss = segmentation_loss(scores, labels, 1, ignore_label=-1)
    assert loss.item() == pytest.approx(math.log(30000), rel=1e-7)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("channels", [1, 5, 8, 21])
def test_a_score_that_is_no_number_makes_the_loss_none(bad, channels, device):
    for position in (0, 3):
        scores = torch.randn(1, channels, 1, 4, device=device)
        scores[0, channels - 1, 0, position] = bad
        assert segmentation_loss(scores, torch.zeros(1, 1, 4, dtype=torch.uint8, device=device), 1).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 5, 8, 21])
def test_sixteen_bit_storage_is_the_rounded_float32_result(dtype, channels, device):
    scores = torch.randn(2, channels, 9, 11, device=device).to(dtype)
    labels = torch.randint(0, channels, (2, 17, 21), dtype=torch.uint8, device=device)
    narrow, wide = scores.clone().requires_grad_(), scores.float().requires_grad_()
    losses = [segmentation_loss(x, labels, 2) for x in (narrow, wide)]
    assert losses[0].item() == losses[1].item()
    sum(losses).backward()
    assert torch.equal(narrow.grad, wide.grad.to(dtype))
    assert segmentation_loss(narrow, labels, 4).item() == segmentation_loss(wide, labels, 4).item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_gradients_are_scaled_before_they_are_rounded(dtype, device):
    scores = torch.randn(1, 21, 9, 9, device=device).to(dtype).requires_grad_()
    labels = torch.randint(0, 21, (1, 9, 9), dtype=torch.uint8, device=device)
    loss = segmentation_loss(scores, labels, 1)
    (once,) = torch.autograd.grad(loss, scores, retain_graph=True)
    for scale in (1 / 3, 1.00195, 1000.1):  # none of them is a number of 16 bits
        (scaled,) = torch.autograd.grad(scale * loss, scores, retain_graph=True)
        assert torch.equal(scaled, (once.float() * torch.tensor(scale)).to(dtype))


def test_resampling_is_interps(device):
    scores = torch.randn(2, 7, 16, 16, device=device, requires_grad=True)
    labels = torch.randint(0, 7, (2, 161, 161), dtype=torch.uint8, device=device)
    fused, apart = segmentation_loss(scores, labels, 8), segmentation_loss(interp(scores, (21, 21)), labels, 8)
    assert fused.item() == apart.item()
    a, b = (torch.autograd.grad(loss, scores)[0] for loss in (fused, apart))
    assert torch.equal(a, b)


def test_the_gradient_is_scaled_by_what_follows(device):
    scores = torch.randn(2, 7, 9, 9, device=device, requires_grad=True)
    labels = torch.randint(0, 7, (2, 9, 9), dtype=torch.uint8, device=device)
    loss = segmentation_loss(scores, labels, 1)
    (once,) = torch.autograd.grad(loss, scores, retain_graph=True)
    (again,) = torch.autograd.grad(loss, scores, retain_graph=True)
    (scaled,) = torch.autograd.grad(-3 * loss, scores)
    assert torch.equal(once, again)
    assert torch.equal(scaled, -3 * once)
    assert not segmentation_loss(scores.detach(), labels, 1).requires_grad
    with torch.no_grad():
        assert segmentation_loss(scores, labels, 1).item() == loss.item()


@pytest.mark.parametrize("size", [(5, 6), (3, 9), (1, 1)])
def test_gradcheck(size, device):
    scores = torch.randn(2, 4, *size, dtype=torch.float64, device=device, requires_grad=True)
    labels = torch.randint(0, 4, (2, 9, 11), device=device)
    labels[0, 2, 4] = 255
    assert torch.autograd.gradcheck(lambda x: segmentation_loss(x, labels, 2), (scores,))


def test_a_second_derivative_is_a_clear_error(device):
    scores = torch.randn(1, 2, 3, 3, device=device, requires_grad=True)
    labels = torch.zeros(1, 3, 3, dtype=torch.uint8, device=device)
    for factor in (1, 2):
        (first,) = torch.autograd.grad(factor * segmentation_loss(scores, labels, 1), scores, create_graph=True)
        with pytest.raises(RuntimeError, match="segmentation_loss: must be differentiated once; got a request for"):
            first.square().sum().backward()


@pytest.mark.parametrize("size", [(9, 9), (7, 6)])
def test_opcheck(size, device):
    scores = torch.randn(2, 7, *size, device=device)
    for label_type in (torch.uint8, torch.int64):
        labels = torch.randint(0, 7, (2, 17, 17), device=device).to(label_type)
        torch.library.opcheck(torch.ops.repro.segmentation_loss.default, (scores, labels, 2, 255, False))
        torch.library.opcheck(
            torch.ops.repro.segmentation_loss.default, (scores.clone().requires_grad_(), labels, 2, 255, True)
        )


def test_compiles_without_a_graph_break(device):
    def objective(scores, labels):
        return segmentation_loss(scores * 2, labels, 4) + segmentation_loss(scores, labels, 2)

    scores = torch.randn(2, 7, 9, 9, device=device, requires_grad=True)
    labels = torch.randint(0, 7, (2, 33, 33), device=device)
    compiled = torch.compile(objective, backend="aot_eager", fullgraph=True)(scores, labels)
    expected = objective(scores, labels)
    assert compiled.item() == expected.item()
    gradients = [torch.autograd.grad(loss, scores)[0] for loss in (compiled, expected)]
    assert_close(*gradients, 1e-6)


@pytest.mark.slow
def test_more_than_two_to_the_31_labels():
    labels = torch.zeros(1, 1, 1, dtype=torch.uint8).expand(2, 2**15 + 1, 2**15 + 1)
    labels = torch.cat([labels, labels[:1]])[1:]  # dense
    labels[1, -1, -1] = 1
    scores = torch.tensor([0.0, 3.0]).reshape(1, 2, 1, 1).expand(2, 2, 2, 2)
    terms = [math.log1p(math.exp(3))] * 7 + [math.log1p(math.exp(-3))]
    assert segmentation_loss(scores, labels, 2**15).item() == pytest.approx(sum(terms) / 8, rel=1e-6)


ONE, LABELS = torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("scores", "labels", "shrink", "message"),
    [
        (ONE[0], LABELS, 1, r"segmentation_loss: scores must have 4 dimensions .* got shape \[2, 3, 3\]"),
        (ONE.int(), LABELS, 1, r"segmentation_loss: scores must be float32, float64, bfloat16 or float16; got Int"),
        (ONE[:, :, :0], LABELS, 1, r"segmentation_loss: scores must have at least one row and one column; got shape"),
        (ONE[:, :0], LABELS, 1, r"segmentation_loss: scores must have at least one class; got shape \[1, 0, 3, 3\]"),
        (ONE, LABELS[0], 1, r"segmentation_loss: labels must have shape \(N=1, H, W\); got shape \[3, 3\]"),
        (ONE, LABELS.expand(2, 3, 3), 1, r"segmentation_loss: labels must have shape \(N=1, H, W\); got shape \[2, 3,"),
        (ONE, LABELS[:, :0], 1, r"segmentation_loss: labels must have shape \(N=1, H, W\); got shape \[1, 0, 3\]"),
        (ONE, LABELS.float(), 1, r"segmentation_loss: labels must be integers; got Float; convert it with"),
        (ONE, LABELS.bool(), 1, r"segmentation_loss: labels must be integers; got Bool; convert it with"),
        (
            ONE,
            LABELS,
            3,
            r"segmentation_loss: height - 1 and width - 1 of the labels must be multiples of 3; got shape",
        ),
        (
            ONE,
            LABELS,
            0,
            r"segmentation_loss: height - 1 and width - 1 of the labels must be multiples of 0; got shape",
        ),
        (ONE, LABELS.to("meta"), 1, r"segmentation_loss: all tensors must be on one device; got cpu, meta; move them"),
    ],
)
def test_messages(scores, labels, shrink, message):
    with pytest.raises(ValueError, match=message):
        segmentation_loss(scores, labels, shrink)
    if "multiples" in message or "device" in message:
        with pytest.raises(ValueError, match=message):
            reference.segmentation_loss(scores, labels, shrink)


UNKNOWN = pytest.mark.parametrize("labels", [LABELS + 2, LABELS.long() - 1], ids=["2", "-1"])


@cpu_kernels_only
@UNKNOWN
def test_a_label_that_is_no_class_is_an_error(labels):
    with pytest.raises(ValueError, match=r"^segmentation_loss: labels must be 0..1 or 255; got another; check the nu"):
        segmentation_loss(ONE, labels, 1)


@cuda_kernels_only
@UNKNOWN
def test_a_label_that_is_no_class_makes_the_loss_nan_where_asking_would_wait(labels):
    loss, dscores, _ = torch.ops.repro.segmentation_loss(ONE, labels, 1, 255, True)
    assert loss.isnan()
    assert dscores.isnan().all()

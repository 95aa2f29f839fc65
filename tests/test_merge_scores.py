"""merge_scores: by hand, against Caffe, against the float64 reference, and as an operator."""

import numpy as np
import pytest
import torch
from conftest import assert_equals_caffe, cpu_kernels_only, golden
from drawn import given, settings, st
from op_inputs import LAYOUTS, SIZES, assert_rounded_like_reference, laid_out, largest_adjoint, peak

from repro.ops import merge_scores, reference

CAFFE = golden("merge.npz")
CASES = CAFFE["case_names"].tolist()
IMPLEMENTATIONS = pytest.mark.parametrize("op", [merge_scores, reference.merge_scores], ids=["kernel", "reference"])


def caffe_case(case, dtype, device):
    mode = case.split("_")[0]
    scores = [
        torch.tensor(CAFFE[f"{case}/score{s}"]).to(device=device, dtype=dtype).requires_grad_()
        for s in range(8)
        if f"{case}/score{s}" in CAFFE
    ]
    logits = (
        torch.tensor(CAFFE[f"{case}/logits"]).to(device=device, dtype=dtype).requires_grad_()
        if mode == "attention"
        else None
    )
    return mode, scores, logits, torch.tensor(CAFFE[f"{case}/dmerged"]).to(device=device, dtype=dtype)


@IMPLEMENTATIONS
def test_by_hand(op, device):
    fine = torch.tensor([[[[1.0, 2.0, 3.0]], [[0.0, 0.0, 0.0]]]], device=device)
    coarse = torch.tensor([[[[0.0, 4.0]], [[1.0, -1.0]]]], device=device)  # resampled: 0 2 4 and 1 0 -1
    assert op([fine, coarse], mode="max")[0].tolist() == [[[[1, 2, 4]], [[1, 0, 0]]]]
    assert op([fine, coarse], mode="average")[0].tolist() == [[[[0.5, 2, 3.5]], [[0.5, 0, -0.5]]]]
    logits = torch.tensor([[[[0.0, 200.0, -200.0]], [[0.0, -200.0, 200.0]]]], device=device)
    merged, weights = op([fine, coarse], logits)
    assert weights.tolist() == [[[[0.5, 1, 0]], [[0.5, 0, 1]]]]
    assert merged.tolist() == [[[[0.5, 2, 4]], [[0.5, 0, -1]]]]


@IMPLEMENTATIONS
@pytest.mark.parametrize("case", CASES)
def test_equals_caffe(op, case, device):
    results = []
    for dtype in (torch.float32, torch.float64):
        mode, scores, logits, dmerged = caffe_case(case, dtype, device)
        merged, weights = op(scores, logits, mode)
        merged.backward(dmerged)
        results.append({"merged": merged} | {f"dscore{s}": score.grad for s, score in enumerate(scores)})
        if logits is not None:
            results[-1] |= {"weights": weights, "dlogits": logits.grad}
    for name, low in results[0].items():
        assert_equals_caffe(low, results[1][name], CAFFE, f"{case}/{name}")


@cpu_kernels_only
@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("attention")])
def test_cpu_kernel_equals_caffe_to_the_last_bit(case):
    mode, scores, _, dmerged = caffe_case(case, torch.float32, "cpu")
    merged, _ = merge_scores(scores, None, mode)
    merged.backward(dmerged)
    # Caffe's BLAS fuses float32(1/3) * x into its sum; powers of two need no rounding. test_equals_caffe bounds that case.
    if case != "average_s3_c21_rect":
        assert np.array_equal(merged.detach().numpy(), CAFFE[f"{case}/merged"])
    for s, score in enumerate(scores):
        assert np.array_equal(score.grad.numpy(), CAFFE[f"{case}/dscore{s}"]), s


@IMPLEMENTATIONS
@pytest.mark.parametrize("case", [case for case in CASES if "ties" in case])
def test_ties_of_max_go_where_caffe_sends_them(op, case, device):
    mode, scores, _, dmerged = caffe_case(case, torch.float64, device)
    op(scores, None, mode)[0].backward(torch.ones_like(dmerged))
    winner = CAFFE[f"{case}/winner"]
    for s, score in enumerate(scores):
        if score.shape == dmerged.shape:
            assert np.array_equal(score.grad.cpu().numpy(), (winner == s).astype(np.float64))
        else:
            assert score.grad.sum().item() == pytest.approx((winner == s).sum())


@st.composite
def merges(draw):
    sizes = draw(st.lists(SIZES, min_size=1, max_size=8))
    logits = draw(st.sampled_from([sizes[0], draw(SIZES)]))
    size = draw(st.sampled_from([None, draw(SIZES)]))
    mode = draw(st.sampled_from(["attention", "average", "max"]))
    return mode, draw(st.integers(0, 3)), draw(st.integers(1, 25)), sizes, logits, size, draw(st.sampled_from(LAYOUTS))


@settings(max_examples=70, deadline=None)
@given(merges())
def test_any_shape_and_stride_agrees_with_the_float64_reference(device, case):
    mode, n, c, sizes, logits_size, size, layout = case
    torch.manual_seed(sum(map(sum, sizes)))
    scores = [torch.randn(n, c, *hw).to(device) for hw in sizes]
    logits = torch.randn(n, len(sizes), *logits_size).to(device)
    dmerged = torch.randn(n, c, *(size or sizes[0])).to(device)
    dweights = torch.randn(n, len(sizes), *(size or sizes[0])).to(device)
    results = []
    for op, dtype in (
        (merge_scores, torch.float32),
        (reference.merge_scores, torch.float32),
        (reference.merge_scores, torch.float64),
        (merge_scores, torch.float64),
    ):
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in (*scores, logits)]
        views = [laid_out(leaf, layout) for leaf in leaves]
        merged, weights = op(views[:-1], views[-1] if mode == "attention" else None, mode, size)
        outputs, gradients = [merged], [laid_out(dmerged, layout).to(dtype)]
        if weights is not None:
            outputs, gradients = [merged, weights], [*gradients, laid_out(dweights, layout).to(dtype)]
        torch.autograd.backward(outputs, gradients)
        results.append([*(y.detach() for y in outputs), *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    images = max(n, 1) if layout == "expanded" else 1  # each adds to the first one's gradient
    largest = max(peak(score) for score in scores)
    per_logit = 2 * ((dmerged.abs().sum(dim=1, keepdim=True) * largest) + dweights.abs().amax(dim=1, keepdim=True))
    magnitudes = [largest] + [1.0] * (mode == "attention") + [images * largest_adjoint(dmerged, hw) for hw in sizes]
    magnitudes += [images * largest_adjoint(per_logit, logits_size)] * (mode == "attention")
    for kernel, low, high, kernel64, magnitude in zip(*results, magnitudes, strict=True):
        assert_rounded_like_reference(kernel64, high, high, 1e-7 * magnitude)
        if mode != "max":  # float32 may see another maximum; float64 above has shown the rule
            assert_rounded_like_reference(kernel, low, high, 3 * magnitude)


def test_gradcheck(device):
    scores = [torch.randn(2, 3, *hw, dtype=torch.float64, device=device, requires_grad=True) for hw in ((5, 4), (3, 2))]
    logits = torch.randn(2, 2, 3, 3, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b, c: merge_scores([a, b], c), (*scores, logits))
    assert torch.autograd.gradcheck(lambda a, b, c: merge_scores([a, b], c, size=(7, 7)), (*scores, logits))
    for mode in ("average", "max"):
        assert torch.autograd.gradcheck(lambda a, b, mode=mode: merge_scores([a, b], mode=mode)[0], scores)


@pytest.mark.parametrize("mode", ["attention", "average", "max"])
def test_a_second_derivative_is_a_clear_error(mode):
    score = torch.randn(1, 2, 3, 3, requires_grad=True)
    logits = [torch.randn(1, 1, 3, 3, requires_grad=True)] if mode == "attention" else []
    merged = merge_scores([score], *logits, mode=mode)[0]
    (first,) = torch.autograd.grad(merged.square().sum(), score, create_graph=True)
    with pytest.raises(RuntimeError, match="merge_scores_backward: must not be differentiated"):
        first.sum().backward()


@pytest.mark.parametrize("mode", ["attention", "average", "max"])
def test_opcheck(mode, device):
    scores = [torch.randn(2, 7, *hw, device=device, requires_grad=True) for hw in ((9, 9), (7, 6))]
    logits = torch.randn(2, 2, 5, 5, device=device, requires_grad=True) if mode == "attention" else None
    for return_weights in (True, False):
        torch.library.opcheck(torch.ops.repro.merge_scores.default, (scores, logits, mode, (9, 9), return_weights))
    merged, weights = torch.ops.repro.merge_scores(scores, logits, mode, (9, 9), True)
    detached = [t.detach() for t in scores]
    for dweights in (None, weights.detach()):
        torch.library.opcheck(
            torch.ops.repro.merge_scores_backward.default,
            (merged.detach(), dweights, detached, None if logits is None else logits.detach(), mode),
        )


def test_compiles_without_a_graph_break(device):
    def merge(scores, logits):
        return merge_scores([score * 2 for score in scores], logits)[0].relu()

    scores = [torch.randn(2, 7, *hw, device=device, requires_grad=True) for hw in ((9, 9), (5, 5))]
    logits = torch.randn(2, 2, 9, 9, device=device)
    compiled = torch.compile(merge, backend="aot_eager", fullgraph=True)(scores, logits)
    assert torch.equal(compiled, merge(scores, logits))
    expected = torch.autograd.grad(merge(scores, logits).sum(), scores)
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(compiled.sum(), scores), expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 5, 8, 21])
@pytest.mark.parametrize("mode", ["attention", "average", "max"])
def test_sixteen_bit_storage_accumulates_in_float32(dtype, channels, mode, device):
    scores = [torch.randn(2, channels, *hw, device=device).to(dtype) for hw in ((9, 8), (5, 4), (9, 8))]
    logits = [torch.randn(2, 3, 9, 8, device=device).to(dtype)] if mode == "attention" else []
    dmerged = torch.randn(2, channels, 9, 8, device=device).to(dtype)
    results = []
    for wide in (dtype, torch.float32):
        leaves = [t.to(wide, copy=True).requires_grad_() for t in (*scores, *logits)]
        merged, weights = merge_scores(leaves[:3], *leaves[3:], mode=mode)
        merged.backward(dmerged.to(wide))
        results.append([merged, *([weights] if logits else []), *(leaf.grad for leaf in leaves)])
    for narrow, exact in zip(*results, strict=True):
        assert narrow.dtype == dtype
        assert torch.equal(narrow, exact.to(dtype))


def test_no_images_and_no_classes(device):
    for shape in ((0, 3), (2, 0)):
        scores = [torch.zeros(*shape, *hw, device=device, requires_grad=True) for hw in ((9, 8), (5, 4))]
        logits = torch.zeros(shape[0], 2, 7, 7, device=device, requires_grad=True)
        for mode, arguments in (("attention", [logits]), ("average", []), ("max", [])):
            merged, _ = merge_scores(scores, *arguments, mode=mode)
            assert merged.shape == (*shape, 9, 8)
            gradients = torch.autograd.grad(merged.sum(), [*scores, *arguments])
            assert [g.shape for g in gradients] == [t.shape for t in (*scores, *arguments)]
            assert not any(g.any() for g in gradients)


def test_weights_are_written_only_when_asked(device):
    scores = [torch.randn(1, 2, 3, 3, device=device)]
    logits = torch.randn(1, 1, 3, 3, device=device)
    merged, weights = merge_scores(scores, logits, return_weights=False)
    assert weights is None
    assert torch.equal(merged, merge_scores(scores, logits)[0])
    assert merge_scores(scores, mode="max")[1] is None


@pytest.mark.parametrize("mode", ["attention", "average", "max"])
def test_one_and_two_threads_give_the_same_bits(mode):
    scores = [torch.randn(3, 21, *hw, requires_grad=True) for hw in ((41, 41), (31, 31), (21, 21))]
    logits = torch.randn(3, 3, 41, 41, requires_grad=True) if mode == "attention" else None
    leaves = [*scores, *([logits] if logits is not None else [])]
    results = []
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        merged, _ = merge_scores(scores, logits, mode)
        results.append([merged, *torch.autograd.grad(merged.square().sum(), leaves)])
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def maps(*shapes, dtype=torch.float32):
    return [torch.zeros(shape, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize(
    ("scores", "logits", "mode", "size", "message"),
    [
        ([], None, "max", None, r"merge_scores: scores must hold 1 to 8 maps; got 0"),
        (maps(*[(1, 2, 3, 3)] * 9), None, "max", None, r"merge_scores: scores must hold 1 to 8 maps; got 9"),
        (
            maps((1, 2, 3, 3), (1, 3, 3, 3)),
            None,
            "max",
            None,
            r"merge_scores: scores\[1\] must have N=1 and C=2 as scores\[0\]; got shape \[1, 3, 3, 3\]",
        ),
        (
            maps((1, 2, 3, 3)) + maps((1, 2, 3, 3), dtype=torch.float64),
            None,
            "max",
            None,
            r"merge_scores: scores\[1\] must have the dtype of scores\[0\]",
        ),
        (
            maps((1, 2, 3, 3)),
            None,
            "sum",
            None,
            r'merge_scores: mode must be "attention", "average" or "max"; got "sum"',
        ),
        (
            maps((1, 2, 3, 3)),
            None,
            "attention",
            None,
            r"merge_scores: logits must be given for mode \"attention\" and for no other; got none",
        ),
        (
            maps((1, 2, 3, 3)),
            torch.zeros(1, 1, 3, 3),
            "max",
            None,
            r"merge_scores: logits must be given for mode \"attention\" and for no other; got logits",
        ),
        (
            maps((1, 2, 3, 3)),
            torch.zeros(1, 2, 3, 3),
            "attention",
            None,
            r"merge_scores: logits must have shape \(N=1, S=1, H, W\); got shape \[1, 2, 3, 3\]",
        ),
        (
            maps((1, 2, 3, 3), (1, 2, 3, 3)),
            torch.zeros(1, 2, 3, 3, device="meta"),
            "attention",
            None,
            r"merge_scores: all tensors must be on one device; got cpu, meta; move them with \.to\(\)",
        ),
        (
            maps((1, 2, 3, 3)),
            torch.zeros(1, 1, 3, 3, dtype=torch.float64),
            "attention",
            None,
            r"merge_scores: logits must have the dtype of scores\[0\] \(Float\); got Double",
        ),
        (
            maps((1, 2, 3)),
            None,
            "max",
            (3, 3),
            r"merge_scores: scores\[0\] must have 4 dimensions \(N, C, H, W\); got shape \[1, 2, 3\]",
        ),
        (
            maps((1, 2, 3, 3), (1, 2, 0, 3)),
            None,
            "max",
            None,
            r"merge_scores: scores\[1\] must have at least one row and one column; got shape \[1, 2, 0, 3\]",
        ),
        (maps((1, 2, 3, 3)), None, "average", (3,), r"merge_scores: size must be \(height, width\)"),
    ],
)
def test_messages(scores, logits, mode, size, message):
    with pytest.raises(ValueError, match=message):
        merge_scores(scores, logits, mode, size)


@pytest.mark.parametrize(
    ("dmerged", "dweights", "message"),
    [
        (torch.zeros(1, 3, 3, 3), None, r"dmerged must have shape \(N=1, C=2, H, W\); got shape \[1, 3, 3, 3\]"),
        (torch.zeros(1, 2, 3, 3).double(), None, r"dmerged must have the dtype of scores\[0\]"),
        (
            torch.zeros(1, 2, 3, 3),
            torch.zeros(1, 1, 2, 3),
            r"dweights must have shape \[1, 1, 3, 3\]; got \[1, 1, 2, 3\]",
        ),
        (
            torch.zeros(1, 2, 3, 3),
            torch.zeros(1, 1, 3, 3).double(),
            r"dweights must have the dtype of dmerged",
        ),
        (torch.zeros(1, 2, 3, 3, device="meta"), None, r"all tensors must be on one device; got meta, cpu; move them"),
    ],
)
def test_messages_of_the_gradient(dmerged, dweights, message):
    with pytest.raises(ValueError, match=f"merge_scores_backward: {message}"):
        torch.ops.repro.merge_scores_backward(
            dmerged, dweights, maps((1, 2, 3, 3)), torch.zeros(1, 1, 3, 3), "attention"
        )

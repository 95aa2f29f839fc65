"""Interp: by hand, against Caffe, against the float64 reference, and as an operator."""

import re

import numpy as np
import pytest
import torch
from conftest import assert_close, assert_equals_caffe, golden
from drawn import given, settings, st
from op_inputs import LAYOUTS, SIZES, assert_rounded_like_reference, laid_out, largest_adjoint, peak
from torch.utils._python_dispatch import TorchDispatchMode

from repro.ops import interp, reference

CAFFE = golden("interp.npz")
CASES = CAFFE["case_names"].tolist()
IMPLEMENTATIONS = pytest.mark.parametrize("op", [interp, reference.interp], ids=["kernel", "reference"])


def caffe_case(case, dtype, device="cpu"):
    """x as a leaf, cropped by Caffe's negative pads, with the output's size."""
    pads = [int(p) for p in CAFFE[f"{case}/params"][4:]]
    x = torch.tensor(CAFFE[f"{case}/x"]).to(device=device, dtype=dtype).requires_grad_()
    height, width = (n + pads[1] for n in x.shape[2:])
    return x, x[:, :, -pads[0] : height, -pads[0] : width], CAFFE[f"{case}/y"].shape[2:]


@IMPLEMENTATIONS
def test_by_hand(op, device):
    x = torch.tensor([[[[0.0, 4.0], [8.0, 20.0]]]], device=device)
    assert op(x, (3, 3)).tolist() == [[[[0, 2, 4], [4, 8, 12], [8, 14, 20]]]]
    assert op(x, (1, 2)).tolist() == [[[[0, 4]]]]
    assert op(x[..., :1], (2, 3)).tolist() == [[[[0, 0, 0], [8, 8, 8]]]]


@IMPLEMENTATIONS
@pytest.mark.parametrize("case", CASES)
def test_equals_caffe(op, case, device):
    results = []
    for dtype in (torch.float32, torch.float64):
        leaf, x, size = caffe_case(case, dtype, device)
        y = op(x, size)
        y.backward(torch.tensor(CAFFE[f"{case}/dy"]).to(y))
        results.append((y, leaf.grad))
    for name, low, high in zip(("y", "dx"), *results, strict=True):
        assert_equals_caffe(low, high, CAFFE, f"{case}/{name}")


@pytest.mark.parametrize("case", CASES)
def test_cpu_kernel_equals_caffe_to_the_last_bit(case):
    leaf, x, size = caffe_case(case, torch.float32)
    y = interp(x, size)
    assert np.array_equal(y.detach().numpy(), CAFFE[f"{case}/y"])
    y.backward(torch.tensor(CAFFE[f"{case}/dy"]))
    assert np.array_equal(leaf.grad.numpy(), CAFFE[f"{case}/dx"])


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, st.integers(0, 3), st.integers(1, 25), st.sampled_from(LAYOUTS))
def test_any_shape_and_stride_agrees_with_the_float64_reference(device, size_in, size_out, n, c, layout):
    torch.manual_seed(n + 7 * c)
    x = torch.randn(n, c, *size_in).to(device)
    dy = torch.randn(n, c, *size_out).to(device)
    results = []
    for op, dtype in (
        (interp, torch.float32),
        (reference.interp, torch.float32),
        (reference.interp, torch.float64),
        (interp, torch.float64),
    ):
        leaf = x.to(dtype, copy=True).requires_grad_()
        y = op(laid_out(leaf, layout), size_out)
        y.backward(laid_out(dy, layout).to(dtype))
        results.append((y.detach(), leaf.grad))
    summed = largest_adjoint(dy, size_in) * (max(n, 1) if layout == "expanded" else 1)
    for kernel, low, high, kernel64, magnitude in zip(*results, (peak(x), summed), strict=True):
        assert_rounded_like_reference(kernel, low, high, magnitude)
        assert_rounded_like_reference(kernel64, high, high, 1e-7 * magnitude)
        assert kernel.shape == high.shape


def test_the_references_ratio_is_a_float32_quotient_of_the_host(device):
    class NoDivision(TorchDispatchMode):  # of tensors: CUDA multiplies by the reciprocal
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            assert not re.search("div|reciprocal", str(function))
            return function(*arguments, **(keywords or {}))

    x = torch.randn(1, 1, 22, 7, device=device)
    with NoDivision():
        y = reference.interp(x, (50, 93))
    _, _, w_hi = reference._taps(22, 50, x)
    source = np.arange(50, dtype=np.float32) * (np.float32(21) / np.float32(49))
    assert np.array_equal(w_hi.cpu().numpy(), source - np.floor(source))
    assert torch.equal(y, interp(x, (50, 93)))


@pytest.mark.parametrize("channels", [1, 8])
def test_an_input_with_many_readers(channels, device):  # more than a block on CUDA keeps the weights of at a time
    dy = torch.randn(1, channels, 70, 520, dtype=torch.float64, device=device)
    x = torch.zeros(1, channels, 2, 2, dtype=torch.float64, device=device, requires_grad=True)
    reference.interp(x, (70, 520)).backward(dy)
    assert_close(torch.ops.repro.interp_backward(dy, (2, 2)), x.grad, 1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_maps_that_begin_anywhere_in_memory(dtype, device):  # CUDA takes four channels at once where the address allows
    def shifted(size):
        return torch.randn(2 * size * size * 8 + 1).to(device, dtype)[1:].view(2, size, size, 8).permute(0, 3, 1, 2)

    x = shifted(5)
    assert torch.equal(interp(x, (11, 11)), interp(x.clone(), (11, 11)))
    dy = shifted(11)
    assert torch.equal(torch.ops.repro.interp_backward(dy, (5, 5)), torch.ops.repro.interp_backward(dy.clone(), (5, 5)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 8, 21])
def test_the_adjoint_sums_sixteen_bits_in_float32(dtype, channels, device):
    # 53833 ones: a sum kept in 16 bits stands still at 256 or 2048.
    ones = torch.ones(1, 1, 1, 1, dtype=dtype, device=device).expand(1, channels, 1, 53833)
    back = torch.ops.repro.interp_backward
    assert back(ones, (1, 1)).flatten().tolist() == [torch.tensor(53833.0).to(dtype).item()] * channels
    assert torch.equal(back(ones, (3, 2)), back(ones.float(), (3, 2)).to(dtype))


def test_adjoint_holds_exactly(device):
    x, y = (
        torch.randn(2, 3, 21, 33, dtype=torch.float64, device=device),
        torch.randn(2, 3, 41, 65, dtype=torch.float64, device=device),
    )
    back = torch.ops.repro.interp_backward(y, (21, 33))
    assert (interp(x, (41, 65)) * y).sum().item() == pytest.approx((x * back).sum().item(), rel=1e-12)


def test_gradients_of_any_order(device):
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, device=device, requires_grad=True)
    for size in ((9, 7), (3, 2), (1, 1)):
        assert torch.autograd.gradcheck(lambda t, size=size: interp(t, size), (x,))
        assert torch.autograd.gradgradcheck(lambda t, size=size: interp(t, size), (x,))


def test_opcheck(device):
    x = torch.randn(2, 3, 9, 11, device=device, requires_grad=True)
    torch.library.opcheck(torch.ops.repro.interp.default, (x, (5, 21)))
    torch.library.opcheck(torch.ops.repro.interp_backward.default, (x, (5, 21)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 5, 8, 21])
def test_sixteen_bit_storage_is_the_rounded_float32_result(dtype, channels, device):
    x = torch.randn(2, channels, 7, 6, device=device).to(dtype)
    assert torch.equal(interp(x, (13, 11)), interp(x.float(), (13, 11)).to(dtype))
    back = torch.ops.repro.interp_backward
    assert torch.equal(back(x, (3, 4)), back(x.float(), (3, 4)).to(dtype))


def test_no_images_and_no_channels(device):
    for shape in ((0, 3, 4, 5), (2, 0, 4, 5)):
        x = torch.zeros(shape, device=device, requires_grad=True)
        y = interp(x, (7, 6))
        assert y.shape == (*shape[:2], 7, 6)
        y.sum().backward()
        assert x.grad.shape == shape


def test_results_are_channels_last_whatever_the_strides(device):
    x = torch.randn(2, 3, 4, 5, device=device)
    for layout in LAYOUTS:
        assert interp(laid_out(x, layout), (7, 6)).is_contiguous(memory_format=torch.channels_last)


def test_compiles_without_a_graph_break(device):
    def enlarge(x):
        return interp(x * 2, (13, 11)).relu()

    x = torch.randn(2, 3, 7, 6, device=device, requires_grad=True)
    compiled = torch.compile(enlarge, backend="aot_eager", fullgraph=True)(x)
    assert torch.equal(compiled, enlarge(x))
    expected = torch.autograd.grad(enlarge(x).sum(), x)[0]
    assert torch.equal(torch.autograd.grad(compiled.sum(), x)[0], expected)


@pytest.mark.slow
def test_more_than_two_to_the_31_elements():
    x = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]], dtype=torch.bfloat16)
    y = interp(x, (2**15 + 1, 2**16 + 1))
    assert y.numel() > 2**31
    assert y[0, 0, [0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [0, 1, 2, 3]
    assert y[0, 0, 2**14, 2**15].item() == 1.5
    ones = torch.ones(1, 1, 1, 1, dtype=torch.bfloat16).expand(1, 1, 2**15 + 1, 2**16 + 1)
    back = torch.ops.repro.interp_backward(ones, (3, 2))
    assert back.shape == (1, 1, 3, 2)
    assert back.isfinite().all()


def test_one_and_two_threads_give_the_same_bits():
    x = torch.randn(3, 21, 41, 41)
    results = []
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        results.append((interp(x, (321, 321)), torch.ops.repro.interp_backward(x, (21, 21))))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("x", "size", "message"),
    [
        (torch.zeros(3, 4, 5), (2, 2), r"interp: x must have 4 dimensions \(N, C, H, W\); got shape \[3, 4, 5\]"),
        (
            torch.zeros(1, 1, 4, 5, dtype=torch.int32),
            (2, 2),
            "interp: x must be float32, float64, bfloat16 or float16; got Int",
        ),
        (torch.zeros(1, 1, 0, 5), (2, 2), "interp: x must have at least one row and one column"),
        (torch.zeros(1, 1, 4, 5), (2,), r"interp: size must be \(height, width\), both at least 1; got \[2\]"),
        (torch.zeros(1, 1, 4, 5), (3, -1), r"interp: size must be \(height, width\), both at least 1; got \[3, -1\]"),
        (torch.zeros(1, 1, 4, 5), (0, 2), r"interp: size must be \(height, width\), both at least 1; got \[0, 2\]"),
    ],
)
def test_messages(x, size, message):
    with pytest.raises(ValueError, match=message):
        interp(x, size)
    if x.dim() != 4 or x.dtype == torch.int32:
        with pytest.raises(ValueError, match=message.replace("interp: x", "interp_backward: dy")):
            torch.ops.repro.interp_backward(x, size)


def test_a_side_beyond_float32s_integers_is_an_error():
    for size in ((2**24 + 1, 1), (1, 2**40)):
        with pytest.raises(ValueError, match=r"interp: size must be at most 16777216 a side; got \["):
            interp(torch.zeros(1, 1, 2, 2), size)
    assert interp(torch.ones(0, 1, 2, 2), (2**24, 1)).shape == (0, 1, 2**24, 1)


def test_reference_runs_only_when_asked(monkeypatch):
    monkeypatch.setenv("REPRO_REFERENCE", "yes")
    with pytest.raises(ValueError, match="REPRO_REFERENCE must be 0 or 1; got 'yes'"):
        interp(torch.zeros(1, 1, 2, 2), (3, 3))
    monkeypatch.setenv("REPRO_REFERENCE", "1")
    monkeypatch.setattr("repro.ops.reference.interp", lambda x, size: "reference ran")
    assert interp(torch.zeros(1, 1, 2, 2), (3, 3)) == "reference ran"


def test_without_the_extension_nothing_falls_back_in_silence(monkeypatch):
    monkeypatch.setattr("repro.ops.library.COMPILED", False)
    with pytest.raises(RuntimeError, match=r"repro\.ops: the extension repro\._C must be built.*REPRO_REFERENCE=1"):
        interp(torch.zeros(1, 1, 2, 2), (3, 3))

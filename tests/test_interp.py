"""Interp: by hand, against Caffe, against the float64 reference, and as an operator."""

import numpy as np
import pytest
import torch
from conftest import assert_as_exact_as_reference, assert_close, golden, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

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
    for dtype, suffix, tolerances in (
        (torch.float32, "", (3 * 8.3e-08, 3 * 3.6e-07)),
        (torch.float64, "_f64", (1e-10, 1e-10)),
    ):
        if f"{case}/y{suffix}" not in CAFFE:
            continue
        leaf, x, size = caffe_case(case, dtype, device)
        y = op(x, size)
        assert_close(y, CAFFE[f"{case}/y{suffix}"], tolerances[0], f"y{suffix}")
        y.backward(torch.tensor(CAFFE[f"{case}/dy"]).to(y))
        if f"{case}/dx{suffix}" in CAFFE:
            assert_close(leaf.grad, CAFFE[f"{case}/dx{suffix}"], tolerances[1], f"dx{suffix}")


@pytest.mark.parametrize("case", CASES)
def test_cpu_kernel_equals_caffe_to_the_last_bit(case):
    leaf, x, size = caffe_case(case, torch.float32)
    y = interp(x, size)
    assert np.array_equal(y.detach().numpy(), CAFFE[f"{case}/y"])
    y.backward(torch.tensor(CAFFE[f"{case}/dy"]))
    assert np.array_equal(leaf.grad.numpy(), CAFFE[f"{case}/dx"])


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 70), st.integers(1, 90)),
    st.tuples(st.integers(1, 70), st.integers(1, 90)),
    st.integers(0, 3),
    st.integers(1, 9),
    st.integers(0, 2),
)
def test_any_shape_and_stride_agrees_with_the_float64_reference(size_in, size_out, n, c, layout):
    torch.manual_seed(n + 7 * c)
    x = torch.randn(n, c, *size_in)
    x = [x, x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)][layout]
    dy = torch.randn(n, c, *size_out)
    results = []
    for op, dtype in (
        (interp, torch.float32),
        (reference.interp, torch.float32),
        (reference.interp, torch.float64),
        (interp, torch.float64),
    ):
        leaf = x.to(dtype).detach().requires_grad_()
        y = op(leaf, size_out)
        y.backward(dy.to(dtype))
        results.append((y.detach(), leaf.grad))
    for kernel, low, high, kernel64 in zip(*results, strict=True):
        assert_as_exact_as_reference(kernel, low, high)
        assert relative_error(kernel64, high) < 1e-12


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


def test_bfloat16_is_the_rounded_float32_result(device):
    x = torch.randn(2, 5, 7, 6, device=device).bfloat16()
    assert torch.equal(interp(x, (13, 11)), interp(x.float(), (13, 11)).bfloat16())


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
        (torch.zeros(1, 1, 4, 5, dtype=torch.int32), (2, 2), "interp: x must be float32, float64 or bfloat16; got Int"),
        (torch.zeros(1, 1, 0, 5), (2, 2), "interp: x must have at least one row and one column"),
        (torch.zeros(1, 1, 4, 5), (2,), r"interp: size must be \(height, width\), both at least 1; got \[2\]"),
        (torch.zeros(1, 1, 4, 5), (0, 2), r"interp: size must be \(height, width\), both at least 1; got \[0, 2\]"),
    ],
)
def test_messages(x, size, message):
    with pytest.raises(ValueError, match=message):
        interp(x, size)


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

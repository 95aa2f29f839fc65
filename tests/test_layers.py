"""Convolution, pooling, dropout and fillers against Caffe."""

import numpy as np
import pytest
import torch
from conftest import assert_close, assert_equals_caffe, golden
from float_rule import Step, Truth, U

from repro.models.layers import Dropout, ave_pool, convolution, dropout, fill, max_pool

CONV, POOLING = golden("conv.npz"), golden("pooling.npz")


@pytest.mark.parametrize("case", CONV["case_names"].tolist())
def test_convolution_equals_caffe(case, device):
    kernel, pad, dilation = (int(v) for v in CONV[f"{case}/params"])
    x, w, b, dy = (torch.tensor(CONV[f"{case}/{name}"]) for name in ("x", "w", "b", "dy"))

    def compute(dtype, device, arithmetic):
        layer = convolution(w.shape[1], w.shape[0], kernel, dilation).to(device=device, dtype=dtype)
        assert layer.padding == (pad, pad)
        with torch.no_grad():
            layer.weight.copy_(w)
            layer.bias.copy_(b)
        leaf = x.to(device=device, dtype=dtype, copy=True).requires_grad_()
        with arithmetic:
            y = layer(leaf)
            y.backward(dy.to(y))
        return [Step({"y": y.detach()}, {"dx": leaf.grad, "dw": layer.weight.grad, "db": layer.bias.grad})]

    truth = Truth(compute)
    truth.assert_is_caffes([{name: CONV[f"{case}/{name}_f64"] for name in truth.bounds}], device)
    truth.assert_holds_caffes_float32([{name: CONV[f"{case}/{name}"] for name in truth.bounds}], truth.bounds)
    truth.assert_holds_float32(device)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("case", POOLING["case_names"].tolist())
def test_pooling_equals_caffe(case, memory_format, device):
    _, stride, _, is_average = (int(v) for v in POOLING[f"{case}/params"])
    results = []
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor(POOLING[f"{case}/x"]).to(device, dtype).contiguous(memory_format=memory_format)
        x.requires_grad_()
        y = ave_pool(x) if is_average else max_pool(x, stride)
        y.backward(torch.tensor(POOLING[f"{case}/dy"]).to(y))
        results.append({"y": y, "dx": x.grad})
    for name, exact in results[1].items():
        assert_equals_caffe(results[0][name], exact, POOLING, f"{case}/{name}")
        assert_close(exact, POOLING[f"{case}/{name}"], 9 * U, name)  # at most nine terms
    if not is_average:
        assert np.array_equal(results[0]["y"].detach().cpu().numpy(), POOLING[f"{case}/y"])


def test_dropout_scales_what_it_keeps_and_rests_at_test():
    layer, x = Dropout(0.25), torch.ones(4, 8, 16, 16)
    y = layer(x)
    assert y.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    layer.mask_source = lambda shape: np.zeros(shape)
    assert layer(x).abs().sum() == 0
    assert layer.eval()(x) is x


def test_fillers():
    layer = convolution(64, 96, 3)
    for filler, std, expected in (
        ("gaussian", 0.01, 0.01),
        ("msra", 0.0, (2 / (64 * 9)) ** 0.5),
        ("constant", 0.0, 0.0),
    ):
        fill(layer, filler, std, torch.Generator().manual_seed(1))
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.02)
        assert layer.bias.abs().sum() == 0
    with pytest.raises(ValueError, match="fill: filler must be one of gaussian, msra, constant; got 'xavier'"):
        fill(layer, "xavier")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("ratio", [0.5, 0.3])
def test_dropout_draws_float64_numbers_in_the_order_of_memory(ratio, dtype, layout):
    x = torch.randn(2, 6, 5, 7).to(dtype).contiguous(memory_format=layout)
    torch.manual_seed(3)
    leaf = x.clone().requires_grad_()
    y = dropout(leaf, ratio)
    (y * x).sum().backward()
    following = torch.rand(3)
    torch.manual_seed(3)
    drawn = torch.rand(x.numel(), dtype=torch.float64)
    if layout == torch.channels_last:
        drawn = drawn.reshape(2, 5, 7, 6).permute(0, 3, 1, 2)
    mask = (drawn.reshape(x.shape) < 1 - ratio).to(dtype) / (1 - ratio)
    assert torch.equal(y, x * mask)
    assert torch.equal(leaf.grad, x * mask)
    assert torch.equal(following, torch.rand(3))
    assert y.stride() == x.stride()
    assert 0 < (y == 0).sum() < y.numel()

"""Convolution, pooling, dropout and fillers against Caffe."""

import numpy as np
import pytest
import torch
from conftest import assert_close, golden

from repro.models.layers import Dropout, ave_pool, convolution, fill, max_pool

CONV, POOLING = golden("conv.npz"), golden("pooling.npz")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", CONV["case_names"].tolist())
def test_convolution_equals_caffe(case, dtype, device):
    suffix = "" if dtype == torch.float32 else "_f64"
    kernel, pad, dilation = (int(v) for v in CONV[f"{case}/params"])
    n_out, n_in = CONV[f"{case}/w"].shape[:2]
    layer = convolution(n_in, n_out, kernel, dilation).to(device=device, dtype=dtype)
    assert layer.padding == (pad, pad)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(CONV[f"{case}/w"]))
        layer.bias.copy_(torch.tensor(CONV[f"{case}/b"]))
    x = torch.tensor(CONV[f"{case}/x"]).to(device=device, dtype=dtype).requires_grad_()
    y = layer(x)
    y.backward(torch.tensor(CONV[f"{case}/dy"]).to(y))
    for name, value, caffe_error in (
        ("y", y, 1.1e-07),
        ("dx", x.grad, 1.1e-07),
        ("dw", layer.weight.grad, 3.3e-07),
        ("db", layer.bias.grad, 1.5e-07),
    ):
        assert_close(value, CONV[f"{case}/{name}{suffix}"], 1e-10 if suffix else 3 * caffe_error, name)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("case", POOLING["case_names"].tolist())
def test_pooling_equals_caffe(case, memory_format, device):
    _, stride, _, is_average = (int(v) for v in POOLING[f"{case}/params"])
    x = torch.tensor(POOLING[f"{case}/x"]).to(device).contiguous(memory_format=memory_format).requires_grad_()
    y = ave_pool(x) if is_average else max_pool(x, stride)
    y.backward(torch.tensor(POOLING[f"{case}/dy"]).to(y))
    assert_close(y, POOLING[f"{case}/y"], 3 * 7.4e-08, "y")
    assert_close(x.grad, POOLING[f"{case}/dx"], 3 * (1.1e-07 if is_average else 8.9e-08), "dx")


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

"""Every layer case of the golden data: repro.caffe's layers against Caffe's, forward and backward."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from conftest import GOLDEN, assert_close, golden, relative_error
from float_rule import FLOAT64, U

from caffe_weights import parse_prototxt
from repro.caffe import Net
from repro.data.caffe_rng import CaffeRNG

# The fork never computes the variance; repro.caffe follows BVLC there, and says so.
DEVIATES = ("bn_batch_fork_pass1", "bn_batch_fork_pass3")
SUMMING = ("Convolution", "Deconvolution", "InnerProduct")  # through a BLAS or oneDNN


@cache
def cases() -> dict[str, dict[str, np.ndarray]]:
    """Reads the cases by name."""
    found: dict[str, dict] = {}
    for key, value in golden("layers.npz").items():
        case, _, name = key.partition("/")
        if name:
            found.setdefault(case, {})[name] = value
    return found


def names() -> list[str]:
    """Lists the cases."""
    with np.load(GOLDEN / "layers.npz") as arrays:
        return [str(name) for name in arrays["case_names"] if str(name) not in DEVIATES]


def run(name: str, dtype: torch.dtype, magnitudes: bool = False) -> tuple[dict[str, torch.Tensor], Net]:
    """Runs a case's passes and its backward pass, and returns what Caffe's arrays are called; with `magnitudes` every number enters as its absolute value."""
    case = cases()[name]

    def number(value) -> torch.Tensor:
        tensor = torch.as_tensor(value).to(dtype)
        return tensor.abs() if magnitudes else tensor

    rng = CaffeRNG(int(case.get("seed", 0)))
    net = Net(parse_prototxt(str(case["prototxt"]), name), phase=str(case["phase"]), dtype=dtype, rng=rng)
    with torch.no_grad():
        for key, value in case.items():
            kind, _, place = key.partition("/")
            if kind == "param":
                layer, _, index = place.partition("/")
                blob, normalised = net.layers[layer].blobs[int(index)], net.layers[layer].type == "BatchNorm"
                blob.copy_(number(value).reshape(blob.shape))
                if magnitudes and normalised and index == "0":
                    blob.neg_()  # the mean is subtracted
    passes, given = int(case["passes"]), {name: case[name] for name in net.inputs}
    outputs = []
    for t in range(passes):
        each = name.startswith("seg_accuracy")
        net(**{key: number(value[t] if each else value) for key, value in given.items()})
        outputs.append(net.blobs)
    result = {key: blob for key, blob in net.blobs.items() if key not in net.inputs}
    if name.startswith("seg_accuracy"):
        result["y"] = torch.stack([blobs["y"].flatten() for blobs in outputs])
    tops = [key for key in case if key[:1] == "d" and key[1:] in net.blobs and f"{key}_f64" not in case]
    if any(f"d{key}_f64" in case for key in net.inputs):
        if tops:
            pairs = [(net.blobs[key[1:]], number(case[key])) for key in tops if net.blobs[key[1:]].requires_grad]
            torch.autograd.backward([top for top, _ in pairs], [dy.reshape(top.shape) for top, dy in pairs])
        else:
            net.backward()
        for key in net.inputs:
            result[f"d{key}"] = net.blobs[key].grad
    for layer, blobs in net.params.items():
        for index, blob in enumerate(blobs):
            result[f"dparam/{layer}/{index}"] = blob.grad
            result[f"param_after/{layer}/{index}"] = blob.detach()
    zeros = {key: torch.zeros(case[f"{key}_f64"].shape, dtype=dtype) for key in result if f"{key}_f64" in case}
    return {key: zero if result[key] is None else result[key].reshape(zero.shape) for key, zero in zeros.items()}, net


@pytest.mark.parametrize("name", names())
def test_layer_is_caffes(name):
    case = cases()[name]
    exact, net = run(name, torch.float64)
    shapes = {
        top: shape
        for step in net._made.steps
        for top, shape in zip(step.tops, step.layer.reshape(step.shapes), strict=True)
    }
    for blob, index in net._made.names.items():
        assert shapes.get(index, net.blobs[blob].shape) == net.blobs[blob].shape, (
            f"{blob}: the shape that the layer says"
        )
    kept = {key.removesuffix("_f64") for key in case if key.endswith("_f64")}
    assert kept
    assert kept <= set(exact)
    for key in sorted(kept):
        assert_close(exact[key], case[f"{key}_f64"], FLOAT64, key)
    rounded, _ = run(name, torch.float32)
    if any(layer.type in SUMMING for layer in net.layers.values()):
        terms, _ = run(name, torch.float64, magnitudes=True)
        most = max(int(np.prod(case[key].shape)) for key in net.inputs)  # no sum has more terms
        for key in sorted(kept):
            bound = len(net.layers) * U * math.sqrt(most) * float(terms[key].detach().abs().max())
            assert float((rounded[key].double() - exact[key]).detach().abs().max()) <= bound, key
        return
    for key in sorted(kept):
        caffes = case[f"{key}_error"] if f"{key}_error" in case else relative_error(case[key], case[f"{key}_f64"])
        allowed = 2 * float(caffes) + 3e-7
        assert relative_error(rounded[key], exact[key]) <= allowed, key


@pytest.mark.parametrize("name", DEVIATES)
def test_the_forks_broken_batch_norm_is_bvlcs(name):
    y = run(name, torch.float64)[0]["y"]
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(y.var((0, 2, 3), unbiased=False), torch.ones(4, dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "name",
    ["constant", "uniform", "xavier", "xavier_fan_out", "xavier_average", "positive_unitball", "bilinear"],
)
def test_filler_is_caffes(name):
    arrays = golden("fillers.npz")
    expected = arrays[f"{name}/w"]
    out, channels, kernel = expected.shape[0], expected.shape[1], expected.shape[2]
    body = f"""input: "x" input_shape {{ dim: 1 dim: {channels} dim: 9 dim: 9 }}
        layer {{ name: "c" type: "Convolution" bottom: "x" top: "y"
          convolution_param {{ num_output: {out} kernel_size: {kernel} bias_term: false weight_filler {{ {arrays[f"{name}/filler"]} }} }} }}"""
    rng = CaffeRNG(int(arrays["seed"]))
    net = Net(parse_prototxt(body, name), rng=rng)
    assert relative_error(net.params["c"][0], expected) <= 3.3e-7
    drawn = CaffeRNG(int(arrays["seed"]))
    drawn.skip(int(arrays[f"{name}/draws_used"]))
    assert rng.draw(1) == drawn.draw(1)


@pytest.mark.parametrize("name", ["gaussian", "msra", "msra_fan_out", "msra_average"])
def test_filler_has_caffes_distribution(name):
    arrays = golden("fillers.npz")
    mean, std, *_ = arrays[f"{name}/mean_std_min_max"]
    body = f"""input: "x" input_shape {{ dim: 1 dim: 10 dim: 9 dim: 9 }}
        layer {{ name: "c" type: "Convolution" bottom: "x" top: "y"
          convolution_param {{ num_output: 12 kernel_size: 3 bias_term: false weight_filler {{ {arrays[f"{name}/filler"]} }} }} }}"""
    weight = Net(parse_prototxt(body, name), seed=3).params["c"][0].detach()
    assert abs(float(weight.std()) - std) < 0.1 * std
    assert abs(float(weight.mean()) - mean) < 0.2 * std
    assert torch.equal(weight, Net(parse_prototxt(body, name), seed=3).params["c"][0])
    assert not torch.equal(weight, Net(parse_prototxt(body, name), seed=4).params["c"][0])


@pytest.mark.parametrize(
    ("param", "divisor"),
    [
        ("", 2),
        ("normalization: FULL", 6),
        ("normalization: VALID", 4),
        ("normalize: true", 4),
        ("normalization: NONE", 1),
    ],
)
def test_sigmoid_cross_entropy_leaves_out_ignored_targets(param, divisor):
    body = f"""input: "x" input_shape {{ dim: 2 dim: 3 }} input: "t" input_shape {{ dim: 2 dim: 3 }} layer {{ name: "l" type: "SigmoidCrossEntropyLoss"
        bottom: "x" bottom: "t" top: "loss" loss_param {{ ignore_label: -1 {param} }} }}"""
    x, target = torch.randn(2, 3), torch.tensor([[0.0, 1, -1], [-1, 1, 0]])
    loss = Net(parse_prototxt(body, "s"))(x=x, t=target)["loss"]
    terms = torch.nn.functional.binary_cross_entropy_with_logits(x, target, reduction="none")[target >= 0]
    assert float(loss) == pytest.approx(float(terms.sum()) / divisor, rel=1e-6)


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_a_batch_of_one_keeps_its_layout(phase):
    """Maps are channels_last; a batch of one in another layout would be copied by every convolution behind."""
    convolution = 'type: "Convolution" convolution_param { num_output: 4 kernel_size: 3 }'
    text = f"""
        input: "x" input_shape {{ dim: 1 dim: 3 dim: 9 dim: 9 }}
        layer {{ name: "c" bottom: "x" top: "c" {convolution} }}
        layer {{ name: "d" bottom: "c" top: "d" type: "Dropout" }}
        layer {{ name: "e" bottom: "c" top: "e" {convolution} }}
        layer {{ name: "p" bottom: "c" top: "p" type: "Pooling" pooling_param {{ kernel_size: 3 }} }}
        layer {{ name: "both" bottom: "d" bottom: "c" top: "both" type: "Concat" }}"""
    net = Net(parse_prototxt(text, "net"), phase=phase)
    net(x=torch.ones(1, 3, 9, 9))
    assert net.blobs["both"].requires_grad
    for name in ("c", "d", "both"):
        _, channels, height, width = net.blobs[name].shape
        assert net.blobs[name].stride() == (channels * height * width, 1, channels * width, channels), name

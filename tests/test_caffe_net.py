"""Caffe's own nets, as their files stand, against Caffe: maps, losses, gradients, and the test phase."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from caffe_nets import GRID, OTHERS, blob_key, first_pass, thin_inputs, thin_net
from conftest import golden
from float_rule import FLOAT64, Step, Truth, assert_within, peak, sampled
from thin_network import detached, inputs

from caffe_weights import parse_prototxt, read_caffemodel
from repro.caffe import Net


def expected64(variant: str, learnable) -> dict[str, np.ndarray]:
    """Reads Caffe's float64 maps, losses and gradients of a variant's first pass."""
    arrays = golden(f"net_thin_{variant}.npz")
    found = {
        name.removesuffix("_f64"): value for name, value in arrays.items() if name.endswith("_f64") and "/" not in name
    }
    for one in learnable:
        key = blob_key(one.layer, one.index)
        for name in (f"grad_f64_257/{key}", f"grad/{key}_f64"):
            if name in arrays:
                found[f"grad/{key}"] = arrays[name]
    return found


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "layer by layer"])
@pytest.mark.parametrize("variant", [*GRID, *OTHERS])
def test_first_pass_is_caffes_in_float64(variant, fuse):
    net = thin_net(variant, fuse=fuse)
    outputs = net(**thin_inputs(net))
    net.backward()
    expected = expected64(variant, net.learnable)
    gradients = {f"grad/{blob_key(one.layer, one.index)}": one.tensor.grad for one in net.learnable}
    compared = 0
    for name, value in expected.items():
        every4 = name.removesuffix("_every4")
        actual = (
            gradients[name]
            if name in gradients
            else net.blobs[every4][..., ::4, ::4]
            if every4 != name
            else net.blobs[name]
        )
        if actual is None:  # a fixed layer, for which Caffe computes no gradient
            assert not np.any(value)
            continue
        exact = torch.as_tensor(value, dtype=torch.float64)
        assert_within(sampled(actual, exact).reshape(exact.shape), exact, FLOAT64 * (peak(exact) or 1.0), name)
        compared += 1
    assert compared >= len([name for name in outputs if name.startswith("loss")]) >= 1
    trained = [one for one in net.learnable if one.lr_mult]
    assert all(one.tensor.grad is not None for one in trained)
    assert all(one.tensor.grad is None for one in net.learnable if not one.lr_mult)
    if variant in OTHERS:
        assert compared > len(trained)


@pytest.mark.parametrize("variant", ["aspp", "att3_dt", "msc_frozen", "resnet_max3_e"])
def test_first_pass_is_near_it_in_float32(variant):
    maps = {"att3_dt": ("fc8_fusion", "edge", "fc8_dt"), "resnet_max3_e": ("fc1", "fc_fusion")}
    Truth(first_pass(variant, maps.get(variant, ("fc8_fusion",)))).assert_holds_float32()


def test_dropout_masks_are_caffes():
    expected = golden("net_thin_dropout.npz")
    net = thin_net("dropout")
    losses = net(**thin_inputs(net))
    for name, value in losses.items():
        assert value.item() == pytest.approx(float(expected[f"solver/{name}_f64"][0]), rel=FLOAT64)
    again = net(**thin_inputs(net))
    assert again["loss"] != losses["loss"]  # the next masks


def test_phase_truth(variant: str) -> tuple[Truth, dict[str, np.ndarray]]:
    """Runs the test image through a variant's test net; returns that and Caffe's arrays by blob."""
    common = inputs()
    image = torch.tensor(common["test_image_u8"].astype(np.float32) - common["mean_bgr"].reshape(1, 3, 1, 1))
    size = torch.tensor([image.shape[2:]], dtype=torch.float32).reshape(1, 1, 1, 2)

    @torch.no_grad()
    def compute(dtype, device, arithmetic):
        net = thin_net(variant, dtype, "TEST")
        with arithmetic:
            net(**{name: {"data": image, "dim": size}[name] for name in net.inputs})
        renamed = {"fc8": "fc8_fusion", "fc8_interp": "fc8_fusion_interp"} if variant == "base" else {}
        maps = {renamed.get(name, name): value for name, value in net.blobs.items()}
        for name in [name for name in maps if name.endswith("_interp") and maps[name].shape[2:] == image.shape[2:]]:
            maps[f"{name}_every9"] = maps[name][..., 4::9, 4::9]
        if "fc8_dt" in maps:
            maps["fc8_dt_every4"] = maps["fc8_dt"][..., ::4, ::4]
        return [Step(detached(maps), {})]

    file, prefix = ("net_thin_test.npz", f"{variant}/") if variant in GRID else (f"net_thin_{variant}.npz", "test/")
    arrays = {name.removeprefix(prefix): v for name, v in golden(file).items() if name.startswith(prefix)}
    return Truth(compute), arrays


test_phase_truth.__test__ = False


@pytest.mark.parametrize("variant", ["base", "max2", "avg2", "att2", "max3", "avg3", "att3", *OTHERS])
def test_test_phase_is_caffes(variant):
    truth, arrays = test_phase_truth(variant)
    computed = truth.steps[0].forward
    exact = {n.removesuffix("_f64"): v for n, v in arrays.items() if n.endswith("_f64")}
    truth.assert_is_caffes([exact])
    rounded = {n: v for n, v in arrays.items() if n in computed and n not in exact}
    truth.assert_holds_caffes_float32([rounded], truth.bounds)
    assert exact or len(rounded) >= 2
    shown = next(name for name in arrays if name.endswith("argmax"))
    large = next(name for name in ("fc8_dt", "fc8_fusion_interp", "fc8_interp", "fc_fusion_interp") if name in computed)
    label = torch.tensor(arrays[shown]).long()[:, None]
    behind = computed[large].amax(1, keepdim=True) - computed[large].gather(1, label)
    assert behind.max() <= 2 * truth.bounds[large]  # a near-tie of two classes
    assert behind.count_nonzero() <= 1e-4 * behind.numel()


SCALED = """input: "x" input_shape { dim: 1 dim: 3 dim: 4 dim: 4 } force_backward: true
layer { name: "conv" type: "Convolution" bottom: "x" top: "y" convolution_param { num_output: 2 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "y" top: "z" }
layer { name: "sum" type: "Reduction" bottom: "z" top: "sum" loss_weight: 1 }"""


def test_blobs_are_there_before_a_pass_and_inputs_may_be_written_to():
    net = Net(parse_prototxt(SCALED, "net"), seed=1)
    assert {name: tuple(blob.shape) for name, blob in net.blobs.items()} == {
        "x": (1, 3, 4, 4),
        "y": (1, 2, 2, 2),
        "z": (1, 2, 2, 2),
        "sum": (),
    }
    gradients = []
    for value in (1.0, 1.0, 2.0):
        net.blobs["x"].data[...] = value
        assert net()["sum"] == Net(parse_prototxt(SCALED, "net"), seed=1)(x=torch.full((1, 3, 4, 4), value))["sum"]
        net.backward()
        gradients.append(net.blobs["x"].grad.clone())  # a sum would go on in the same tensor
    assert gradients[0].any()
    assert torch.equal(gradients[0], gradients[1])  # a pass's own, not the sum over passes


def test_a_net_moves_as_modules_do():
    net = Net(parse_prototxt(SCALED, "net"), seed=1)
    net.blobs["x"].data[...] = 1
    single = net()["sum"]
    outputs = net.double()()
    assert outputs["sum"].dtype == torch.float64
    assert outputs["sum"].item() == pytest.approx(single.item(), rel=1e-5)
    assert net(x=np.ones((2, 3, 4, 4), np.float32))["sum"].item() == pytest.approx(2 * single.item(), rel=1e-5)


def test_a_net_saved_after_surgery_is_read_back(tmp_path):
    net = Net(parse_prototxt(SCALED, "net"), seed=1)
    net.params["conv"][0].data[:, 0] = 0.5
    net.save(tmp_path / "new.caffemodel")
    again = Net(parse_prototxt(SCALED, "net"), tmp_path / "new.caffemodel", seed=2)
    assert torch.equal(again.params["conv"][0], net.params["conv"][0])
    assert [layer.name for layer in read_caffemodel(tmp_path / "new.caffemodel").layers] == ["conv", "relu", "sum"]

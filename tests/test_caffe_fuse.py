"""Joined layers: which ones, that the bits stay where the kernels promise them, and that blobs left out can be asked for."""

from __future__ import annotations

import pytest
import torch
from caffe_nets import prototxt, thin_inputs, thin_net

from caffe_weights import parse_prototxt
from repro.caffe import Net
from repro.caffe.layers.accuracy import ranked


def lines(body: str, phase: str = "TEST") -> tuple[Net, list[str]]:
    """Builds a net with fusing; returns it and what its log says of that."""
    said: list[str] = []
    net = Net(parse_prototxt(body, "net"), phase=phase, log=said.append)
    return net, [line for line in said if line.startswith("Fused")]


def both(body: str, phase: str = "TEST", **inputs) -> tuple[Net, Net]:
    """Runs a net fused and layer by layer on the same inputs."""
    nets = tuple(Net(parse_prototxt(body, "net"), phase=phase, fuse=fuse, seed=1) for fuse in (True, False))
    for net in nets:
        net(**inputs)
    return nets


def test_the_log_says_what_was_joined():
    said: list[str] = []
    Net(prototxt("net_thin_att3_e.prototxt"), phase="TRAIN", log=said.append)
    assert said[0].startswith("Fused relu_conv1_1, relu_conv1_2, relu_conv2_1")
    assert said[0].endswith("relu_att_conv1 into the convolutions before them, in place")
    assert said[1:] == [
        "Fused fc8_res075_interp, fc8_res05_interp, attention, slice_attention, fc8_product, fc8_res075_product, fc8_res05_product, fc8_fusion into merge_scores (attention)",
        "Fused label_shrink8, loss into segmentation_loss",
        "Fused label_shrink8, loss_res1 into segmentation_loss",
        "Fused fc8_res075_interp, label_shrink8, loss_res075 into segmentation_loss",
        "Fused label_shrink16, loss_res05 into segmentation_loss",
    ]
    said.clear()
    Net(prototxt("net_thin_att3_e.prototxt"), phase="TRAIN", fuse=False, log=said.append)
    assert not said


# Not of the average of three and attention: their kernels round sums and exponentials in their own way.
@pytest.mark.parametrize("variant", ["base", "max2_e", "max3", "avg2_e", "aspp"])
def test_bits_stay(variant):
    fused, plain = (thin_net(variant, torch.float32, fuse=fuse) for fuse in (True, False))
    for net in (fused, plain):
        net(**thin_inputs(net))
        net.backward()
    assert list(fused.blobs) == list(plain.blobs)
    assert fused.blobs.left_out
    assert not plain.blobs.left_out
    for name, blob in plain.blobs.items():
        assert torch.equal(fused.blobs[name], blob), name  # those left out are computed here
    for one, other in zip(fused.learnable, plain.learnable, strict=True):
        assert torch.equal(one.tensor.grad, other.tensor.grad), one.layer


def test_a_blob_left_out_is_computed_when_asked_for():
    net = thin_net("att3_e")
    net(**thin_inputs(net))
    assert "attention" in net.blobs
    assert "attention" in net.blobs.left_out
    weights = net.blobs["attention"]
    torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))
    assert not weights.requires_grad
    assert net.blobs["attention"] is weights
    assert "attention" not in net.blobs.left_out
    with pytest.raises(KeyError, match="nowhere"):
        net.blobs["nowhere"]


ARGMAX = """input: "x" input_shape { dim: 1 dim: 4 dim: 5 dim: 6 }
layer { name: "up" type: "Interp" bottom: "x" top: "up" interp_param { zoom_factor: 8 } }
layer { name: "label" type: "ArgMax" bottom: "up" top: "label" argmax_param { axis: 1 } }"""


def test_argmax_keeps_the_highest_of_equal_classes():
    x = torch.randint(0, 3, (1, 4, 5, 6)).float()
    _, said = lines(ARGMAX)
    assert said == ["Fused up, label into predict"]
    fused, plain = both(ARGMAX, x=x)
    assert torch.equal(fused.blobs["label"], plain.blobs["label"])
    large = plain.blobs["up"]
    tied = (large == large.amax(1, keepdim=True)).sum(1) > 1
    assert tied.any()
    assert torch.equal(fused.blobs["label"][:, 0].long(), ranked(large, 1, 1)[1][:, 0])
    assert not torch.equal(fused.blobs["label"][:, 0].long(), large.argmax(1))


LOSS = """input: "x" input_shape {{ dim: 2 dim: 3 dim: {side} dim: {side} }}
input: "label" input_shape {{ dim: 2 dim: 1 dim: {wide} dim: {wide} }}
layer {{ name: "small" type: "Interp" bottom: "label" top: "small" interp_param {{ shrink_factor: 4 }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "x" bottom: "small" top: "loss" loss_param {{ ignore_label: 255 {more} }} }}"""


def test_labels_that_a_factor_does_not_divide_are_mixed_as_caffe_does():
    labels = torch.full((2, 1, 15, 15), 2.0)  # 15 = 4 * 3 + 3: Interp reads between pixels
    x = torch.randn(2, 3, 4, 4)
    fused, plain = both(LOSS.format(side=4, wide=15, more=""), x=x, label=labels)
    assert torch.equal(fused.blobs["loss"], plain.blobs["loss"])


def test_labels_of_a_given_size_are_not_taken_for_shrunk_ones():
    body = LOSS.format(side=5, wide=13, more="").replace(
        "shrink_factor: 4", "shrink_factor: 4 zoom_factor: 1 height: 5 width: 5"
    )
    labels = torch.randint(0, 2, (2, 1, 13, 13)).float()  # 13 pixels become 5: every third
    fused, plain = both(body, x=torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1)), label=labels)
    assert torch.equal(fused.blobs["loss"], plain.blobs["loss"])


def test_other_normalizations_are_left_alone():
    _, said = lines(LOSS.format(side=4, wide=13, more="normalization: FULL"))
    assert said == []
    _, said = lines(LOSS.format(side=4, wide=13, more=""))
    assert said == ["Fused small, loss into segmentation_loss"]


MAX = """input: "a" input_shape { dim: 1 dim: 2 dim: 9 dim: 9 } input: "b" input_shape { dim: 1 dim: 2 dim: 5 dim: 5 }
layer { name: "up" type: "Interp" bottom: "b" top: "up" interp_param { zoom_factor: 2 } }
layer { name: "y" type: "Eltwise" bottom: "a" bottom: "up" top: "y" eltwise_param { operation: MAX } }"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("operation: MAX", "operation: SUM coeff: 0.5 coeff: 0.4"),
        ("operation: MAX", "operation: SUM"),
        ("zoom_factor: 2", "zoom_factor: 2 pad_beg: 0 pad_end: -1 height: 9 width: 9"),
        ('bottom: "b" top: "up"', 'bottom: "b" top: "up" propagate_down: false'),
    ],
)
def test_what_is_not_the_kernels_is_left_alone(old, new):
    net, said = lines(MAX)
    assert said == ["Fused up, y into merge_scores (max)"]
    net(a=torch.zeros(1, 2, 9, 9))
    assert net.blobs.left_out == ["up"]
    body = MAX.replace(old, new)
    if "pad_end" in new:  # 5 - 1 = 4 pixels become 7
        body = body.replace("dim: 9 dim: 9", "dim: 7 dim: 7")
    assert lines(body)[1] == []


def test_an_output_is_never_left_out():
    net, said = lines(MAX + ' layer { name: "z" type: "Silence" bottom: "y" }')
    assert said == ["Fused up, y into merge_scores (max)"]
    net, said = lines(MAX + ' layer { name: "keep" type: "Power" bottom: "up" top: "kept" }')
    assert said == ["Fused y into merge_scores (max)"]
    assert set(net(a=torch.zeros(1, 2, 9, 9))) == {"y", "kept"}
    assert not net.blobs.left_out


def test_maps_of_other_sizes_are_refused_at_run_time():
    net, _ = lines(MAX)
    with pytest.raises(ValueError, match=r"layer 'y' \(Eltwise\): its bottoms must have one shape; got \[1, 2, 8, 9\]"):
        net(a=torch.zeros(1, 2, 8, 9))

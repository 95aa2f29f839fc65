"""Prototxts of Caffe's older formats: what they become, and DeepLab v1's own words."""

from __future__ import annotations

import pytest
import torch

from caffe_weights import parse_prototxt
from repro.caffe import Net
from repro.caffe.upgrade import upgraded

V0 = """name: "old"
input: "data" input_dim: 1 input_dim: 3 input_dim: 12 input_dim: 12
layers { layer { name: "pad1" type: "padding" pad: 2 } bottom: "data" top: "pad1" }
layers {
  layer { name: "conv1" type: "conv" num_output: 4 kernelsize: 5 stride: 2 biasterm: false blobs_lr: 1. weight_decay: 1.
    weight_filler { type: "gaussian" std: 0.01 } }
  bottom: "pad1" top: "conv1" }
layers { layer { name: "relu1" type: "relu" } bottom: "conv1" top: "conv1" }
layers { layer { name: "pool1" type: "pool" pool: MAX kernelsize: 3 stride: 2 } bottom: "conv1" top: "pool1" }
layers { layer { name: "norm1" type: "lrn" local_size: 3 alpha: 0.1 beta: 0.5 } bottom: "pool1" top: "norm1" }
layers { layer { name: "drop" type: "dropout" dropout_ratio: 0.25 } bottom: "norm1" top: "norm1" }
layers { layer { name: "fc" type: "innerproduct" num_output: 5 blobs_lr: 1. blobs_lr: 2. weight_decay: 1. weight_decay: 0. } bottom: "norm1" top: "fc" }
layers { layer { name: "prob" type: "softmax" } bottom: "fc" top: "prob" }
"""


def test_v0_becomes_v2():
    net = Net(parse_prototxt(V0, "old.prototxt"))
    assert {name: layer.type for name, layer in net.layers.items()} == {
        "conv1": "Convolution",
        "relu1": "ReLU",
        "pool1": "Pooling",
        "norm1": "LRN",
        "drop": "Dropout",
        "fc": "InnerProduct",
        "prob": "Softmax",
    }
    conv, norm = net.layers["conv1"], net.layers["norm1"].lrn
    assert (conv.pad, conv.kernel, conv.stride, len(conv.blobs)) == ((2, 2), (5, 5), (2, 2), 1)
    assert (norm.local_size, round(norm.alpha, 6), norm.beta) == (3, 0.1, 0.5)
    assert net.layers["drop"].ratio == 0.25
    assert [(one.layer, one.lr_mult, one.decay_mult) for one in net.learnable] == [
        ("conv1", 1, 1),
        ("fc", 1, 1),
        ("fc", 2, 0),
    ]
    assert net(data=torch.randn(1, 3, 12, 12))["prob"].shape == (1, 5)


V1 = """name: "${NET_ID}"
input: "data" input_dim: 2 input_dim: 3 input_dim: 33 input_dim: 33
input: "label" input_dim: 2 input_dim: 1 input_dim: 33 input_dim: 33
layers { bottom: "data" top: "conv1" name: "conv1" type: CONVOLUTION blobs_lr: 1 blobs_lr: 2 weight_decay: 1 weight_decay: 0
  param: "w" param: "b" convolution_param { num_output: 4 pad: 2 hole: 2 kernel_size: 3 weight_filler { type: "xavier" } } }
layers { bottom: "conv1" top: "conv1" name: "relu" type: RELU }
layers { bottom: "data" top: "conv2" name: "conv2" type: CONVOLUTION param: "w" param: "b" blob_share_mode: PERMISSIVE
  convolution_param { num_output: 4 pad: 1 kernel_size: 3 } }
layers { bottom: "conv1" top: "pool" name: "pool" type: POOLING pooling_param { pool: MAX kernel_size: 3 stride: 2 pad: 1 } }
layers { bottom: "conv2" name: "quiet" type: SILENCE }
layers { bottom: "pool" top: "fc8_${EXP}" name: "fc8_${EXP}" type: CONVOLUTION strict_dim: false blobs_lr: 10 blobs_lr: 20
  convolution_param { num_output: ${NUM_LABELS} kernel_size: 1 weight_filler { type: "gaussian" std: 0.01 } } }
layers { bottom: "label" top: "label_shrink" name: "label_shrink" type: INTERP interp_param { shrink_factor: 2 pad_beg: 0 pad_end: 0 } }
layers { name: "loss" type: SOFTMAX_LOSS bottom: "fc8_${EXP}" bottom: "label_shrink" softmaxloss_param { ignore_label: 255 } include: { phase: TRAIN } }
layers { name: "accuracy" type: SEG_ACCURACY bottom: "fc8_${EXP}" bottom: "label_shrink" top: "accuracy" seg_accuracy_param { ignore_label: 255 } }
layers { bottom: "fc8_${EXP}" top: "up" name: "up" type: INTERP interp_param { zoom_factor: 2 } include: { phase: TEST } }
"""
DEFINES = {"NET_ID": "v1", "EXP": "voc12", "NUM_LABELS": "5"}


def test_deeplab_v1_runs():
    net = Net(parse_prototxt(V1, "v1.prototxt", DEFINES), phase="TRAIN", seed=1)
    assert net.name == "v1"
    assert net.layers["fc8_voc12"].conv.num_output == 5
    assert net.layers["conv1"].dilation == (2, 2)
    assert net.params["conv1"][0] is net.params["conv2"][0]
    assert [(one.layer, one.lr_mult, one.decay_mult) for one in net.learnable] == [
        ("conv1", 1, 1),
        ("conv1", 2, 0),
        ("fc8_voc12", 10, 1),
        ("fc8_voc12", 20, 1),
    ]
    label = torch.randint(0, 5, (2, 1, 33, 33))
    label[:, :, :9] = 255
    out = net(data=torch.randn(2, 3, 33, 33), label=label)
    assert set(out) == {"accuracy"}  # the loss has no top of its own, as in the authors' files
    assert net.loss() > 0
    net.backward()
    assert all(one.tensor.grad.any() for one in net.learnable)
    assert "up" in Net(parse_prototxt(V1, "v1.prototxt", DEFINES)).outputs


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("DENSE_CRF", "DenseCRF"),
        ("MAT_WRITE", "MatWrite"),
        ("IMAGE_SEG_DATA", "ImageSegData"),
        ("BIAS_CHANNEL", "BiasChannel"),
        ("UNIQUE_LABEL", "UniqueLabel"),
        ("PADDING", "Padding"),
        ("SIGMOID_CROSS_ENTROPY_LOSS", "SigmoidCrossEntropyLoss"),
        ("LRN", "LRN"),
    ],
)
def test_v1_words(word, kind):
    net = upgraded(parse_prototxt(f'layers {{ name: "a" type: {word} }}', "f"), "f")
    assert net["layer"][0].one("type") == kind


ARGMAX = 'layers { name: "s" type: ARGMAX bottom: "x" top: "y" %s }'
INPUT = 'input: "x" input_dim: 2 input_dim: 3 input_dim: 2 input_dim: 5 '


def test_deeplab_v1s_argmax_ranks_the_channels_of_every_position():
    scores = torch.randn(2, 3, 2, 5)
    shrunk = ' layers { name: "up" type: INTERP bottom: "y" top: "z" interp_param { zoom_factor: 1 } }'
    found = Net(parse_prototxt(INPUT + ARGMAX % "argmax_param { top_k: 1 out_max_val: false }" + shrunk, "f"))(x=scores)
    assert torch.equal(found["z"], scores.argmax(1, keepdim=True).float())
    whole = Net(parse_prototxt(INPUT + ARGMAX % "", "f"))(x=scores)["y"]  # Caffe's own
    assert torch.equal(whole.flatten(), scores.flatten(1).argmax(1).float())
    with pytest.raises(ValueError, match=r"f: line 1: DeepLab v1's ARGMAX must be without out_max_val"):
        Net(parse_prototxt(INPUT + ARGMAX % "argmax_param { out_max_val: true }" + shrunk, "f"))


OWN = 'image_data_param { source: "s" scale: 2 mirror: true crop_size: 5 } transform_param { crop_size: 7 mean_value: 3 } }'


def test_an_older_data_layers_own_transform_moves():
    """Over what stands there, as in Caffe; files of the present format, and ImageSegData, keep theirs."""
    text = f'layers {{ name: "d" type: IMAGE_DATA {OWN}'
    layer = upgraded(parse_prototxt(text, "f"), "f")["layer"][0]
    assert layer.one("image_data_param") == {"source": ["s"]}
    assert layer.one("transform_param") == {"crop_size": [5], "scale": [2], "mirror": [True], "mean_value": [3]}
    given = parse_prototxt(text, "f")
    upgraded(given, "f")
    assert given == parse_prototxt(text, "f")  # what was read is left as it is
    for kept in (f'layers {{ name: "d" type: IMAGE_SEG_DATA {OWN}', f'layer {{ name: "d" type: "ImageData" {OWN}'):
        layer = upgraded(parse_prototxt(kept, "f"), "f")["layer"][0]
        assert layer.one("image_data_param") == {"source": ["s"], "scale": [2], "mirror": [True], "crop_size": [5]}
        assert layer.one("transform_param") == {"crop_size": [7], "mean_value": [3]}


def test_messages_of_an_older_format_keep_their_lines():
    text = 'layers {\n name: "a"\n type: CONVOLUTION\n convolution_param {\n  numoutput: 3 } }'
    with pytest.raises(
        ValueError,
        match=r"f: line 5: a field of ConvolutionParameter must be one of Caffe's; got 'numoutput'; did you mean num_output\?",
    ):
        Net(parse_prototxt(text, "f"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'layers { name: "a" type: RELU }\nlayer { name: "b" type: "ReLU" }',
            "line 2: a net must write its layers as `layers` or as `layer`; got both",
        ),
        (
            'layers { layer { name: "a" type: "relu" } }\nlayers { name: "b" type: RELU }',
            "line 2: all layers must be in one format; got V0 and V1",
        ),
        ("layers: 3", "line 1: layers must be a message; got 3"),
        (
            'layers {\nlayer { name: "a" type: "relu"\n stride: 2 } }',
            "line 3: a layer of type 'relu' must have no stride; got one",
        ),
        (
            'layers {\nlayer { name: "a" type: "relu"\n strde: 2 } }',
            "line 3: a field of a V0 layer must be one of Caffe's; got 'strde'",
        ),
        (
            'layers { layer { name: "p" type: "padding" pad: 1 } }',
            "line 1: a padding layer must have one bottom and one top; got others",
        ),
        (
            'layers { layer { name: "p" type: "padding" pad: 1 } bottom: "x" top: "p" }\nlayers { layer { name: "a" type: "relu" } bottom: "p" top: "a" }',
            "line 2: only a conv or pool layer with one bottom may follow padding; got 'relu'",
        ),
    ],
)
def test_what_cannot_be_upgraded(text, message):
    with pytest.raises(ValueError, match=f"f: {message}"):
        Net(parse_prototxt(text, "f"))

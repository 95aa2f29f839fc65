"""Files as people have them: BVLC's classics and DeepLab's own, in their syntax at tiny width, and a real model of the time."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.io
import torch
from conftest import GOLDEN, golden
from torch.nn import functional as F

from caffe_weights import parse_prototxt
from repro.caffe import Net


def build(text: str, phase: str = "TEST", **options) -> Net:
    """Builds a net from text."""
    return Net(parse_prototxt(text, "net.prototxt"), phase=phase, seed=1, **options)


def test_lenets_syntax():
    net = build(
        """name: "LeNet"
layer { name: "data" type: "Input" top: "data" input_param { shape: { dim: 4 dim: 1 dim: 28 dim: 28 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" param { lr_mult: 1 } param { lr_mult: 2 }
  convolution_param { num_output: 3 kernel_size: 5 stride: 1 weight_filler { type: "xavier" } bias_filler { type: "constant" } } }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "ip1" type: "InnerProduct" bottom: "pool1" top: "ip1" inner_product_param { num_output: 8 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "ip1" top: "ip1" }
layer { name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2" inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip2" bottom: "label" top: "accuracy" include { phase: TRAIN stage: "never" } }
layer { name: "prob" type: "Softmax" bottom: "ip2" top: "prob" }"""
    )
    x = torch.rand(4, 1, 28, 28)
    prob = net(data=x)["prob"]
    (w, b), (w1, b1), (w2, b2) = (net.params[name] for name in ("conv1", "ip1", "ip2"))
    y = F.max_pool2d(F.conv2d(x, w, b), 2, ceil_mode=True).flatten(1)
    torch.testing.assert_close(prob, torch.softmax(F.linear(F.relu(F.linear(y, w1, b1)), w2, b2), 1))


def test_caffenets_syntax():
    net = build(
        """name: "CaffeNet" input: "data" input_shape { dim: 2 dim: 3 dim: 67 dim: 67 }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 6 kernel_size: 11 stride: 4 weight_filler { type: "gaussian" std: 0.01 } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "norm1" type: "LRN" bottom: "pool1" top: "norm1" lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 } }
layer { name: "conv2" type: "Convolution" bottom: "norm1" top: "conv2" convolution_param { num_output: 8 pad: 2 kernel_size: 5 group: 2 } }
layer { name: "fc6" type: "InnerProduct" bottom: "conv2" top: "fc6" inner_product_param { num_output: 9 weight_filler { type: "gaussian" std: 0.005 } } }
layer { name: "drop6" type: "Dropout" bottom: "fc6" top: "fc6" dropout_param { dropout_ratio: 0.5 } }
layer { name: "prob" type: "Softmax" bottom: "fc6" top: "prob" }"""
    )
    assert net.blobs["conv1"].shape == (2, 6, 15, 15)  # before any pass
    net(data=torch.randn(2, 3, 67, 67))
    assert {name: tuple(net.blobs[name].shape) for name in ("conv1", "pool1", "norm1", "conv2")} == {
        "conv1": (2, 6, 15, 15),
        "pool1": (2, 6, 7, 7),
        "norm1": (2, 6, 7, 7),
        "conv2": (2, 8, 7, 7),
    }
    assert net.params["conv2"][0].shape == (8, 3, 5, 5)


def inception(name: str, bottom: str) -> str:
    """Writes one of GoogLeNet's modules: names with slashes, blobs read four times, Concat."""

    def conv(part: str, source: str, kernel: int, pad: int) -> str:
        blob = f"{name}/{part}"
        return f"""layer {{ name: "{blob}" type: "Convolution" bottom: "{source}" top: "{blob}" param {{ lr_mult: 1 decay_mult: 1 }}
          convolution_param {{ num_output: 2 pad: {pad} kernel_size: {kernel} weight_filler {{ type: "xavier" }} bias_filler {{ type: "constant" value: 0.2 }} }} }}
          layer {{ name: "{name}/relu_{part}" type: "ReLU" bottom: "{blob}" top: "{blob}" }}"""

    parts = [
        conv("1x1", bottom, 1, 0),
        conv("3x3_reduce", bottom, 1, 0),
        conv("3x3", f"{name}/3x3_reduce", 3, 1),
        f'layer {{ name: "{name}/pool" type: "Pooling" bottom: "{bottom}" top: "{name}/pool" pooling_param {{ pool: MAX kernel_size: 3 stride: 1 pad: 1 }} }}',
        conv("pool_proj", f"{name}/pool", 1, 0),
        f'layer {{ name: "{name}/output" type: "Concat" bottom: "{name}/1x1" bottom: "{name}/3x3" bottom: "{name}/pool_proj" top: "{name}/output" }}',
    ]
    return "\n".join(parts)


def test_googlenets_syntax_with_its_auxiliary_loss():
    net = build(
        'name: "GoogleNet" input: "data" input_dim: 2 input_dim: 3 input_dim: 15 input_dim: 15 '
        'input: "label" input_dim: 2 input_dim: 1 input_dim: 1 input_dim: 1\n'
        + inception("inception_3a", "data")
        + inception("inception_3b", "inception_3a/output")
        + """
layer { name: "loss1/ave_pool" type: "Pooling" bottom: "inception_3a/output" top: "loss1/ave_pool" pooling_param { pool: AVE kernel_size: 5 stride: 3 } }
layer { name: "loss1/classifier" type: "InnerProduct" bottom: "loss1/ave_pool" top: "loss1/classifier" inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "loss1/loss" type: "SoftmaxWithLoss" bottom: "loss1/classifier" bottom: "label" top: "loss1/loss1" loss_weight: 0.3 }
layer { name: "pool5" type: "Pooling" bottom: "inception_3b/output" top: "pool5" pooling_param { pool: AVE global_pooling: true } }
layer { name: "loss3/classifier" type: "InnerProduct" bottom: "pool5" top: "loss3/classifier" inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "loss3/loss3" type: "SoftmaxWithLoss" bottom: "loss3/classifier" bottom: "label" top: "loss3/loss3" loss_weight: 1 }
layer { name: "loss3/top-1" type: "Accuracy" bottom: "loss3/classifier" bottom: "label" top: "loss3/top-1" include { phase: TEST } }
layer { name: "loss3/top-2" type: "Accuracy" bottom: "loss3/classifier" bottom: "label" top: "loss3/top-2" include { phase: TEST } accuracy_param { top_k: 2 } }""",
        "TRAIN",
        dtype=torch.float64,
    )
    out = net(data=torch.randn(2, 3, 15, 15), label=torch.tensor([1, 3]).reshape(2, 1, 1, 1))
    assert set(out) == {"loss1/loss1", "loss3/loss3"}
    weight = float(torch.tensor(0.3))  # Caffe's floats are float32
    torch.testing.assert_close(net.loss(), weight * out["loss1/loss1"] + out["loss3/loss3"], rtol=1e-14, atol=0)
    net.backward()
    assert all(one.tensor.grad.abs().sum() > 0 for one in net.learnable if one.index == 0)


def test_a_model_of_the_time_runs(tmp_path):
    # MTCNN's first net, whose layers without parameters have other names in the file.
    net = build(
        """name: "PNet" input: "data" input_dim: 1 input_dim: 3 input_dim: 12 input_dim: 12
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param { num_output: 10 kernel_size: 3 stride: 1 weight_filler { type: "xavier" } } }
layer { name: "PReLU1" type: "PReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2" convolution_param { num_output: 16 kernel_size: 3 } }
layer { name: "PReLU2" type: "PReLU" bottom: "conv2" top: "conv2" }
layer { name: "conv3" type: "Convolution" bottom: "conv2" top: "conv3" convolution_param { num_output: 32 kernel_size: 3 } }
layer { name: "PReLU3" type: "PReLU" bottom: "conv3" top: "conv3" }
layer { name: "conv4-1" type: "Convolution" bottom: "conv3" top: "conv4-1" convolution_param { num_output: 2 kernel_size: 1 } }
layer { name: "conv4-2" type: "Convolution" bottom: "conv3" top: "conv4-2" convolution_param { num_output: 4 kernel_size: 1 } }
layer { name: "prob1" type: "Softmax" bottom: "conv4-1" top: "prob1" }""",
        weights=GOLDEN / "caffemodels/det1.caffemodel",
    )
    out = net(data=torch.rand(1, 3, 24, 24) * 2 - 1)  # fully convolutional: another size than the file's
    assert {name: tuple(blob.shape) for name, blob in out.items()} == {"conv4-2": (1, 4, 7, 7), "prob1": (1, 2, 7, 7)}
    torch.testing.assert_close(out["prob1"].sum(1), torch.ones(1, 7, 7))
    assert net.params["PReLU1"][0].std() > 0  # the file's, not the filler's 0.25


TEST_NET = """name: "${NET_ID}"
layers { name: "in" type: DUMMY_DATA top: "data" dummy_data_param { shape { dim: 1 dim: 3 dim: 17 dim: 17 } data_filler { type: "uniform" min: -100 max: 100 } } include: { phase: TEST } }
layers { name: "dim" type: DUMMY_DATA top: "data_dim" dummy_data_param { shape { dim: 1 dim: 1 dim: 1 dim: 2 } data_filler { value: 17 } } }
layers { bottom: "data" top: "fc8_${EXP}" name: "fc8_${EXP}" type: CONVOLUTION convolution_param { num_output: ${NUM_LABELS} kernel_size: 3 pad: 1 stride: 8 weight_filler { type: "xavier" } } }
layers { bottom: "fc8_${EXP}" top: "fc8_interp" name: "fc8_interp" type: INTERP interp_param { zoom_factor: 8 } }
layers { name: "fc8_mat" type: MAT_WRITE bottom: "fc8_interp" mat_write_param { prefix: "${FEATURE_DIR}/${TEST_SET}/fc8/" source: "${EXP}/list/${TEST_SET}_id.txt" strip: 0 period: 1 } include: { phase: TEST } }
"""
DEFINES = {"NET_ID": "n", "EXP": "voc12", "NUM_LABELS": "4", "FEATURE_DIR": "features", "TEST_SET": "val"}


def test_deeplabs_test_net_writes_what_its_scripts_read(tmp_path):
    (tmp_path / "voc12/list").mkdir(parents=True)
    (tmp_path / "voc12/list/val_id.txt").write_text("2007_000033\n2007_000042\n")
    (tmp_path / "features/val/fc8").mkdir(parents=True)
    net = Net(parse_prototxt(TEST_NET, "test.prototxt", DEFINES), root=tmp_path, seed=1)
    for name in ("2007_000033", "2007_000042"):
        net()
        data = scipy.io.loadmat(tmp_path / f"features/val/fc8/{name}_blob_0.mat")["data"]
        assert data.shape == (17, 17, 4)[: data.ndim] + (1,) * (data.ndim - 3)  # (W, H, C, N), as MATLAB counts
        scores = torch.from_numpy(data.reshape(17, 17, 4)).permute(2, 1, 0)[None]
        assert torch.equal(scores, net.blobs["fc8_interp"])
    with pytest.raises(
        ValueError, match=r"layer 'fc8_mat' \(MatWrite\): its source must list a name for every pass; it has 2; got 3"
    ):
        net()


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "a/../../b"])
def test_a_list_cannot_lead_out_of_the_prefixs_folder(tmp_path, name):
    (tmp_path / "voc12/list").mkdir(parents=True)
    (tmp_path / "voc12/list/val_id.txt").write_text(f"{name}\n")
    with pytest.raises(ValueError, match="must list names within the prefix's folder; got"):
        Net(parse_prototxt(TEST_NET, "test.prototxt", DEFINES), root=tmp_path)


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"test.prototxt: line 6: layer 'fc8_mat': source must be a file; got .*val_id.txt"
    ):
        Net(parse_prototxt(TEST_NET, "test.prototxt", DEFINES), root=tmp_path)


CRF = """input: "scores" input_shape { dim: 2 dim: 3 dim: 12 dim: 16 } input: "dim" input_shape { dim: 2 dim: 1 dim: 1 dim: 2 }
input: "image" input_shape { dim: 2 dim: 3 dim: 12 dim: 16 }
layer { name: "crf" type: "DenseCRF" bottom: "scores" bottom: "dim" bottom: "image" top: "crf"
  dense_crf_param { max_iter: 2 pos_w: 3 pos_xy_std: 3 bi_w: 5 bi_xy_std: 50 bi_rgb_std: 10 } }"""


def test_crf_takes_every_kernel_from_the_first_image(monkeypatch):
    monkeypatch.setenv("REPRO_REFERENCE", "1")
    scores, image = torch.randn(2, 3, 12, 16), torch.randint(0, 256, (2, 3, 12, 16)).float()
    sizes = torch.tensor([[20.0, 16.0], [9.0, 11.0]]).reshape(2, 1, 1, 2)
    y = build(CRF)(scores=scores, dim=sizes, image=image)["crf"]
    alone = torch.tensor([9.0, 11.0]).reshape(1, 1, 1, 2)

    def second(picture):
        return build(CRF)(scores=scores[1:], dim=alone, image=picture)["crf"][0]

    assert torch.equal(y[1], second(image[:1]))  # Caffe forgets the item's offset
    assert not torch.equal(y[1], second(image[1:]))
    assert not y[1, :, 9:].any()
    assert not y[1, :, :, 11:].any()
    torch.testing.assert_close(y[0].sum(0), torch.ones(12, 16))
    log = build(CRF.replace("max_iter", "output_probability: false max_iter"))(scores=scores, dim=sizes, image=image)[
        "crf"
    ]
    torch.testing.assert_close(log[0].exp(), y[0])


def test_crf_of_a_padded_batch_is_caffes_bit_for_bit():
    arrays = {k.removeprefix("batch2_padded/"): v for k, v in golden("dense_crf_large.npz").items() if "batch2" in k}
    scores = torch.tensor(arrays["unary_x8_i8"]).float() / 8
    sizes = torch.tensor(arrays["dim"]).float().reshape(2, 1, 1, 2)
    body = CRF.replace("max_iter: 2", "max_iter: 5")  # the inputs bring sizes of their own
    y = build(body)(scores=scores, dim=sizes, image=torch.tensor(arrays["image_bgr_u8"]).float())["crf"]
    assert np.array_equal(y.numpy(), arrays["prob"])

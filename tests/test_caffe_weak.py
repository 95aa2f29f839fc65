"""DeepLab v1's layers Padding, UniqueLabel and BiasChannel, by hand: its own results are not at hand."""

import pytest
import torch

from caffe_weights import parse_prototxt
from repro.caffe import Net

IMAGE = 'input: "x" input_dim: 2 input_dim: %d input_dim: 4 input_dim: 5\n'


def net(kind: str, param: str, channels: int = 1, **options) -> Net:
    text = IMAGE % channels + f'layers {{ name: "a" type: {kind} bottom: "x" top: "y" {param} }}'
    return Net(parse_prototxt(text, "f"), **options)


@pytest.mark.parametrize(("begin", "end"), [(2, 1), (0, 3), (-1, -2), (-1, 0), (0, 0)])
def test_padding_puts_zeros_around_or_cuts(begin, end):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    y = net("PADDING", f"padding_param {{ pad_beg: {begin} pad_end: {end} }}", 3, dtype=torch.float64)(x=x)["y"]
    expected = torch.zeros(2, 3, 4 + begin + end, 5 + begin + end, dtype=torch.float64)
    for row in range(expected.shape[2]):
        for column in range(expected.shape[3]):
            if 0 <= row - begin < 4 and 0 <= column - begin < 5:
                expected[:, :, row, column] = x.detach()[:, :, row - begin, column - begin]
    assert torch.equal(y, expected)
    y.backward(torch.ones_like(y))
    kept = slice(max(0, -begin), 4 + min(0, end)), slice(max(0, -begin), 5 + min(0, end))
    inside = torch.zeros_like(x)
    inside[:, :, kept[0], kept[1]] = 1
    assert torch.equal(x.grad, inside)


@pytest.mark.parametrize(
    ("kind", "param", "channels", "message"),
    [
        ("PADDING", "padding_param { pad_beg: 1 pad_end: -1 }", 1, "must not have opposite signs; got 1 and -1"),
        ("PADDING", "padding_param { pad_beg: -2 pad_end: -2 }", 1, r"must leave a row and a column; got \[0, 1\]"),
        ("UNIQUE_LABEL", "", 3, r"its labels must have one channel; got \[2, 3, 4, 5\]"),
        (
            "UNIQUE_LABEL",
            "unique_label_param { max_labels: 2 force_label: 0 force_label: 7 }",
            1,
            "max_labels must exceed the 2 of force_label; got 2",
        ),
    ],
)
def test_one_line_for_what_does_not_fit(kind, param, channels, message):
    with pytest.raises(ValueError, match=r"f: line 2: layer 'a' \(\w+\): .*" + message) as failure:
        net(kind, param, channels)
    assert "\n" not in str(failure.value)


def labels() -> torch.Tensor:
    x = torch.full((2, 1, 4, 5), 255.0)
    x[0, 0, 0, :3] = torch.tensor([15.0, 0.0, 7.0])
    x[1, 0, 2, 2] = 7
    return x


def test_unique_labels_ascend_and_are_filled_up():
    y = net("UNIQUE_LABEL", "unique_label_param { max_labels: 4 ignore_label: 255 }")(x=labels())["y"]
    assert y.shape == (2, 4, 1, 1)
    assert y.flatten(1).tolist() == [[0, 7, 15, -1], [7, -1, -1, -1]]
    forced = net("UNIQUE_LABEL", "unique_label_param { max_labels: 4 ignore_label: 255 force_label: 0 }")(x=labels())
    assert forced["y"].flatten(1).tolist() == [[0, 7, 15, -1], [0, 7, -1, -1]]
    with pytest.raises(ValueError, match=r"max_labels must hold the 3 labels of an image; got 2; raise max_labels"):
        net("UNIQUE_LABEL", "unique_label_param { max_labels: 2 ignore_label: 255 }")(x=labels())


WEAK = """input: "scores" input_dim: 2 input_dim: 21 input_dim: 4 input_dim: 5
input: "label" input_dim: 2 input_dim: 1 input_dim: 4 input_dim: 5
layers { name: "weak" type: UNIQUE_LABEL bottom: "label" top: "weak" unique_label_param { max_labels: 5 ignore_label: 255 } }
layers { name: "m" type: CONVOLUTION bottom: "scores" top: "m" convolution_param { num_output: 21 kernel_size: 1 weight_filler { type: "xavier" } } }
layers { name: "biased" type: BIAS_CHANNEL bottom: "m" bottom: "weak" top: "biased" bias_channel_param { bg_bias: 30 fg_bias: 50 ignore_label: 255 } }
layers { name: "estep" type: ARGMAX bottom: "biased" top: "estep" argmax_param { out_max_val: false top_k: 1 } }
layers { name: "loss" type: SOFTMAX_LOSS bottom: "m" bottom: "estep" softmaxloss_param { ignore_label: 255 } }
"""


def test_training_with_the_labels_that_an_image_has():
    """Expectation-maximisation: the scores of an image's own labels are raised, and what then wins is what is trained."""
    trained = Net(parse_prototxt(WEAK, "f"), phase="TRAIN", seed=1)
    trained(scores=torch.randn(2, 21, 4, 5), label=labels())
    assert {int(v) for v in trained.blobs["estep"][0].unique()} <= {7, 15}
    assert {int(v) for v in trained.blobs["estep"][1].unique()} == {7}
    loss = torch.nn.functional.cross_entropy(trained.blobs["m"], trained.blobs["estep"][:, 0].long())
    torch.testing.assert_close(trained.loss().reshape(()).float(), loss)
    trained.backward()
    assert trained.learnable[0].tensor.grad.any()

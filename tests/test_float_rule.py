"""The rule of tests/float_rule.py: orders of summation keep the bound, near-ties may fall either way, and errors are caught (slow)."""

import re

import pytest
import test_layers
import test_merge_scores
import thin_network as thin
import torch
from conftest import golden
from float_rule import Step, Truth, assert_within, sampled
from test_network import caffe_steps
from torch.nn import functional as F

from repro.models import attention, largefov
from repro.ops import merge_scores

STEPS = 3


def conv(x, weight, bias):
    return torch.conv2d(x, weight, bias, [1, 1], [1, 1], [1, 1], 1)


ORDERS = {
    "nchw": lambda x, w, b: conv(x, w, b),
    "nhwc": lambda x, w, b: conv(x.contiguous(memory_format=torch.channels_last), w, b),
    "reversed": lambda x, w, b: conv(x.flip(1), w.flip(1), b),
    "split": lambda x, w, b: conv(x[:, :5], w[:, :5], b) + conv(x[:, 5:], w[:, 5:], 0 * b),
    "one at a time": lambda x, w, b: sum(
        conv(x[:, c : c + 1], w[:, c : c + 1], b if c == 0 else 0 * b) for c in range(32)
    ),
}


@pytest.mark.parametrize("onednn", [False, True], ids=["gemm", "onednn"])
def test_every_order_of_summation_keeps_the_bound(onednn):
    torch.manual_seed(1)
    x, w, b, dy = torch.rand(2, 32, 25, 25), torch.randn(16, 32, 3, 3), torch.randn(16), torch.randn(2, 16, 25, 25)

    def run(order):
        def compute(dtype, device, arithmetic):
            leaves = [t.to(dtype, copy=True).requires_grad_() for t in (x, w, b)]
            with arithmetic:
                y = order(*leaves)
                y.backward(dy.to(dtype))
            return [Step({"y": y.detach()}, {f"d{name}": leaf.grad for name, leaf in zip("xwb", leaves, strict=True)})]

        return compute

    truth = Truth(run(conv))
    enabled = torch.backends.mkldnn.set_flags(onednn)[0]
    for order in ORDERS.values():
        truth.compute = run(order)
        truth.assert_holds_float32()
    torch.backends.mkldnn.set_flags(enabled)


def tied(shift):
    """A ReLU at 1e-9, the difference of two numbers of 0.1, which float32 sees moved by `shift`."""
    weight, bias = torch.tensor([0.1, -0.1]).reshape(1, 2, 1, 1), torch.tensor([1e-9])

    def compute(dtype, device, arithmetic):
        w, b = weight.to(dtype, copy=True).requires_grad_(), bias.to(dtype)
        with arithmetic:
            y = F.relu(
                torch.conv2d(torch.ones(1, 2, 1, 1, dtype=dtype), w, b, [1, 1], [0, 0], [1, 1], 1)
                + (shift if dtype == torch.float32 else 0)
            )
            y.sum().backward()
        return [Step({"y": y.detach()}, {"dw": w.grad})]

    return compute


def test_near_ties_may_fall_either_way_and_others_may_not():
    truth = Truth(tied(-2e-9))
    truth.assert_holds_float32()
    truth._decision_bounds[0] = 4e-10
    message = "decision 0, step 0: candidates 1.00e-09 apart in float64 changed places; rounding moves them by 4.00e-10"
    with pytest.raises(AssertionError, match=f"^{re.escape(message)}"):
        truth.assert_holds_float32()
    with pytest.raises(AssertionError, match=r"^step 0, y, decided as in float64: error 1\.00e-03, bound"):
        Truth(tied(1e-3)).assert_holds_float32()


def test_what_is_not_finite_or_has_another_shape_is_refused():
    one = torch.ones(2, dtype=torch.float64)
    with pytest.raises(AssertionError, match="error nan"):
        assert_within(torch.tensor([1.0, torch.nan]), one, 1.0, "x")
    with pytest.raises(AssertionError, match=r"x: shape \(3,\), expected \(2,\)"):
        assert_within(torch.ones(3), one, 1.0, "x")
    assert sampled(torch.arange(15).reshape(3, 5), torch.zeros(3)).tolist() == [0, 5, 10]


def test_a_run_must_decide_as_often_as_float64_did():
    truth = Truth(tied(0))
    truth.decisions *= 2
    with pytest.raises(AssertionError, match="1 decisions, 2 in float64"):
        truth.assert_holds_float32()


def without_bias(name):
    """One layer forgets its bias."""

    def make(*settings):
        network = PLAIN(*settings)
        layer = network.convolutions()[name]
        layer._conv_forward = lambda x, w, b: type(layer)._conv_forward(layer, x, w, b * 0)
        return network

    return lambda patch: patch.setattr(thin, "thin_network", make)


def scaled_gradient(name):
    """One layer's gradients are too large by a thousandth."""

    def make(*settings):
        network = PLAIN(*settings)
        for parameter in network.convolutions()[name].parameters():
            parameter.register_hook(lambda gradient: gradient * (1 + 1e-3))
        return network

    return lambda patch: patch.setattr(thin, "thin_network", make)


def labels_one_pixel_off(patch):
    batch = thin.batch

    def moved(*settings):
        data, labels = batch(*settings)
        return data, labels.roll(1, 2)

    patch.setattr(thin, "batch", moved)


def divisor_without_the_padding(patch):
    patch.setattr(largefov, "ave_pool", lambda x: F.avg_pool2d(x, 3, 1, padding=1, count_include_pad=False))


def scales_in_another_order(patch):
    forward = attention.Attention.forward
    patch.setattr(attention.Attention, "forward", lambda self, f: forward(self, [f[0], *f[:0:-1]]))


def decayed_biases(patch):
    solver = thin.thin_solver

    def make(network, **more):
        made = solver(network, **more)
        made._decay = [made._decay[0]] * len(made._decay)
        return made

    patch.setattr(thin, "thin_solver", make)


PLAIN = thin.thin_network
MUTATIONS = {
    **{f"bias of {name}": without_bias(name) for name in ("conv1_1", "conv4_2", "fc8", "att_conv1")},
    **{
        f"gradient of {name}": scaled_gradient(name)
        for name in ("conv1_1", "conv4_2", "fc7", "fc8", "att_conv1", "att_fc")
    },
    "label": labels_one_pixel_off,
    "pool5a": divisor_without_the_padding,
    "order of scales": scales_in_another_order,
    "decay": decayed_biases,
}


@pytest.fixture(scope="module")
def truth():
    truth = Truth(thin.solver_run("att3_e", STEPS))
    assert truth.bounds
    return truth


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_an_error_is_caught_in_float64_and_in_float32(truth, mutation, monkeypatch):
    caffe = caffe_steps(golden("net_thin_att3_e.npz"), 10, "_f64")[:STEPS]
    truth.assert_is_caffes(caffe)
    truth.assert_holds_float32()
    MUTATIONS[mutation](monkeypatch)
    wrong = Truth(thin.solver_run("att3_e", STEPS))
    with pytest.raises(AssertionError, match=r"^step \d, .*: error"):
        wrong.assert_is_caffes(caffe)
    monkeypatch.setattr(truth, "compute", wrong.compute)
    with pytest.raises(AssertionError, match=r"^step \d, .*: error"):
        truth.assert_holds_float32()


@pytest.mark.slow
def test_a_wrong_tie_rule_of_pooling_is_caught(monkeypatch):
    case = "max_s1_ties", torch.contiguous_format, "cpu"
    test_layers.test_pooling_equals_caffe(*case)
    right = test_layers.max_pool
    monkeypatch.setattr(test_layers, "max_pool", lambda x, stride: right(x.flip(2, 3), stride).flip(2, 3))
    with pytest.raises(AssertionError, match=r"^max_s1_ties/dx(_f64)?: relative error"):
        test_layers.test_pooling_equals_caffe(*case)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["max_s3_ties_same_size", "max_s4_ties_same_size"])
def test_a_wrong_tie_rule_of_the_maximum_is_caught(case):
    def wrong(scores, logits, mode):
        return merge_scores([scores[1], scores[0], *scores[2:]], logits, mode)

    check = test_merge_scores.test_ties_of_max_go_where_caffe_sends_them
    check(merge_scores, case, "cpu")
    with pytest.raises(AssertionError):
        check(wrong, case, "cpu")

"""Caffe's solver: rates by hand, twenty steps of three runs against Caffe, clipping by hand."""

import numpy as np
import pytest
import torch
from conftest import golden
from float_rule import Step, Truth, U
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from repro.models.layers import convolution
from repro.ops import segmentation_loss
from repro.solver.lr_policy import learning_rate, rate_drops
from repro.solver.sgd import Solver

CAFFE = golden("solver.npz")
TABLE = {
    "base_lr": 0.02,
    "gamma": 0.1,
    "stepsize": 8,
    "power": 0.9,
    "max_iter": 20,
    "momentum": 0.9,
    "weight_decay": 0.0005,
    "clip_gradients": 0.0,
}
RUNS = {"step_iter1": ("step", 1), "step_iter3": ("step", 3), "poly_iter1": ("poly", 1)}


class Net(nn.Module):
    """solver_net.prototxt of the golden data."""

    def __init__(self):
        super().__init__()
        self.conv1 = convolution(3, 6, 3)
        self.conv2 = convolution(6, 5, 3, dilation=2)
        self.fc8 = convolution(5, 4, 1)

    def forward(self, x):
        return self.fc8(F.relu(self.conv2(F.relu(self.conv1(x)))))


@pytest.mark.parametrize("run", RUNS)
def test_twenty_steps_equal_caffe(run, device):
    policy, iter_size = RUNS[run]
    table = TABLE | {"lr_policy": policy, "iter_size": iter_size}

    def compute(dtype, device, arithmetic):
        net = Net().to(device=device, dtype=dtype)
        layers = dict(net.named_children())
        with torch.no_grad():
            for name, layer in layers.items():
                layer.weight.copy_(torch.tensor(CAFFE[f"init/{name}/w"]))
                layer.bias.copy_(torch.tensor(CAFFE[f"init/{name}/b"]))
        solver = Solver(layers, table, {"conv1": (1, 2), "conv2": (1, 2), "fc8": (10, 20)}, (1, 0))
        steps = []
        with arithmetic:
            for step in range(20):
                solver.zero_grad()
                micro = []
                for t in range(step * iter_size, (step + 1) * iter_size):
                    data = torch.tensor(CAFFE["data"][t]).to(device=device, dtype=dtype)
                    labels = torch.tensor(CAFFE["label"][t][:, 0]).to(device).to(torch.uint8)
                    micro.append(segmentation_loss(net(data), labels, 1))
                    micro[-1].backward()
                backward = named("grad_sum", {name: p.grad for name, p in net.named_parameters()})
                assert solver.step() == learning_rate(table, step)
                backward |= named("history", solver.history)
                arithmetic.end_step(net.parameters())
                backward |= named("params", dict(net.named_parameters()))
                steps.append(Step({"loss_micro": torch.stack(micro).detach()}, backward))
        return steps

    truth = Truth(compute)
    names = list(truth.bounds)
    assert len(names) == 1 + 3 * 6
    assert sum(f"{run}/{name}_f64" in CAFFE for name in names) == 1 + 6  # twins are kept of losses and parameters
    for suffix, check in (("_f64", truth.assert_is_caffes), ("", truth.assert_holds_caffes_float32)):
        kept = {name: CAFFE[f"{run}/{name}{suffix}"] for name in names if f"{run}/{name}{suffix}" in CAFFE}
        caffe = [{name: arrays[t] for name, arrays in kept.items()} for t in range(20)]
        check(caffe, device if suffix else truth.bounds)
    truth.assert_holds_float32(device)


def named(what, tensors):
    """Copies tensors under the golden data's names: params/conv1/w."""
    return {f"{what}/{name.split('.')[0]}/{name.split('.')[1][0]}": t.detach().clone() for name, t in tensors.items()}


@pytest.mark.parametrize("run", RUNS)
def test_rates_are_caffes_to_the_last_bit(run):
    table = TABLE | {"lr_policy": RUNS[run][0]}
    rates = np.array([learning_rate(table, step) for step in range(20)])
    assert np.array_equal(rates, CAFFE[f"{run}/lr_f64"])
    assert np.abs(rates - CAFFE[f"{run}/lr"]).max() <= U * rates[0]


def test_rates_by_hand():
    step = TABLE | {"lr_policy": "step", "base_lr": 1e-3, "stepsize": 2000}
    assert [learning_rate(step, i) for i in (0, 1999, 2000, 5999)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5])
    assert learning_rate(TABLE | {"lr_policy": "poly"}, 10) == pytest.approx(0.02 * 0.5**0.9)
    assert learning_rate(TABLE | {"lr_policy": "fixed"}, 10) == pytest.approx(0.02)
    exp = TABLE | {"lr_policy": "exp", "gamma": 0.5}
    assert [learning_rate(exp, i) for i in range(3)] == pytest.approx([0.02, 0.01, 0.005])
    inv = TABLE | {"lr_policy": "inv", "gamma": 0.5, "power": 2.0}
    assert [learning_rate(inv, i) for i in (0, 2, 6)] == pytest.approx([0.02, 0.005, 0.00125])
    sigmoid = TABLE | {"lr_policy": "sigmoid", "gamma": 0.25, "stepsize": 8}
    assert learning_rate(sigmoid, 8) == pytest.approx(0.01)
    assert learning_rate(sigmoid, 12) == pytest.approx(0.02 / (1 + np.exp(-1.0)))
    assert learning_rate(sigmoid | {"gamma": 1e30}, 0) == 0.0  # exp overflows, as in C
    with pytest.raises(ValueError, match=r'lr_policy must be "fixed", .* "poly" or "sigmoid"; got .plateau.'):
        learning_rate(TABLE | {"lr_policy": "plateau"}, 0)


def test_rates_beyond_float64_are_infinite_or_nan_as_in_c():
    assert learning_rate(TABLE | {"lr_policy": "exp", "gamma": 10.0}, 400) == np.inf
    assert np.isnan(learning_rate(TABLE | {"lr_policy": "poly"}, 21))  # a negative base with the power 0.9
    assert learning_rate(TABLE | {"lr_policy": "inv", "gamma": -1.0, "power": 1.0}, 1) == np.inf
    nothing = TABLE | {"lr_policy": "poly", "max_iter": 0}
    assert np.isnan(learning_rate(nothing, 0))  # 1 - 0 / 0
    assert learning_rate(nothing, 1) == np.inf  # (1 - 1 / 0)^0.9


def test_a_multistep_rate_drops_once_an_iteration():
    table = TABLE | {"lr_policy": "multistep", "stepvalue": [3, 5, 5], "gamma": 0.5}
    drops, rates = 0, []
    for iteration in range(8):
        drops = rate_drops(table, iteration, drops)
        rates.append(learning_rate(table, iteration, drops) / float(np.float32(0.02)))
    assert rates == [1, 1, 1, 0.5, 0.5, 0.25, 0.125, 0.125]  # Caffe tests one stepvalue an iteration
    assert rate_drops(TABLE | {"lr_policy": "step"}, 17, 0) == 2


@pytest.mark.parametrize(("limit", "factor"), [(0.0, 1.0), (100.0, 1.0), (2.5, 0.5)])
def test_clipping_acts_on_the_norm_of_the_whole_sum_before_iter_size_and_decay(limit, factor):
    layer = convolution(1, 1, 1)
    with torch.no_grad():
        layer.weight.fill_(10.0)
        layer.bias.fill_(0.0)
    table = TABLE | {"lr_policy": "fixed", "iter_size": 2, "clip_gradients": limit, "base_lr": 1.0, "momentum": 0.0}
    solver = Solver({"fc8": layer}, table, {"fc8": (1, 2)}, (1, 0))
    layer.weight.grad, layer.bias.grad = torch.full_like(layer.weight, 3.0), torch.full_like(layer.bias, 4.0)  # norm 5
    solver.step()
    assert layer.weight.item() == pytest.approx(10 - (3 * factor / 2 + 0.0005 * 10), rel=1e-6)
    assert layer.bias.item() == pytest.approx(-2 * 4 * factor / 2, rel=1e-6)


def test_history_keeps_the_old_rate_when_the_rate_drops():
    layer = convolution(1, 1, 1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
    table = TABLE | {
        "lr_policy": "step",
        "stepsize": 1,
        "iter_size": 1,
        "weight_decay": 0.0,
        "base_lr": 1.0,
        "momentum": 0.5,
    }
    solver = Solver({"fc8": layer}, table, {"fc8": (1, 1)}, (0, 0))
    for gradient in (1.0, 0.0):
        layer.weight.grad, layer.bias.grad = torch.full_like(layer.weight, gradient), torch.zeros_like(layer.bias)
        solver.step()
    assert layer.weight.item() == pytest.approx(-1.5)  # torch.optim.SGD would give -1.05
    assert np.isclose(solver.history["fc8.weight"].item(), 0.5)


class Calls(TorchDispatchMode):
    """Names the operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.append(operator.overloadpacket.__name__)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("iter_size", [1, 2])
def test_an_update_takes_one_call_for_all_parameters(iter_size):
    """On a GPU each of these calls is a launch or a few, however many layers there are."""
    called = []
    for count in (1, 20):
        layers = {f"conv{n}": convolution(2, 3, 3) for n in range(count)}
        table = TABLE | {"lr_policy": "fixed", "iter_size": iter_size}
        solver = Solver(layers, table, dict.fromkeys(layers, (1, 2)), (1, 0))
        for parameter in solver.parameters:
            torch.nn.init.ones_(parameter)
            parameter.grad = torch.ones_like(parameter)
        with Calls() as calls:
            solver.step()
        called.append(calls.names)
    decay = ["_foreach_mul", "_foreach_add_"]
    momentum = ["_foreach_mul_", "_foreach_mul_", "_foreach_add_"]
    assert called == [["_foreach_mul_"] * (iter_size > 1) + decay + momentum + ["_foreach_sub_"]] * 2


def test_a_missing_gradient_is_named():
    solver = Solver(
        {"fc8": convolution(1, 1, 1)}, TABLE | {"lr_policy": "fixed", "iter_size": 1}, {"fc8": (1, 1)}, (1, 0)
    )
    with pytest.raises(
        RuntimeError, match=r"Solver\.step: every parameter must have a gradient; got none for fc8\.weight, fc8\.bias"
    ):
        solver.step()


def test_a_layer_of_rate_0_is_left_as_it_is_with_its_momentum():
    net = Net()
    layers = dict(net.named_children())
    with torch.no_grad():
        for name, layer in layers.items():
            layer.weight.copy_(torch.tensor(CAFFE[f"init/{name}/w"]))
            layer.bias.copy_(torch.tensor(CAFFE[f"init/{name}/b"]))
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    table = TABLE | {"lr_policy": "fixed", "iter_size": 1, "clip_gradients": 0.1}
    solver = Solver(layers, table, {"conv1": (0, 0), "conv2": (0, 2), "fc8": (10, 20)}, (1, 0))
    for step in range(3):
        solver.zero_grad()
        labels = torch.tensor(CAFFE["label"][step][:, 0]).to(torch.uint8)
        segmentation_loss(net(torch.tensor(CAFFE["data"][step])), labels, 1).backward()
        solver.step()
    fixed = {"conv1.weight", "conv1.bias", "conv2.weight"}
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == (name in fixed)
        assert torch.equal(parameter, before[name]) == (name in fixed)
        assert bool(solver.history[name].any()) == (name not in fixed)
    assert list(solver.history) == list(before)
    with pytest.raises(ValueError, match=r"a layer must be trained; got lr_mult 0 for all; raise model.lr_mult or"):
        Solver(layers, table, dict.fromkeys(layers, (0, 0)), (1, 0))

"""Caffe's solver: rates by hand, twenty steps of three runs against Caffe, clipping by hand."""

import numpy as np
import pytest
import torch
from conftest import assert_close, golden
from torch import nn
from torch.nn import functional as F

from repro.models.layers import convolution
from repro.ops import segmentation_loss
from repro.solver.sgd import Solver, learning_rate

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
# Between Caffe's float32 and float64 runs, as tests/golden/README.md states.
ERRORS = {
    "step_iter1": {"params": 2.6e-07, "history": 2.0e-07, "grad_sum": 1.8e-07},
    "step_iter3": {"params": 1.8e-07, "history": 1.7e-07, "grad_sum": 1.5e-07},
    "poly_iter1": {"params": 1.7e-07, "history": 1.7e-07, "grad_sum": 1.6e-07},
}


class Net(nn.Module):
    """solver_net.prototxt of the golden data."""

    def __init__(self):
        super().__init__()
        self.conv1 = convolution(3, 6, 3)
        self.conv2 = convolution(6, 5, 3, dilation=2)
        self.fc8 = convolution(5, 4, 1)

    def forward(self, x):
        return self.fc8(F.relu(self.conv2(F.relu(self.conv1(x)))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("run", RUNS)
def test_twenty_steps_equal_caffe(run, dtype, device):
    suffix = "" if dtype == torch.float32 else "_f64"
    policy, iter_size = RUNS[run]
    net = Net().to(device=device, dtype=dtype)
    layers = dict(net.named_children())
    with torch.no_grad():
        for name, layer in layers.items():
            layer.weight.copy_(torch.tensor(CAFFE[f"init/{name}/w"]))
            layer.bias.copy_(torch.tensor(CAFFE[f"init/{name}/b"]))
    solver = Solver(
        layers,
        TABLE | {"lr_policy": policy, "iter_size": iter_size},
        {"conv1": (1, 2), "conv2": (1, 2), "fc8": (10, 20)},
        (1, 0),
    )

    got: dict[str, list] = {}

    def keep(what, tensors):
        for name, tensor in tensors.items():
            layer, blob = name.split(".")
            got.setdefault(f"{what}/{layer}/{blob[0]}", []).append(tensor.detach().cpu().numpy().copy())

    micro, rates = [], []
    for step in range(20):
        solver.zero_grad()
        micro.append([])
        for t in range(step * iter_size, (step + 1) * iter_size):
            data = torch.tensor(CAFFE["data"][t]).to(device=device, dtype=dtype)
            loss = segmentation_loss(net(data), torch.tensor(CAFFE["label"][t][:, 0]).to(device).to(torch.uint8), 1)
            loss.backward()
            micro[-1].append(loss.item())
        keep("grad_sum", {name: parameter.grad for name, parameter in net.named_parameters()})
        rates.append(solver.step())
        keep("history", solver.history)
        keep("params", dict(net.named_parameters()))
    assert_close(micro, CAFFE[f"{run}/loss_micro{suffix}"], 1e-10 if suffix else 3 * 4.2e-07, "loss_micro")
    assert_close(rates, CAFFE[f"{run}/lr{suffix}"], 1e-10 if suffix else 3 * 4.6e-08, "lr")
    compared = [name for name in got if f"{run}/{name}{suffix}" in CAFFE]
    assert len(compared) == (6 if suffix else len(got))  # float64 twins are kept of the parameters
    for name in compared:
        assert_close(
            np.stack(got[name]),
            CAFFE[f"{run}/{name}{suffix}"],
            1e-10 if suffix else 3 * ERRORS[run][name.split("/")[0]],
            name,
        )


def test_rates_by_hand():
    step = TABLE | {"lr_policy": "step", "base_lr": 1e-3, "stepsize": 2000}
    assert [learning_rate(step, i) for i in (0, 1999, 2000, 5999)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5])
    assert learning_rate(TABLE | {"lr_policy": "poly"}, 10) == pytest.approx(0.02 * 0.5**0.9)
    assert learning_rate(TABLE | {"lr_policy": "fixed"}, 10) == pytest.approx(0.02)
    with pytest.raises(ValueError, match='lr_policy must be "fixed", "step" or "poly"; got \'inv\''):
        learning_rate(TABLE | {"lr_policy": "inv"}, 0)


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


def test_a_missing_gradient_is_named():
    solver = Solver(
        {"fc8": convolution(1, 1, 1)}, TABLE | {"lr_policy": "fixed", "iter_size": 1}, {"fc8": (1, 1)}, (1, 0)
    )
    with pytest.raises(
        RuntimeError, match=r"Solver\.step: every parameter must have a gradient; got none for fc8\.weight, fc8\.bias"
    ):
        solver.step()

"""Caffe's six solvers against their formulas, written out number by number."""

import math

import numpy as np
import pytest
import torch

from caffe_weights.nets.prototxt import parse_prototxt
from repro.caffe.net import Learnable
from repro.caffe.proto import typed
from repro.caffe.solver_rules import RULES
from repro.caffe.update import Update
from repro.models.layers import convolution
from repro.solver.sgd import Solver

BASE = 'base_lr: 0.1 lr_policy: "fixed" weight_decay: 0.01 '


def parameter(text: str):
    return typed(parse_prototxt(BASE + text, "s"), "SolverParameter", "s")


def f32(value: float) -> float:
    return float(np.float32(value))


def learnables(values, lr=(1.0, 2.0), decay=(1.0, 0.0), dtype=torch.float64):
    return [
        Learnable("fc", i, torch.nn.Parameter(torch.tensor(v, dtype=dtype)), lr[i], decay[i])
        for i, v in enumerate(values)
    ]


START = [[1.0, -2.0, 0.5], [0.25]]
GRADIENTS = [[[0.5, -1.0, 2.0], [0.125]], [[-0.25, 0.75, 1.5], [-1.0]], [[0.0, 0.5, -3.0], [0.5]]]


def sgd(p, state, g, rate, t):
    state["v"] = f32(0.9) * state.get("v", 0.0) + rate * g
    return p - state["v"]


def nesterov(p, state, g, rate, t):
    before = state.get("v", 0.0)
    state["v"] = f32(0.9) * before + rate * g
    return p - ((1 + f32(0.9)) * state["v"] - f32(0.9) * before)


def adagrad(p, state, g, rate, t):
    state["h"] = state.get("h", 0.0) + g * g
    return p - rate * g / (math.sqrt(state["h"]) + f32(1e-8))


def rmsprop(p, state, g, rate, t):
    state["h"] = f32(0.95) * state.get("h", 0.0) + (1 - f32(0.95)) * g * g
    return p - rate * g / (math.sqrt(state["h"]) + f32(1e-8))


def adadelta(p, state, g, rate, t):
    state["h"] = f32(0.9) * state.get("h", 0.0) + (1 - f32(0.9)) * g * g
    u = g * math.sqrt((f32(1e-6) + state.get("k", 0.0)) / (f32(1e-6) + state["h"]))
    state["k"] = f32(0.9) * state.get("k", 0.0) + (1 - f32(0.9)) * u * u
    return p - rate * u


def adam(p, state, g, rate, t):
    b1, b2 = f32(0.9), f32(0.99)
    state["m"] = b1 * state.get("m", 0.0) + (1 - b1) * g
    state["v"] = b2 * state.get("v", 0.0) + (1 - b2) * g * g
    return p - rate * math.sqrt(1 - b2**t) / (1 - b1**t) * state["m"] / (math.sqrt(state["v"]) + f32(1e-8))


CASES = {
    "SGD": ("momentum: 0.9", sgd, ["v"]),
    "Nesterov": ("momentum: 0.9", nesterov, ["v"]),
    "AdaGrad": ("", adagrad, ["h"]),
    "RMSProp": ("rms_decay: 0.95", rmsprop, ["h"]),
    "AdaDelta": ("momentum: 0.9 delta: 1e-6", adadelta, ["h", "k"]),
    "Adam": ("momentum: 0.9 momentum2: 0.99", adam, ["m", "v"]),
}


def test_every_rule_is_tested():
    assert CASES.keys() == RULES.keys()


@pytest.mark.parametrize("kind", CASES)
def test_three_steps_by_hand(kind):
    text, rule, names = CASES[kind]
    param = parameter(text + " iter_size: 2")
    entries = learnables(START)
    update = Update(param, kind, entries)
    expected = [list(values) for values in START]
    states = [[{} for _ in values] for values in START]
    for t, gradients in enumerate(GRADIENTS):
        for entry, values in zip(entries, gradients, strict=True):
            entry.tensor.grad = torch.tensor(values, dtype=torch.float64)
        assert update.apply(t) == f32(0.1)
        for i, (lr, decay) in enumerate(((1.0, 1.0), (2.0, 0.0))):
            for j, g in enumerate(gradients[i]):
                p = expected[i][j]
                regular = g / 2 + f32(0.01) * decay * p  # summed over iter_size passes, then the decay
                expected[i][j] = rule(p, states[i][j], regular, f32(0.1) * lr, t + 1)
    for entry, values in zip(entries, expected, strict=True):
        np.testing.assert_allclose(entry.tensor.detach(), values, rtol=1e-13)
    # Caffe's history: the first kind of every parameter, then the second of every parameter
    kept = [[state[name] for state in of_blob] for name in names for of_blob in states]
    assert len(update.history) == len(kept)
    for value, by_hand in zip(update.history, kept, strict=True):
        np.testing.assert_allclose(value, by_hand, rtol=1e-13)


def test_sgd_has_the_bits_of_the_protocols_solver():
    torch.manual_seed(1)
    layers = {"conv1": convolution(3, 4, 3), "fc8": convolution(4, 2, 1)}
    for layer in layers.values():  # what is not filled yet may be NaN
        torch.nn.init.normal_(layer.weight)
        torch.nn.init.normal_(layer.bias)
    table = {"base_lr": 0.01, "lr_policy": "step", "gamma": 0.1, "stepsize": 2, "momentum": 0.9, "weight_decay": 0.0005}
    other = Solver(layers, table | {"clip_gradients": 1.0, "iter_size": 3}, {"conv1": (1, 2), "fc8": (10, 20)}, (1, 0))
    text = 'momentum: 0.9 lr_policy: "step" base_lr: 0.01 gamma: 0.1 stepsize: 2 weight_decay: 0.0005 clip_gradients: 1 iter_size: 3'
    param = typed(parse_prototxt(text, "s"), "SolverParameter", "s")
    blobs = [(name, i) for name in layers for i in range(2)]
    lr = {"conv1": (1.0, 2.0), "fc8": (10.0, 20.0)}
    entries = [
        Learnable(name, i, torch.nn.Parameter(p.detach().clone()), lr[name][i], (1.0, 0.0)[i])
        for (name, i), p in zip(blobs, other.parameters, strict=True)
    ]
    update = Update(param, "SGD", entries)
    for t in range(5):
        for p, entry in zip(other.parameters, entries, strict=True):
            p.grad = torch.randn(p.shape)
            entry.tensor.grad = p.grad.clone()
        assert other.step() == update.apply(t)
    for p, entry in zip(other.parameters, entries, strict=True):
        assert torch.equal(p, entry.tensor)
    assert all(map(torch.equal, other.history.values(), update.history))


def test_l1_pulls_by_the_sign():
    entries = learnables([[2.0, -3.0, 0.0]], lr=(1.0,), decay=(2.0,))
    entries[0].tensor.grad = torch.zeros(3, dtype=torch.float64)
    Update(parameter('regularization_type: "L1"'), "SGD", entries).apply(0)
    pull = f32(0.1) * f32(0.01) * 2
    np.testing.assert_allclose(entries[0].tensor.detach(), [2 - pull, -3 + pull, 0.0], rtol=1e-13)


@pytest.mark.parametrize(
    ("limit", "factor"),
    [("", 1.0), ("clip_gradients: 100", 1.0), ("clip_gradients: 2.5", 0.5), ("clip_gradients: 0", 0.0)],
)
def test_clipping_says_what_it_does(limit, factor, capsys):
    entries = learnables([[0.0], [0.0]], lr=(1.0, 1.0))
    entries[0].tensor.grad = torch.tensor([3.0], dtype=torch.float64)
    entries[1].tensor.grad = torch.tensor([4.0], dtype=torch.float64)
    Update(parameter(limit), "SGD", entries).apply(0)
    np.testing.assert_allclose(entries[0].tensor.detach(), [-f32(0.1) * 3 * factor], rtol=1e-13)
    text = "] Gradient clipping: scaling down gradients (L2 norm 5 > "
    assert (text in capsys.readouterr().err) == (factor != 1)


def test_a_frozen_parameter_moves_by_a_restored_momentum_alone():
    entries = learnables([[1.0], [1.0]], lr=(0.0, 1.0), decay=(1.0, 1.0))
    entries[1].tensor.grad = torch.zeros(1, dtype=torch.float64)
    update = Update(parameter("momentum: 0.5"), "SGD", entries)
    update.apply(0)
    assert entries[0].tensor.item() == 1.0
    update.restore([torch.tensor([0.25]), torch.tensor([0.0])], 0)
    update.apply(1)
    update.apply(2)
    assert entries[0].tensor.item() == 1.0 - 0.125 - 0.0625


def test_a_frozen_parameters_squares_grow_by_the_decay_as_in_caffe():
    entries = learnables([[2.0], [1.0]], lr=(0.0, 1.0), decay=(1.0, 1.0))
    entries[1].tensor.grad = torch.zeros(1, dtype=torch.float64)
    update = Update(parameter(""), "AdaGrad", entries)
    update.apply(0)
    assert entries[0].tensor.item() == 2.0
    assert update.history[0].item() == pytest.approx((f32(0.01) * 2) ** 2)


def test_the_log_tells_the_rate_and_the_steps(capsys):
    entries = learnables([[1.0]], lr=(1.0,), decay=(0.0,))
    update = Update(
        typed(
            parse_prototxt('base_lr: 0.001 lr_policy: "multistep" gamma: 0.1 stepvalue: 1 display: 2', "s"),
            "SolverParameter",
            "s",
        ),
        "SGD",
        entries,
    )
    for t in range(3):
        entries[0].tensor.grad = torch.zeros(1, dtype=torch.float64)
        update.apply(t)
    lines = [line.partition("] ")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["Iteration 0, lr = 0.001", "MultiStep Status: Iteration 1, step = 1", "Iteration 2, lr = 0.0001"]
    assert update.current_step == 1

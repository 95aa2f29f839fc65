"""Caffe's six solvers: what each makes of a gradient that is clipped, divided by iter_size and regularized.

Every rule takes

- gradients: one tensor for every learnable parameter, in Caffe's order; they may be overwritten;
- history: Caffe's history_, updated in place: one tensor for every parameter, for Adam and AdaDelta a second one for each behind all the first;
- rates: the learning rate times lr_mult, of every parameter;
- solver: the SolverParameter; iteration: counted from 0;

and returns what is subtracted from the parameters.

Caffe: include/caffe/sgd_solvers.hpp and src/caffe/solvers/*_solver.cpp, ComputeUpdateValue.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from repro.caffe.proto import Typed
from repro.solver.lr_policy import float32
from repro.solver.sgd import momentum_update

Tensors = list[torch.Tensor]
Rule = Callable[[Tensors, Tensors, list[float], Typed, int], Tensors]


def sgd(gradients: Tensors, history: Tensors, rates: list[float], solver: Typed, iteration: int) -> Tensors:
    """Computes v = momentum * v + rate * g and returns v."""
    momentum_update(gradients, history, rates, float32(solver.momentum))
    return history


def nesterov(gradients: Tensors, history: Tensors, rates: list[float], solver: Typed, iteration: int) -> Tensors:
    """Computes v as SGD does and returns (1 + momentum) * v - momentum * v_before."""
    momentum = float32(solver.momentum)
    back = torch._foreach_mul(history, momentum)
    momentum_update(gradients, history, rates, momentum)
    update = torch._foreach_mul(history, 1.0 + momentum)
    torch._foreach_sub_(update, back)
    return update


def adagrad(gradients: Tensors, history: Tensors, rates: list[float], solver: Typed, iteration: int) -> Tensors:
    """Computes h = h + g**2 and returns rate * g / (sqrt(h) + delta)."""
    torch._foreach_addcmul_(history, gradients, gradients)
    return _divided_by_root(gradients, history, rates, solver)


def rmsprop(gradients: Tensors, history: Tensors, rates: list[float], solver: Typed, iteration: int) -> Tensors:
    """Computes h = rms_decay * h + (1 - rms_decay) * g**2 and returns rate * g / (sqrt(h) + delta)."""
    _decaying_square(history, gradients, float32(solver.rms_decay))
    return _divided_by_root(gradients, history, rates, solver)


def adadelta(gradients: Tensors, history: Tensors, rates: list[float], solver: Typed, iteration: int) -> Tensors:
    """Computes h = momentum * h + (1 - momentum) * g**2, u = g * sqrt((delta + k) / (delta + h)), k = momentum * k + (1 - momentum) * u**2; returns rate * u."""
    of_gradients, of_updates = history[: len(gradients)], history[len(gradients) :]
    delta, momentum = float32(solver.delta), float32(solver.momentum)
    _decaying_square(of_gradients, gradients, momentum)
    ratio = torch._foreach_add(of_updates, delta)
    torch._foreach_div_(ratio, torch._foreach_add(of_gradients, delta))
    torch._foreach_sqrt_(ratio)
    torch._foreach_mul_(gradients, ratio)
    _decaying_square(of_updates, gradients, momentum)
    torch._foreach_mul_(gradients, rates)
    return gradients


def adam(gradients: Tensors, history: Tensors, rates: list[float], solver: Typed, iteration: int) -> Tensors:
    """Computes m = momentum * m + (1 - momentum) * g and v = momentum2 * v + (1 - momentum2) * g**2.

    Returns rate * sqrt(1 - momentum2**t) / (1 - momentum**t) * m / (sqrt(v) + delta), with t = iteration + 1.
    """
    mean, square = history[: len(gradients)], history[len(gradients) :]
    beta1, beta2 = float32(solver.momentum), float32(solver.momentum2)
    t = iteration + 1
    correction = math.sqrt(1.0 - math.pow(beta2, t)) / (1.0 - math.pow(beta1, t))
    torch._foreach_mul_(mean, beta1)
    torch._foreach_add_(mean, torch._foreach_mul(gradients, 1.0 - beta1))
    _decaying_square(square, gradients, beta2)
    return _divided_by_root(mean, square, [rate * correction for rate in rates], solver)


def _decaying_square(history: Tensors, values: Tensors, decay: float) -> None:
    """Computes history = decay * history + (1 - decay) * values**2 in place."""
    torch._foreach_mul_(history, decay)
    torch._foreach_add_(history, torch._foreach_mul(torch._foreach_mul(values, values), 1.0 - decay))


def _divided_by_root(values: Tensors, squares: Tensors, rates: list[float], solver: Typed) -> Tensors:
    """Returns rate * value / (sqrt(square) + delta)."""
    root = torch._foreach_sqrt(squares)
    torch._foreach_add_(root, float32(solver.delta))
    update = torch._foreach_div(values, root)
    torch._foreach_mul_(update, rates)
    return update


RULES: dict[str, Rule] = {
    "SGD": sgd,
    "Nesterov": nesterov,
    "AdaGrad": adagrad,
    "RMSProp": rmsprop,
    "AdaDelta": adadelta,
    "Adam": adam,
}
TWO_HISTORIES = ("AdaDelta", "Adam")

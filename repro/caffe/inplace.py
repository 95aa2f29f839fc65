"""What an in-place layer does to the gradients of the layers that shared its blob.

Caffe's Backward reads a blob as later in-place layers left it, and an in-place layer's top diff is its bottom diff. Where that differs from the derivative, Caffe is
followed: an in-place ReLU takes its mask from what a later Scale left, an in-place Power squares its own derivative and forgets the gradient that arrives.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from repro.caffe.layers.base import Layer


class Cell:
    """Holds what a blob holds in the end, once that is known."""

    final: torch.Tensor | None = None


def _relu(layer: Layer, dy, bottom, top, in_place):
    slope = layer.param.relu_param.negative_slope
    return dy * torch.where(bottom > 0, 1.0, slope).to(dy.dtype)


def _elu(layer: Layer, dy, bottom, top, in_place):
    alpha = layer.param.elu_param.alpha
    return dy * torch.where(bottom > 0, torch.ones_like(top), top + alpha)


def _softmax(layer: Layer, dy, bottom, top, in_place):
    return (dy - (dy * top).sum(layer.param.softmax_param.axis, keepdim=True)) * top


def _power(layer: Layer, dy, bottom, top, in_place):
    power = layer.param.power_param
    rate = power.power * power.scale
    if rate == 0 or power.power == 1:
        local = torch.full_like(dy, rate)
    elif power.power == 2:
        local = bottom * (rate * power.scale) + rate * power.shift
    elif power.shift == 0:
        local = top / bottom * power.power
    else:
        local = top / (bottom * power.scale + power.shift) * rate
    if not in_place:
        return dy * local
    # Caffe: in place bottom diff and top diff are one array, so that the derivative has replaced dy when it is multiplied with it.
    return local * local


def _bnll(layer: Layer, dy, bottom, top, in_place):
    return dy * torch.sigmoid(bottom)


def _exp(layer: Layer, dy, bottom, top, in_place):
    base = layer.param.exp_param.base
    inner = 1.0 if base == -1 else float(torch.tensor(base, dtype=torch.float64).log())
    return dy * top * (inner * layer.param.exp_param.scale)


def _log(layer: Layer, dy, bottom, top, in_place):
    log = layer.param.log_param
    base = 1.0 if log.base == -1 else float(torch.tensor(log.base, dtype=torch.float64).log())
    return dy * (log.scale / base) / (bottom * log.scale + log.shift)


# By type: the gradient from dy and what Backward sees as bottom and top. Layers that keep what they need of their own (Dropout, Scale, PReLU, BatchNorm) are not here.
RULES: dict[str, Callable] = {
    "ReLU": _relu,
    "Sigmoid": lambda layer, dy, bottom, top, in_place: dy * top * (1 - top),
    "TanH": lambda layer, dy, bottom, top, in_place: dy * (1 - top * top),
    "AbsVal": lambda layer, dy, bottom, top, in_place: dy * bottom.sign(),
    "BNLL": _bnll,
    "ELU": _elu,
    "Exp": _exp,
    "Log": _log,
    "Power": _power,
    "Softmax": _softmax,
}
# In place these see the derivative's own input overwritten by their own output.
ALWAYS = ("AbsVal", "BNLL", "Log", "Power")
# What may follow an in-place ReLU without moving its mask where it matters: what they zero has gradient 0 anyway.
HARMLESS = ("Dropout", "ReLU")


class _Seen(torch.autograd.Function):
    """A layer whose gradient is computed from what its blob holds in the end."""

    @staticmethod
    def forward(ctx, x, layer, cell, in_place):
        with torch.no_grad():
            (y,) = layer([x])
        ctx.layer, ctx.cell = layer, cell
        ctx.save_for_backward(None if in_place else x)
        return y

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        top = ctx.cell.final
        return RULES[ctx.layer.type](ctx.layer, dy, top if x is None else x, top, x is None), None, None, None


def run(layer: Layer, x: torch.Tensor, cell: Cell, in_place: bool) -> tuple[torch.Tensor]:
    """Runs a layer whose top is overwritten later, or which is in place itself; `cell` must be filled before the backward pass."""
    return (_Seen.apply(x, layer, cell, in_place),)

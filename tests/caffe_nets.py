"""Caffe's own nets of the golden data, run by repro.caffe."""

from __future__ import annotations

import zipfile
from functools import cache

import numpy as np
import torch
from conftest import GOLDEN, golden
from float_rule import Compute, Step
from thin_network import batch, inputs

from caffe_weights import Message, parse_prototxt
from repro.caffe import Net
from repro.data.caffe_rng import CaffeRNG

SEED = 1234  # of the solver files


PACKED = GOLDEN / "prototxts.zip"


def names() -> list[str]:
    """Lists the nets and solvers that are packed."""
    with zipfile.ZipFile(PACKED) as archive:
        return sorted(archive.namelist())


@cache
def text(name: str) -> str:
    """Reads one of Caffe's prototxts: a file of the golden data, or packed with the others."""
    if (GOLDEN / name).exists():
        return (GOLDEN / name).read_text()
    with zipfile.ZipFile(PACKED) as archive:
        return archive.read(name).decode()


def prototxt(name: str) -> Message:
    """Parses one of Caffe's prototxts."""
    return parse_prototxt(text(name), name)


GRID = (
    "base",
    *(f"{kind}{scales}{extra}" for scales in (2, 3) for kind in ("max", "avg", "att") for extra in ("", "_e")),
)
OTHERS = ("aspp", "att3_dt", "msc_all", "msc_frozen", "resnet_max3_e")  # beyond the paper's grid


def variants() -> tuple[str, ...]:
    """Names every thin net of the golden data."""
    return (*GRID, *OTHERS, "dropout")


def golden_parameter(values: dict, layer: str, index: int, scales: int) -> np.ndarray:
    """Finds a layer's parameter among the golden arrays."""
    blob = "wb"[index] if index < 2 else "2"
    keys = [f"params/{layer}/{blob}", f"params/{layer}/{index}", f"params/{layer}_s{scales}/{blob}"]
    return next(values[key] for key in keys if key in values)


def thin_net(variant: str, dtype: torch.dtype = torch.float64, phase: str = "TRAIN", fuse: bool = True) -> Net:
    """Builds a variant's net from its own file, with Caffe's initial parameters."""
    file = f"net_thin_{variant}{'_test' if phase == 'TEST' else ''}.prototxt"
    net = Net(prototxt(file), phase=phase, dtype=dtype, fuse=fuse, rng=CaffeRNG(SEED))
    load_golden(net, variant)
    return net


def load_golden(net: Net, variant: str) -> None:
    """Gives a variant's net Caffe's initial parameters."""
    values = inputs() | (golden(f"net_thin_{variant}.npz") if (GOLDEN / f"net_thin_{variant}.npz").exists() else {})
    scales = net.layers["att_fc"].blobs[0].shape[0] if "att_fc" in net.layers else 1
    with torch.no_grad():
        for learnable in net.learnable:
            value = torch.tensor(golden_parameter(values, learnable.layer, learnable.index, scales))
            learnable.tensor.copy_(value.reshape(learnable.tensor.shape))


def thin_inputs(net: Net, t: int = 0) -> dict[str, torch.Tensor]:
    """Returns the inputs of step t by name."""
    data, label = batch(t, torch.float64)
    given = {"data": data, "label": label[:, None], "dim": torch.tensor([[97.0, 97.0]] * 2).reshape(2, 1, 1, 2)}
    return {name: given[name] for name in net.inputs}


def blob_key(layer: str, index: int) -> str:
    """Names a parameter as the golden data do: conv1_1/w, bn_conv1/2."""
    return f"{layer}/{'wb'[index] if index < 2 else index}"


def first_pass(variant: str, maps: tuple[str, ...]) -> Compute:
    """Describes one pass forward and backward: maps and losses, and the gradients of all parameters that have a rate."""

    def compute(dtype, device, arithmetic):
        net = thin_net(variant, dtype)
        with arithmetic:
            outputs = net(**thin_inputs(net))
            net.backward()
        forward = {name: net.blobs[name].detach() for name in maps} | {
            name: value.detach() for name, value in outputs.items() if name.startswith("loss")
        }
        gradients = {f"grad/{blob_key(one.layer, one.index)}": one.tensor.grad for one in net.learnable if one.lr_mult}
        return [Step(forward, gradients)]

    return compute

"""The golden data's thin networks: their parameters, batches and solver, and runs of them for tests/float_rule.py."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from caffe_dropout import dropout_mask
from conftest import golden
from float_rule import Compute, Step

from caffe_weights.deeplab.spec import NEW_LAYERS
from repro.data.caffe_rng import CaffeRNG
from repro.models import MultiScale, build, enlarged_scores
from repro.models.layers import Dropout
from repro.ops import merge_scores
from repro.solver.loss import losses
from repro.solver.sgd import Solver

MODEL = {
    "width": 1 / 16,
    "pool5a": True,
    "dropout_ratio": 0.0,
    "filler": "constant",
    "filler_gain": 1.0,
    "fc8_filler_std": 0.01,
    "attention_input": "fc7",
    "attention_layers": 2,
    "attention_kernel": 3,
    "attention_filters": 512,
    "attention_filler_std": 0.01,
}
SOLVER = {
    "base_lr": 0.001,
    "lr_policy": "step",
    "gamma": 0.1,
    "stepsize": 4,
    "momentum": 0.9,
    "weight_decay": 0.0005,
    "iter_size": 1,
    "clip_gradients": 0.0,
}
MERGES = {"base": "none", "max": "max", "avg": "average", "att": "attention"}
SCALES = {"2": [1, 0.5], "3": [1, 0.75, 0.5], "e": [1]}
SCORE_NAMES = {1: "fc8", 0.75: "fc8_res075", 0.5: "fc8_res05"}
MSC = {"msc_filters": 128, "msc_dropout_ratio": 0.0, "msc_filler_std": 0.001, "msc_score_filler_std": 0.01}
DT = {"dt_num_iter": 3, "dt_spatial_sigma": 100, "dt_range_sigma": 1, "dt_min_weight": 0, "edge_filler_std": 0.001}
# Networks beyond the grid, with their changes of MODEL. Of msc_frozen the trunk is kept fixed, and the branches have dropout.
OTHERS = {
    "msc_frozen": MSC | {"msc_dropout_ratio": 0.5, "merge": "none", "scales": [1]},
    "msc_all": MSC | {"merge": "none", "scales": [1]},
    "att3_dt": DT | {"merge": "attention", "scales": [1, 0.75, 0.5]},
}
VARIANTS = [
    "base",
    *(f"{kind}{scales}{extra}" for scales in (2, 3) for kind in ("max", "avg", "att") for extra in ("", "_e")),
]


@cache
def inputs() -> dict[str, np.ndarray]:
    """Reads what all variants share."""
    return golden("net_thin_common.npz")


def thin_network(variant: str, dtype: torch.dtype, device: str = "cpu", dropout_ratio: float = 0.0) -> MultiScale:
    """Builds the network of a variant such as att3_e, with Caffe's initial parameters."""
    values = inputs()
    if variant in OTHERS:
        changes, values = OTHERS[variant], values | golden(f"net_thin_{variant}.npz")
    else:
        kind, scales = (variant, [1]) if variant == "base" else (variant[:3], SCALES[variant[3]])
        changes = {"merge": MERGES[kind], "scales": scales}
    network = build(MODEL | changes | {"dropout_ratio": dropout_ratio}, num_classes=7, seed=0)
    for name, layer in network.convolutions().items():
        key = f"params/{name}_s{len(network.scales)}" if name.startswith("att_") else f"params/{name}"
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(values[f"{key}/w"]))
            layer.bias.copy_(torch.tensor(values[f"{key}/b"]))
    random = CaffeRNG(1234)  # of the solver files, seeded just before the first forward pass
    for layer in (module for module in network.modules() if isinstance(module, Dropout)):
        layer.mask_source = lambda shape, ratio=layer.ratio: dropout_mask(shape, ratio, random)
    return network.to(device=device, dtype=dtype)


def batch(t: int, dtype: torch.dtype, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the images minus the mean (2, 3, 97, 97) and the labels (2, 97, 97) of step t."""
    common = inputs()
    data = common["images_u8"][t % 3].astype(np.float32) - common["mean_bgr"].astype(np.float32)[None, :, None, None]
    labels = torch.tensor(common["labels_u8"][t % 3][:, 0], device=device)
    return torch.tensor(data).to(device=device, dtype=dtype), labels


def thin_solver(network: MultiScale, trunk: tuple[int, int] = (1, 2), **changes) -> Solver:
    """Makes the solver of net_thin_solver.prototxt, but for the changes of its keys; `trunk` are the multipliers of the layers up to fc7."""
    layers = network.convolutions()
    lr_mult = {name: (10, 20) if name in NEW_LAYERS else trunk for name in layers}
    return Solver(layers, SOLVER | changes, lr_mult, (1, 0))


def run_network(
    network: MultiScale, data: torch.Tensor, labels: torch.Tensor | None = None, extra_supervision: bool = False
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Runs the network forward: the only place of these tests that knows what it returns.

    Returns:
        The maps by Caffe's names, and the losses where labels are given. Those of single layers of DeepLab-MSc are read at their outputs.
    """
    maps = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, scores, name=name: maps.update({name: scores}))
        for name, layer in network.convolutions().items()
        if network.msc is not None and name.endswith(("ms3", "fc8"))
    ]
    output = network(data)
    for hook in hooks:
        hook.remove()
    if network.msc is None:
        maps = {SCORE_NAMES[s]: scores for s, scores in zip(network.scales, output.scores, strict=True)}
    merged, weights = merge_scores(output.scores, output.logits, output.mode)
    if output.edge is not None:
        every4 = (..., slice(None, None, 4), slice(None, None, 4))
        filtered = enlarged_scores(output, data.shape[2:], torch.tensor([data.shape[2:]] * len(data)))
        maps |= {"edge": output.edge, "edge_every4": output.edge[every4]}
        maps |= {"fc8_dt": filtered, "fc8_dt_every4": filtered[every4]}
    for name, value in (("fc8_fusion", merged), ("att_fc", output.logits), ("attention", weights)):
        if value is not None:
            maps[name] = value
    return maps, {} if labels is None else losses(output, labels, network.scales, extra_supervision)


def blobs(network: MultiScale) -> dict[str, torch.nn.Parameter]:
    """Names the parameters as the golden data do: conv1_1/w, conv1_1/b and so on."""
    layers = network.convolutions().items()
    return {f"{name}/{blob[0]}": getattr(layer, blob) for name, layer in layers for blob in ("weight", "bias")}


def detached(tensors: dict[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
    """Copies tensors out of the graph and out of the solver's reach."""
    return {prefix + name: tensor.detach().clone() for name, tensor in tensors.items()}


def solver_run(variant: str, steps: int, make=None, before_step=lambda network: None) -> Compute:
    """Describes a run of the solver: maps and gradients of step 0, losses of every step, parameters after the last.

    Args:
        variant: Of the network.
        steps: How many.
        make: Builds the network from variant, dtype and device; `thin_network` by default.
        before_step: Called with the network before each step's forward pass.
    """

    def compute(dtype, device, arithmetic):
        network = (make or thin_network)(variant, dtype, device)
        solver = thin_solver(network, trunk=(0, 0) if variant == "msc_frozen" else (1, 2))
        parameters, result = {name: blob for name, blob in blobs(network).items() if blob.requires_grad}, []
        with arithmetic:
            for t in range(steps):
                before_step(network)
                maps, terms = run_network(network, *batch(t, dtype, device), variant.endswith("_e"))
                solver.zero_grad()
                sum(terms.values()).backward()
                forward, backward = detached(terms), {}
                if t == 0:
                    forward |= detached(maps)
                    backward |= detached({name: parameter.grad for name, parameter in parameters.items()}, "grad/")
                solver.step()
                arithmetic.end_step(parameters.values())
                if t == steps - 1:
                    backward |= detached(parameters, "params/")
                result.append(Step(forward, backward))
        return result

    return compute

"""Joins layers that one of our kernels computes in one go, so that what lies between them is never stored.

- Interp, Softmax, Slice, SpatialProduct and Eltwise SUM become `merge_scores` (attention); Interp and Eltwise SUM of equal shares, or MAX, as well (average, max).
- Interp of the labels and SoftmaxWithLoss, with Interp of the scores where there is one, become `segmentation_loss`.
- Interp and ArgMax over the classes become `predict`. Caffe's ArgMax takes the highest of equal classes, `predict` the first: it is given the classes in reverse.
- A ReLU in place behind a Convolution overwrites its output.

A blob that is left out is computed when somebody asks for it by name (Net.blobs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from repro.caffe.build import Step
from repro.caffe.layers import Layer
from repro.ops import merge_scores, predict, segmentation_loss

MAX_SCALES = 8  # of merge_scores
PURE = ("Interp", "Softmax", "Slice", "SpatialProduct")  # what may be left out once nothing reads it


@dataclass
class Fused:
    """Layers computed in one go.

    layers: Those that it stands for.
    kernel: What computes them, for the log.
    bottoms, tops: Values that it reads and writes.
    compute: From bottoms to tops.
    in_place: Whether the top overwrites the bottom.
    """

    layers: list[Layer]
    kernel: str
    bottoms: list[int]
    tops: list[int]
    compute: Callable[[Sequence[torch.Tensor]], tuple[torch.Tensor, ...]]
    in_place: bool = False


class _Graph:
    """Steps by the value that they make, and how many read each."""

    def __init__(self, steps: Sequence[Step], kept: set[int]):
        self.producer = {value: step for step in steps for value in step.tops}
        self.kept = kept

    def maker(self, value: int, kind: str) -> Step | None:
        """Returns the step that makes a value if it is of a type and nothing about it is special."""
        step = self.producer.get(value)
        plain = step is not None and step.layer.type == kind and all(step.need) and not step.in_place
        return step if plain else None

    def resized(self, value: int) -> tuple[int, Step | None]:
        """Returns what an Interp resized without cropping, and the Interp; or the value itself."""
        step = self.maker(value, "Interp")
        if step is None or step.layer.param.interp_param.pad_beg or step.layer.param.interp_param.pad_end:
            return value, None
        return step.bottoms[0], step


def fuse(steps: Sequence[Step], kept: set[int], log: Callable[[str], None]) -> list[Step | Fused]:
    """Joins what can be joined.

    Args:
        steps: The net's, in order.
        kept: Values that must be made: outputs and losses.
        log: Takes a line for each join.

    Returns:
        What to run, in order.
    """
    graph = _Graph(steps, kept)
    plan: list[Step | Fused] = []
    for step in steps:
        joined = None
        if all(step.need[:1]) and not step.in_place:
            joined = _merge(graph, step) or _loss(graph, step) or _predict(graph, step)
        elif step.in_place:
            joined = _relu(graph, step)
        plan.append(joined or step)
    plan = _without_unread(plan, kept)
    left = {id(step.layer) for step in plan if isinstance(step, Step)}
    activated = [step.layers[-1].name for step in plan if isinstance(step, Fused) and step.in_place]
    if activated:
        log(f"Fused {', '.join(activated)} into the convolutions before them, in place")
    for step in plan:
        if isinstance(step, Fused) and not step.in_place:
            step.layers = [layer for layer in step.layers if id(layer) not in left]
            log(f"Fused {', '.join(layer.name for layer in step.layers)} into {step.kernel}")
    return plan


def _without_unread(plan: list[Step | Fused], kept: set[int]) -> list[Step | Fused]:
    """Leaves out, from the end, layers whose tops nobody reads any more."""
    read, result = set(kept), []
    for step in reversed(plan):
        if isinstance(step, Step) and step.layer.type in PURE and not read & set(step.tops):
            continue
        read.update(step.bottoms)
        result.append(step)
    return result[::-1]


def _maps(graph: _Graph, values: Sequence[int]) -> tuple[list[int], list[Layer | None]]:
    """Returns the maps before they are resized, and the Interp layer of each or None."""
    found = [graph.resized(value) for value in values]
    return [source for source, _ in found], [step.layer if step else None for _, step in found]


def _size(layers: Sequence[Layer | None], maps: Sequence[torch.Tensor], merged: Layer) -> list[int]:
    """Returns the size that all maps are resized to; raises ValueError, as the Eltwise layer does, where they differ."""
    shapes = [
        tuple(x.shape) if layer is None else layer.reshape([tuple(x.shape)])[0]
        for x, layer in zip(maps, layers, strict=True)
    ]
    return list(merged.reshape(shapes)[0][2:])


def _merge(graph: _Graph, step: Step) -> Fused | None:
    if step.layer.type != "Eltwise" or not all(step.need) or not 2 <= len(step.bottoms) <= MAX_SCALES:
        return None
    if any(len(shape) != 4 for shape in step.shapes):
        return None
    param, number = step.layer.param.eltwise_param, len(step.bottoms)
    share = float(np.float32(1 / number))
    if param.operation == "SUM" and not param.coeff:
        return _attention(graph, step)
    if param.operation == "SUM" and all(coefficient == share for coefficient in param.coeff):
        mode = "average"
    elif param.operation == "MAX":
        mode = "max"
    else:
        return None
    maps, interps = _maps(graph, step.bottoms)
    if not any(interps):
        return None

    def compute(bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return (merge_scores(bottoms, None, mode, _size(interps, bottoms, step.layer), return_weights=False)[0],)

    layers = [layer for layer in interps if layer] + [step.layer]
    return Fused(layers, f"merge_scores ({mode})", maps, step.tops, compute)


def _attention(graph: _Graph, step: Step) -> Fused | None:
    products = [graph.maker(value, "SpatialProduct") for value in step.bottoms]
    if not all(products) or any(len(product.bottoms) != 2 for product in products):
        return None
    weights = [product.bottoms[1] for product in products]
    cut = graph.maker(weights[0], "Slice")
    if cut is None or cut.tops != weights or cut.layer.dim != 1:
        return None
    softmax = graph.maker(cut.bottoms[0], "Softmax")
    if softmax is None or softmax.layer.axis(softmax.layer.param.softmax_param.axis, 4) != 1:
        return None
    maps, interps = _maps(graph, [product.bottoms[0] for product in products])

    def compute(bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        size = _size(interps, bottoms[:-1], step.layer)
        return (merge_scores(bottoms[:-1], bottoms[-1], "attention", size, return_weights=False)[0],)

    layers = [layer for layer in interps if layer]
    layers += [softmax.layer, cut.layer, *(product.layer for product in products), step.layer]
    return Fused(layers, "merge_scores (attention)", [*maps, softmax.bottoms[0]], step.tops, compute)


def _loss(graph: _Graph, step: Step) -> Fused | None:
    layer = step.layer
    if layer.type != "SoftmaxWithLoss" or len(step.shapes[0]) != 4 or len(step.shapes[1]) != 4:
        return None
    param = layer.param
    if layer.normalization != "VALID" or not param.loss_param.has("ignore_label"):
        return None
    if layer.axis(param.softmax_param.axis, 4) != 1:
        return None
    (scores, labels), (enlarge, shrunk) = _maps(graph, step.bottoms)
    factor = 1
    if shrunk is not None:
        interp = shrunk.param.interp_param
        if interp.zoom_factor != 1 or not interp.has("shrink_factor"):
            labels, shrunk = step.bottoms[1], None
        else:
            factor = interp.shrink_factor
    if enlarge is None and shrunk is None:
        return None
    ignore = param.loss_param.ignore_label

    def compute(bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x, label = bottoms
        shapes = [tuple(x.shape), tuple(label.shape)]
        for place, interp_layer in enumerate((enlarge, shrunk)):
            if interp_layer is not None:
                shapes[place] = interp_layer.reshape([shapes[place]])[0]
        layer.reshape(shapes)
        exact = all(
            (small - 1) * factor == side - 1 for small, side in zip(shapes[1][2:], label.shape[2:], strict=True)
        )
        if not exact or shapes[0][2:] != shapes[1][2:]:  # Caffe mixes labels where the factor does not divide
            x = enlarge([x])[0] if enlarge else x
            return layer([x, shrunk([label])[0] if shrunk else label])
        return (segmentation_loss(x, layer.positions(label[:, 0], x.shape[1], factor), factor, ignore),)

    layers = [part for part in (enlarge, shrunk, layer) if part]
    return Fused(layers, "segmentation_loss", [scores, labels], step.tops, compute)


def _predict(graph: _Graph, step: Step) -> Fused | None:
    layer = step.layer
    if layer.type != "ArgMax" or len(step.shapes[0]) != 4:
        return None
    param = layer.param.argmax_param
    if not param.has("axis") or layer.axis(param.axis, 4) != 1 or param.top_k != 1 or param.out_max_val:
        return None
    (scores,), (enlarge,) = _maps(graph, step.bottoms)
    if enlarge is None:
        return None

    def compute(bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x = bottoms[0]
        size = enlarge.reshape([tuple(x.shape)])[0][2:]
        label = predict([x.detach().flip(1)], None, "average", size)[0]
        return ((x.shape[1] - 1 - label.to(x.dtype))[:, None],)

    return Fused([enlarge, layer], "predict", [scores], step.tops, compute)


def _relu(graph: _Graph, step: Step) -> Fused | None:
    if step.layer.type != "ReLU" or step.seen is not None or step.layer.param.relu_param.negative_slope:
        return None
    conv = graph.producer.get(step.bottoms[0])
    if conv is None or conv.layer.type != "Convolution" or not all(step.need) or conv.seen is not None:
        return None
    return Fused([conv.layer, step.layer], "Convolution with ReLU in place", step.bottoms, step.tops, _in_place, True)


def _in_place(bottoms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Overwrites a convolution's output, which nothing else reads."""
    return (F.relu(bottoms[0], inplace=True),)

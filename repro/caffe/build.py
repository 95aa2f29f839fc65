"""From a NetParameter to the steps that compute it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from caffe_weights import Message, read_prototxt
from repro.caffe import inplace
from repro.caffe.graph import State, Wiring, included, wire
from repro.caffe.layers import TYPES, Context, Layer
from repro.caffe.layers.base import Shape
from repro.caffe.proto import Typed, fields, typed
from repro.caffe.upgrade import upgraded

MAX_LAYERS = 10000
# Known types that are not run, and why.
REFUSED = {
    "Python": "it runs code",
    "Data": "it reads LevelDB or LMDB; convert the database to a list of images (ImageData) or HDF5 (HDF5Data)",
    "AdaptiveBiasChannel": "it draws from the C library's rand",
}


@dataclass
class Step:
    """One layer of the net and the values that it reads and writes.

    bottoms, tops: The values that it reads and writes.
    shapes: Of the bottoms that the layer was last shaped for.
    need: Of each bottom, whether its gradient is computed.
    in_place: Whether its top overwrites its bottom.
    seen: The value that its blob holds in the end, where its gradient depends on that (repro/caffe/inplace.py).
    """

    layer: Layer
    bottoms: list[int]
    tops: list[int]
    shapes: list[Shape]
    need: list[bool]
    in_place: bool
    seen: int | None


@dataclass
class Built:
    """What a net is made of.

    inputs, input_values: Of the blobs that are set from outside.
    shapes: Of every value, as the prototxt gives them.
    losses: (value, loss_weight) of the tops that make up the loss.
    names: Blob name to its last value.
    """

    steps: list[Step]
    inputs: list[str]
    input_values: list[int]
    shapes: dict[int, Shape]
    outputs: list[str]
    losses: list[tuple[int, float]]
    names: dict[str, int]


def read_net(prototxt: str | os.PathLike | Message, defines: Mapping[str, str] | None = None) -> Typed:
    """Reads a NetParameter and checks every field.

    Raises:
        FileNotFoundError, ValueError: See caffe_weights.read_prototxt and repro.caffe.proto.typed.
    """
    message = prototxt if isinstance(prototxt, Message) else read_prototxt(prototxt, defines)
    file = message.file
    net = upgraded(message, file)
    for layer in net.get("layer", []):
        # A layer of another fork has parameters that are unknown because its type is.
        if isinstance(layer, Message) and set(layer) - set(fields("LayerParameter")):
            _check_type(str(layer.one("type", "")), f"{file}: line {layer.line}: layer {layer.one('name', '')!r}")
    return typed(net, "NetParameter", file)


def _check_type(kind: str, where: str) -> None:
    """Raises ValueError unless layers of a type can be run."""
    if kind in REFUSED:
        raise ValueError(f"{where}: type {kind!r} must be one that can be run; got one that cannot: {REFUSED[kind]}")
    if kind not in TYPES:
        raise ValueError(f"{where}: type must be one of {', '.join(sorted(TYPES))}; got {kind!r}; remove the layer")


def _inputs(net: Typed) -> tuple[list[str], list[Shape]]:
    """Returns the names and shapes of `input` fields (Caffe: UpgradeNetInput)."""
    names, dims = list(net.input), list(net.input_dim)
    if net.input_shape and dims:
        raise ValueError(f"{net.where}: input_shape or input_dim must be given; got both; keep one")
    shapes = [tuple(shape.dim) for shape in net.input_shape]
    if dims:
        if len(dims) != 4 * len(names):
            raise ValueError(
                f"{net.where}: there must be 4 input_dim for each of {len(names)} inputs; got {len(dims)}; correct the prototxt"
            )
        shapes = [tuple(dims[i : i + 4]) for i in range(0, len(dims), 4)]
    if len(shapes) != len(names):
        raise ValueError(
            f"{net.where}: every input must have a shape; got {len(names)} inputs and {len(shapes)} shapes; correct the prototxt"
        )
    return names, shapes


def _make(param: Typed, context: Context) -> Layer:
    """Makes a layer of its type; raises ValueError where the type is unknown, or the number of bottoms or tops is not its."""
    where = f"{param.where}: layer {param.name!r}"
    _check_type(param.type, where)
    if param.phase and param.phase != context.phase:
        raise ValueError(f"{where}: its phase must be the net's, {context.phase}; got {param.phase}; use include")
    kind = TYPES[param.type]
    layer = kind(param, context)
    tops = max(len(param.top), kind.MIN_TOPS) if kind.AUTO_TOPS else len(param.top)
    for what, number, least, most in (
        ("bottoms", len(param.bottom), kind.MIN_BOTTOMS, kind.MAX_BOTTOMS),
        ("tops", tops, kind.MIN_TOPS, kind.MAX_TOPS),
    ):
        if number < least or (most is not None and number > most):
            wanted = f"{least}" if most == least else f"{least} or more" if most is None else f"{least} to {most}"
            raise layer.fail(f"it must have {wanted} {what}", number)
    layer.tops = tops
    return layer


def _automatic(param: Typed) -> int:
    kind = TYPES.get(param.type)
    return max(0, kind.MIN_TOPS - len(param.top)) if kind is not None and kind.AUTO_TOPS else 0


def _loss_weights(layer: Layer) -> list[float]:
    given = list(layer.param.loss_weight)
    if given and len(given) != len(layer.param.top):
        raise layer.fail(f"loss_weight must be given for each of its {len(layer.param.top)} tops", len(given))
    if given:
        return given
    return [1.0 if layer.LOSS and place == 0 else 0.0 for place in range(layer.tops)]


def build(net: Typed, state: State, context: Context) -> Built:
    """Makes the layers that a net has in a state, shapes them and connects them.

    Args:
        net: Its NetParameter.
        state: Of the include and exclude rules.
        context: What every layer is given.

    Raises:
        ValueError: A layer, its parameters or its bottoms are wrong; the message names file, line and layer.

    Caffe: Net::Init.
    """
    names, shapes = _inputs(net)
    params = included(net.layer, state)
    if len(params) > MAX_LAYERS:
        raise ValueError(f"{net.where}: a net must have at most {MAX_LAYERS} layers; got {len(params)}; split it")
    if not params:
        raise ValueError(f"{net.where}: a net must have layers in phase {state.phase}; got none; check its rules")
    wiring = wire(params, names, _automatic, net.where)
    known: dict[int, Shape] = dict(zip(wiring.inputs, shapes, strict=True))
    for name, shape in zip(names, shapes, strict=True):
        context.allocate(shape, f"{net.where}: input {name!r}")
    steps, losses = [], []
    input_values = list(wiring.inputs)
    for index, param in enumerate(params):
        layer = _make(param, context)
        bottom_shapes = [known[value] for value in wiring.bottoms[index]]
        in_place = any(wiring.values[value].in_place for value in wiring.tops[index])
        if in_place and not layer.IN_PLACE:
            raise layer.fail("its top must not be its bottom", "the same blob", "rename the top")
        tops = layer.setup(bottom_shapes)
        for value, shape in zip(wiring.tops[index], tops, strict=True):
            known[value] = tuple(shape)
            context.allocate(shape, param.where)
        if param.type == "Input":
            names += param.top
            input_values += wiring.tops[index]
            continue
        losses += [(v, w) for v, w in zip(wiring.tops[index], _loss_weights(layer), strict=True) if w]
        need = _need_backward(layer, net.force_backward)
        seen = _seen(wiring, params, index, in_place)
        steps.append(Step(layer, wiring.bottoms[index], wiring.tops[index], bottom_shapes, need, in_place, seen))
    last = {value.name: index for index, value in enumerate(wiring.values) if value.name}
    return Built(steps, names, input_values, known, wiring.outputs, losses, last)


def _need_backward(layer: Layer, force: bool) -> list[bool]:
    """Says of every bottom whether its gradient is computed (Caffe: Net::Init; autograd finds by itself what a loss depends on)."""
    given, number = layer.param.propagate_down, len(layer.param.bottom)
    if given and len(given) != number:
        raise layer.fail(f"propagate_down must be given for each of its {number} bottoms", len(given))
    return [layer.allows_force_backward(i) and (force or not given or given[i]) for i in range(number)]


def _seen(wiring: Wiring, params: list[Typed], index: int, in_place: bool) -> int | None:
    """Returns the value that a layer's blob holds in the end, where the layer's gradient depends on it."""
    kind = params[index].type
    if kind not in inplace.RULES:
        return None
    value, moved = wiring.tops[index][0], False
    while True:
        over = next((r for r, place in wiring.values[value].readers if _takes(wiring, r, place)), None)
        if over is None:
            break
        moved = moved or kind != "ReLU" or params[over].type not in inplace.HARMLESS
        value = wiring.tops[over][0]
    return value if moved or (in_place and kind in inplace.ALWAYS) else None


def _takes(wiring: Wiring, layer: int, place: int) -> bool:
    """Whether a layer overwrites the bottom in a place."""
    tops = wiring.tops[layer]
    return place < len(tops) and wiring.values[tops[place]].in_place

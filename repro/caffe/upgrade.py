"""Older prototxts in the present format: V0 (`layers { layer { type: "conv" } }`) and V1 (`layers { type: CONVOLUTION blobs_lr: 1 }`) become V2 (`layer { }`).

Caffe: src/caffe/util/upgrade_proto.cpp.
"""

from __future__ import annotations

from caffe_weights import Message
from caffe_weights.nets import layer_types
from caffe_weights.nets.prototxt import Word

# DeepLab v1's words whose V2 type is not their capitalised form.
_FORK_WORDS = {"DENSE_CRF": "DenseCRF", "SPP": "SPP", "PRELU": "PReLU", "ELU": "ELU"}

# DeepLab v1's own layers. In its code ARGMAX ranks the channels of every position, where Caffe's ranks an item's whole.
_DEEPLAB_V1 = {
    *("AdaptiveBiasChannel", "BiasChannel", "DenseCRF", "ImageSegData", "Interp", "MatRead", "MatWrite", "Padding"),
    *("SegAccuracy", "UniqueLabel"),
}

# Caffe: UpgradeV0LayerParameter: of an inner message's field, by the layer's type the message and field that it becomes.
_V0_FIELDS = {
    "num_output": {"conv": "convolution_param", "innerproduct": "inner_product_param"},
    "biasterm": {"conv": "convolution_param bias_term", "innerproduct": "inner_product_param bias_term"},
    "weight_filler": {"conv": "convolution_param", "innerproduct": "inner_product_param"},
    "bias_filler": {"conv": "convolution_param", "innerproduct": "inner_product_param"},
    "pad": {"conv": "convolution_param", "pool": "pooling_param"},
    "kernelsize": {"conv": "convolution_param kernel_size", "pool": "pooling_param kernel_size"},
    "group": {"conv": "convolution_param"},
    "stride": {"conv": "convolution_param", "pool": "pooling_param"},
    "pool": {"pool": "pooling_param"},
    "dropout_ratio": {"dropout": "dropout_param"},
    "local_size": {"lrn": "lrn_param"},
    "alpha": {"lrn": "lrn_param"},
    "beta": {"lrn": "lrn_param"},
    "k": {"lrn": "lrn_param"},
    "source": {
        "data": "data_param",
        "hdf5_data": "hdf5_data_param",
        "images": "image_data_param",
        "window_data": "window_data_param",
        "infogain_loss": "infogain_loss_param",
    },
    "scale": {"*": "transform_param"},
    "meanfile": {"*": "transform_param mean_file"},
    "batchsize": {
        "data": "data_param batch_size",
        "hdf5_data": "hdf5_data_param batch_size",
        "images": "image_data_param batch_size",
        "window_data": "window_data_param batch_size",
    },
    "cropsize": {"*": "transform_param crop_size"},
    "mirror": {"*": "transform_param"},
    "rand_skip": {"data": "data_param", "images": "image_data_param"},
    "shuffle_images": {"images": "image_data_param shuffle"},
    "new_height": {"images": "image_data_param"},
    "new_width": {"images": "image_data_param"},
    "concat_dim": {"concat": "concat_param"},
    "det_fg_threshold": {"window_data": "window_data_param fg_threshold"},
    "det_bg_threshold": {"window_data": "window_data_param bg_threshold"},
    "det_fg_fraction": {"window_data": "window_data_param fg_fraction"},
    "det_context_pad": {"window_data": "window_data_param context_pad"},
    "det_crop_mode": {"window_data": "window_data_param crop_mode"},
}
_V0_KEPT = ("name", "type", "blobs", "blobs_lr", "weight_decay", "hdf5_output_param")
_TRANSFORM = ("scale", "mean_file", "crop_size", "mirror")
_OWN_TRANSFORM = {"Data": "data_param", "ImageData": "image_data_param", "WindowData": "window_data_param"}


def upgraded(net: Message, file: str) -> Message:
    """Returns a net in the present format; the file's own where it is in that already.

    Raises:
        ValueError: Layers of several formats are mixed, or a field of an old layer is unknown.
    """
    if "layers" not in net:
        layers = net.get("layer", [])
    else:
        if "layer" in net:
            raise _error(file, net.lines["layer"][0], "a net must write its layers as `layers` or as `layer`; got both")
        layers = [_message(layer, file, net, index) for index, layer in enumerate(net["layers"])]
        old = [isinstance(layer.one("layer"), Message) for layer in layers]
        if any(old):
            if not all(old):
                raise _error(file, layers[old.index(False)].line, "all layers must be in one format; got V0 and V1")
            layers = [_v1_from_v0(layer, file) for layer in _without_padding(layers, file)]
        layers = [_transform(_v2_from_v1(layer, file)) for layer in layers]
        if any(layer.one("type") in _DEEPLAB_V1 for layer in layers):
            for layer in layers:
                if layer.one("type") == "ArgMax":
                    _rank_channels(layer, file)
    result = _copy(net, set(net) - {"layers", "layer"})
    for layer in layers:
        _put(result, "layer", layer, getattr(layer, "line", 1))
    return result


def _error(file: str, line: int, problem: str) -> ValueError:
    return ValueError(f"{file}: line {line}: {problem}; correct the prototxt")


def _message(layer, file: str, net: Message, index: int) -> Message:
    if not isinstance(layer, Message):
        line = net.lines["layers"][index] if "layers" in net.lines else net.line
        raise _error(file, line, f"layers must be a message; got {layer!r:.40}")
    return layer


def _put(message: Message, name: str, value, line: int) -> None:
    message.setdefault(name, []).append(value)
    message.lines.setdefault(name, []).append(line)


def _copy(message: Message, names) -> Message:
    """Copies some fields of a message, with their lines."""
    result = Message(line=message.line)
    for name, values in message.items():
        if name in names:
            lines = message.lines.get(name) or [message.line] * len(values)
            for value, line in zip(values, lines, strict=True):
                _put(result, name, value, line)
    return result


def _nested(message: Message, name: str, line: int) -> Message:
    """Returns the message in a field, made if it is missing."""
    if name not in message:
        _put(message, name, Message(line=line), line)
    return message[name][-1]


def _without_padding(layers: list[Message], file: str) -> list[Message]:
    """Drops V0's padding layers; the convolution or pool after one pads itself (Caffe: UpgradeV0PaddingLayers)."""
    pads, kept = {}, []
    for layer in layers:
        inner = layer.one("layer")
        kind, bottoms = inner.one("type"), list(map(str, layer.get("bottom", [])))
        if kind == "padding":
            if len(bottoms) != 1 or len(layer.get("top", [])) != 1:
                raise _error(file, layer.line, "a padding layer must have one bottom and one top; got others")
            pads[str(layer.one("top"))] = (bottoms[0], inner.one("pad", 0), inner.line)
            continue
        if any(bottom in pads for bottom in bottoms):
            if kind not in ("conv", "pool") or len(bottoms) != 1:
                raise _error(
                    file, layer.line, f"only a conv or pool layer with one bottom may follow padding; got {kind!r}"
                )
            source, pad, line = pads[bottoms[0]]
            layer, inner = _copy(layer, set(layer) - {"bottom", "layer"}), _copy(inner, set(inner) - {"pad"})
            _put(inner, "pad", pad, line)
            _put(layer, "layer", inner, inner.line)
            _put(layer, "bottom", source, layer.line)
        kept.append(layer)
    return kept


def _v1_from_v0(layer: Message, file: str) -> Message:
    inner = layer.one("layer")
    kind = str(inner.one("type", ""))
    result = _copy(layer, {"bottom", "top"})
    for name, values in inner.items():
        lines = inner.lines.get(name) or [inner.line] * len(values)
        for value, line in zip(values, lines, strict=True):
            if name in _V0_KEPT:
                _put(result, name, value, line)
                continue
            homes = _V0_FIELDS.get(name)
            if homes is None:
                raise _error(file, line, f"a field of a V0 layer must be one of Caffe's; got {name!r}")
            home = homes.get(kind) or homes.get("*")
            if home is None:
                raise _error(file, line, f"a layer of type {kind!r} must have no {name}; got one")
            message, _, renamed = home.partition(" ")
            target = _nested(result, message, line)
            _put(target, renamed or name, value, line)
    return result


def _v2_from_v1(layer: Message, file: str) -> Message:
    special = {"type", "param", "blob_share_mode", "blobs_lr", "weight_decay", "softmaxloss_param"}
    result = _copy(layer, set(layer) - special)
    line = layer.lines.get("type", [layer.line])[-1]
    kind = layer.one("type", "")
    if isinstance(kind, Word):
        kind = _FORK_WORDS.get(kind) or layer_types.from_v1_word(kind)
    elif isinstance(kind, int):
        kind = layer_types.from_v1_number(kind)
    else:
        kind = layer_types.V0.get(str(kind), str(kind))
    _put(result, "type", kind, line)
    fields = {"param": "name", "blob_share_mode": "share_mode", "blobs_lr": "lr_mult", "weight_decay": "decay_mult"}
    specs: list[Message] = []
    for old, new in fields.items():
        lines = layer.lines.get(old, [])
        for index, value in enumerate(layer.get(old, [])):
            if index == len(specs):
                specs.append(Message(line=lines[index] if lines else layer.line))
            _put(specs[index], new, value, lines[index] if lines else layer.line)
    for spec in specs:
        _put(result, "param", spec, spec.line)
    for value in layer.get("softmaxloss_param", []):  # DeepLab v1
        _put(result, "loss_param", value, getattr(value, "line", layer.line))
    return result


def _rank_channels(layer: Message, file: str) -> None:
    """Gives a layer ArgMax the axis along which DeepLab v1's ranks (its src/caffe/layers/argmax_layer.cpp)."""
    param = _nested(layer, "argmax_param", layer.line)
    if not isinstance(param, Message) or "axis" in param:
        return
    if param.one("out_max_val", False) is True:
        line = param.lines.get("out_max_val", [param.line])[-1]
        raise _error(
            file, line, "DeepLab v1's ARGMAX must be without out_max_val, which doubles its channels; got true"
        )
    _put(param, "axis", 1, param.line)


def _transform(layer: Message) -> Message:
    """Moves what an older data layer's own message says of scale, mean, crop and mirror to transform_param, over what stands there.

    Caffe: UpgradeNetDataTransformation, which knows the three layers of _OWN_TRANSFORM and leaves files of the present format alone.
    """
    name = _OWN_TRANSFORM.get(layer.one("type"), "")
    param = layer.one(name)
    if not isinstance(param, Message) or not set(param) & set(_TRANSFORM):
        return layer
    layer[name] = [_copy(param, set(param) - set(_TRANSFORM))]
    given = layer.one("transform_param")
    transform = _copy(given, set(given) - set(param)) if isinstance(given, Message) else Message(line=param.line)
    for field in _TRANSFORM:
        if field in param:
            lines = param.lines.get(field) or [param.line]
            _put(transform, field, param[field][-1], lines[-1])
    layer["transform_param"] = [transform]
    layer.lines["transform_param"] = [transform.line]
    return layer

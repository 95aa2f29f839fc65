"""The layers of a net prototxt, and the geometry of its convolutions."""

from dataclasses import dataclass

from caffe_weights.nets import layer_types
from caffe_weights.nets.prototxt import Message, Word


@dataclass(frozen=True)
class NetLayer:
    """One layer of a net prototxt.

    Attributes:
        name, type: as in Layer; V0 and V1 types come in V2 spelling.
        bottoms, tops: blob names.
        message: the layer's fields, for a V0 layer those of the inner message.
    """

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    message: Message


@dataclass(frozen=True)
class ConvGeometry:
    """The hyper-parameters of a convolution; pairs are (height, width) in pixels."""

    num_output: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]
    dilation: tuple[int, int]
    group: int


def net_layers(net: Message, where: str) -> list[NetLayer]:
    """Lists the layers of a net, whichever of the three generations it is written in.

    Args:
        net: what read_prototxt gave.
        where: the file, for errors.

    Raises:
        ValueError: a layer is no message, or its name or type is missing.
    """
    layers = []
    for index, entry in enumerate([*net.get("layers", []), *net.get("layer", [])]):
        if not isinstance(entry, Message):
            raise ValueError(f"{where}: layer {index}: must be a message; got {entry!r}; correct the prototxt")
        inner = entry.one("layer", entry)  # V0: layers { layer { name type ... } bottom top }
        if not isinstance(inner, Message) or not isinstance(inner.one("name", ""), str):
            raise ValueError(
                f"{where}: layer {index}: must be a message with a name; got {inner!r:.60}; correct the prototxt"
            )
        kind = inner.one("type", "")
        if isinstance(kind, Word):
            kind = layer_types.from_v1_word(kind)
        elif inner is not entry:
            kind = layer_types.V0.get(kind, kind)
        bottoms, tops = (tuple(map(str, entry.get(key, []))) for key in ("bottom", "top"))
        layers.append(NetLayer(inner.one("name", ""), str(kind), bottoms, tops, inner))
    return layers


def conv_geometry(layer: NetLayer, where: str) -> ConvGeometry | None:
    """Returns a convolution's geometry, None for other layers.

    Caffe: src/caffe/layers/base_conv_layer.cpp, BaseConvolutionLayer::LayerSetUp. `hole` is
    DeepLab v1's word for dilation.
    """
    if layer.type not in ("Convolution", "Deconvolution"):
        return None
    param = layer.message.one("convolution_param", layer.message)
    if not isinstance(param, Message):
        raise ValueError(
            f"{where}: layer {layer.name!r}: convolution_param must be a message; got {param!r}; correct the prototxt"
        )

    def pair(default: int, *names: str) -> tuple[int, int]:
        for name in names:
            stem = name.removesuffix("_size")
            sides = [*param.get(f"{stem}_h", [])[-1:], *param.get(f"{stem}_w", [])[-1:]]
            if values := sides or param.get(name, [])[:2]:
                height, width = (
                    _whole(value, f"{where}: layer {layer.name!r}: {name}") for value in (values[0], values[-1])
                )
                return height, width
        return default, default

    return ConvGeometry(
        _whole(param.one("num_output", 0), f"{where}: layer {layer.name!r}: num_output"),
        pair(0, "kernel_size", "kernelsize"),
        pair(1, "stride"),
        pair(0, "pad"),
        pair(1, "dilation", "hole"),
        _whole(param.one("group", 1), f"{where}: layer {layer.name!r}: group"),
    )


def _whole(value, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{where}: must be a whole number; got {value!r}; correct the prototxt")
    return value

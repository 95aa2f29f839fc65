"""Prototxts of the paper's networks, as the DeepLab v2 fork of Caffe runs them."""

from collections.abc import Iterator, Sequence
from fractions import Fraction

from caffe_weights.deeplab.spec import (
    EDGE_SOURCES,
    MSC_BRANCHES,
    NEW_LAYERS,
    OUTPUT_STRIDE,
    VGG16_LAYERS,
    DataSpec,
    NetSpec,
    quoted,
    suffix,
)


def net_prototxt(
    spec: NetSpec, phase: str, data: DataSpec | None = None, input_shape: Sequence[int] | None = None
) -> str:
    """Writes a network as prototxt, one line per layer.

    Args:
        spec: the network.
        phase: "train" (losses), "test" (scores times 8 and SegAccuracy) or "deploy" (scores times 8).
        data: for train and test, what the data layer reads; None leaves `data`, `label` and (for a domain transform) `dim`, each image's height and width, as inputs.
        input_shape: (N, 3, H, W) where there is no data layer; H and W of the form 8k+1.

    Returns:
        The text, ending in a newline.

    Raises:
        ValueError: the phase is unknown, or the finest stride is no whole number of pixels.

    Paper: section 3, figure 2. Layer types Interp, SpatialProduct, DomainTransform, ImageSegData and SegAccuracy are the DeepLab fork's.
    """
    if phase not in ("train", "test", "deploy"):
        raise ValueError(f'net_prototxt: phase must be "train", "test" or "deploy"; got {phase!r}; choose one')
    return (
        "\n".join(
            [
                f"name: {quoted(spec.name)}",
                *_inputs(spec, phase, data, input_shape),
                *_scores(spec),
                *_heads(spec, phase, data, input_shape),
            ]
        )
        + "\n"
    )


def _layer(name: str, kind: str, bottoms: Sequence[str], tops: Sequence[str], *params: str) -> str:
    blobs = [f'bottom: "{b}"' for b in bottoms] + [f'top: "{t}"' for t in tops]
    return " ".join(["layer {", f'name: "{name}"', f'type: "{kind}"', *blobs, *params, "}"])


def _inputs(spec: NetSpec, phase: str, data: DataSpec | None, shape: Sequence[int] | None) -> Iterator[str]:
    if data is None:
        inputs = {"data": shape}
        inputs |= {"label": (shape[0], 1, *shape[2:])} if phase == "train" else {}
        inputs |= {"dim": (shape[0], 1, 1, 2)} if spec.domain_transform else {}
        for name, sides in inputs.items():
            yield f'input: "{name}" input_shape {{ {" ".join(f"dim: {n}" for n in sides)} }}'
        return
    train = phase == "train"
    image = (
        f"image_data_param {{ root_folder: {quoted(data.root_folder)} source: {quoted(data.source)} batch_size: {data.batch_size} "
        f"shuffle: {_word(data.shuffle and train)} label_type: PIXEL ignore_label: {spec.ignore_label} }}"
    )
    values = [f"mean_value: {mean:g}" for mean in data.mean_bgr]
    values += [f"scale_factors: {factor:g}" for factor in data.scale_factors] if train else []
    transform = (
        f"transform_param {{ mirror: {_word(data.mirror and train)} crop_size: {data.crop_size} {' '.join(values)} }}"
    )
    yield _layer(
        "data",
        "ImageSegData",
        [],
        ["data", "label", "data_dim"],
        f"include {{ phase: {phase.upper()} }}",
        image,
        transform,
    )
    if not spec.domain_transform:
        yield _layer("silence", "Silence", ["data_dim"], [])


def _word(value: bool) -> str:
    return "true" if value else "false"


def _interp(name: str, bottom: str, factor: Fraction) -> str:
    """Resizes by p/q: zoom p, shrink q. Caffe: src/caffe/layers/interp_layer.cpp, Reshape (both given: one direct resize)."""
    given = {"zoom_factor": factor.numerator, "shrink_factor": factor.denominator}
    if factor < 1:
        given = dict(reversed(given.items()))
    params = " ".join(f"{key}: {value}" for key, value in given.items() if value != 1)
    return _layer(name, "Interp", [bottom], [name], f"interp_param {{ {params} }}")


def _fraction(scale: float) -> Fraction:
    return Fraction(scale).limit_denominator(64)


def _convolution(spec: NetSpec, owner: str, mark: str, bottom: str, dilation: int = 1, stride: int = 1) -> str:
    out, _, kernel, _ = spec.shapes[owner]
    rates = spec.lr_mult.get(owner, (10, 20) if owner in NEW_LAYERS else (1, 2))
    params = [
        f'param {{ name: "{owner}_{blob}" lr_mult: {rate:g} decay_mult: {decay:g} }}'
        for blob, rate, decay in zip("wb", rates, spec.decay_mult, strict=True)
    ]
    pad = dilation * (kernel - 1) // 2
    sizes = (
        [f"num_output: {out}", f"kernel_size: {kernel}"]
        + ([f"pad: {pad}"] if pad else [])
        + ([f"stride: {stride}"] if stride > 1 else [])
        + ([f"dilation: {dilation}"] if dilation > 1 else [])
    )
    if owner in spec.filler_std:
        sizes.append(f'weight_filler {{ type: "gaussian" std: {spec.filler_std[owner]:g} }}')
    return _layer(
        owner + mark, "Convolution", [bottom], [owner + mark], *params, f"convolution_param {{ {' '.join(sizes)} }}"
    )


def _relu(name: str) -> str:
    return _layer(f"relu_{name}", "ReLU", [name], [name])


def _pool(name: str, bottom: str, kind: str, stride: int) -> str:
    return _layer(
        name, "Pooling", [bottom], [name], f"pooling_param {{ pool: {kind} kernel_size: 3 stride: {stride} pad: 1 }}"
    )


def _dropped(ratio: float, name: str, top: str) -> Iterator[str]:
    if ratio:
        yield _layer(top, "Dropout", [name], [top], f"dropout_param {{ dropout_ratio: {ratio:g} }}")


def _after_dropout(spec: NetSpec, layer: str, mark: str) -> str:
    """Returns the blob that holds a layer's output after dropout."""
    return f"drop{layer[2:]}{mark}" if spec.dropout_ratio and layer in ("fc6", "fc7") else layer + mark


def _branch(spec: NetSpec, mark: str, bottom: str) -> Iterator[str]:
    """Writes the layers from one scale's input to fc7."""
    for layer in VGG16_LAYERS:
        name = layer.name
        if name == "fc6" and spec.pool5a:
            yield _pool(f"pool5a{mark}", bottom, "AVE", 1)
            bottom = f"pool5a{mark}"
        yield _convolution(spec, name, mark, bottom, layer.dilation)
        yield _relu(name + mark)
        bottom = name + mark
        if layer.pool_stride:
            pool = layer.pool + mark
            yield _pool(pool, bottom, "MAX", layer.pool_stride)
            bottom = pool
        elif name in ("fc6", "fc7"):
            yield from _dropped(spec.dropout_ratio, name + mark, f"drop{name[2:]}{mark}")
            bottom = _after_dropout(spec, name, mark)


def _scores(spec: NetSpec) -> Iterator[str]:
    """Writes everything between the input and the merged scores fc8_fusion (for one scale: fc8)."""
    coarse = sorted(spec.scales[1:])  # the authors' prototxts write the finest branch first, then from the smallest
    order = [spec.scales[0], *coarse]
    inputs = {scale: "data" if scale == 1 else f"shrink_data{suffix(scale)[4:]}" for scale in order}
    for scale in order:
        if scale != 1:
            yield _interp(inputs[scale], "data", _fraction(scale))
    for scale in order:
        yield from _branch(spec, suffix(scale), inputs[scale])
    for scale in order:
        yield _convolution(spec, "fc8", suffix(scale), _after_dropout(spec, "fc7", suffix(scale)))
    resized = ([spec.attention_input] if spec.merge == "attention" and spec.attention_input != "fc8" else []) + ["fc8"]
    for layer in resized:
        for scale in coarse:
            mark = suffix(scale)
            yield _interp(
                f"{layer}{mark}_interp", _after_dropout(spec, layer, mark), _fraction(spec.scales[0]) / _fraction(scale)
            )
    if spec.msc:
        yield from _msc(spec)
    elif spec.merge == "attention":
        yield from _attention(spec)
    elif spec.merge != "none":
        share = f"{1 / len(spec.scales):.12g}"
        operation = "MAX" if spec.merge == "max" else " ".join(["SUM", *[f"coeff: {share}"] * len(spec.scales)])
        yield _layer(
            "fc8_fusion",
            "Eltwise",
            [finest_map(spec, "fc8", s) for s in spec.scales],
            ["fc8_fusion"],
            f"eltwise_param {{ operation: {operation} }}",
        )


def _msc(spec: NetSpec) -> Iterator[str]:
    """Writes DeepLab-MSc's branches and the sum of their scores and LargeFOV's."""
    for source, stride in MSC_BRANCHES:
        bottom = source
        for number in (1, 2):
            name = f"{source}_ms{number}"
            yield _convolution(spec, name, "", bottom, stride=stride if number == 1 else 1)
            yield _relu(name)
            yield from _dropped(spec.msc_dropout_ratio, name, f"drop_{name}")
            bottom = f"drop_{name}" if spec.msc_dropout_ratio else name
        yield _convolution(spec, f"{source}_ms3", "", bottom)
    scores = ["fc8", *(f"{source}_ms3" for source, _ in MSC_BRANCHES)]
    yield _layer("fc8_fusion", "Eltwise", scores, ["fc8_fusion"], "eltwise_param { operation: SUM }")


def _filtered(spec: NetSpec, bottom: str, dim: str, size: Sequence[int]) -> Iterator[str]:
    """Writes the edge map and the domain transform of scores that were enlarged to the input's size, which is the edge map's."""
    for source in EDGE_SOURCES:
        sides = f"interp_param {{ height: {size[0]} width: {size[1]} }}"
        yield _layer(f"{source}_interp", "Interp", [source], [f"{source}_interp"], sides)
    enlarged = [f"{source}_interp" for source in EDGE_SOURCES]
    yield _layer("edge_concat", "Concat", enlarged, ["edge_concat"], "concat_param { axis: 1 }")
    yield _convolution(spec, "edge", "", "edge_concat")
    yield _relu("edge")
    values = " ".join(f"{key}: {value:g}" for key, value in spec.domain_transform.items() if value)
    yield _layer(
        "fc8_dt", "DomainTransform", [bottom, "edge", dim], ["fc8_dt"], f"domain_transform_param {{ {values} }}"
    )


def finest_map(spec: NetSpec, layer: str, scale: float) -> str:
    """Names the blob of a scale's layer at the finest map's size."""
    mark = suffix(scale)
    return _after_dropout(spec, layer, mark) if scale == spec.scales[0] else f"{layer}{mark}_interp"


def _attention(spec: NetSpec) -> Iterator[str]:
    source, count = spec.attention_input, len(spec.scales)
    yield _layer(
        f"{source}_concat",
        "Concat",
        [finest_map(spec, source, s) for s in spec.scales],
        [f"{source}_concat"],
        "concat_param { axis: 1 }",
    )
    bottom = f"{source}_concat"
    if "att_conv1" in spec.shapes:
        yield _convolution(spec, "att_conv1", "", bottom)
        yield _relu("att_conv1")
        yield from _dropped(spec.dropout_ratio, "att_conv1", "drop_att_conv1")
        bottom = "drop_att_conv1" if spec.dropout_ratio else "att_conv1"
    yield _convolution(spec, "att_fc", "", bottom)
    yield _layer("attention", "Softmax", ["att_fc"], ["attention"])
    points = " ".join(f"slice_point: {i}" for i in range(1, count))
    yield _layer(
        "slice_attention",
        "Slice",
        ["attention"],
        [f"attention{i}" for i in range(1, count + 1)],
        f"slice_param {{ axis: 1 {points} }}",
    )
    products = [f"fc8{suffix(scale)}_product" for scale in spec.scales]
    for i, (scale, product) in enumerate(zip(spec.scales, products, strict=True), 1):
        yield _layer(product, "SpatialProduct", [finest_map(spec, "fc8", scale), f"attention{i}"], [product])
    yield _layer("fc8_fusion", "Eltwise", products, ["fc8_fusion"], "eltwise_param { operation: SUM }")


def _heads(spec: NetSpec, phase: str, data: DataSpec | None, shape: Sequence[int] | None) -> Iterator[str]:
    merged = "fc8_fusion" if spec.msc or spec.merge != "none" else "fc8" + suffix(spec.scales[0])
    stride = OUTPUT_STRIDE / _fraction(spec.scales[0])
    if stride.denominator != 1:
        raise ValueError(
            f"net_prototxt: 8 / {spec.scales[0]:g} must be a whole number of pixels; got {stride}; change the finest scale"
        )
    enlarged = f"{merged}_interp"
    if spec.domain_transform:
        yield _interp("fc8_interp", merged, stride)
        size = (data.crop_size, data.crop_size) if data else shape[2:]
        yield from _filtered(spec, "fc8_interp", "data_dim" if data else "dim", size)
        enlarged = "fc8_dt"
    elif phase != "train":
        yield _interp(enlarged, merged, stride)
    if phase != "train":
        if data is not None:
            yield _layer(
                "accuracy",
                "SegAccuracy",
                [enlarged, "label"],
                ["accuracy"],
                f"seg_accuracy_param {{ ignore_label: {spec.ignore_label} }}",
            )
        return
    shrunk: set[Fraction] = set()
    losses = [("loss", "fc8_dt", Fraction(1)) if spec.domain_transform else ("loss", merged, stride)]
    if spec.extra_supervision:
        for scale in spec.scales:
            own = OUTPUT_STRIDE / _fraction(scale)
            name = f"loss{suffix(scale) or '_res1'}"
            # Interp cannot shrink labels by 3/4: such a scale's scores are compared at the finest map's size (the authors' own comment).
            losses.append(
                (name, f"fc8{suffix(scale)}", own)
                if own.denominator == 1
                else (name, finest_map(spec, "fc8", scale), stride)
            )
    for name, scores, step in losses:
        if step not in shrunk and step != 1:
            shrunk.add(step)
            yield _interp(f"label_shrink{step}", "label", 1 / step)
        yield _layer(
            name,
            "SoftmaxWithLoss",
            [scores, f"label_shrink{step}" if step != 1 else "label"],
            [name],
            f"loss_param {{ ignore_label: {spec.ignore_label} }}",
        )

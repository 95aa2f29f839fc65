"""Prototxt text read, and the paper's networks written line for line as the golden files have them."""

import re

import pytest
from caffe_nets import names, text
from conftest import GOLDEN

from caffe_weights import ConvGeometry, conv_geometry, net_layers, parse_prototxt, read_prototxt
from caffe_weights.deeplab.net import net_prototxt
from caffe_weights.deeplab.solver import solver_prototxt
from caffe_weights.deeplab.spec import MSC_LAYERS, DataSpec, NetSpec

# The dialect of DeepLab's own files: V1 layers, enum types, `hole`, variables, colons before braces, single quotes, joined strings.
DEEPLAB = """
# ${UNDEFINED} in a comment stays
name: "${NET_ID}"
layers {
  name: "data" type: IMAGE_SEG_DATA top: "data" top: "label"
  image_data_param { root_folder: "${DATA_ROOT}" source: 'list/${SET}' ".txt" batch_size: 30 shuffle: true label_type: PIXEL }
  transform_param { mean_value: [104.008, 1.5e2]; crop_size: 0x141 mirror: true }
  include: { phase: TRAIN }
}
layers < bottom: "pool5a" top: "fc6" name: "fc6" type: CONVOLUTION strict_dim: false blobs_lr: 1 blobs_lr: 2
  convolution_param { num_output: ${N} pad: 12 kernel_size: 3 hole: 12 weight_filler { type: "gaussian" std: .01 } } >
layers { bottom: "fc8" bottom: "label" name: "accuracy" type: SEG_ACCURACY }
layers { layer { name: "c1" type: "conv" num_output: 5 kernelsize: 7 stride: 2 group: 1 } bottom: "a" top: "b" }
"""
DEFINES = {"NET_ID": "vgg128", "DATA_ROOT": "/d", "SET": "train", "N": "1024"}


def test_deeplabs_dialect():
    net = parse_prototxt(DEEPLAB, "t", DEFINES)
    assert net.one("name") == "vgg128"
    layers = net_layers(net, "t")
    assert [(layer.name, layer.type) for layer in layers] == [
        ("data", "ImageSegData"),
        ("fc6", "Convolution"),
        ("accuracy", "SegAccuracy"),
        ("c1", "Convolution"),
    ]
    assert (layers[0].tops, layers[1].bottoms, layers[3].bottoms) == (("data", "label"), ("pool5a",), ("a",))
    data = layers[0].message
    assert data.one("image_data_param") == {
        "root_folder": ["/d"],
        "source": ["list/train.txt"],
        "batch_size": [30],
        "shuffle": [True],
        "label_type": ["PIXEL"],
    }
    assert data.one("transform_param") == {"mean_value": [104.008, 150.0], "crop_size": [321], "mirror": [True]}
    assert data.one("include") == {"phase": ["TRAIN"]}
    assert [conv_geometry(layer, "t") for layer in layers] == [
        None,
        ConvGeometry(1024, (3, 3), (1, 1), (12, 12), (12, 12), 1),
        None,
        ConvGeometry(5, (7, 7), (2, 2), (0, 0), (1, 1), 1),
    ]


def test_numbers_are_protobufs():
    given = parse_prototxt("a: 010 a: 0x10 a: -017 a: 10 a: 0 a: 08.5 a: 1e3f", "t")["a"]
    assert given == [8, 16, -15, 10, 0, 8.5, 1000.0]


def test_geometry_by_side_and_by_list():
    text = """layer { name: "a" type: "Convolution" convolution_param { num_output: 4 kernel_h: 3 kernel_w: 5 stride: 1 stride: 2 pad_h: 1 pad_w: 2
        dilation: 2 dilation: 3 group: 2 } }"""
    (layer,) = net_layers(parse_prototxt(text, "t"), "t")
    assert conv_geometry(layer, "t") == ConvGeometry(4, (3, 5), (1, 2), (1, 2), (2, 3), 2)


def test_escapes_in_strings():
    read = parse_prototxt(r'a: "x\n\t\"\\\101\x41\q" b: "" c: -1.5f d: inf e: -3', "t")
    assert read == {"a": ['x\n\t"\\AAq'], "b": [""], "c": [-1.5], "d": [float("inf")], "e": [-3]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a {\n b: 1", r"line 2: every field and brace must be closed; got the end of the file"),
        ("\n\na: ${X}", r"line 3: \$\{X\} must have a value; got none \(give --define X=VALUE\)"),
        ('a: "/${X}"', r"line 1: \$\{X\} must have a value"),
        ("a }", r"a field must read `name: value` or `name \{ ... \}`; got '\}'"),
        ("a: b: c", r"got ':'"),
        ("a b", r"got 'b'"),
        ('"x"', r"got '\"x\"'"),
        ("a: [{ b: 1 }]", r"a list must hold plain values; got a message"),
        ('a: "x', r"must be protobuf text; got '\"x'"),
        ("a: 08", r"a value must be a number, true, false, a word or a quoted string; got '08'"),
        ("a: 1..2", r"a value must be a number, true, false, a word or a quoted string; got '1..2'"),
        ("a: " + "9" * 65, r"a value must be a number"),
        ("a {" * 100_000, r"messages must nest at most 64 deep; got more"),
        ("a: 1 " * 262_145, r"a prototxt must have at most 262144 values; got more"),
        (f'a: "{"x" * 65_537}"', r"a string must have at most 65536 characters; got 65537"),
        ("a: " + '"xxxx" ' * 20_000, r"a string must have at most 65536 characters; got 65540"),
    ],
)
def test_bad_text(text, message):
    with pytest.raises(ValueError, match=r"^t: line \d+: .*; correct the prototxt$") as caught:
        parse_prototxt(text, "t")
    assert re.search(message, str(caught.value))


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must be a file; got nothing there; check the path"):
        read_prototxt(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"must be a prototxt file; got a directory or device; name the file itself"):
        read_prototxt(tmp_path)
    (tmp_path / "other").write_bytes(b"a: 1\nb: \xd6\xd0")
    with pytest.raises(
        ValueError, match=r"other: line 2: what is no string must be UTF-8; got another encoding; correct"
    ):
        read_prototxt(tmp_path / "other")
    with open(tmp_path / "big", "wb") as file:
        file.truncate(17 * 2**20)
    with pytest.raises(
        ValueError, match=r"a prototxt must have at most 16777216 bytes; got 17825792; is it a caffemodel\?"
    ):
        read_prototxt(tmp_path / "big")


NET = 'name: "网络" # 注释 {\nlayer { name: "é" }'


@pytest.mark.parametrize(
    ("octets", "name", "layer"),
    [
        (NET.encode(), "网络", "é"),
        (NET.encode("utf-8-sig"), "网络", "é"),
        (NET.encode("utf-16"), "网络", "é"),
        (b"\xfe\xff" + NET.encode("utf-16-be"), "网络", "é"),
        (NET.encode("gb18030"), r"\xcd\xf8\xc2\xe7", r"\xa8\xa6"),
        ('name: "n" # à la carte\nlayer { name: "é" }'.encode("latin-1"), "n", r"\xe9"),
        (rb'name: "\347\275\221\xe7\xbb\x9c" layer { name: "\351" }', "网络", r"\xe9"),
    ],
    ids=["utf-8", "with mark", "utf-16", "utf-16-be", "gbk", "latin-1", "escapes"],
)
def test_encodings(tmp_path, octets, name, layer):
    """Strings are octets, as to protobuf; what is no UTF-8 comes out as in a .caffemodel."""
    (tmp_path / "net.prototxt").write_bytes(octets)
    net = read_prototxt(tmp_path / "net.prototxt")
    assert net.one("name") == name
    assert [entry.name for entry in net_layers(net, "t")] == [layer]


@pytest.mark.parametrize(
    ("octets", "what"),
    [
        (b"\n<!DOCTYPE html>\n<html>", "an HTML or XML page"),
        (b"404: Not Found", "a server's message, '404: Not Found'"),
        (b"\x1f\x8b\x08\0", r"a gzip archive \(unpack it\)"),
        (b"\x0a\x03net\xa2\x06\x00", "a binary file, perhaps a .caffemodel"),
        ("layer {".encode("utf-16-le"), "a binary file, perhaps a .caffemodel"),
        (b"", "an empty file"),
    ],
)
def test_other_files_are_named(tmp_path, octets, what):
    (tmp_path / "x").write_bytes(octets)
    with pytest.raises(ValueError, match=rf"x: must be prototxt text; got {what}; name the text"):
        read_prototxt(tmp_path / "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer: 1", r"t: layer 0: must be a message; got 1; correct the prototxt"),
        ("layer { name: 1 }", r"t: layer 0: must be a message with a name; got .*; correct the prototxt"),
        (
            'layer { type: "Convolution" convolution_param: 1 }',
            r"t: layer '': convolution_param must be a message; got 1; correct the prototxt",
        ),
        (
            'layer { name: "c" type: "Convolution" convolution_param { pad: -1 } }',
            r"t: layer 'c': pad: must be a whole number; got -1; correct the prototxt",
        ),
    ],
)
def test_bad_nets(text, message):
    with pytest.raises(ValueError, match=message):
        [conv_geometry(layer, "t") for layer in net_layers(parse_prototxt(text, "t"), "t")]


GOLDEN_NETS = [name for name in names() if not re.search("solver|aspp|resnet|msc_all", name)]  # of which rows are made
MERGE = {"base": "none", "msc": "none", "max": "max", "avg": "average", "att": "attention"}


@pytest.mark.parametrize("file", [*GOLDEN_NETS, "weights/net.prototxt"])
def test_nets_are_written_as_the_golden_ones(file):
    """The text, line for line but the comment: graph, names, order, parameters."""
    net = parse_prototxt(text(file), file)
    kind, count, extra = re.search(
        r"_(base|max|avg|att|msc)(\d?)(_e)?(?:_dt)?$", net.one("name").replace("dropout", "att3_e")
    ).groups()
    shapes = {}
    for layer in net_layers(net, file):
        geometry = conv_geometry(layer, file)
        if geometry and "_res" not in layer.name:
            shapes[layer.name] = (geometry.num_output, 0, *geometry.kernel)
    lr_mult = dict.fromkeys(("fc8", "att_conv1", "att_fc"), (10, 20))
    if "frozen" in file:
        lr_mult = {layer: (0, 0) for layer in shapes if "_ms" not in layer and layer != "fc8"}
    transform = {"num_iter": 3, "spatial_sigma": 100, "range_sigma": 1, "min_weight": 0} if "_dt" in file else {}
    scales = {"": [1], "2": [1, 0.5], "3": [1, 0.75, 0.5]}[count]
    spec = NetSpec(
        net.one("name"),
        shapes,
        scales,
        MERGE[kind],
        bool(extra),
        True,
        0.5 if "dropout" in file else 0,
        domain_transform=transform,
        lr_mult=lr_mult,
    )
    written = net_prototxt(spec, "deploy" if "test" in file else "train", input_shape=net["input_shape"][0]["dim"])
    assert written.splitlines() == [line for line in text(file).splitlines() if not line.startswith("#")]


SHAPES = {f"conv{b}_{i}": (4, 4, 3, 3) for b, n in ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3)) for i in range(1, n + 1)}
SHAPES |= {"fc6": (4, 4, 3, 3), "fc7": (4, 4, 1, 1), "fc8": (7, 4, 1, 1)}


def graph(text: str) -> dict:
    return {layer.name: layer for layer in net_layers(parse_prototxt(text, "t"), "t")}


def test_every_bottom_exists():
    """For a grid of settings: each layer reads only blobs that an earlier layer made."""
    for merge, scales in (
        ("none", [1]),
        ("none", [0.5]),
        ("max", [1, 0.25]),
        ("average", [1.25, 1, 0.5]),
        ("attention", [1, 0.75, 0.5, 0.25]),
    ):
        for phase, source, dropout in (("train", "fc7", 0.5), ("test", "fc6", 0), ("train", "fc8", 0.5)):
            heads = {"att_fc": (len(scales), 4, 1, 1)} if merge == "attention" else {}
            spec = NetSpec("n", SHAPES | heads, scales, merge, True, source == "fc7", dropout, source)
            if scales[0] == 1.25:
                with pytest.raises(
                    ValueError,
                    match=r"net_prototxt: 8 / 1.25 must be a whole number of pixels; got 32/5; change the finest scale",
                ):
                    net_prototxt(spec, phase, DataSpec("/d", "l.txt", 2, 33, (1, 2, 3)))
                continue
            made = set()
            for layer in net_layers(
                parse_prototxt(net_prototxt(spec, phase, DataSpec("/d", "l.txt", 2, 33, (1, 2, 3))), "t"), "t"
            ):
                assert set(layer.bottoms) <= made, layer
                assert layer.name != "loss" or layer.bottoms[1] == f"label_shrink{8 / scales[0]:g}"
                made |= set(layer.tops)


def test_a_domain_transform_filters_within_each_image():
    """Its third bottom is what the data layer says of the images' sizes, or an input."""
    transform = {"num_iter": 3, "spatial_sigma": 100, "range_sigma": 1, "min_weight": 0.1}
    spec = NetSpec("n", SHAPES | {"edge": (1, 12, 1, 1)}, [1, 0.5], "max", True, domain_transform=transform)
    data = DataSpec("/d", "l.txt", 2, 33, (1, 2, 3))
    train, test = (graph(net_prototxt(spec, phase, data)) for phase in ("train", "test"))
    deploy = graph(net_prototxt(spec, "deploy", input_shape=(1, 3, 41, 33)))
    for layers, dim in ((train, "data_dim"), (test, "data_dim"), (deploy, "dim")):
        assert layers["fc8_dt"].bottoms == ("fc8_interp", "edge", dim)
        assert "silence" not in layers
    assert train["fc8_dt"].message.one("domain_transform_param") == {key: [value] for key, value in transform.items()}
    assert train["conv2_2_interp"].message.one("interp_param") == {"height": [33], "width": [33]}
    assert deploy["conv2_2_interp"].message.one("interp_param") == {"height": [41], "width": [33]}
    assert {name: train[name].bottoms for name in train if name.startswith("loss")} == {
        "loss": ("fc8_dt", "label"),
        "loss_res1": ("fc8", "label_shrink8"),
        "loss_res05": ("fc8_res05", "label_shrink16"),
    }
    assert test["accuracy"].bottoms == ("fc8_dt", "label")


def test_data_layer_and_fillers():
    spec = NetSpec("n", SHAPES, filler_std={"fc8": 0.01}, ignore_label=254)
    data = DataSpec('/a "b"\\', "list.txt", 30, 321, (104.008, 116.669, 122.675), scale_factors=(0.6, 1.4))
    train, test = (graph(net_prototxt(spec, phase, data)) for phase in ("train", "test"))
    assert train["data"].message.one("image_data_param") == {
        "root_folder": ['/a "b"\\'],
        "source": ["list.txt"],
        "batch_size": [30],
        "shuffle": [True],
        "label_type": ["PIXEL"],
        "ignore_label": [254],
    }
    transform = {"mirror": [True], "crop_size": [321], "mean_value": [104.008, 116.669, 122.675]}
    assert train["data"].message.one("transform_param") == transform | {"scale_factors": [0.6, 1.4]}
    assert test["data"].message.one("transform_param") == transform | {"mirror": [False]}
    assert (test["accuracy"].type, test["accuracy"].bottoms) == ("SegAccuracy", ("fc8_interp", "label"))
    assert train["fc8"].message.one("convolution_param").one("weight_filler") == {"type": ["gaussian"], "std": [0.01]}


def test_new_layers_learn_ten_times_as_fast():
    """Where the settings say nothing: the protocols' rates."""
    heads = {"att_conv1": (4, 4, 3, 3), "att_fc": (2, 4, 1, 1)}
    spec = NetSpec("n", SHAPES | heads, [1, 0.5], "attention", lr_mult={"fc7": (3, 4)})
    layers = graph(net_prototxt(spec, "train", input_shape=(1, 3, 33, 33)))
    rates = {name: [p.one("lr_mult") for p in layer.message.get("param", [])] for name, layer in layers.items()}
    for name in ("fc8", "fc8_res05", "att_conv1", "att_fc"):
        assert rates[name] == [10, 20]
    assert (rates["conv5_3"], rates["fc6_res05"], rates["fc7"]) == ([1, 2], [1, 2], [3, 4])


def test_settings_that_make_no_net():
    with pytest.raises(
        ValueError, match=r"network 'n': shapes must have LargeFOV's layers; got no fc7 fc8; export the whole network"
    ):
        NetSpec("n", {k: v for k, v in SHAPES.items() if k not in ("fc7", "fc8")})
    with pytest.raises(
        ValueError,
        match=r'network \'n\': merge must be "none" for one scale .* got \'max\' for scales \[1\]; correct model.merge',
    ):
        NetSpec("n", SHAPES, [1], "max")
    with pytest.raises(ValueError, match=r"got no data_ms2 data_ms3 .* pool4_ms3; export the whole network"):
        NetSpec("n", SHAPES | {"data_ms1": (4, 3, 3, 3)})
    with pytest.raises(
        ValueError, match=r"DeepLab-MSc's branches must stand beside one scale; got \[1, 0.5\]; correct"
    ):
        NetSpec("n", SHAPES | dict.fromkeys(MSC_LAYERS, (4, 4, 1, 1)), [1, 0.5], "max")
    for shapes, transform, alone in (
        (SHAPES, {"num_iter": 3}, "transform"),
        (SHAPES | {"edge": (1, 4, 1, 1)}, {}, "map"),
    ):
        with pytest.raises(
            ValueError, match=rf"must come together; got the {alone} alone; add or drop model.dt_num_iter"
        ):
            NetSpec("n", shapes, domain_transform=transform)
    with pytest.raises(
        ValueError, match=r'net_prototxt: phase must be "train", "test" or "deploy"; got \'val\'; choose one'
    ):
        net_prototxt(NetSpec("n", SHAPES), "val")


def test_solver():
    solver = {
        "base_lr": 1e-3,
        "lr_policy": "step",
        "gamma": 0.1,
        "stepsize": 3,
        "power": 0.9,
        "max_iter": 8,
        "momentum": 0.9,
        "weight_decay": 5e-4,
    }
    written = parse_prototxt(
        solver_prototxt(solver | {"clip_gradients": 0.0, "batch_size": 1}, "train.prototxt", "thin", "CPU"), "t"
    )
    golden = read_prototxt(GOLDEN / "weights/solver.prototxt")
    assert written.pop("train_net") == ["train.prototxt"]
    assert written == {
        key: value for key, value in golden.items() if key not in ("net", "snapshot_after_train", "display")
    }
    poly = parse_prototxt(solver_prototxt(solver | {"lr_policy": "poly", "clip_gradients": 35.0}, "t", "p"), "t")
    assert (poly.one("power"), poly.one("clip_gradients"), "gamma" in poly, poly.one("solver_mode")) == (
        0.9,
        35,
        False,
        "GPU",
    )
    with pytest.raises(
        ValueError,
        match=r'solver_prototxt: lr_policy must be "step", "poly" or "fixed"; got \'inv\'; correct solver.lr_policy',
    ):
        solver_prototxt(solver | {"lr_policy": "inv"}, "t", "p")

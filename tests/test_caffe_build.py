"""How repro.caffe builds a net: rules, wiring, sharing, weights, and every message."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import caffe_weights
from caffe_weights import parse_prototxt
from repro.caffe import Net
from repro.caffe.bounds import Bounds
from repro.caffe.proto import typed
from repro.data.caffe_rng import CaffeRNG

X = 'name: "net"\ninput: "x" input_shape { dim: 2 dim: 3 dim: 8 dim: 9 }\n'
CONV = "convolution_param { num_output: 4 kernel_size: 3 }"


def net(body: str, phase: str = "TEST", head: str = X, **options) -> Net:
    """Builds a net from the text of its layers."""
    return Net(parse_prototxt(head + body, "net.prototxt"), phase=phase, **options)


def layer(name: str, kind: str, bottoms: str = "x", top: str | None = None, more: str = "") -> str:
    """Writes a layer."""
    read = " ".join(f'bottom: "{bottom}"' for bottom in bottoms.split())
    made = "" if top == "" else " ".join(f'top: "{each}"' for each in (top or name).split())
    return f'layer {{ name: "{name}" type: "{kind}" {read} {made} {more} }}\n'


def test_rules_choose_layers_by_phase_level_and_stage():
    body = (
        layer("train", "ReLU", more="include { phase: TRAIN }")
        + layer("not_train", "ReLU", more="exclude { phase: TRAIN }")
        + layer("deep", "ReLU", more="include { min_level: 2 }")
        + layer("shallow", "ReLU", more="include { max_level: 1 }")
        + layer("both", "ReLU", more='include { stage: "a" stage: "b" }')
        + layer("either", "ReLU", more='include { stage: "a" } include { stage: "b" }')
        + layer("without", "ReLU", more='include { not_stage: "a" }')
        + layer("always", "ReLU")
    )
    assert list(net(body, "TRAIN").layers) == ["train", "shallow", "without", "always"]
    assert list(net(body, level=2, stages=["a"]).layers) == ["not_train", "deep", "either", "always"]
    assert list(net(body, stages=["a", "b"]).layers) == ["not_train", "shallow", "both", "either", "always"]
    state = 'state { level: 2 stage: "a" }\n'
    assert list(net(body, head=state + X).layers) == ["not_train", "deep", "either", "always"]


@pytest.mark.parametrize(
    "head",
    [
        'input: "x" input_dim: 2 input_dim: 3 input_dim: 8 input_dim: 9 input: "y" input_dim: 1 input_dim: 1 input_dim: 1 input_dim: 1\n',
        'input: "x" input_shape { dim: 2 dim: 3 dim: 8 dim: 9 } input: "y" input_shape { dim: 1 dim: 1 dim: 1 dim: 1 }\n',
        'layer { name: "in" type: "Input" top: "x" top: "y" input_param { shape { dim: 2 dim: 3 dim: 8 dim: 9 } shape { dim: 1 dim: 1 dim: 1 dim: 1 } } }\n',
    ],
)
def test_inputs_are_given_in_three_ways(head):
    made = net(layer("r", "ReLU") + layer("s", "Sigmoid", "y"), head=head)
    assert made.inputs == ["x", "y"]
    assert {name: tuple(blob.shape) for name, blob in made().items()} == {"r": (2, 3, 8, 9), "s": (1, 1, 1, 1)}


def test_outputs_are_what_no_layer_takes_in_the_order_of_their_names():
    made = net(layer("z", "ReLU") + layer("a", "Sigmoid") + layer("b", "TanH") + layer("silence", "Silence", "b", ""))
    assert made.outputs == list(made()) == ["a", "z"]


def test_an_input_keeps_its_value_and_may_change_its_shape():
    made = net(layer("c", "Convolution", more=CONV) + layer("f", "Flatten", "c"))
    x = torch.randn(2, 3, 8, 9)
    assert torch.equal(made(x=x)["f"], made()["f"])
    assert made(x=torch.randn(5, 3, 6, 6))["f"].shape == (5, 4 * 4 * 4)
    with pytest.raises(ValueError, match=r"Net.forward: an input must be one of x; got 'y'; see the prototxt"):
        made(y=x)


def test_blobs_are_differentiable_by_torch():
    made = net(layer("c", "Convolution", more=CONV) + layer("s", "Sigmoid", "c"))
    x = torch.randn(2, 3, 8, 9, requires_grad=True)
    made(x=x)["s"].sum().backward()
    assert x.grad is not None
    assert made.params["c"][0].grad is not None
    assert dict(made.named_parameters()).keys() == {"modules_in_order.0.blobs.0", "modules_in_order.0.blobs.1"}


LOSSES = (
    'input: "t" input_shape { dim: 2 dim: 4 }\n'
    + layer("ip", "InnerProduct", more="inner_product_param { num_output: 4 }")
    + layer("l", "EuclideanLoss", "ip t", more="loss_weight: 0.25")
    + layer("r", "Reduction", "ip", more="loss_weight: 2")
)


def test_the_loss_is_the_weighted_sum_of_its_tops():
    made = net(LOSSES, dtype=torch.float64)
    out = made(x=torch.randn(2, 3, 8, 9), t=torch.randn(2, 4))
    torch.testing.assert_close(made.loss(), 0.25 * out["l"] + 2 * out["r"], rtol=1e-14, atol=0)
    made.backward()
    expected = torch.autograd.grad(made(x=made.blobs["x"])["l"] * 0.25 + made.blobs["r"] * 2, made.params["ip"])
    once = [one.tensor.grad.clone() for one in made.learnable]
    for gradient, wanted in zip(once, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-13, atol=1e-15)
    made()
    made.backward()  # adds, as Caffe's diffs do
    torch.testing.assert_close(made.learnable[0].tensor.grad, 2 * once[0], rtol=1e-13, atol=1e-15)
    made.clear_param_diffs()
    assert made.learnable[0].tensor.grad is None


def test_a_net_without_loss_has_loss_0_and_zero_gradients():
    made = net(layer("c", "Convolution", more=CONV))
    made()
    assert made.loss() == 0
    made.backward()
    assert not made.learnable[0].tensor.grad.any()


def test_frozen_layers_have_no_gradient_and_what_is_below_gets_its_own():
    body = (
        layer("low", "Convolution", more=CONV)
        + layer("fixed", "Convolution", "low", more=f"param {{ lr_mult: 0 }} param {{ lr_mult: 0 }} {CONV}")
        + layer("sum", "Reduction", "fixed", more="loss_weight: 1")
    )
    made = net(body)
    made(x=torch.randn(2, 3, 8, 9))
    made.backward()
    assert [one.tensor.grad is None for one in made.learnable] == [False, False, True, True]
    assert [one.lr_mult for one in made.learnable] == [1, 1, 0, 0]
    forced = net(body, head="force_backward: true\n" + X)
    forced(x=torch.randn(2, 3, 8, 9))
    forced.backward()
    assert all(one.tensor.grad is not None for one in forced.learnable)
    assert forced.blobs["x"].grad is not None


def test_propagate_down_false_stops_the_gradient():
    filled = f'{CONV[:-1]} weight_filler {{ type: "xavier" }} }}'
    low, up, loss = (
        layer("low", "Convolution", more=filled),
        layer("up", "Convolution", "low", more=f"{filled} propagate_down: false"),
        layer("sum", "Reduction", "up", more="loss_weight: 1"),
    )
    for body, reached in ((low + up + loss, False), (low + up.replace("propagate_down: false", "") + loss, True)):
        made = net(body)
        made(x=torch.randn(2, 3, 8, 9))
        made.backward()
        assert bool(made.learnable[0].tensor.grad.any()) == reached
        assert made.learnable[2].tensor.grad.any()


def shared(first: str = "", second: str = "", other: str = "num_output: 4 kernel_size: 3") -> str:
    """Writes two convolutions that share their weight by name."""
    conv = "bias_term: false"
    return layer("a", "Convolution", more=f'param {{ name: "w" {first} }} {CONV[:-1]} {conv} }}') + layer(
        "b", "Convolution", more=f'param {{ name: "w" {second} }} convolution_param {{ {other} {conv} }}'
    )


def test_shared_parameters_are_one_object_that_its_owner_lists():
    made = net(shared("decay_mult: 3", "lr_mult: 7"))
    assert made.params["a"][0] is made.params["b"][0]
    assert [(one.layer, one.index, one.lr_mult, one.decay_mult) for one in made.learnable] == [("a", 0, 7, 3)]
    sum(made(x=torch.randn(2, 3, 8, 9)).values()).sum().backward()
    assert made.learnable[0].tensor.grad.any()


def test_permissive_sharing_asks_for_the_count_alone():
    made = net(shared(second="share_mode: PERMISSIVE", other="num_output: 12 kernel_h: 1 kernel_w: 3"))
    assert made.params["b"][0] is made.params["a"][0]
    out = made(x=torch.randn(2, 3, 8, 9))
    assert out["b"].shape == (2, 12, 8, 7)
    weight = made.params["a"][0].reshape(12, 3, 1, 3)
    torch.testing.assert_close(out["b"], torch.conv2d(made.blobs["x"], weight))


def test_weights_are_matched_by_name(tmp_path):
    blobs = [np.random.rand(4, 3, 3, 3).astype(np.float32), np.random.rand(4).astype(np.float32)]
    path = tmp_path / "w.caffemodel"
    caffe_weights.write_caffemodel(path, {"c": ("Convolution", blobs), "gone": ("Convolution", blobs)}, "n")
    said: list[str] = []
    filler = 'convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "constant" value: 3 } }'
    made = net(
        layer("c", "Convolution", more=CONV) + layer("d", "Convolution", more=filler), weights=path, log=said.append
    )
    assert all(np.array_equal(mine.detach(), blob) for mine, blob in zip(made.params["c"], blobs, strict=True))
    assert (made.params["d"][0] == 3).all()
    assert said[-2:] == ["Ignoring source layer gone", f"Layer d keeps its values: {path} has no such layer"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            layer("c", "Convolution", more="convolution_param { num_output: 5 kernel_size: 3 }"),
            r"w.caffemodel: cannot copy param 0 weights from layer 'c': its shape must be the net's 5 3 3 3 \(135\); got 4 3 3 3 \(108\): shape mismatch; "
            "to learn this layer's parameters from scratch, rename the layer",
        ),
        (
            layer("c", "Convolution", more="convolution_param { num_output: 4 kernel_size: 3 bias_term: false }"),
            r"w.caffemodel: layer 'c' must have the net's 1 blobs; got 2: incompatible number of blobs for layer c; rename the layer to learn it anew",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, body, message):
    path = tmp_path / "w.caffemodel"
    blobs = [np.zeros((4, 3, 3, 3), np.float32), np.zeros(4, np.float32)]
    caffe_weights.write_caffemodel(path, {"c": ("Convolution", blobs)}, "n")
    with pytest.raises(ValueError, match=message):
        net(body, weights=path)


def test_strict_dim_false_takes_a_fully_connected_layers_weights(tmp_path):
    path = tmp_path / "w.caffemodel"
    weight = np.arange(108, dtype=np.float32).reshape(4, 27)
    caffe_weights.write_caffemodel(path, {"c": ("InnerProduct", [weight, np.ones(4, np.float32)])}, "n")
    made = net(layer("c", "Convolution", more=f"strict_dim: false {CONV}"), weights=path)
    assert np.array_equal(made.params["c"][0].detach().reshape(4, 27), weight)


def test_masks_and_fillers_follow_the_seed():
    body = layer("c", "Convolution", more=f'{CONV[:-1]} weight_filler {{ type: "xavier" }} }}') + layer(
        "d", "Dropout", "c"
    )
    x = torch.randn(2, 3, 8, 9)
    runs = [net(body, "TRAIN", seed=seed)(x=x)["d"] for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    rng = CaffeRNG(1)
    made = net(body, "TRAIN", rng=rng)
    assert made.rng is rng


ERRORS = {
    "unknown type": (layer("p", "Pose"), r"net.prototxt: line 3: layer 'p': type must be one of AbsVal, .*; got 'Pose'; remove the layer"),
    "unknown type with parameters": (layer("p", "Pose", more="pose_param { a: 1 }"), r"line 3: layer 'p': type must be one of AbsVal, .*; got 'Pose'"),
    "python": (layer("p", "Python", more='python_param { module: "os" }'), r"layer 'p': type 'Python' must be one that can be run; got one that cannot: it runs code"),
    "database": (layer("d", "Data", "", "d"), "it reads LevelDB or LMDB; convert the database"),
    "unknown field": (layer("r", "ReLU", more="relu_parm { }"), r"line 3: a field of LayerParameter must be one of Caffe's; got 'relu_parm'; did you mean relu_param\?"),
    "field twice": (layer("r", "ReLU", more="relu_param { } relu_param { }"), r"LayerParameter.relu_param must be given once; got 2 values; keep one"),
    "wrong kind": (layer("r", "ReLU", more='relu_param { negative_slope: "a" }'), r"ReLUParameter.negative_slope: must be a float; got 'a'; correct the prototxt"),
    "wrong enum": (layer("e", "Eltwise", "x x", more="eltwise_param { operation: MIN }"), r"EltwiseParameter.operation: must be one of PROD, SUM, MAX; got 'MIN'"),
    "negative count": (layer("c", "Convolution", more="convolution_param { num_output: -1 }"), r"ConvolutionParameter.num_output: must be a whole number from 0 to 4294967295; got -1"),
    "unknown bottom": (layer("r", "ReLU", "y"), r"line 3: layer 'r': bottom 0 must be a top of an earlier layer or an input; got unknown blob 'y'"),
    "top twice": (layer("r", "ReLU") + layer("r2", "ReLU", "x", "r"), r"line 4: layer 'r2': a blob must be the top of one layer; got 'r', which exists already; rename it"),
    "in place behind a reader": (layer("a", "ReLU") + layer("b", "ReLU", "x", "x"), r"got 'x', which is read by another layer, so it cannot be overwritten in place"),
    "in place": (layer("p", "Pooling", "x", "x", "pooling_param { kernel_size: 2 }"), r"\(Pooling\): its top must not be its bottom; got the same blob; rename the top"),
    "bottoms": (layer("r", "ReLU", "x x"), r"\(ReLU\): it must have 1 bottoms; got 2"),
    "tops": (layer("e", "Eltwise", "x"), r"\(Eltwise\): it must have 2 or more bottoms; got 1"),
    "rules": (layer("r", "ReLU", more="include { } exclude { }"), r"layer 'r': it must have include rules or exclude rules; got both; keep one kind"),
    "nothing left": (layer("r", "ReLU", more="include { phase: TRAIN }"), r"net.prototxt: line 1: a net must have layers in phase TEST; got none; check its rules"),
    "phase": (layer("r", "ReLU", more="phase: TRAIN"), r"layer 'r': its phase must be the net's, TEST; got TRAIN; use include"),
    "propagate_down": (layer("e", "Eltwise", "x x", more="propagate_down: true"), r"propagate_down must be given for each of its 2 bottoms; got 1"),
    "loss_weight": (layer("s", "Slice", "x", "a b", "loss_weight: 1 slice_param { axis: 0 }"), r"loss_weight must be given for each of its 2 tops; got 1"),
    "params": (layer("r", "ReLU", more="param { }"), r"at most its 0 parameters must have a param; got 1"),
    "statistics": (layer("b", "BatchNorm", more="param { lr_mult: 1 }"), r"its statistics are no weights: their lr_mult must be 0; got another; set lr_mult: 0"),
    "shared shape": (shared(other="num_output: 5 kernel_size: 3"), r"layer 'b' \(Convolution\): the shape of the shared parameter 'w' must be that of its owner 'a', \[4, 3, 3, 3\]; got \[5, 3, 3, 3\]"),
    "shared count": (shared(second="share_mode: PERMISSIVE", other="num_output: 5 kernel_size: 3"), r"the count of the shared parameter 'w' must be that of its owner 'a'"),
    "shared rate": (shared("lr_mult: 1", "lr_mult: 2"), r"the lr_mult of the shared parameter 'w' must be its owner's 1; got 2"),
    "input shapes": ('input: "y" ' + layer("r", "ReLU"), r"every input must have a shape; got 2 inputs and 1 shapes|every input"),
    "filler": (layer("c", "Convolution", more=CONV[:-1] + ' weight_filler { type: "nice" } }'), r"line 3: a filler's type must be constant, .*; got 'nice'"),
    "bilinear": (layer("c", "Convolution", more='convolution_param { num_output: 4 kernel_h: 2 kernel_w: 3 weight_filler { type: "bilinear" } }'), r"a bilinear filler must fill square kernels of 4 axes; got shape \[4, 3, 2, 3\]"),
    "stochastic": (layer("p", "Pooling", more="pooling_param { pool: STOCHASTIC kernel_size: 2 }"), r"pool must be MAX or AVE; got STOCHASTIC, which is not supported"),
    "kernel": (layer("c", "Convolution", more="convolution_param { num_output: 4 }"), r"kernel_size must be given; got none"),
    "kernel twice": (layer("c", "Convolution", more="convolution_param { num_output: 4 kernel_size: 3 kernel_h: 3 }"), r"kernel_size or kernel_h and kernel_w must be given; got both; keep one"),
    "hole": (layer("c", "Convolution", more="convolution_param { num_output: 4 kernel_size: 3 hole: 2 dilation: 2 }"), r"dilation or DeepLab v1's hole must be given; got both; keep one"),
    "too small": (layer("c", "Convolution", more="convolution_param { num_output: 4 kernel_size: 9 }"), r"its bottom must be as large as the dilated kernel; got \[2, 3, 8, 9\]"),
    "group": (layer("c", "Convolution", more="convolution_param { num_output: 4 kernel_size: 3 group: 2 }"), r"its bottom's channels must be a multiple of group; got 3 and 2"),
    "pool pad": (layer("p", "Pooling", more="pooling_param { kernel_size: 2 pad: 2 }"), r"pad must be less than the kernel; got \(2, 2\) and \(2, 2\)"),
    "eltwise": (layer("p", "Pooling", more="pooling_param { kernel_size: 2 }") + layer("e", "Eltwise", "x p"), r"its bottoms must have one shape; got \[2, 3, 8, 9\], \[2, 3, 7, 8\]"),
    "slice": (layer("s", "Slice", "x", "a b", "slice_param { slice_point: 3 }"), r"slice_point must rise within 0..3, one fewer than its 2 tops; got \[3\]"),
    "reshape": (layer("r", "Reshape", more="reshape_param { shape { dim: 7 } }"), r"its top must have its bottom's 432 values; got \[7\]"),
    "crop": (layer("p", "Pooling", more="pooling_param { kernel_size: 2 }") + layer("c", "Crop", "p x"), r"the crop of axis 2 must lie within 7; got 0 \+ 8"),
    "axis": (layer("s", "Softmax", more="softmax_param { axis: 4 }"), r"axis must be within a blob of 4 axes; got 4"),
    "interp": (layer("i", "Interp"), r"a factor, or height and width, must be given; got neither"),
    "interp pad": (layer("i", "Interp", more="interp_param { zoom_factor: 2 pad_beg: 1 }"), r"pad_beg and pad_end must be at most 0 \(they crop\); got 1 and 0"),
    "mat_write": (layer("m", "MatWrite", "x", ""), r"prefix must be given, period positive and strip not negative; got ''"),
    "crf": (layer("m", "DenseCRF", "x x x", "m", "dense_crf_param { pos_w: 1 }"), r"pos_ and bi_ settings must be given together, each at most once; got \[1, 0, 0, 0, 0\]"),
    "dropout": (layer("d", "Dropout", more="dropout_param { dropout_ratio: 1 }"), r"dropout_ratio must be in \[0, 1\); got 1"),
    "bound": (layer("t", "Tile", more="tile_param { tiles: 2000000000 }"), r"line 3: a blob must have fewer than 2\^31 numbers; got shape \[2, 6000000000, 8, 9\]; correct it, or give --allow-large"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_what_is_wrong_is_said_in_one_line(name):
    body, message = ERRORS[name]
    with pytest.raises(ValueError, match=message) as caught:
        net(body)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("net.prototxt: line ")


def test_memory_is_bounded():
    bounds = Bounds(allow_large=False, size=4, training=True)
    bounds._limit = 2**20
    bounds.add((100, 1000), "here")
    with pytest.raises(
        ValueError,
        match=r"here: all blobs must fit half of the memory, 0.0 GiB; got .* with shape \[100, 1000\]; make it smaller",
    ):
        bounds.add((100, 1000), "here")
    large = Bounds(allow_large=True, size=4, training=True)
    large.add((2**20, 2**20), "here")
    with pytest.raises(ValueError, match=r"here: no blob may be empty; got shape \[1, 0\]"):
        bounds.check((1, 0), "here")
    with pytest.raises(ValueError, match="at most 32 axes; got 33"):
        bounds.check((1,) * 33, "here")


def test_labels_are_checked_when_the_net_runs():
    body = 'input: "y" input_shape { dim: 2 dim: 1 dim: 8 dim: 9 }\n' + layer("l", "SoftmaxWithLoss", "x y")
    made = net(body)
    with pytest.raises(
        ValueError, match=r"layer 'l' \(SoftmaxWithLoss\): labels must be 0..2 or ignored; got 3; set ignore_label"
    ):
        made(y=torch.full((2, 1, 8, 9), 3.0))


def test_a_typed_message_knows_what_was_given():
    message = typed(parse_prototxt("operation: MAX coeff: 0.1", "f"), "EltwiseParameter", "f")
    assert (message.operation, message.coeff, message.stable_prod_grad) == ("MAX", [np.float32(0.1)], True)
    assert message.has("operation")
    assert not message.has("stable_prod_grad")
    with pytest.raises(AttributeError, match="EltwiseParameter has no field nothing"):
        _ = message.nothing


def test_phase_is_named():
    with pytest.raises(ValueError, match='Net: phase must be "TRAIN" or "TEST"; got \'DEPLOY\'; choose one'):
        net(layer("r", "ReLU"), "DEPLOY")


def test_gradients_of_a_blob_with_three_readers_are_summed_from_the_first_on():
    body = "".join(
        layer(name, "Power", more=f"power_param {{ scale: {scale} }}")
        + layer(f"r{name}", "Reduction", name, more="loss_weight: 1")
        for name, scale in (("a", "1e8"), ("b", "-1e8"), ("c", "1"))
    )
    made = net(body, head="force_backward: true\n" + X)
    made(x=torch.zeros(2, 3, 8, 9))
    made.backward()
    assert (made.blobs["x"].grad == 1).all()  # (1e8 - 1e8) + 1; from the last on it would be 0


def test_dropout_compares_in_double():
    made = net(layer("d", "Dropout"), "TRAIN", rng=CaffeRNG(120))
    draws = CaffeRNG(120).draw(82609)
    assert draws[-1] == 2147483663  # above half of 2^32 - 1, but not in float32
    assert made(x=torch.ones(1, 1, 1, 82609))["d"][0, 0, 0, -1] == 0


def test_debug_info_is_read():
    assert net(layer("r", "ReLU"), head="debug_info: true\n" + X).outputs == ["r"]


@pytest.mark.parametrize(("side", "expected"), [(3, 2), (4, 3), (5, 3)])
def test_a_pool_that_would_begin_beyond_its_bottom_is_left_out(side, expected):
    head = f'input: "x" input_shape {{ dim: 1 dim: 1 dim: {side} dim: {side} }}\n'
    made = net(layer("p", "Pooling", more="pooling_param { kernel_size: 2 stride: 2 pad: 1 }"), head=head)
    assert made.layers["p"].reshape([(1, 1, side, side)]) == [(1, 1, expected, expected)]
    assert made()["p"].shape == (1, 1, expected, expected)


@pytest.mark.parametrize(
    ("param", "size"),
    [
        ("shrink_factor: 2", (4, 5)),
        ("zoom_factor: 3", (22, 25)),
        ("height: 7 width: 6", (7, 6)),
        ("shrink_factor: 2 zoom_factor: 3", (10, 13)),
        ("shrink_factor: 2 height: 7 width: 6", (4, 5)),  # a factor alone wins
        ("shrink_factor: 2 zoom_factor: 3 height: 7 width: 6", (7, 6)),  # of both the size wins
        ("zoom_factor: 2 pad_beg: -1 pad_end: -2", (9, 11)),
    ],
)
def test_interp_finds_its_size_as_caffe_does(param, size):
    assert net(layer("i", "Interp", more=f"interp_param {{ {param} }}"))()["i"].shape == (2, 3, *size)


def test_later_weights_win(tmp_path):
    for number in (1, 2):
        blobs = [np.full((4, 3, 3, 3), number, np.float32), np.full(4, number, np.float32)]
        name = "c" if number == 2 else "d"
        caffe_weights.write_caffemodel(
            tmp_path / f"{number}", {"c": ("Convolution", blobs), name + "2": ("Convolution", blobs)}, "n"
        )
    body = layer("c", "Convolution", more=CONV) + layer("d2", "Convolution", more=CONV)
    made = net(body, weights=[tmp_path / "1", tmp_path / "2"])
    assert [float(made.params[name][0].detach().mean()) for name in ("c", "d2")] == [2, 1]

"""Caffe's weights into our networks and out, every layer accounted for; Caffe's momentum into our solver."""

import hashlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import GOLDEN
from float_rule import Step, Truth
from thin_network import blobs, detached, run_network, thin_solver

import caffe_weights
from repro.models.attention import Attention
from repro.models.largefov import LargeFOV
from repro.models.multiscale import MultiScale
from repro.models.weights import convolutions, load_caffemodel, parameters, save_caffemodel

HERE = Path(__file__).parent / "golden/weights"
THIN = HERE / "thin_iter_4.caffemodel"


def attention_net(classes: int = 7) -> MultiScale:
    """The net of golden/weights: three scales, attention, 1/16 width, no dropout."""
    return MultiScale(
        LargeFOV(classes, 1 / 16, True, 0.0), [1, 0.75, 0.5], "attention", Attention(64, 3, 2, 3, 32, 0.0)
    )


def thin_layers() -> dict[str, tuple[str, tuple]]:
    return {name: (layer.type, layer.blobs) for name, layer in caffe_weights.read_caffemodel(THIN).with_blobs().items()}


def written(tmp_path, layers) -> Path:
    path = tmp_path / "changed.caffemodel"
    caffe_weights.write_caffemodel(path, layers)
    return path


def test_every_layer_of_caffes_file_is_accounted_for():
    net = attention_net()
    report = load_caffemodel(net, THIN, prototxt=HERE / "net.prototxt")
    assert report.used == list(convolutions(net))
    assert len(report.shared) == 32
    assert all(name.endswith(("_res05", "_res075")) for name in report.shared)
    assert (report.absent_in_model, report.absent_in_file, report.skipped) == ([], [], [])
    model = caffe_weights.read_caffemodel(THIN)
    assert len(report.used) + len(report.shared) + len(report.without_blobs) == len(model.layers)
    for name, module in convolutions(net).items():
        for ours, theirs in zip(parameters(module), model[name].blobs, strict=True):
            assert ours.tobytes() == theirs.tobytes(), name
    text = str(report)
    assert "used: 18: conv1_1 " in text
    assert "without blobs: 92" in text


def without(layers: dict, *prefixes: str) -> dict:
    return {name: layer for name, layer in layers.items() if not name.startswith(prefixes)}


@pytest.mark.parametrize("name", ["fc8_voc12", "fc8_pascal", "fc8_${EXP}"])
def test_classifier_under_deeplabs_own_names_is_taken(tmp_path, name):
    """With its copies for the other scales; where its shape is the network's."""
    layers = {key.replace("fc8", name): layer for key, layer in thin_layers().items()}
    net = attention_net()
    report = load_caffemodel(net, written(tmp_path, layers))
    assert report.renamed == {name: "fc8"}
    assert (report.absent_in_model, report.absent_in_file, report.used) == ([], [], list(convolutions(net)))
    assert report.line() == f"changed.caffemodel (V2): 18 layers loaded; {name} taken for fc8"
    assert f"taken under another name: 1: {name} for fc8" in str(report)
    for ours, theirs in zip(parameters(convolutions(net)["fc8"]), thin_layers()["fc8"][1], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_classifier_of_other_classes_is_left_out_and_named(tmp_path):
    """The network's fc8 keeps its filler."""
    layers = without(thin_layers(), "fc8_res", "att_")
    layers["fc8_voc12"] = layers.pop("fc8")
    net = attention_net(21)
    before = {name: parameters(convolutions(net)[name])[0].copy() for name in ("fc8", "att_conv1", "att_fc")}
    report = load_caffemodel(net, written(tmp_path, layers))
    assert report.absent_in_model == ["fc8_voc12"]
    assert report.absent_in_file == ["fc8", "att_conv1", "att_fc"]
    assert report.line() == (
        "changed.caffemodel (V2): 15 layers loaded; of the file unused: fc8_voc12; the filler stays in fc8, att_conv1, att_fc"
    )
    for name, value in before.items():
        np.testing.assert_array_equal(parameters(convolutions(net)[name])[0], value)


def test_fc8_of_the_file_comes_before_other_names(tmp_path):
    layers = thin_layers() | {"fc8_voc12": ("Convolution", [2 * blob for blob in thin_layers()["fc8"][1]])}
    report = load_caffemodel(attention_net(), written(tmp_path, layers))
    assert (report.renamed, report.absent_in_model) == ({}, ["fc8_voc12"])


def test_several_classifiers_are_refused_and_one_may_be_named(tmp_path):
    layers = without(thin_layers(), "fc8_res")
    layers["fc8_a"] = layers["fc8_b"] = layers.pop("fc8")
    path = written(tmp_path, layers)
    unchanged_after(
        r"one layer must be the classifier; got fc8_a and fc8_b; rename one to fc8 with caffe_weights convert --rename",
        attention_net(),
        path,
    )
    report = load_caffemodel(attention_net(), path, rename={"fc8_b": "fc8"})
    assert (report.renamed, report.absent_in_model) == ({"fc8_b": "fc8"}, ["fc8_a"])


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        ({"fc9": "fc8"}, r"rename must name layers of the file; got 'fc9'; choose from conv1_1 "),
        ({"fc7": "fc6"}, r"layers with blobs must have names of their own; got 'fc6' more than once after renaming"),
    ],
)
def test_renames_that_fit_no_file(rename, message):
    unchanged_after(message, attention_net(), THIN, rename=rename)


def test_renamed_layers_are_taken_with_their_copies(tmp_path):
    layers = {key.replace("conv2_1", "first"): layer for key, layer in thin_layers().items()}
    report = load_caffemodel(attention_net(), written(tmp_path, layers), rename={"first": "conv2_1"})
    assert (report.renamed, report.absent_in_model, len(report.shared)) == ({"first": "conv2_1"}, [], 32)


def test_layer_of_which_the_file_has_a_part(tmp_path):
    """Caffe's HDF5 leaves out the blobs that another layer shares."""
    path = tmp_path / "part.h5"
    with h5py.File(path, "w") as file:
        for name, (_, blobs) in without(thin_layers(), "fc8_res").items():
            if "_res0" not in name:
                for number, blob in enumerate(blobs):
                    if (name, number) != ("conv1_1", 0):
                        file[f"data/{name}/{number}"] = blob
    unchanged_after(
        r"layer 'conv1_1' must have its blobs from 0; got 1 alone, the others being shared; use the .caffemodel",
        attention_net(),
        path,
    )


def test_skip(tmp_path):
    net = LargeFOV(21, 1 / 16)
    report = load_caffemodel(net, THIN, skip=["fc8"])
    assert report.skipped == ["fc8"]
    assert report.absent_in_model == ["att_conv1", "att_fc"]
    with pytest.raises(ValueError, match=r"skip must name layers of the network; got fc9; choose from conv1_1 "):
        load_caffemodel(net, THIN, skip=["fc9"])


def unchanged_after(error: str, net, *args, **kwargs) -> None:
    before = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters())).digest()
    with pytest.raises(ValueError, match=error) as caught:
        load_caffemodel(net, *args, **kwargs)
    assert "\n" not in str(caught.value)
    assert hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters())).digest() == before


def test_wrong_shape_names_layer_blob_and_both_shapes(tmp_path):
    message = r"layer 'fc8', blob 0 must have the network's shape \[21, 64, 1, 1\]; got \[7, 64, 1, 1\]; check width and classes, or skip another"
    unchanged_after(message, LargeFOV(21, 1 / 16), THIN)
    layers = thin_layers()
    layers["fc7"] = ("Convolution", (layers["fc7"][1][0], np.zeros(63, np.float32)))
    unchanged_after(
        r"layer 'fc7', blob 1 must have the network's shape \[64\]; got \[63\]; shrink-vgg makes",
        attention_net(),
        written(tmp_path, layers),
    )
    layers["fc7"] = ("Convolution", layers["fc7"][1][:1])
    unchanged_after(
        r"layer 'fc7' must have 2 blobs; got 1; check bias_term", attention_net(), written(tmp_path, layers)
    )


def test_missing_layer_is_an_error(tmp_path):
    layers = thin_layers()
    for name in ("conv3_2", "conv3_2_res05", "conv3_2_res075", "fc6", "fc6_res05", "fc6_res075"):
        del layers[name]
    unchanged_after(
        r"must have every layer but the classifier and what stands beside the trunk; got no conv3_2 fc6; use the net's own weights",
        attention_net(),
        written(tmp_path, layers),
    )


def test_shared_copies_must_be_bitwise_equal(tmp_path):
    layers = thin_layers()
    kind, (weight, bias) = layers["conv2_1_res075"]
    changed = weight.copy()
    changed[0, 0, 0, 0] = np.nextafter(changed[0, 0, 0, 0], np.float32(9))
    layers["conv2_1_res075"] = kind, (changed, bias)
    unchanged_after(
        r"layer 'conv2_1_res075' must equal 'conv2_1' bit for bit; got other values",
        attention_net(),
        written(tmp_path, layers),
    )
    del layers["conv2_1"]
    unchanged_after(
        r"layer 'conv2_1_res05' must have its owner beside it; got a file without; use the whole model",
        attention_net(),
        written(tmp_path, layers),
    )


@pytest.mark.parametrize(
    ("layer", "old", "new", "message"),
    [
        (
            "fc6",
            "dilation: 12",
            "dilation: 6",
            r"layer 'fc6' must have the network's dilation \(12, 12\); got \(6, 6\)",
        ),
        ("fc6", "pad: 12", "pad: 6", r"layer 'fc6' must have the network's pad \(12, 12\); got \(6, 6\)"),
        (
            "conv1_1",
            "kernel_size: 3",
            "kernel_size: 3 stride: 2",
            r"layer 'conv1_1' must have the network's stride \(1, 1\); got \(2, 2\)",
        ),
        (
            "conv4_1_res05",
            "kernel_size: 3",
            "kernel_size: 5",
            r"layer 'conv4_1_res05' must have the network's kernel \(3, 3\); got \(5, 5\)",
        ),
        (
            "fc7",
            "num_output: 64",
            "num_output: 64 group: 2",
            r"layer 'fc7' must have the network's group 1; got 2; use the prototxt",
        ),
        ("fc8", "num_output: 7", "num_output: 21", r"layer 'fc8' must have the network's num_output 7; got 21"),
    ],
)
def test_prototxt_must_describe_the_network(tmp_path, layer, old, new, message):
    lines = (HERE / "net.prototxt").read_text().splitlines()
    changed = [line.replace(old, new) if f'name: "{layer}" type' in line else line for line in lines]
    assert changed != lines
    (tmp_path / "net.prototxt").write_text("\n".join(changed))
    unchanged_after(message, attention_net(), THIN, prototxt=tmp_path / "net.prototxt")


def test_nonfinite_weights_are_refused_unless_allowed(tmp_path):
    layers = thin_layers()
    for name in ("conv1_1", "conv1_1_res05", "conv1_1_res075"):
        weight = layers[name][1][0].copy()
        weight[0, 0, 0, :2] = np.nan, np.inf
        layers[name] = "Convolution", (weight, layers[name][1][1])
    path = written(tmp_path, layers)
    unchanged_after(
        r"layer 'conv1_1' must hold finite numbers; got 2 that are NaN or infinite; use weights that were trained to the end",
        attention_net(),
        path,
    )
    net = attention_net()
    report = load_caffemodel(net, path, allow_nonfinite=True)
    assert report.nonfinite == {"conv1_1": 2}
    assert report.line().endswith("18 layers loaded; 2 values of conv1_1 are NaN or infinite")
    assert parameters(convolutions(net)["conv1_1"])[0].tobytes() == layers["conv1_1"][1][0].tobytes()


def test_legacy_blobs_fit(tmp_path):
    """V1 files: a bias is (1, 1, 1, n)."""
    from caffe_proto import MESSAGES, fill_blob

    net = MESSAGES["NetParameter"](name="v1")
    for name, (_, arrays) in thin_layers().items():
        layer = net.layers.add(name=name, type=4)
        for blob in arrays:
            fill_blob(layer.blobs.add(), blob, legacy=True)
    path = tmp_path / "v1.caffemodel"
    path.write_bytes(net.SerializeToString())
    ours, direct = attention_net(), attention_net()
    assert load_caffemodel(ours, path).format == "V1"
    load_caffemodel(direct, THIN)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), direct.parameters(), strict=True))


@pytest.mark.parametrize("suffix", [".caffemodel", ".h5"])
def test_round_trip_is_bit_exact(tmp_path, suffix):
    """File to model to file, through a channels-last network."""
    net = attention_net().to(memory_format=torch.channels_last)
    load_caffemodel(net, THIN)
    out = tmp_path / "out.caffemodel"
    save_caffemodel(net, out, "thin")
    if suffix == ".h5":
        from caffe_weights.files.hdf5 import write_hdf5

        write_hdf5(caffe_weights.read_caffemodel(out), out.with_suffix(".h5"), "t")
    saved, original = caffe_weights.read_caffemodel(out.with_suffix(suffix)), caffe_weights.read_caffemodel(THIN)
    assert list(saved.with_blobs()) == list(convolutions(net))
    for name, layer in saved.with_blobs().items():
        assert [(b.shape, b.tobytes()) for b in layer.blobs] == [(b.shape, b.tobytes()) for b in original[name].blobs]


def test_names_must_be_unique():
    pair = torch.nn.ModuleDict(
        {"a": torch.nn.ModuleDict({"fc8": torch.nn.Conv2d(1, 1, 1)}), "fc8": torch.nn.Conv2d(1, 1, 1)}
    )
    with pytest.raises(
        ValueError,
        match=r"convolutions: every convolution must have a layer name of its own; got 'fc8' twice; rename one",
    ):
        convolutions(pair)


STATES = [HERE / "thin_iter_4.solverstate"] + [
    p for p in [GOLDEN / "weights/thin_iter_4.solverstate.h5"] if p.is_file()
]


@pytest.mark.parametrize("state", STATES, ids=lambda p: p.suffix)
def test_caffes_run_goes_on_in_ours(state):
    """Four more steps from Caffe's files of step 4: its losses, and its parameters after step 8."""
    with np.load(HERE / "expected.npz") as arrays:
        expected = dict(arrays)
    images = torch.tensor(expected["images_u8"].astype(np.float32) - expected["mean_bgr"].reshape(1, 1, 3, 1, 1))
    labels = torch.tensor(expected["labels_u8"][:, :, 0].astype(np.int64))

    def compute(dtype, device, arithmetic):
        net = attention_net().to(dtype)
        load_caffemodel(net, THIN)
        solver, steps = thin_solver(net, stepsize=3), []
        caffes = caffe_weights.read_solverstate(state)
        solver.iteration = caffes.iter
        assert solver.iteration == 4
        for buffer, array in zip(solver.history.values(), caffes.history, strict=True):
            buffer.copy_(torch.from_numpy(np.array(array)))
        order = [name.replace(".weight", "/w").replace(".bias", "/b") for name in solver.history]
        assert order == expected["history_order"].tolist()
        with arithmetic:
            for step in range(4, 8):
                _, terms = run_network(net, images[step % 3].to(dtype), labels[step % 3], True)
                solver.zero_grad()
                sum(terms.values()).backward()
                solver.step()
                arithmetic.end_step(solver.parameters)
                steps.append(Step(detached(terms), detached(blobs(net), "params_after8/") if step == 7 else {}))
        return steps

    truth = Truth(compute)
    for suffix in ("", "_f64"):  # the float64 program had rounded nothing at step 4, where the files did
        rows = expected[f"losses_steps4to7{suffix}"]
        caffe = [dict(zip(expected["loss_names"].tolist(), row, strict=True)) for row in rows]
        if not suffix:
            caffe[-1] |= {key: value for key, value in expected.items() if key.startswith("params_after8/")}
            assert len(caffe[-1]) == 4 + 6
        truth.assert_holds_caffes_float32(caffe, truth.bounds)
    truth.assert_holds_float32()

"""Caffe's weights and solver states into our networks and out: every layer accounted for."""

import hashlib
from pathlib import Path

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
from repro.weights import convolutions, load_caffemodel, load_solverstate, parameters, save_caffemodel

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


def test_a_smaller_network_and_another_head(tmp_path):
    """DeepLab's own files name the classifier otherwise (fc8_voc12): reported, and the network's fc8 keeps its filler."""
    layers = thin_layers()
    layers["fc8_voc12"] = layers.pop("fc8")
    for name in [n for n in layers if n.startswith(("fc8_res", "att_"))]:
        del layers[name]
    net = attention_net(21)
    before = {name: parameters(convolutions(net)[name])[0].copy() for name in ("fc8", "att_conv1", "att_fc")}
    report = load_caffemodel(net, written(tmp_path, layers))
    assert report.absent_in_model == ["fc8_voc12"]
    assert report.absent_in_file == ["fc8", "att_conv1", "att_fc"]
    for name, value in before.items():
        np.testing.assert_array_equal(parameters(convolutions(net)[name])[0], value)


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
        r"must have every layer but fc8, att_\*; got no conv3_2 fc6; use the net's own weights",
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


def test_nonfinite_weights_are_a_warning_with_the_count(tmp_path):
    layers = thin_layers()
    for name in ("conv1_1", "conv1_1_res05", "conv1_1_res075"):
        weight = layers[name][1][0].copy()
        weight[0, 0, 0, :2] = np.nan, np.inf
        layers[name] = "Convolution", (weight, layers[name][1][1])
    path = written(tmp_path, layers)
    with pytest.warns(UserWarning, match=rf"{path}: 2 values are NaN or infinite"):
        load_caffemodel(attention_net(), path)


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
        from caffe_weights.hdf5 import write_hdf5

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
        assert load_solverstate(solver, state).iter == solver.iteration == 4
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


def test_states_of_other_networks_are_refused(tmp_path):
    state = caffe_weights.read_solverstate(STATES[0])
    solver = thin_solver(attention_net())
    path = tmp_path / "x.solverstate"
    caffe_weights.write_solverstate(path, 4, state.history[:-1], "")
    with pytest.raises(
        ValueError, match=r"must have 36 buffers, one per parameter; got 35; use the same network and SGD"
    ):
        load_solverstate(solver, path)
    caffe_weights.write_solverstate(path, 4, [*state.history[:-2], *state.history[:-3:-1]], "")
    with pytest.raises(
        ValueError,
        match=r"the buffer of att_fc.weight must have shape \[3, 32, 1, 1\]; got \[3\]; use the same network",
    ):
        load_solverstate(solver, path)
    assert solver.iteration == 0
    assert not any(buffer.any() for buffer in solver.history.values())

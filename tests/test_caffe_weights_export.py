"""Export: the files that the DeepLab fork runs, from settings and weights; checked against Caffe's own net and by OpenCV's importer."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_weights import (
    ExportSettings,
    model_layers,
    net_layers,
    read_caffemodel,
    read_prototxt,
    read_settings,
    read_solverstate,
    to_caffe,
)
from caffe_weights.__main__ import main
from repro.models.attention import Attention
from repro.models.largefov import LargeFOV
from repro.models.multiscale import MultiScale
from repro.models.weights import load_caffemodel
from repro.ops import merge_scores

HERE = Path(__file__).parent / "golden/weights"
THIN = HERE / "thin_iter_4.caffemodel"
SETTINGS = """
mode = "CPU"
[model]
scales = [1, 0.75, 0.5]
merge = "attention"
extra_supervision = true
dropout_ratio = 0.0
lr_mult = { fc8 = [10, 20], att_conv1 = [10, 20], att_fc = [10, 20] }
[solver]
base_lr = 0.001
lr_policy = "step"
gamma = 0.1
stepsize = 3
max_iter = 8
momentum = 0.9
weight_decay = 0.0005
[data]
root_folder = "/data"
train_source = "train.txt"
test_source = "val.txt"
batch_size = 1
crop_size = 65
test_crop_size = 97
mean_bgr = [104.008, 116.669, 122.675]
"""


@pytest.fixture
def settings(tmp_path) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(SETTINGS)
    return path


def test_export_has_caffes_graph_and_weights(tmp_path, settings, capsys):
    out = tmp_path / "out"
    assert main(["to-caffe", str(THIN), str(out), "--settings", str(settings), "--name", "thin"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(out / name)
        for name in ("thin_iter_0.caffemodel", "train.prototxt", "test.prototxt", "deploy.prototxt", "solver.prototxt")
    ]
    exported, original = read_caffemodel(out / "thin_iter_0.caffemodel"), read_caffemodel(THIN)
    assert set(exported.with_blobs()) == set(original.with_blobs())
    for layer in exported.layers:
        assert [(b.shape, b.tobytes()) for b in layer.blobs] == [
            (b.shape, b.tobytes()) for b in original[layer.name].blobs
        ]
    ours, caffes = (net_layers(read_prototxt(path), "t") for path in (out / "train.prototxt", HERE / "net.prototxt"))
    assert [layer.name for layer in ours[:2]] == ["data", "silence"]
    assert ours[2:] == caffes
    test = net_layers(read_prototxt(out / "test.prototxt"), "t")
    assert [layer.name for layer in test[-2:]] == ["fc8_fusion_interp", "accuracy"]
    assert read_prototxt(out / "deploy.prototxt").one("input_shape") == {"dim": [1, 3, 97, 97]}
    assert read_prototxt(out / "solver.prototxt").one("solver_mode") == "CPU"


def test_history_goes_into_a_solverstate(tmp_path, settings):
    state = read_solverstate(HERE / "thin_iter_4.solverstate")
    files = to_caffe(
        model_layers(read_caffemodel(THIN)), tmp_path / "out", read_settings(settings), "thin", 4, state.history
    )
    assert files[:2] == [tmp_path / "out/thin_iter_4.caffemodel", tmp_path / "out/thin_iter_4.solverstate"]
    back = read_solverstate(files[1])
    assert (back.iter, back.current_step, back.learned_net) == (4, 1, "thin_iter_4.caffemodel")
    assert [b.tobytes() for b in back.history] == [b.tobytes() for b in state.history]
    with pytest.raises(
        ValueError,
        match=r"a history must have 36 buffers, weight and bias of every layer; got 35; export a whole state",
    ):
        to_caffe(
            model_layers(read_caffemodel(THIN)),
            tmp_path / "other",
            read_settings(settings),
            "thin",
            4,
            state.history[:-1],
        )
    assert not (tmp_path / "other").exists()


def test_a_backbone_gets_a_head_with_fillers(tmp_path, settings):
    """The weights of an initialisation lack the head; Caffe fills what the .caffemodel does not have."""
    backbone = {
        name: blobs
        for name, blobs in model_layers(read_caffemodel(THIN)).items()
        if not name.startswith(("fc8", "att_"))
    }
    plain = read_settings(settings)
    with pytest.raises(
        ValueError, match=r"the weights must have fc8, or the settings model.num_classes; got neither; add it"
    ):
        to_caffe(backbone, tmp_path / "out", plain, "init")
    head = ExportSettings(
        dict(plain.model) | {"num_classes": 21, "attention_filters": 512, "attention_kernel": 1},
        plain.solver,
        plain.data,
    )
    to_caffe(backbone, tmp_path / "out", head, "init")
    layers = {
        layer.name: layer.message.one("convolution_param")
        for layer in net_layers(read_prototxt(tmp_path / "out/train.prototxt"), "t")
    }
    filler = [{"type": ["gaussian"], "std": [0.01]}]
    assert layers["fc8"] == {"num_output": [21], "kernel_size": [1], "weight_filler": filler}
    assert layers["att_conv1"] == {"num_output": [512], "kernel_size": [1], "weight_filler": filler}
    assert layers["att_fc"] == {"num_output": [3], "kernel_size": [1], "weight_filler": filler}
    assert "weight_filler" not in layers["fc7"]
    assert read_prototxt(tmp_path / "out/solver.prototxt").one("solver_mode") == "GPU"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[model]", "[modell]", r"must have the tables model, .* got mode, modell, solver, data; correct it"),
        ('"CPU"', '"TPU"', r"and mode may be GPU or CPU; got mode, model, solver, data; correct it"),
        (
            "extra_supervision = true",
            'extra_supervision = "yes"',
            r"model.extra_supervision must have .* got 'yes'; correct it",
        ),
        ("[1, 0.75, 0.5]", '[1, "0.5"]', r"model.scales must have the type that README.md shows; got \[1, '0.5'\]"),
        (
            "[10, 20], att_conv1",
            "[10], att_conv1",
            r"model.lr_mult must have the type that README.md shows; got \{'fc8': \[10\]",
        ),
        ("lr_mult = {", "lr_mult = [] #", r"model.lr_mult must have the type that README.md shows; got \[\]"),
        ("crop_size = 65", "crop_size = 65.5", r"data.crop_size must have the type that README.md shows; got 65.5"),
        ("base_lr", "base_rate", r"settings: solver must have the keys .*; got base_rate; correct them"),
        ("momentum = 0.9", "", r"settings: solver must have .*; got no momentum; add them"),
        ("stepsize = 3", "", r"solver_prototxt: lr_policy 'step' must have stepsize; got none; add to solver"),
        ("[model]", "[model", r"must be TOML; got .*; correct it"),
        ("scales", "scale", r"settings: model must have the keys .*; got scale; correct them"),
        ('merge = "attention"\n', "", r"settings: model must have merge, scales; got no merge; add them"),
        ("crop_size = 65", "crop = 65", r"settings: data must have the keys .*; got crop; correct them"),
        ("test_crop_size = 97", "", r"settings: data must have .*; got no test_crop_size; add them"),
        (
            "attention",
            "max",
            r"a network without attention must have no att_conv1 att_fc; got model.merge 'max'; correct it",
        ),
    ],
)
def test_wrong_settings(tmp_path, settings, capsys, old, new, message):
    settings.write_text(SETTINGS.replace(old, new))
    assert main(["to-caffe", str(THIN), str(tmp_path / "out"), "--settings", str(settings)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()


def test_missing_settings_and_other_layers(tmp_path, settings, capsys):
    assert main(["to-caffe", str(THIN), str(tmp_path / "out"), "--settings", str(tmp_path / "gone.toml")]) == 2
    assert "gone.toml: must be a file; got nothing there; check the path" in capsys.readouterr().err
    os.mkfifo(tmp_path / "pipe")
    assert main(["to-caffe", str(THIN), str(tmp_path / "out"), "--settings", str(tmp_path / "pipe")]) == 2
    assert "pipe: must be a file; got something that is no regular file; name the file" in capsys.readouterr().err
    with open(tmp_path / "big.toml", "wb") as file:
        file.truncate(2**21)
    assert main(["to-caffe", str(THIN), str(tmp_path / "out"), "--settings", str(tmp_path / "big.toml")]) == 2
    assert "must be TOML of at most 1048576 bytes; got 2097152; name the settings" in capsys.readouterr().err
    det1 = HERE.parent / "caffemodels/det1.caffemodel"
    assert main(["to-caffe", str(det1), str(tmp_path / "out"), "--settings", str(settings)]) == 2
    assert "layer 'PReLU1' must be a convolution with bias; got [10]; use shrink-vgg" in capsys.readouterr().err


class Interp:
    """Caffe's Interp for OpenCV, whose own lacks shrink_factor: bilinear, corner to corner."""

    def __init__(self, params, blobs):
        self.zoom, self.shrink = (int(params.get(key, 1)) for key in ("zoom_factor", "shrink_factor"))

    def side(self, length: int) -> int:
        shrunk = (length - 1) // self.shrink + 1
        return shrunk + (shrunk - 1) * (self.zoom - 1)

    def getMemoryShapes(self, inputs):
        n, c, h, w = inputs[0]
        return [[n, c, self.side(h), self.side(w)]]

    def forward(self, inputs):
        x = np.asarray(inputs[0], np.float64)
        for axis in (2, 3):
            length, out = x.shape[axis], self.side(x.shape[axis])
            at = np.arange(out) * ((length - 1) / (out - 1))
            low = np.minimum(at.astype(int), length - 1)
            weight = (at - low).reshape([-1 if a == axis else 1 for a in range(4)])
            x = x.take(low, axis) * (1 - weight) + x.take(np.minimum(low + 1, length - 1), axis) * weight
        return [x.astype(np.float32)]


class SpatialProduct:
    """The DeepLab fork's layer: scores times one weight per position."""

    def __init__(self, params, blobs):
        pass

    def getMemoryShapes(self, inputs):
        return [inputs[0]]

    def forward(self, inputs):
        return [np.asarray(inputs[0]) * np.asarray(inputs[1])]


@pytest.mark.parametrize("merge", ["none", "attention"])
def test_opencv_reads_the_export(tmp_path, settings, merge):
    """OpenCV's Caffe importer (before OpenCV 5) computes our scores from the exported files, with the two layers that it lacks given to it."""
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV before 5 (pip install 'opencv-python-headless<5')")
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        pytest.skip(f"needs an OpenCV with the Caffe importer, before 5; this is {cv2.__version__}")
    scales = [1, 0.75, 0.5] if merge == "attention" else [1]
    head = Attention(64, 3, 2, 3, 32, 0.0) if merge == "attention" else None
    net = MultiScale(LargeFOV(7, 1 / 16, True, 0.0), scales, merge, head).eval()
    load_caffemodel(net, THIN)
    layers = {
        name: blobs
        for name, blobs in model_layers(read_caffemodel(THIN)).items()
        if merge == "attention" or not name.startswith("att_")
    }
    base = read_settings(settings)
    model = dict(base.model) | {"scales": scales, "merge": merge}
    to_caffe(layers, tmp_path, ExportSettings(model, base.solver, base.data), "thin")
    image = np.random.default_rng(0).uniform(-120, 130, (1, 3, 97, 97)).astype(np.float32)
    with torch.no_grad():
        output = net(torch.from_numpy(image))
    for kind in (Interp, SpatialProduct):
        cv2.dnn_registerLayer(kind.__name__, kind)
    try:
        importer = cv2.dnn.readNetFromCaffe(str(tmp_path / "deploy.prototxt"), str(tmp_path / "thin_iter_0.caffemodel"))
        importer.setInput(image)
        fc8 = importer.forward("fc8")
        merged = importer.forward("fc8_fusion" if merge == "attention" else "fc8")
    finally:
        for kind in (Interp, SpatialProduct):
            cv2.dnn_unregisterLayer(kind.__name__)
    ours_merged = merge_scores(output.scores, output.logits, output.mode)[0]
    for ours, theirs in ((output.scores[0], fc8), (ours_merged, merged)):
        assert np.abs(ours.numpy() - theirs).max() <= 1e-4 * np.abs(theirs).max()

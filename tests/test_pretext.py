"""The pretext training of the demo's backbone, and the backbone that is shipped."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import caffe_weights
from caffe_weights import read_caffemodel
from repro import pretext
from repro.data.synthetic.dataset import draw_scenes
from repro.models.largefov import LargeFOV
from repro.models.layers import fill
from repro.pretext import CONVOLUTIONS, IGNORE, MEAN_BGR, CropStream, crop_targets

DEMO = Path(caffe_weights.__file__).parent / "demo"
SHIPPED = DEMO / "pretext_vgg16_thin.caffemodel"


def generator(*seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.fixture
def thin_net():
    """A width 1/64 net in float64 with batch normalisation whose statistics and affine parameters are not the initial ones."""
    torch.manual_seed(0)
    net = LargeFOV(8, width=1 / 64, dropout_ratio=0.0)
    pretext.add_batch_norm(net)
    fill(net.fc8, "gaussian", 1.0)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.2, 0.3)
    for _ in range(3):
        net(torch.randn(4, 3, 65, 65) * 60)
    return net.double().eval()


@torch.no_grad()
def test_folding_changes_nothing_but_the_layers(thin_net):
    x = torch.randn(2, 3, 65, 65).double() * 60
    before = thin_net(x)["fc8"]
    pretext.fold_batch_norm(thin_net)
    torch.testing.assert_close(thin_net(x)["fc8"], before, rtol=0, atol=1e-10 * before.abs().max().item())
    assert not any(isinstance(module, nn.BatchNorm2d | nn.Sequential) for module in thin_net.modules())


@torch.no_grad()
def test_activations_fall_geometrically_and_fc7_keeps_its_direction(thin_net):
    pretext.fold_batch_norm(thin_net)
    x = torch.randn(2, 3, 65, 65).double() * 60
    before = thin_net(x)["fc7"]
    rms = pretext.scale_activations(thin_net, x, fc7_rms=2.0)
    after = thin_net(x)["fc7"]
    scale = (after * before).sum() / (before * before).sum()
    torch.testing.assert_close(after, before * scale, rtol=0, atol=1e-10 * after.abs().max().item())
    assert list(rms) == list(CONVOLUTIONS)
    values = np.array([x.square().mean().sqrt().item(), *rms.values()])
    np.testing.assert_allclose(values[1:] / values[:-1], (2 / values[0]) ** (1 / 15), rtol=1e-10)
    assert values[-1] == pytest.approx(2, rel=1e-10)
    assert rms["conv1_2"] == pytest.approx(F.relu(thin_net.conv1_2(F.relu(thin_net.conv1_1(x)))).square().mean().sqrt())


def test_a_crop_on_a_distractor_is_a_distractor():
    label = np.array([[0, 0, 3, 255]], np.uint8)
    targets = crop_targets(label, np.array([[False, True, False, True]]))
    assert targets.dtype == np.uint8
    assert targets.tolist() == [[0, 7, 3, 255]]


def test_crops_are_drawn_on_the_grid_as_many_for_each_class():
    rng = generator(4)
    images = rng.integers(0, 256, (5, 41, 41, 3), dtype=np.uint8)
    targets = np.repeat(np.repeat(rng.integers(0, 3, (5, 6, 6), dtype=np.uint8), 8, 1), 8, 2)[:, :41, :41]
    targets[:, ::2, 3] = 255
    # The red channel carries the target, so that a batch shows where its targets lie.
    images[..., 2] = targets
    stream = CropStream(images, targets, 33, 2, generator(5))
    counts, windows = [], set()
    for _ in range(20):
        data, target = stream.batch(np.arange(5))
        assert data.shape == (5, 3, 33, 33)
        assert target.shape == (5, 5, 5)
        seen = (data[:, 2] + MEAN_BGR[2]).round().long()[:, ::8, ::8]
        drawn = target != IGNORE
        assert (seen[drawn] == target[drawn]).all()
        counts += [[(t == value).sum().item() for value in range(3)] for t in target]
        windows.add(data[0].numpy().tobytes())
    assert np.max(counts) == 2
    assert np.mean(counts) > 1.9
    assert len(windows) > 15
    blue = stream.batch(np.arange(5))[0][0, 0] + MEAN_BGR[0]
    assert any(
        np.allclose(blue, images[0, top : top + 33, left : left + 33, 0][:, ::step])
        for top in range(9)
        for left in range(9)
        for step in (1, -1)
    )


def test_accuracy_counts_the_drawn_crops_by_class():
    class Oracle(nn.Module):
        def forward(self, data):
            seen = (data[:, 2] + MEAN_BGR[2]).round().long()[:, ::8, ::8]
            seen[seen == 2] = 1
            return {"fc8": F.one_hot(seen, 8).permute(0, 3, 1, 2)}

    targets = np.repeat(np.arange(4, dtype=np.uint8), 33 * 33).reshape(4, 33, 33)
    images = np.zeros((4, 33, 33, 3), np.uint8)
    images[..., 2] = targets
    shares = pretext.accuracy(Oracle(), CropStream(images, targets, 33, 2, generator(1)), batch_size=3)
    assert shares.tolist() == [1, 1, 0, 1, 0, 0, 0, 0]


TINY = ("--width", "0.03125", "--pictures", "6", "--test-pictures", "2", "--size", "33", "--batch-size", "2")


def test_the_command_writes_a_caffemodel_without_fc8_and_can_be_repeated(tmp_path, capsys):
    for name in ("one", "two"):
        pretext.main(["--out", str(tmp_path / name), *TINY, "--iterations", "3", "--workers", "1"])
    printed = capsys.readouterr().out
    assert "accuracy mean" in printed
    assert "rms after ReLU: conv1_1" in printed
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    model = read_caffemodel(tmp_path / "one")
    assert [layer.name for layer in model.layers] == list(CONVOLUTIONS)
    shapes = {layer.name: [np.shape(blob) for blob in layer.blobs] for layer in model.layers}
    assert shapes["conv1_1"] == [(2, 3, 3, 3), (2,)]
    assert shapes["fc6"] == [(32, 16, 3, 3), (32,)]


def test_training_lowers_the_loss(capsys):
    scenes = list(draw_scenes((1,), 8, (41, 41), heights=(0.6, 0.9)))
    images = np.stack([scene.image[..., ::-1] for scene in scenes])
    targets = np.stack([crop_targets(scene.label, scene.distractor) for scene in scenes])
    torch.manual_seed(0)
    net = LargeFOV(8, width=1 / 16, dropout_ratio=0.0)
    pretext.add_batch_norm(net)
    fill(net.fc8, "gaussian", 0.01)
    stream = CropStream(images, targets, 33, 4, generator(2))
    pretext.train(net, stream, iterations=40, batch_size=8, base_lr=0.1)
    data, target = stream.batch(np.arange(8))
    assert F.cross_entropy(net(data)["fc8"], target, ignore_index=IGNORE) < 0.8 * np.log(8)
    assert "pretext: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "a.caffemodel", "--size", "160"], "--size: must be 8k+1; got 160; choose 161"),
        (["--out", "no/a"], "--out: its folder must exist; got no/a; create no"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_drawn(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert pretext.main(arguments) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_an_error_of_the_command_is_one_line():
    command = [sys.executable, "-m", "repro.pretext", "--out", "a.caffemodel", "--size", "160"]
    done = subprocess.run(command, cwd=Path(pretext.__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: --size: must be 8k+1; got 160; choose 161\n"


def test_shipped_file_is_the_one_its_readme_describes():
    content = SHIPPED.read_bytes()
    assert len(content) <= 2_000_000
    assert hashlib.sha256(content).hexdigest() in (DEMO / "README.md").read_text()


def shipped_net() -> LargeFOV:
    net = LargeFOV(7, width=0.125)
    for layer in read_caffemodel(SHIPPED).layers:
        convolution = getattr(net, layer.name)
        for parameter, blob in zip((convolution.weight, convolution.bias), layer.blobs, strict=True):
            assert parameter.shape == np.shape(blob)
            parameter.data.copy_(torch.from_numpy(np.array(blob)))
    return net.eval()


@torch.no_grad()
def test_shipped_features_tell_parts_apart():
    """A linear classifier on fc7, fitted by least squares to fresh pictures, recognises crops of others."""
    net = shipped_net()
    features, targets = [], []
    for seed in range(2):
        scenes = list(draw_scenes((99, seed), 16, (161, 161), heights=(0.45, 0.95), people=(1, 3)))
        images = np.stack([scene.image[..., ::-1] for scene in scenes])
        labels = np.stack([crop_targets(scene.label, scene.distractor) for scene in scenes])
        data, target = CropStream(images, labels, 161, 8, generator(seed)).batch(np.arange(16))
        drawn = target != IGNORE
        fc7 = net(data)["fc7"].permute(0, 2, 3, 1)[drawn]
        features.append(F.pad(fc7, (0, 1), value=1.0))
        targets.append(target[drawn])
    assert features[0][:, :-1].square().mean().sqrt() == pytest.approx(1, abs=0.5)
    ridge = features[0].T @ features[0] + 10 * torch.eye(129)
    weights = torch.linalg.solve(ridge, features[0].T @ F.one_hot(targets[0], 8).float())
    right = (features[1] @ weights).argmax(1) == targets[1]
    assert right.float().mean() > 0.5

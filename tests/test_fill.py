"""Layers that a weights' file lacks: declared, filled, scaled by data, and on record."""

import re

import pytest
import torch
from tiny import main, write_data, write_protocol

import caffe_weights
from repro.models import build
from repro.models.unit_variance import scale_to_unit_variance
from repro.models.weights import save_caffemodel
from repro.protocol import load_protocol
from repro.records.store import read_record


@pytest.fixture
def protocol(tmp_path):
    return write_protocol(tmp_path)


@pytest.fixture
def trunk(tmp_path, protocol):
    """A file of the first row's network without fc6 and fc7."""
    whole, path = tmp_path / "whole.caffemodel", tmp_path / "trunk.caffemodel"
    save_caffemodel(build(load_protocol(protocol).rows[0].settings["model"], 3, seed=7), whole)
    layers = caffe_weights.read_caffemodel(whole).with_blobs()
    kept = {n: ("Convolution", layer.blobs) for n, layer in layers.items() if n not in ("fc6", "fc7", "fc8")}
    caffe_weights.write_caffemodel(path, kept)
    return path


@pytest.fixture
def command(tmp_path, protocol, trunk):
    write_data(tmp_path / "data")
    options = ["--data-root", str(tmp_path / "data"), "--weights", str(trunk), "--device", "cpu", "--workers", "0"]
    return [str(protocol), *options, "--out", str(tmp_path / "out")]


def outputs(network, name, batches):
    """All values that a layer puts out, of every scale, by channel."""
    seen = []
    hook = network.convolutions()[name].register_forward_hook(
        lambda module, inputs, output: seen.append(output.movedim(1, 0).flatten(1))
    )
    with torch.no_grad():
        for batch in batches:
            network(batch)
    hook.remove()
    return torch.cat(seen, dim=1)


def test_every_channel_has_mean_zero_and_unit_variance_over_all_scales(protocol):
    network = build(load_protocol(protocol).row("attention3-extra").settings["model"], 3, seed=3)
    batches = [torch.randn(2, 3, 33, 33) * 50 for _ in range(3)]
    before = {name: layer.weight.clone() for name, layer in network.convolutions().items()}
    factors = scale_to_unit_variance(network, ["fc7", "fc6"], batches)
    assert network.training
    assert list(factors) == ["fc6", "fc7"]
    network.eval()
    for name, layer in network.convolutions().items():
        factor = layer.weight.data.flatten(1).norm(dim=1) / before[name].flatten(1).norm(dim=1)
        torch.testing.assert_close(layer.weight.data, before[name] * factor[:, None, None, None])
        if name in factors:
            assert factors[name] == pytest.approx(factor.mean().item())
            values = outputs(network, name, batches).double()
            assert (values.var(dim=1, correction=0) - 1).abs().max() < 1e-4
            assert values.mean(dim=1).abs().max() < 1e-4
        else:
            assert torch.equal(layer.weight.data, before[name])
    assert abs(outputs(network, "conv5_3", batches).var().item() - 1) > 0.1  # which was not asked for


def test_a_dead_layer_is_told(protocol):
    network = build(load_protocol(protocol).rows[0].settings["model"], 3, seed=3)
    torch.nn.init.zeros_(network.net.fc6.weight[3])  # one channel is enough
    with pytest.raises(
        ValueError, match=r"fill: every channel of fc6 must vary over the first batches; got a variance of 0; "
    ):
        scale_to_unit_variance(network, ["fc6"], [torch.randn(1, 3, 33, 33)])
    assert network.training


def test_fill_on_the_command_line(command, tmp_path, capsys):
    row = ["--row", "baseline"]
    assert main([*command, *row]) == 2
    assert "trunk.caffemodel: must have every layer but the classifier" in (err := capsys.readouterr().err)
    assert err.endswith("got no fc6 fc7; use the net's own weights, or --fill fc6,fc7\n")
    assert main([*command, *row, "--fill", "fc6,fc7"]) == 0
    err = capsys.readouterr().err
    assert re.search(r"filled to unit variance over 4 batches: fc6 times [\d.e+]+, fc7 times [\d.e+]+\n", err)
    record = read_record(next((tmp_path / "out").glob("*/baseline-seed1/record.json")))
    filled = {"fill.layers": ["fc6", "fc7"], "fill.fillers": ["unit_variance"] * 2, "fill.batches": 4}
    assert filled.items() <= record["deviates"].items()
    assert record["settings"]["fill"] == {key.removeprefix("fill."): value for key, value in filled.items()}
    curve = record["loss_curve"]
    # As they were drawn, they give another run; what is recorded is not run again under other settings.
    assert main([*command, *row, "--fill", "fc6=filler,fc7"]) == 2
    assert "must have been made with the settings asked for" in capsys.readouterr().err
    drawn = [*command[:-1], str(tmp_path / "drawn"), *row]
    assert main([*drawn, "--fill", "fc6=filler,fc7=filler"]) == 0
    assert "unit variance" not in capsys.readouterr().err
    assert read_record(next((tmp_path / "drawn").glob("*/baseline-seed1/record.json")))["loss_curve"] != curve


def test_an_interrupted_run_goes_on_with_what_was_filled(command, tmp_path, monkeypatch):
    from repro.solver.train import Training

    options = ["--row", "baseline", "--fill", "fc6,fc7"]
    assert main([*command, *options]) == 0
    whole = read_record(next((tmp_path / "out").glob("*/baseline-seed1/record.json")))
    step = Training.step

    def interrupted(self, stream):
        if self.iteration == 5:
            raise KeyboardInterrupt
        return step(self, stream)

    monkeypatch.setattr(Training, "step", interrupted)
    again = [*command[:-1], str(tmp_path / "again"), *options]
    assert main(again) == 130
    monkeypatch.undo()
    assert main(again) == 0
    resumed = read_record(next((tmp_path / "again").glob("*/baseline-seed1/record.json")))
    assert {**resumed, "run": 0} == {**whole, "run": 0}


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        ("fc6,", "--fill: must be layers' names, joined by commas; got 'fc6,'; for example --fill fc6,fc7"),
        ("fc6,fc9", "fill must name layers of the network; got fc9; choose from conv1_1 "),
        ("fc6,fc7,conv1_1", "must lack the layers to be filled; got conv1_1; leave them out of fill"),
        ("fc6,fc6=filler", "fill.layers must differ; got ['fc6', 'fc6']; name each once"),
        ("fc6=zeros,fc7", "fill.fillers must be one of filler, unit_variance for each of fill.layers; got ['zeros', "),
    ],
)
def test_what_cannot_be_filled(command, capsys, fill, message):
    assert main([*command, "--fill", fill]) == 2
    assert message in capsys.readouterr().err


def test_without_a_file_the_names_are_looked_at_too(command, capsys):
    command[command.index("--weights") + 1] = "none"
    assert main([*command, "--fill", "fc6,fc9"]) == 2
    assert "fill: layers must be the network's; got fc9; choose from conv1_1 " in capsys.readouterr().err
    assert main([*command, "--row", "baseline", "--fill", "fc6,fc7"]) == 0

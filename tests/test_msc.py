"""DeepLab-MSc from its protocol's row to its record: the trunk of the row that it starts from stays, the branches learn; and its export."""

import json
import re

import pytest
import torch
from tiny import MSC_KEYS, MSC_ROW, main, run_command, write_protocol

import caffe_weights
import repro
from caffe_weights.deeplab.spec import MSC_BRANCHES, MSC_LAYERS, VGG16_LAYERS
from repro.export import main as export
from repro.models import build
from repro.models.weights import load_caffemodel
from repro.protocol import load_protocol
from repro.solver.snapshot import read_snapshot

ROWS = ('[[row]]\nid = "max2"', MSC_ROW + '\n[[row]]\nid = "max2"')


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder in which the row was run with seed 5, and the command."""
    folder = tmp_path_factory.mktemp("msc")
    command = [*run_command(folder), "--row", "msc", "--seed", "5"]
    write_protocol(folder, ROWS)
    assert main(command) == 0
    return folder, command


def test_the_baseline_is_trained_first_and_its_trunk_stays_bit_for_bit(run):
    folder, _ = run
    assert sorted(path.parent.name for path in folder.glob("out/*/*/record.json")) == ["baseline-seed1", "msc-seed5"]
    first, second = (
        read_snapshot(folder / "out/tiny" / row / "snapshot.pt") for row in ("baseline-seed1", "msc-seed5")
    )
    for name in (f"{layer.name}.{blob}" for layer in VGG16_LAYERS for blob in ("weight", "bias")):
        assert torch.equal(first.parameters[name], second.parameters[name]), name
        assert not second.history[name].any(), name
    settings = load_protocol(str(folder / "tiny.toml")).row("msc").settings
    filled = {name: layer.weight for name, layer in build(settings["model"], 3, seed=5).convolutions().items()}
    for name in MSC_LAYERS:
        assert not torch.equal(second.parameters[f"{name}.weight"], filled[name]), name
        assert second.history[f"{name}.weight"].any(), name
    assert not torch.equal(first.parameters["fc8.weight"], second.parameters["fc8.weight"])
    record = json.loads((folder / "out/tiny/msc-seed5/record.json").read_text())
    assert record["provenance"]["weights"] == "tiny-baseline-seed1.caffemodel"
    assert record["n_images"] == 3
    assert len(record["loss_curve"]) == 6


def test_what_is_recorded_is_not_trained_again(run, capsys):
    _, command = run
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert err.count(": recorded, ") == 2
    assert re.search(r"^msc .* none .* w/o ", out, re.MULTILINE)


def test_the_dry_run_names_both_steps(run, capsys):
    _, command = run
    assert main([*command, "--dry-run", "--out", "nowhere"]) == 0
    out = capsys.readouterr().out
    assert "2 rows, 2 trainings" in out
    assert '"stage.row": "baseline"' in out


def test_it_is_exported_and_read_back(run, tmp_path):
    folder, _ = run
    out = tmp_path / "caffe"
    snapshot = folder / "out/tiny/msc-seed5/snapshot.pt"
    assert export([str(snapshot), str(out), "--data-root", str(folder / "data")]) == 0
    settings = load_protocol(str(folder / "tiny.toml")).row("msc").settings
    other = build(settings["model"], 3, seed=9)
    report = load_caffemodel(other, out / "msc_iter_6.caffemodel", prototxt=out / "train.prototxt")
    assert report.absent_in_model == report.absent_in_file == []
    parameters = read_snapshot(snapshot).parameters
    assert all(torch.equal(layer.weight, parameters[f"{n}.weight"]) for n, layer in other.convolutions().items())
    train = caffe_weights.net_layers(caffe_weights.read_prototxt(out / "train.prototxt"), "t")
    layers = {layer.name: layer.message for layer in train}
    rates = {name: [p.one("lr_mult") for p in layers[name]["param"]] for name in ("conv1_1", "fc7", "fc8", "pool4_ms3")}
    assert rates == {"conv1_1": [0, 0], "fc7": [0, 0], "fc8": [10, 20], "pool4_ms3": [10, 20]}
    strides = [layers[f"{source}_ms1"].one("convolution_param").get("stride", [1])[0] for source, _ in MSC_BRANCHES]
    assert strides == [stride for _, stride in MSC_BRANCHES]
    assert layers["drop_data_ms1"].one("dropout_param") == {"dropout_ratio": [0.5]}
    assert len(caffe_weights.read_solverstate(out / "msc_iter_6.solverstate").history) == len(parameters)


def test_it_is_loaded_as_a_library(run):
    folder, _ = run
    model = repro.load(folder / "out/tiny/msc-seed5", device="cpu")
    seen = model.predict(folder / "data/JPEGImages/val0.jpg")
    assert seen.labels.shape == (36, 30)
    assert seen.weights is None
    assert torch.tensor(seen.probabilities).sum(0).allclose(torch.ones(36, 30), atol=1e-5)


def test_a_stage_of_a_stage_comes_first(tmp_path, capsys):
    """The branches start from max2's trunk, which starts from the baseline's."""
    again = ('[[row]]\nid = "max2"', '[[row]]\nid = "max2"\nstage = { protocol = "tiny", row = "baseline" }')
    from_max2 = MSC_ROW.replace('row = "baseline"', 'row = "max2"')
    command = run_command(tmp_path)
    write_protocol(tmp_path, again, ('[[row]]\nid = "attention3', from_max2 + '\n[[row]]\nid = "attention3'))
    assert main([*command, "--row", "msc", "--set", "solver.max_iter=1"]) == 0
    order = re.findall(r"^\[\d/3\] tiny (\w+), seed 1$", capsys.readouterr().err, re.MULTILINE)
    assert order == ["baseline", "max2", "msc"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('row = "baseline"', 'row = "msc"', "stage must be another row that is trained; got 'msc'; correct it"),
        ('row = "baseline"', 'row = "min2"', "stage must be another row that is trained; got 'min2'; correct it"),
        ("model.msc_filler_std = 0.001\n", "", "every key must be given; got none for model.msc_filler_std; add to"),
        ("msc_filters = 64", "msc_filters = 0", "model.msc_filters must be within 1 and 65536; got 0; correct it"),
        ("msc_lr_mult = [10, 20]", "msc_lr_mult = [1]", "model.msc_lr_mult must have 2 values; got [1]; correct it"),
    ],
)
def test_wrong_rows_are_refused(tmp_path, old, new, message):
    assert old in MSC_ROW
    path = write_protocol(tmp_path, ('[[row]]\nid = "max2"', MSC_ROW.replace(old, new) + '\n[[row]]\nid = "max2"'))
    with pytest.raises(ValueError, match=re.escape(message)):
        load_protocol(path)


def test_an_override_reaches_the_rows_that_have_its_group(tmp_path):
    path = write_protocol(tmp_path, ROWS)
    rows = {row.id: row.settings["model"] for row in load_protocol(path, ["model.msc_filters=32"]).rows}
    assert rows["msc"]["msc_filters"] == 32
    assert "msc_filters" not in rows["baseline"]
    every = load_protocol(path, [f"model.{key}={value}" for key, value in MSC_KEYS.items()]).rows
    assert all("msc_filters" in row.settings["model"] for row in every)

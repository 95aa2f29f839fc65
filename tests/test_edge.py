"""The attention network with an edge map and a domain transform, from its protocol's row to its record, its pictures and its export."""

import numpy as np
import pytest
import torch
from tiny import DT_ROW, items_of, main, run_command, write_protocol

import caffe_weights
import repro
from repro.data.stream import ImageSegData
from repro.device import Compute
from repro.export import main as export
from repro.models import Output, build, enlarged_scores
from repro.models.edge import DomainTransform
from repro.ops import domain_transform, interp, merge_scores
from repro.protocol import load_protocol
from repro.records.store import read_record
from repro.solver.loss import losses
from repro.solver.snapshot import read_snapshot, trained_network
from repro.solver.train import iteration_seed
from repro.visualize.figures import figures_of_run
from repro.visualize.network import see

ROWS = ('[[row]]\nid = "max2"', DT_ROW + '\n[[row]]\nid = "max2"')
FOLDER = "out/tiny/attention-dt-seed1"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder in which the row was run."""
    folder = tmp_path_factory.mktemp("dt")
    command = [*run_command(folder), "--row", "attention-dt", "--row", "baseline"]
    write_protocol(folder, ROWS)
    assert main(command) == 0
    return folder


def test_every_layer_learns_the_edge_map_too(run):
    parameters = read_snapshot(run / FOLDER / "snapshot.pt").parameters
    settings = load_protocol(str(run / "tiny.toml")).row("attention-dt").settings
    before = build(settings["model"], 3, seed=1).convolutions()
    assert [name for name, layer in before.items() if torch.equal(layer.weight, parameters[f"{name}.weight"])] == []
    assert "edge" in before
    record = read_record(run / FOLDER / "record.json")
    assert len(record["loss_curve"]) == 6
    assert record["n_images"] == 3


def test_scores_are_filtered_within_each_image_only():
    torch.manual_seed(0)
    scores, logits = [torch.randn(2, 3, 5, 5), torch.randn(2, 3, 3, 3)], torch.randn(2, 2, 5, 5)
    transform, edge = DomainTransform(2, 10, 1, 0.0), torch.rand(2, 1, 33, 33)
    output = Output(scores, logits, "attention", edge, transform)
    large = interp(merge_scores(scores, logits, "attention")[0], (33, 33))
    sizes = [(33, 33), (20, 9)]
    found = enlarged_scores(output, (33, 33), torch.tensor(sizes))
    for i, (height, width) in enumerate(sizes):
        own = (slice(i, i + 1), ..., slice(height), slice(width))
        torch.testing.assert_close(found[own], domain_transform(large[own], edge[own], *transform))
        outside = torch.ones(33, 33, dtype=bool)
        outside[:height, :width] = False
        assert torch.equal(found[i][:, outside], large[i][:, outside])
    assert not torch.equal(found, large)
    half = Output([one.bfloat16() for one in scores], logits.bfloat16(), "attention", edge.bfloat16(), transform)
    assert enlarged_scores(half, (33, 33), None).dtype == torch.float32


def test_training_filters_within_each_image_too(run):
    """The first iteration's loss, computed again from what the data stream says of the images' sizes."""
    record = read_record(run / FOLDER / "record.json")
    settings = record["settings"]
    network = build(settings["model"], 3, seed=1)
    transform = {key: settings["transform"][key] for key in ("crop_size", "mean_bgr", "mirror", "scale_factors")}
    stream = ImageSegData(
        items_of(run / "data", "train"), batch_size=2, **transform, shuffle=True, ignore_label=255, seed=1
    )
    data, label, dim = next(iter(stream))
    assert (dim < 33).any()
    terms = []
    for valid_size in (dim, None):
        torch.manual_seed(iteration_seed(1, 0))  # of dropout
        terms.append(losses(network(data), label, network.scales, False, 255, valid_size)["loss"].item())
    assert record["loss_curve"][0] == pytest.approx(terms[0], rel=1e-6)
    assert terms[1] != pytest.approx(terms[0], rel=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_image_is_seen_alike_everywhere(run, precision):
    """The test's labels, the pictures' and the library's, each of an image that is padded to the test crop."""
    record = read_record(run / FOLDER / "record.json")
    network = trained_network(record, run / FOLDER / "snapshot.pt")
    compute = Compute(torch.device("cpu"), precision)
    items = items_of(run / "data", "val")
    seen = list(see(network, items, record["settings"], compute))
    assert [one.edge.shape for one in seen] == [one.prediction.shape for one in seen] == [(36, 30), (33, 40), (36, 30)]
    assert all((one.edge >= 0).all() for one in seen)
    model = repro.load(run / FOLDER, device="cpu", precision=precision)
    for one, item in zip(seen, items, strict=True):
        np.testing.assert_array_equal(model.predict(item.image).labels, one.prediction)


def test_its_figures_show_the_edge_map(run):
    index = figures_of_run(run / "out", "tiny", data_root=run / "data", log=lambda line: None)
    text = index.read_text()
    assert "and the edges where its domain transform stops smoothing" in text
    assert (index.parent / "attention-dt.png").is_file()


def test_it_is_exported_with_its_filter(run, tmp_path):
    out = tmp_path / "caffe"
    assert export([str(run / FOLDER / "snapshot.pt"), str(out), "--data-root", str(run / "data")]) == 0
    layers = {
        layer.name: layer
        for layer in caffe_weights.net_layers(caffe_weights.read_prototxt(out / "train.prototxt"), "t")
    }
    assert layers["fc8_dt"].bottoms == ("fc8_interp", "edge", "data_dim")
    assert layers["fc8_dt"].message.one("domain_transform_param") == {
        "num_iter": [3],
        "spatial_sigma": [30],
        "range_sigma": [1],
    }
    assert layers["conv1_2_interp"].message.one("interp_param") == {"height": [33], "width": [33]}
    assert layers["loss"].bottoms == ("fc8_dt", "label")
    assert [p.one("lr_mult") for p in layers["edge"].message["param"]] == [10, 20]
    exported = caffe_weights.read_caffemodel(out / "attention-dt_iter_6.caffemodel").with_blobs()
    assert {name for name in exported if name.startswith("edge")} == {"edge"}  # of one scale alone


def test_it_trains_in_half_precision(tmp_path):
    command = run_command(tmp_path)
    write_protocol(tmp_path, ROWS)
    assert main([*command, "--row", "attention-dt", "--precision", "bf16", "--set", "solver.max_iter=1"]) == 0

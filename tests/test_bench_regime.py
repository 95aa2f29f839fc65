"""What a study asks beside IoU: the cost of an iteration, what every scale sees by itself, and the gradient with extra supervision and without."""

import json

import pytest
import torch

from repro.bench import regime
from repro.bench.regime import main
from repro.ops import interp
from repro.records.store import read_record
from repro.run.__main__ import main as run
from repro.solver.snapshot import trained_network

SMALL = (
    *("synthetic.num_train=4", "data.num_train=4", "synthetic.num_val=3", "data.num_val=3", "synthetic.size=[33, 33]"),
    *("transform.crop_size=33", "test.crop_size=33", "solver.batch_size=2", "solver.max_iter=2"),
)
SET = [f"--set={one}" for one in SMALL]
COST = ["cost", *SET, "demo", "average2-extra"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of a row of two scales that was trained a little."""
    folder = tmp_path_factory.mktemp("ran")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPRO_CACHE", str(folder / "cache"))
        assert run(["table1", "--row=average2-extra", "--row=baseline", "--device=cpu", f"--out={folder}", *SET]) == 0
        yield folder / "demo" / "average2-extra-seed1"


def test_shapes_take_turns(ran, tmp_path, monkeypatch):
    seconds = iter(float(n) for n in range(1000))
    monkeypatch.setattr(regime.time, "process_time", lambda: next(seconds) ** 2)
    out = tmp_path / "cost.json"
    assert main([*COST, "17x1", "--rounds=2", f"--out={out}"]) == 0
    found = json.loads(out.read_text())
    # Calls 0 to 3 are the round that is not counted; the least of the next two: 5² - 4² and 7² - 6² seconds.
    assert found["results"] == [
        {"crop_size": 33, "batch_size": 2, "cpu_ms": 9000.0},
        {"crop_size": 17, "batch_size": 1, "cpu_ms": 13000.0},
    ]
    assert found["row"] == "demo/average2-extra"
    assert found["threads"] == 1


def seeing(record, path):
    """The trained network with another classifier: two iterations teach background alone."""
    network = trained_network(record, path)
    with torch.no_grad():
        network.net.fc8.weight.copy_(
            torch.randn(network.net.fc8.weight.shape, generator=torch.Generator().manual_seed(1))
        )
    return network


def test_each_scale_by_itself_and_the_gradients(ran, tmp_path, monkeypatch):
    monkeypatch.setattr(regime, "trained_network", seeing)
    out = tmp_path / "branches.json"
    assert main(["branches", str(ran), "--batches=2", f"--out={out}"]) == 0
    (found,) = json.loads(out.read_text())["results"]
    record = read_record(ran / "record.json")
    assert (found["row"], found["value"]) == ("average2-extra", record["value"])
    assert sorted(found["alone"]) == ["0.5", "1"]
    assert all(0 < value < 100 for value in found["alone"].values())
    assert found["alone"]["1"] != found["alone"]["0.5"]
    assert found["gradient_at_start"] != found["gradient_at_end"]
    settings = record["settings"]
    network = seeing(record, ran / "snapshot.pt")
    norms = {"merged": [], "all": []}
    for number, batch in zip(range(2), regime.batches_of(settings, 1), strict=False):
        for kind, wanted in norms.items():
            torch.manual_seed(regime.iteration_seed(1, number))
            network.zero_grad()
            every = regime.all_losses(network, batch, 255)
            assert sorted(every) == ["loss", "loss_res05", "loss_res1"]
            (every["loss"] if kind == "merged" else sum(every.values())).backward()
            wanted.append(sum(float(p.grad.double().square().sum()) for p in network.parameters()) ** 0.5)
    for kind, wanted in norms.items():
        assert found["gradient_at_end"][kind] == pytest.approx(sum(wanted) / 2, rel=1e-5)


def test_a_branch_is_one_scales_scores_at_the_finest_size(ran):
    network = trained_network(read_record(ran / "record.json"), ran / "snapshot.pt")
    x = torch.randn(1, 3, 33, 33)
    with torch.no_grad():
        scores = network(x).scores
        alone = [regime.Branch(network, number)(x) for number in range(2)]
    assert torch.equal(alone[0].scores[0], scores[0])
    assert torch.equal(alone[1].scores[0], interp(scores[1], scores[0].shape[2:]))
    assert [(len(one.scores), one.logits, one.mode) for one in alone] == [(1, None, "average")] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*COST, "32x1"], "transform.crop_size must be of the form"),
        ([*COST, "33"], "shape: must be CROPxBATCH, whole numbers; got '33'"),
        ([*COST, "33x1", "--rounds=0"], "--rounds: must be at least 1; got 0"),
        (["branches", "nowhere", "--batches=0"], "--batches: must be at least 1; got 0"),
        (["branches", "BASELINE"], "must be a row of several scales on drawn data; got demo/baseline; name another"),
    ],
)
def test_wrong_words_are_refused(arguments, message, ran, tmp_path, capsys):
    arguments = [str(ran.with_name("baseline-seed1")) if one == "BASELINE" else one for one in arguments]
    assert main([*arguments, f"--out={tmp_path / 'out.json'}"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()

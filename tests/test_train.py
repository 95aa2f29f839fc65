"""The training loop: Caffe's order of things, and runs that are interrupted in every way and end the same."""

import re

import pytest
import torch
from tiny import items_of, write_data, write_protocol

from repro.data.stream import ImageSegData
from repro.device import Compute
from repro.models import build
from repro.protocol import load_protocol
from repro.solver.loss import losses
from repro.solver.snapshot import read_snapshot
from repro.solver.train import Sitting, Training, iteration_seed, make_solver


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    return items_of(write_data(tmp_path_factory.mktemp("data") / "root"), "train")


@pytest.fixture
def settings(tmp_path):
    """Makes the settings of a row, with overrides."""
    path = write_protocol(tmp_path, ("width = 0.03125", "width = 0.015625"))
    return lambda *overrides, row="attention3-extra": load_protocol(path, overrides).row(row).settings


def run(items, settings, folder, seed=1, workers=0, report=lambda *values: None, starts=None, **changes):
    """Trains from the beginning or from a snapshot; returns the curve, the parameters and the snapshot. `starts` gets the first iteration."""
    compute = Compute(torch.device("cpu"), workers=workers)
    sitting = Sitting(
        **{"seed": seed, "identity": "me", "snapshot": folder / "snapshot.pt", "compute": compute} | changes
    )
    network = build(settings["model"], 3, seed).to(sitting.compute.device)
    training = Training(network, items, settings, sitting)
    if starts is not None:
        starts.append(training.iteration)
    training.run(report)
    assert training.seconds > 0
    return training.curve, [p.detach().clone() for p in network.parameters()], read_snapshot(folder / "snapshot.pt")


def assert_same(a, b):
    assert a[0] == b[0]
    assert all(torch.equal(x, y) for x, y in zip(a[1], b[1], strict=True))
    assert all(torch.equal(a[2].history[name], b[2].history[name]) for name in a[2].history)


def interrupted(items, settings, folder, at, **changes):
    """Trains until `at` iterations are done."""
    asked = iter([False] * at + [True])
    with pytest.raises(KeyboardInterrupt):
        run(items, settings, folder, should_stop=lambda: next(asked), **changes)


def test_twice_is_the_same_and_another_seed_is_not(items, settings, tmp_path):
    first = run(items, settings(), tmp_path / "a")
    torch.manual_seed(77)  # the caller's random numbers play no part
    assert_same(run(items, settings(), tmp_path / "b"), first)
    assert len(first[0]) == 6
    assert run(items, settings(), tmp_path / "c", seed=2)[0] != first[0]


@pytest.mark.parametrize(
    "overrides",
    [("solver.iter_size=1",), ("solver.iter_size=2", "solver.snapshot=100", "solver.display=3")],
    ids=["plain", "iter_size"],
)
def test_interrupted_anywhere_it_ends_the_same(items, settings, tmp_path, overrides):
    whole = run(items, settings(*overrides), tmp_path / "whole")
    for at in range(6):
        folder = tmp_path / str(at)
        interrupted(items, settings(*overrides), folder, at)
        assert (folder / "snapshot.pt").exists() == (at > 0)
        if at:
            assert read_snapshot(folder / "snapshot.pt").iteration == at
        starts = []
        resumed = run(items, settings(*overrides), folder, starts=starts)
        assert starts == [at]
        assert_same(resumed, whole)


def test_interrupted_at_every_iteration_with_workers(items, settings, tmp_path):
    whole = run(items, settings("solver.max_iter=3"), tmp_path / "whole")
    interrupted(items, settings("solver.max_iter=3"), tmp_path / "parts", 1, workers=1)
    interrupted(items, settings("solver.max_iter=3"), tmp_path / "parts", 1)
    assert_same(run(items, settings("solver.max_iter=3"), tmp_path / "parts", workers=1), whole)


def test_a_finished_run_is_only_read(items, settings, tmp_path):
    whole = run(items, settings(), tmp_path)
    stamp = (tmp_path / "snapshot.pt").stat().st_mtime_ns
    reports = []
    assert_same(run(items, settings(), tmp_path, workers=1, report=lambda *values: reports.append(values)), whole)
    assert (tmp_path / "snapshot.pt").stat().st_mtime_ns == stamp
    assert reports == []


def test_a_killed_run_goes_on_from_its_last_snapshot(items, settings, tmp_path):
    whole = run(items, settings(), tmp_path / "whole")

    def killed(iteration, loss, rate):
        if iteration == 6:
            raise MemoryError

    with pytest.raises(MemoryError):
        run(items, settings(), tmp_path / "killed", report=killed)
    assert read_snapshot(tmp_path / "killed" / "snapshot.pt").iteration == 4
    assert_same(run(items, settings(), tmp_path / "killed"), whole)


def test_a_killed_save_leaves_the_old_snapshot(items, settings, tmp_path, monkeypatch):
    whole = run(items, settings(), tmp_path / "whole")
    interrupted(items, settings(), tmp_path / "killed", 2)
    before = (tmp_path / "killed" / "snapshot.pt").read_bytes()

    def die(descriptor):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", die)
        with pytest.raises(KeyboardInterrupt):
            run(items, settings(), tmp_path / "killed")
    assert (tmp_path / "killed" / "snapshot.pt").read_bytes() == before
    assert_same(run(items, settings(), tmp_path / "killed"), whole)


def test_another_runs_snapshot_is_refused(items, settings, tmp_path):
    path = tmp_path / "snapshot.pt"
    run(items, settings("solver.max_iter=1"), tmp_path)
    with pytest.raises(ValueError, match=r"; delete it to start the row again, or choose another --out$") as caught:
        run(items, settings(), tmp_path, identity="other")
    reason = "another run's snapshot (settings, data, weights, seed or precision differ)"
    assert str(caught.value).startswith(f"{path}: must be a whole snapshot of this very run; got {reason}; ")


def test_a_snapshot_remembers_the_circumstances_that_changed(items, settings, tmp_path):
    for at, threads in enumerate(("1", "1", "2", "2"), start=1):
        interrupted(items, settings(), tmp_path, 1, circumstances={"threads": threads})
        assert read_snapshot(tmp_path / "snapshot.pt").iteration == at
    assert run(items, settings(), tmp_path, circumstances={"threads": "2"})[2].sittings == [
        {"threads": "1"},
        {"threads": "2"},
    ]
    # What only reads the finished training changes nothing.
    assert run(items, settings(), tmp_path, circumstances={"threads": "3"})[2].sittings == [
        {"threads": "1"},
        {"threads": "2"},
    ]


def test_a_loss_that_is_not_finite_is_refused(items, settings, tmp_path):
    with pytest.raises(
        RuntimeError,
        match=r"^train: the loss must stay finite; got (nan|inf) at iteration [1-6]; lower solver\.base_lr$",
    ):
        run(items, settings("solver.base_lr=1e30", "solver.display=6"), tmp_path)
    assert not (tmp_path / "snapshot.pt").exists()


def test_loss_falls(items, settings, tmp_path):
    overrides = (
        "solver.max_iter=60",
        "solver.stepsize=1000",
        "model.width=0.125",
        "model.dropout_ratio=0",
        "solver.base_lr=0.003",
        "transform.mirror=false",
    )
    curve, _, _ = run(items, settings(*overrides, "model.filler_gain=0.8", row="baseline"), tmp_path)
    assert sum(curve[-5:]) < 0.5 * sum(curve[:5])


@pytest.mark.parametrize("row", ["baseline", "max2", "attention3-extra"])
def test_the_loop_is_caffes(items, settings, tmp_path, row):
    table = settings("solver.iter_size=2", "solver.max_iter=3", "solver.stepsize=2", "model.dropout_ratio=0", row=row)
    reports = []
    curve, parameters, _ = run(items, table, tmp_path, report=lambda *values: reports.append(values))

    network = build(table["model"], 3, 1)
    solver = make_solver(network, table)
    transform = {
        "crop_size": 33,
        "mean_bgr": (104.008, 116.669, 122.675),
        "mirror": True,
        "scale_factors": [0.75, 1.0],
        "ignore_label": 255,
    }
    stream = iter(ImageSegData(items, batch_size=2, **transform, shuffle=True, seed=1))
    expected = []
    for _ in range(3):
        solver.zero_grad()
        terms = []
        for _ in range(2):
            data, label, _ = next(stream)
            terms.append(sum(losses(network(data), label, network.scales, row.endswith("extra")).values()))
            terms[-1].backward()
        solver.step()
        expected.append(sum(term.item() for term in terms) / 2)
    assert curve == pytest.approx(expected, rel=1e-15)
    assert all(torch.equal(a, b) for a, b in zip(parameters, network.parameters(), strict=True))
    assert [report[0] for report in reports] == [2, 3]
    assert [report[2] for report in reports] == pytest.approx([1e-3, 1e-4], rel=1e-6)
    assert [report[1] for report in reports] == [curve[1], curve[2]]


def test_multipliers_of_each_layer(settings):
    table = settings(
        "model.lr_mult=[3, 4]", "model.fc8_lr_mult=[5, 6]", "model.attention_lr_mult=[7, 8]", "solver.weight_decay=0"
    )
    network = build(table["model"], 3, 1)
    solver = make_solver(network, table)
    before = [p.detach().clone() for p in solver.parameters]
    for parameter in solver.parameters:
        parameter.grad = torch.ones_like(parameter)
    solver.step()
    moved = {
        name: (a - b).mean().item() / 1e-3
        for name, a, b in zip(solver.history, before, [p.detach() for p in solver.parameters], strict=True)
    }
    for name, value in moved.items():
        layer, blob = name.split(".")
        weight, bias = {"fc8": (5, 6), "att_conv1": (7, 8), "att_fc": (7, 8)}.get(layer, (3, 4))
        assert value == pytest.approx(weight if blob == "weight" else bias, rel=1e-3), name


def test_dropout_masks_are_a_function_of_seed_and_iteration():
    seeds = {iteration_seed(seed, iteration) for seed in (0, 1, 2**32 - 1) for iteration in range(1000)}
    assert len(seeds) == 3000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_broken_file_ends_training_by_its_name(items, settings, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(items[0].image.read_bytes()[:200])
    for workers in (0, 1):
        with pytest.raises(ValueError, match=f"^{re.escape(str(broken))}: image must decode"):
            run([items[0]._replace(image=broken)], settings(), tmp_path, workers=workers)

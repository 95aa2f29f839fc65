"""The solver around a net: its tests, its log, its snapshots and what it does with signals."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_caffe import make_folder, solver_file

from caffe_weights import read_caffemodel
from caffe_weights.files.solverstate import read_solverstate
from repro.caffe import Solver
from repro.caffe.scores import added


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path)


def make(folder: Path, path: Path | None = None, **options) -> Solver:
    return Solver(path or folder / "solver.prototxt", root=folder, **options)


def parameters(solver: Solver) -> list[torch.Tensor]:
    return [entry.tensor.detach().clone() for entry in solver.net.learnable]


def same(ones: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return len(ones) == len(others) and all(map(torch.equal, ones, others))


def log(capsys) -> list[str]:
    return [line.partition("] ")[2] for line in capsys.readouterr().err.splitlines()]


def test_two_runs_of_one_seed_are_one_and_another_seed_is_another(folder, capsys):
    ends = []
    for seed in ("3", "3", "4", ""):
        solver = make(folder, solver_file(folder, random_seed=seed))
        solver.step(3)
        ends.append(parameters(solver))
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])
    assert any(re.fullmatch(r"random_seed was not specified and is set to \d+", line) for line in log(capsys))


# caffe/tools/extra/parse_log.py and extract_seconds.py
ITERATION = re.compile(r"Iteration (\d+)")
TRAIN_OUTPUT = re.compile(r"Train net output #(\d+): (\S+) = ([\.\deE+-]+)")
TEST_OUTPUT = re.compile(r"Test net output #(\d+): (\S+) = ([\.\deE+-]+)")
RATE = re.compile(r"lr = ([-+]?[0-9]*\.?[0-9]+([eE]?[-+]?[0-9]+)?)")
OLD_LOSS = re.compile(r"Iteration \d+, loss = ([\.\d]+)")


def test_caffes_log_parser_reads_the_log(folder, capsys):
    path = solver_file(folder, "test_iter: 2 test_interval: 3 display: 2 average_loss: 2")
    solver = make(folder, path)
    losses = []
    solver.net.register_forward_hook(lambda net, given, out: losses.append(float(net.blobs["loss"].detach())))
    solver.solve()
    lines = capsys.readouterr().err.splitlines()
    prefix = re.compile(r"[IW]\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ \w+\.py:\d+\] ")
    assert all(prefix.match(line) for line in lines)
    starts = [line for line in lines if "Solving" in line]  # extract_seconds.py takes the time from here
    assert len(starts) == 1
    month, day = int(starts[0][1:3]), int(starts[0].split()[0][3:])
    assert 1 <= month <= 12
    assert 1 <= day <= 31
    at, train, test, rates, smoothed = -1, [], [], [], []
    for line in lines:
        if found := ITERATION.search(line):
            at = int(found[1])
        if found := RATE.search(line):
            rates.append((at, float(found[1])))
        if found := OLD_LOSS.search(line):
            smoothed.append((at, float(found[1])))
        if found := TRAIN_OUTPUT.search(line):
            train.append((at, found[2], float(found[3])))
        if found := TEST_OUTPUT.search(line):
            test.append((at, found[2], float(found[3])))
    assert rates == [(0, 0.05), (2, 0.05), (4, 0.025)]
    assert train == [(i, "loss", pytest.approx(losses[i], rel=1e-5)) for i in (0, 2, 4)]
    assert [(i, name) for i, name, _ in test] == [(i, name) for i in (0, 3, 6) for name in ("accuracy", "loss")]
    assert len(losses) == 7  # with display there is one more pass at the end, as in Caffe
    means = [losses[0], np.mean(losses[1:3]), np.mean(losses[3:5]), np.mean(losses[5:7])]
    assert smoothed == [(i, pytest.approx(mean, rel=1e-5)) for i, mean in zip((0, 2, 4, 6), means, strict=True)]
    texts = [prefix.sub("", line) for line in lines]
    assert texts[-1] == "Optimization Done."
    for wanted in (
        "Creating training net from net file: net.prototxt",
        "Creating test net (#0) specified by net file: net.prototxt",
        "Solver scaffolding done.",
        "Solving tiny",
        "Learning Rate Policy: step",
        "Iteration 0, Testing net (#0)",
        f"Snapshotting to binary proto file {folder / 'snap_iter_6.caffemodel'}",
        f"Snapshotting solver state to binary proto file {folder / 'snap_iter_6.solverstate'}",
    ):
        assert wanted in texts
    shown = next(line for line in texts if line.startswith("    Train net output #0: loss = "))
    value = shown.split()[6]
    assert shown == f"    Train net output #0: loss = {value} (* 1 = {value} loss)"


def test_a_test_net_scores_the_train_nets_parameters(folder, capsys):
    solver = make(folder, solver_file(folder, "test_iter: 5 test_interval: 1 test_compute_loss: true"))
    with torch.no_grad():
        for entry in solver.net.learnable:
            entry.tensor.zero_()
        bias = solver.net.layers["fc"].blobs[1]
        bias[2] = 1.0  # always class 2
    accuracy, loss = solver.test(0)
    assert accuracy == pytest.approx(1 / 5)  # five batches of three run three times through the five pictures
    assert loss == pytest.approx(np.log(np.exp(1) + 4) - 1 / 5, rel=1e-6)
    assert f"Test loss: {loss:g}" in log(capsys)
    with torch.no_grad():
        bias[2] = -50.0
    assert solver.test(0)[1] > 5  # it uses the train net's own numbers, not a copy of old ones


def test_without_test_initialization_the_first_test_waits(folder, capsys):
    make(folder, solver_file(folder, "test_iter: 1 test_interval: 2 test_initialization: false")).step(5)
    assert [line for line in log(capsys) if "Testing" in line] == [f"Iteration {i}, Testing net (#0)" for i in (2, 4)]


def test_iter_size_sums_batches_and_divides(folder):
    whole = make(folder, solver_file(folder, iter_size="2", momentum="0"))
    seen = []
    whole.net.register_forward_hook(lambda net, given, out: seen.append(net.blobs["data"]))
    start = parameters(whole)
    whole.step(1)
    assert len(seen) == 2
    assert not torch.equal(*seen)
    parts = make(folder, solver_file(folder, momentum="0"))
    moved = [torch.zeros_like(value) for value in start]
    for _ in range(2):
        parts.net.clear_param_diffs()
        parts.net()
        parts.net.backward()
        for total, entry in zip(moved, parts.net.learnable, strict=True):
            total += entry.tensor.grad
    for entry, before, gradient in zip(whole.net.learnable, start, moved, strict=True):
        step = 0.05 * entry.lr_mult * (gradient / 2 + 0.001 * entry.decay_mult * before)
        torch.testing.assert_close(entry.tensor.detach(), before - step, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("form", ["BINARYPROTO", "HDF5"])
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_a_snapshot_goes_on_with_the_same_numbers(form, kind, folder):
    changes = {"type": f'"{kind}"', "snapshot_format": form, "snapshot": "2"}
    path = solver_file(folder, **changes)
    whole = make(folder, path)
    whole.step(5)
    h5 = ".h5" if form == "HDF5" else ""
    state = folder / f"snap_iter_2.solverstate{h5}"

    resumed = make(folder, path)
    resumed.restore(state, continue_stream=True)
    assert resumed.iter == 2
    resumed.step(3)
    assert same(parameters(whole), parameters(resumed))
    assert same(whole.update.history, resumed.update.history)

    anew = make(folder, path)
    batches = []
    anew.net.register_forward_hook(lambda net, given, out: batches.append(net.blobs["data"].clone()))
    anew.restore(state.name)  # relative to the root
    anew.step(3)
    assert anew.iter == 5
    assert not same(parameters(whole), parameters(anew))  # Caffe's way: the stream begins anew
    first = make(folder, path)
    first.net()
    assert torch.equal(batches[0], first.net.blobs["data"])

    model, kept = read_caffemodel(folder / f"snap_iter_2.caffemodel{h5}"), read_solverstate(state)
    assert kept.iter == 2
    assert Path(kept.learned_net).name == f"snap_iter_2.caffemodel{h5}"
    assert len(kept.history) == (2 if kind == "Adam" else 1) * 5
    owned = {layer.name: layer.numbers for layer in model.layers if layer.blobs}
    assert owned == {"conv": (0, 1), "copy": (1,) if h5 else (0, 1), "fc": (0, 1)}
    if not h5:
        names = [layer.name for layer in model.layers]
        assert names[:2] == ["data", "data_data_0_split"]  # as Caffe writes them: with its splits
        assert len(names) == 9


def test_both_forms_hold_the_same(folder):
    for form in ("BINARYPROTO", "HDF5"):
        solver = make(folder, solver_file(folder, snapshot_format=form))
        solver.step(1)
        solver.snapshot()
    binary, hdf5 = (read_caffemodel(folder / f"snap_iter_1.caffemodel{h5}") for h5 in ("", ".h5"))
    for layer in hdf5.layers:
        for number, blob in zip(layer.numbers, layer.blobs, strict=True):
            np.testing.assert_array_equal(blob, binary[layer.name].blobs[number])
    states = [read_solverstate(folder / f"snap_iter_1.solverstate{h5}") for h5 in ("", ".h5")]
    for one, other in zip(*(state.history for state in states), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_moved_state_finds_its_model_beside_it(folder):
    solver = make(folder)
    solver.step(1)
    state = solver.snapshot()
    (folder / "elsewhere").mkdir()
    for name in ("snap_iter_1.solverstate", "snap_iter_1.caffemodel"):
        (folder / name).rename(folder / "elsewhere" / name)
    other = make(folder)
    other.restore(folder / "elsewhere" / state.name)
    assert same(parameters(solver), parameters(other))


def test_weights_are_copied_one_after_the_other_into_all_nets(folder, capsys):
    first, second = make(folder), make(folder, solver_file(folder, random_seed="9"))
    for index, solver in enumerate((first, second)):
        solver.iter = index
        solver.snapshot()
    path = solver_file(folder, "test_iter: 1 test_interval: 1", random_seed="5")
    target = make(folder, path)
    target.copy_from("snap_iter_0.caffemodel, snap_iter_1.caffemodel")
    assert same(parameters(target), parameters(second))
    assert torch.equal(target.test_nets[0].layers["fc"].blobs[0], second.net.layers["fc"].blobs[0])
    assert "Finetuning from snap_iter_1.caffemodel" in log(capsys)
    named = make(folder, solver_file(folder, 'weights: "snap_iter_1.caffemodel"', random_seed="5"))
    assert same(parameters(named), parameters(second))


@pytest.mark.parametrize(
    ("actions", "iterations", "snapshots"),
    [
        (["none", "snapshot", "none", "stop"], 4, ["snap_iter_2", "snap_iter_4"]),
        (["stop"], 1, ["snap_iter_1"]),
    ],
)
def test_actions_snapshot_and_stop(actions, iterations, snapshots, folder, capsys):
    left = iter(actions)
    solver = make(folder, get_action=lambda: next(left, "none"))
    solver.solve()
    assert solver.iter == iterations
    assert sorted(path.stem for path in folder.glob("*.caffemodel")) == snapshots
    assert log(capsys)[-1] == "Optimization stopped early."


def test_a_stop_during_a_test_ends_it(folder, capsys):
    left = iter(["none", "snapshot", "stop"])
    path = solver_file(folder, "test_iter: 9 test_interval: 1", snapshot_after_train="false")
    solver = make(folder, path, get_action=lambda: next(left, "none"))
    solver.solve()
    assert solver.iter == 0
    assert [path.name for path in folder.glob("*.caffemodel")] == ["snap_iter_0.caffemodel"]
    assert log(capsys)[-2:] == ["Test interrupted.", "Optimization stopped early."]


@pytest.mark.parametrize(
    ("prefix", "expected"), [('"a_"', "a__iter_0"), ('"images"', "images/changed_iter_0"), ("", "changed_iter_0")]
)
def test_where_snapshots_go(prefix, expected, folder):
    make(folder, solver_file(folder, snapshot_prefix=prefix)).snapshot()
    assert (folder / f"{expected}.caffemodel").exists()


def test_a_missing_folder_is_told_before_any_work(folder):
    message = re.escape(
        f"snapshot_prefix: the folder of {folder / 'none/snap'} must exist; got no {folder / 'none'}; create it"
    )
    with pytest.raises(FileNotFoundError, match=message):
        make(folder, solver_file(folder, snapshot_prefix='"none/snap"', snapshot="1"))
    solver = make(folder, solver_file(folder, snapshot_prefix='"none/snap"'))
    with pytest.raises(FileNotFoundError, match=message):
        solver.solve()
    assert solver.iter == 0


def test_a_state_of_another_net_is_refused(folder):
    solver = make(folder)
    state = solver.snapshot()
    adam = make(folder, solver_file(folder, type='"Adam"'))
    with pytest.raises(ValueError, match=r"must have this solver's history, 10 blobs of .* numbers; got 5 of "):
        adam.restore(state)
    with pytest.raises(FileNotFoundError, match=re.escape(str(folder / "none.solverstate"))):
        solver.restore("none.solverstate")


def test_a_stream_can_be_continued_only_where_it_is_kept(folder):
    solver = make(folder)
    state = solver.snapshot()
    kept = state.with_name(state.name + ".stream.json")
    document = json.loads(kept.read_text())
    good = kept.read_text()
    for change in (
        {"rng_index": 700},
        {"rng": "AA=="},
        {"positions": [{"other": 1}]},
        {"positions": [{"data": -1}]},
        {"positions": 5},
    ):
        kept.write_text(json.dumps(document | change))
        with pytest.raises(
            ValueError, match=r"must be the place in the stream of these nets; got .*; leave out --continue-stream"
        ):
            solver.restore(state, continue_stream=True)
    kept.write_text("[" + good)
    with pytest.raises(ValueError, match="must be the place in the stream of these nets"):
        solver.restore(state, continue_stream=True)
    kept.unlink()
    with pytest.raises(
        FileNotFoundError, match="the stream's place must exist; got no such file; leave out --continue-stream"
    ):
        solver.restore(state, continue_stream=True)
    solver.restore(state)


def test_two_test_nets_of_which_one_has_other_parameters(folder):
    (folder / "other.prototxt").write_text(
        (folder / "net.prototxt").read_text().replace("num_output: 5", "num_output: 6")
    )
    path = solver_file(folder, 'test_net: "other.prototxt" test_iter: 1 test_iter: 1 test_interval: 1')
    solver = make(folder, path)
    assert len(solver.test_nets) == 2
    assert solver.test(1)
    with pytest.raises(ValueError, match="test net: layer 'fc' must have the train net's parameters; got other shapes"):
        solver.test(0)


def test_inline_nets_and_stages(folder):
    net = (
        (folder / "net.prototxt")
        .read_text()
        .replace('name: "tiny"', "")
        .replace("include { phase: TEST }", 'include { phase: TEST stage: "scored" }', 2)
    )
    net = net.replace('include { phase: TEST stage: "scored" }', "include { phase: TEST }", 1)
    text = f'net_param {{ name: "inline" {net} }} test_iter: 1 test_iter: 1 test_interval: 1 test_state {{ }} test_state {{ stage: "scored" }}'
    solver = make(folder, solver_file(folder, text, net=""))
    assert solver.net.name == "inline"
    assert [net.outputs for net in solver.test_nets] == [["loss"], ["accuracy", "loss"]]


def test_batches_of_other_sizes_cannot_be_averaged():
    assert added(added([], [1.0, 2.0]), [3.0, 4.0]) == [4.0, 6.0]
    with pytest.raises(
        ValueError, match="test: every batch must give as many numbers; got 1 after 2; give the data layer a crop_size"
    ):
        added([1.0, 2.0], [3.0])

"""Several tables in one command: stages and the rows that start from them, shares, common data roots, and what is refused before training."""

import json
import re
import shutil

import numpy as np
import pytest
from tiny import main, write_data, write_protocol

import caffe_weights
from repro.models import build
from repro.protocol import reading as protocol_module
from repro.records.store import read_record
from repro.run import plan as plan_module
from repro.run import row as row_module
from repro.run.inputs import load_weights
from repro.solver.snapshot import trained_network

STAGED = ("[common.test]", '[common.stage]\nprotocol = "pre"\nrow = "baseline"\n\n[common.test]')
VIEW = 'title = "View"\nmetric = "mean_iou"\nsource = "nowhere"\ndataset = "small"\n'
VIEW += '[[row]]\nid = "ball"\nof = "first/max2"\nmetric = "ball"\npaper = 50.0\n'
VIEW += '[[row]]\nid = "later"\nstatus = "planned"\nwhy = "needs what is not there yet"\npaper = 60.0\n'


def named(dataset):
    return 'source = "nowhere"', f'source = "nowhere"\ndataset = "{dataset}"'


@pytest.fixture
def paper(tmp_path, monkeypatch):
    """Four protocols in place of the paper's: two tables of two data sets, one of which starts from a stage, and a view."""
    folder = tmp_path / "protocols"
    folder.mkdir()
    monkeypatch.setattr(protocol_module, "PROTOCOLS", folder)
    monkeypatch.setattr(plan_module, "PAPER", ("first", "second", "view"))
    write_protocol(folder, named("small"), name="first")
    write_protocol(folder, named("large"), ("num_train = 4", "num_train = 5"), name="pre")
    write_protocol(folder, named("small"), STAGED, name="second")
    (folder / "view.toml").write_text(VIEW)
    for path in folder.glob("*.toml"):
        if path.stem != "view":  # two rows are enough
            path.write_text(re.sub(r'\[\[row\]\]\nid = "attention3-extra".*', "", path.read_text(), flags=re.DOTALL))
    write_data(tmp_path / "data" / "small")
    write_data(tmp_path / "data" / "large", train=5)
    return folder


@pytest.fixture
def command(tmp_path, paper):
    options = ["--data-root", str(tmp_path / "data"), "--weights", "none", "--device", "cpu", "--workers", "0"]
    return [*options, "--out", str(tmp_path / "out"), "--set", "solver.max_iter=2"]


def records(out):
    return {str(path.parent.relative_to(out)): read_record(path) for path in out.glob("*/*/record.json")}


ALL = {"first/baseline", "first/max2", "pre/baseline", "second/baseline", "second/max2"}


def test_all_tables_each_row_once(command, tmp_path, capsys, monkeypatch):
    assert main(["all", *command, "--seeds", "2"]) == 0
    out, err = capsys.readouterr()
    found = records(tmp_path / "out")
    assert set(found) == {f"{name}-seed{seed}" for name in ALL for seed in (1, 2)} - {"pre/baseline-seed2"}
    order = [line.split("] ")[1] for line in err.splitlines() if re.fullmatch(r"\[\d/9\] \w+ \w+, seed \d", line)]
    assert order[0] == "pre baseline, seed 1"
    assert order[1:5] == [
        "first baseline, seed 1",
        "first max2, seed 1",
        "second baseline, seed 1",
        "second max2, seed 1",
    ]
    assert len(order) == 9
    assert "view later does not run: planned: needs what is not there yet" in err
    assert "later" in out
    balls = [found[f"first/max2-seed{seed}"]["per_class"]["ball"] for seed in (1, 2)]
    line = next(line for line in out.splitlines() if line.startswith("ball "))
    assert f"{np.mean(balls):.2f} ± {np.std(balls, ddof=1):.2f}" in line
    *_, empty, last = out.splitlines()
    assert empty == ""
    said = "; ".join(rf"{name}: several scales help in \d of 1" for name in ("first", "second"))
    assert re.fullmatch(rf"Learnt: {said}\. Next: python -m repro\.report --runs {tmp_path}/out", last)
    for name in ("first", "second", "view"):
        assert (tmp_path / "out" / name / "table.md").is_file()

    def not_again(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(row_module, "Training", not_again)
    assert main(["all", *command, "--seeds", "2"]) == 0
    assert capsys.readouterr().out == out
    assert main(["view", *command]) == 0
    assert "[1/1] first max2, seed 1: recorded" in capsys.readouterr().err


def test_rows_start_from_what_the_stage_trained(command, tmp_path, capsys):
    assert main(["second", *command, "--row", "baseline", "--seed", "5"]) == 0
    found = records(tmp_path / "out")
    assert set(found) == {"pre/baseline-seed1", "second/baseline-seed5"}
    stage, row = found["pre/baseline-seed1"], found["second/baseline-seed5"]
    folder = tmp_path / "out" / "pre" / "baseline-seed1"
    path = folder / "pre-baseline-seed1.caffemodel"
    assert row["provenance"]["weights"] == path.name
    assert row["provenance"]["weights_sha256"] == caffe_weights.sha256(path)
    assert stage["deviates"] == {"weights": "none", "solver.max_iter": 2}
    assert row["deviates"] == {"stage.weights": "none", "stage.solver.max_iter": 2, "solver.max_iter": 2}
    trained = trained_network(stage, folder / "snapshot.pt").convolutions()
    loaded = build(row["settings"]["model"], 3, seed=5)
    load_weights(loaded, path)
    for name, layer in loaded.convolutions().items():
        assert (layer.weight == trained[name].weight).all()
        assert (layer.bias == trained[name].bias).all()
    # Made again from the snapshot, it is the same file.
    before = path.read_bytes()
    path.unlink()
    capsys.readouterr()
    assert main(["second", *command, "--row", "baseline", "--seed", "5"]) == 0
    assert path.read_bytes() == before
    assert capsys.readouterr().err.count(": recorded, ") == 2


def test_a_stage_whose_weights_are_lost(command, tmp_path, capsys):
    assert main(["pre", *command, "--row", "baseline"]) == 0
    snapshot = tmp_path / "out" / "pre" / "baseline-seed1" / "snapshot.pt"
    snapshot.unlink()
    capsys.readouterr()
    assert main(["second", *command]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {snapshot}: must be a snapshot; got no such file; see the run's --out folder"
    )


def test_shares_make_the_whole(command, tmp_path, capsys):
    command = [*command, "--seeds", "2"]
    whole = {f"{name}-seed{seed}" for name in ALL for seed in (1, 2)} - {"pre/baseline-seed2"}
    assert main(["all", *command, "--shard", "3/3"]) == 2
    out, err = capsys.readouterr()
    first = set(records(tmp_path / "out"))
    assert first
    assert not any(name.startswith(("pre", "second")) for name in first)
    waiting = int(re.search(r"got (\d) rows that wait", err)[1])
    assert waiting > 0
    assert err.count(": waits for pre baseline, seed 1\n") == waiting
    assert err.splitlines()[-1] == (
        f"error: --shard: pre baseline, seed 1 must be recorded under {tmp_path}/out before the rows that start from it; got {waiting} rows that wait; "
        "run shard 1 (or copy its record and .caffemodel here), then this command again"
    )
    assert out.startswith("Tiny (mean IoU")
    assert main(["all", *command, "--shard", "1/3"]) == 0
    second = set(records(tmp_path / "out")) - first
    assert "pre/baseline-seed1" in second
    assert main(["all", *command, "--shard", "2/3"]) == 0
    assert len(whole) - len(records(tmp_path / "out")) == waiting
    assert main(["all", *command, "--shard", "3/3"]) == 0
    assert set(records(tmp_path / "out")) == whole
    capsys.readouterr()
    assert main(["all", *command]) == 0
    assert capsys.readouterr().err.count(": recorded, ") == len(whole)
    # On a machine of its own: the stage's record and .caffemodel are enough.
    other = tmp_path / "other"
    stage = other / "pre" / "baseline-seed1"
    stage.mkdir(parents=True)
    for name in ("record.json", "pre-baseline-seed1.caffemodel"):
        shutil.copy(tmp_path / "out" / "pre" / "baseline-seed1" / name, stage / name)
    assert main(["all", *command, "--shard", "3/3", "--out", str(other)]) == 0
    for name, record in records(other).items():
        assert record | {"run": None} == records(tmp_path / "out")[name] | {"run": None}


def test_a_data_sets_own_folder_serves_one_table(command, tmp_path, capsys):
    assert main(["first", *command, "--row", "baseline", "--data-root", str(tmp_path / "data" / "small")]) == 0
    assert (
        main(["second", *command, "--data-root", str(tmp_path / "data" / "small"), "--out", str(tmp_path / "o")]) == 2
    )
    last = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert last.startswith(
        f"error: {tmp_path}/data/small/large: must be the folder of this data set, for pre baseline; got no such folder;"
    )
    assert not list((tmp_path / "o").glob("*/*"))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda root: (root / "small" / "Labels" / "val1.png").unlink(), "val1.png"),
        (
            lambda root: (root / "large" / "JPEGImages" / "train4.jpg").write_bytes(b"x"),
            "train4.jpg: image must decode",
        ),
        (lambda root: (root / "large").rename(root / "other"), "large: must be the folder of this data set"),
    ],
)
def test_everything_is_checked_before_the_first_row_is_trained(command, tmp_path, capsys, harm, message):
    harm(tmp_path / "data")
    assert main(["all", *command]) == 2
    assert message in next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert not list((tmp_path / "out").glob("*/*"))


def test_a_stage_that_will_not_fit(command, paper, tmp_path, capsys):
    path = paper / "pre.toml"
    path.write_text(path.read_text().replace("width = 0.03125", "width = 0.0625"))
    assert main(["second", *command, "--row", "max2"]) == 2
    assert re.fullmatch(
        "error: second max2: its layers must have the shapes of its stage pre baseline; got others for conv1_1, .*fc7; give both the same model",
        capsys.readouterr().err.splitlines()[-1],
    )
    assert not list((tmp_path / "out").glob("*/*"))


def test_rows_belong_to_one_table(command, capsys):
    assert main(["all", *command, "--row", "max2"]) == 2
    assert capsys.readouterr().err == "error: --row: must go with one table; got all; name the row's table\n"


def test_all_needs_real_data(command, tmp_path, capsys):
    arguments = [argument for argument in command if argument not in ("--data-root", str(tmp_path / "data"))]
    assert main(["all", *arguments]) == 2
    assert "--data-root must be given; got none; name the data's folder" in capsys.readouterr().err


def test_the_list_and_the_dry_run_of_all(command, tmp_path, capsys):
    assert main(["first", *command, "--row", "max2"]) == 0
    capsys.readouterr()
    assert main(["--list", "--out", str(tmp_path / "out")]) == 0
    titles = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert titles == [
        "pre: Tiny (stage)",
        "first: Tiny (2 rows run)",
        "second: Tiny (2 rows run)",
        "view: View (0 rows run; IoU by class and their mean)",
    ]
    assert main(["first", "--list", "--out", str(tmp_path / "out"), "--seeds", "2"]) == 0
    assert re.search(
        r"^  max2      52.90  run; recorded \(seed 1: [\d.]+, deviates\)$", capsys.readouterr().out, re.MULTILINE
    )
    assert main(["all", *command, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("first: Tiny\nsecond: Tiny\nview: View\n5 rows, 5 trainings; records under ")
    assert [line for line in out.splitlines() if line.startswith("rows of ")] == [
        f"rows of {name}, with their cost (training: 3 x forward x images, of fixed layers 1 x; test: forward and CRF x images):"
        for name in ("pre", "first", "second")
    ]
    assert '  stage.protocol = "pre"\n' in out
    assert "view later does not run: planned: needs what is not there yet\n" in out
    with pytest.raises(SystemExit):
        main([])
    assert "TABLE must be given, or --list" in capsys.readouterr().err


def test_given_weights_are_evaluated_as_they_are(command, tmp_path, capsys):
    assert main(["pre", *command, "--row", "baseline"]) == 0
    assert main(["second", *command, "--row", "baseline"]) == 0
    weights = str(tmp_path / "out" / "pre" / "baseline-seed1" / "pre-baseline-seed1.caffemodel")
    evaluate = [*command[:-2], "--weights", weights, "--set", "solver.max_iter=0", "--out", str(tmp_path / "eval")]
    assert main(["pre", *evaluate, "--row", "baseline"]) == 0
    trained = records(tmp_path / "out")["pre/baseline-seed1"]
    (evaluated,) = records(tmp_path / "eval").values()
    assert evaluated["confusion"] == trained["confusion"]
    assert evaluated["loss_curve"] == []
    assert evaluated["deviates"] == {"solver.max_iter": 0, "weights.file": "pre-baseline-seed1.caffemodel"}
    assert evaluated["run"]["train_seconds"] == 0
    assert not (tmp_path / "eval" / "pre" / "baseline-seed1" / "snapshot.pt").exists()
    assert json.loads((tmp_path / "eval" / "pre" / "baseline-seed1" / "record.json").read_text()) == evaluated
    capsys.readouterr()
    assert main(["pre", *evaluate, "--row", "max2", "--weights", "none"]) == 2
    assert capsys.readouterr().err == (
        "error: weights: an evaluation (solver.max_iter = 0) needs trained weights; got none; give them as --weights\n"
    )

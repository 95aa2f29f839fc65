"""A training snapshot as files of the DeepLab fork, and back."""

from pathlib import Path

import pytest
import torch
from record_cases import record

import caffe_weights
from repro.export import main
from repro.models import build
from repro.models.weights import load_caffemodel
from repro.protocol import load_protocol, settings_sha256
from repro.records.store import write_record
from repro.solver.snapshot import Snapshot, training_identity, write_snapshot
from repro.solver.train import make_solver

OVERRIDES = ["model.width=0.0625", "data.num_train=2", "data.num_val=1", "solver.stepsize=3"]
ROW = "attention3-extra"


@pytest.fixture
def data(tmp_path) -> Path:
    root = tmp_path / "VOC2012"
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClassAug", "png")):
        (root / folder).mkdir(parents=True)
        for name in "abc":
            (root / folder / f"{name}.{suffix}").touch()
    (root / "ImageSets").mkdir()
    (root / "ImageSets/train_aug.txt").write_text("a\nb\n")
    (root / "ImageSets/val.txt").write_text("c\n")
    return root


def a_run(path: Path, seed: int, identity: str = "a run"):
    """Save the snapshot of a row's run after 7 steps (of made-up gradients)."""
    settings = load_protocol("table3", OVERRIDES).row(ROW).settings
    network = build(settings["model"], len(settings["data"]["class_names"]), seed)
    solver = make_solver(network, settings)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(7):
        for parameter in solver.parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        solver.step()
    parameters = {n: p.detach() for n, p in zip(solver.history, solver.parameters, strict=True)}
    curve = torch.ones(7, dtype=torch.float64)
    write_snapshot(path, Snapshot(identity, 7, parameters, solver.history, curve, 2.0))
    return network, solver, settings


def arguments(tmp_path: Path, data: Path) -> list[str]:
    return [
        str(tmp_path / "snapshot.pt"),
        str(tmp_path / "out"),
        "table3",
        "--row",
        ROW,
        "--data-root",
        str(data),
        *(f"--set={o}" for o in OVERRIDES),
    ]


def test_snapshot_to_caffe_and_back(tmp_path, data, capsys):
    network, solver, settings = a_run(tmp_path / "snapshot.pt", 1)
    assert main([*arguments(tmp_path, data), "--mode", "CPU"]) == 0
    out = tmp_path / "out"
    nets = [f"{net}.prototxt" for net in ("train", "test", "deploy", "solver")]
    names = [f"{ROW}_iter_7.caffemodel", f"{ROW}_iter_7.solverstate", *nets, "train.txt", "val.txt"]
    assert capsys.readouterr().out.splitlines() == [str(out / name) for name in names]
    other = build(settings["model"], 21, 2)
    report = load_caffemodel(other, out / names[0], prototxt=out / "train.prototxt")
    assert report.absent_in_model == report.absent_in_file == report.without_blobs == []
    state = caffe_weights.read_solverstate(out / names[1])
    assert (state.iter, state.learned_net, state.current_step) == (7, names[0], 2)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))
    history = [torch.from_numpy(array.copy()) for array in state.history]
    assert all(torch.equal(a, b) for a, b in zip(solver.history.values(), history, strict=True))


def test_prototxts_say_what_the_protocol_says(tmp_path, data):
    a_run(tmp_path / "snapshot.pt", 1)
    assert main(arguments(tmp_path, data)) == 0
    out = tmp_path / "out"
    assert (
        out / "train.txt"
    ).read_text() == "/JPEGImages/a.jpg /SegmentationClassAug/a.png\n/JPEGImages/b.jpg /SegmentationClassAug/b.png\n"
    train = {
        layer.name: layer
        for layer in caffe_weights.net_layers(caffe_weights.read_prototxt(out / "train.prototxt"), "t")
    }
    source = train["data"].message.one("image_data_param")
    assert (source.one("root_folder"), source.one("source"), source.one("batch_size")) == (str(data), "train.txt", 30)
    transform = train["data"].message.one("transform_param")
    assert (transform.one("crop_size"), transform.one("mirror"), transform["mean_value"]) == (
        321,
        True,
        [104.008, 116.669, 122.675],
    )
    rates = {
        name: [p.one("lr_mult") for p in train[name].message["param"]]
        for name in ("conv1_1", "fc6_res05", "fc8", "att_conv1", "att_fc")
    }
    assert rates == {"conv1_1": [1, 2], "fc6_res05": [1, 2], "fc8": [10, 20], "att_conv1": [10, 20], "att_fc": [10, 20]}
    assert train["drop7_res075"].message.one("dropout_param") == {"dropout_ratio": [0.5]}
    assert {name for name in train if name.startswith("loss")} == {"loss", "loss_res1", "loss_res075", "loss_res05"}
    solver = caffe_weights.read_prototxt(out / "solver.prototxt")
    assert [solver.one(key) for key in ("base_lr", "lr_policy", "stepsize", "max_iter", "momentum", "solver_mode")] == [
        0.001,
        "step",
        3,
        6000,
        0.9,
        "GPU",
    ]
    test = {
        layer.name: layer for layer in caffe_weights.net_layers(caffe_weights.read_prototxt(out / "test.prototxt"), "t")
    }
    assert test["data"].message.one("transform_param").one("crop_size") == 513


def recorded(tmp_path) -> dict:
    """Makes the record of the run in snapshot.pt, which trained for 20 iterations of 2 images."""
    overrides = [*OVERRIDES, "solver.max_iter=20", "solver.batch_size=2", "transform.crop_size=65"]
    settings = load_protocol("table3", overrides).row(ROW).settings
    made = record("table3", ROW, 1.0) | {"settings": settings}
    made["provenance"]["settings_sha256"] = settings_sha256(settings)
    write_record(tmp_path / "record.json", made)
    return made


def test_settings_are_those_of_the_record_beside_the_snapshot(tmp_path, data, capsys):
    made = recorded(tmp_path)
    a_run(tmp_path / "snapshot.pt", 1, training_identity(made["provenance"], made["settings"]))
    out = tmp_path / "out"
    assert main([str(tmp_path / "snapshot.pt"), str(out), "--data-root", str(data)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == str(out / f"{ROW}_iter_7.caffemodel")
    assert caffe_weights.read_prototxt(out / "solver.prototxt").one("max_iter") == 20
    layer = caffe_weights.net_layers(caffe_weights.read_prototxt(out / "train.prototxt"), "t")[0].message
    assert layer.one("image_data_param").one("batch_size") == 2
    assert layer.one("transform_param").one("crop_size") == 65
    agreeing = ["table3", "--row", ROW, "--set", "solver.max_iter=20"]
    assert main([str(tmp_path / "snapshot.pt"), str(out), "--data-root", str(data), *agreeing]) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["table1"], "record.json: the table must be the record's, table3; got table1; leave it out"),
        (["--row", "max2"], f"record.json: the row must be the record's, {ROW}; got max2; leave it out"),
        (
            ["--set", "solver.max_iter=6000"],
            "record.json: solver.max_iter must be the record's, 20; got 6000; leave it out",
        ),
        (["--set", "solver.x=1"], "record.json: solver.x must be the record's, None; got 1; leave it out"),
    ],
)
def test_what_differs_from_the_record_is_refused(tmp_path, data, capsys, given, message):
    made = recorded(tmp_path)
    a_run(tmp_path / "snapshot.pt", 1, training_identity(made["provenance"], made["settings"]))
    arguments = [str(tmp_path / "snapshot.pt"), str(tmp_path / "out"), "--data-root", str(data)]
    assert main([*arguments, *given]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/{message}\n"
    assert not (tmp_path / "out").exists()


def test_snapshot_of_another_run_or_of_none_that_is_known(tmp_path, data, capsys):
    a_run(tmp_path / "snapshot.pt", 1)
    plain = [str(tmp_path / "snapshot.pt"), str(tmp_path / "out"), "--data-root", str(data)]
    assert main(plain) == 2
    assert "must have its record.json beside it; got none; name TABLE and --row" in capsys.readouterr().err
    recorded(tmp_path)
    assert main(plain) == 2
    assert "must be of the run recorded beside it; got another run's; export it elsewhere" in capsys.readouterr().err


def test_what_is_no_snapshot(tmp_path, data, capsys):
    assert main(arguments(tmp_path, data)) == 2
    assert "snapshot.pt: must be a snapshot; got no such file; see the run's --out folder" in capsys.readouterr().err
    (tmp_path / "snapshot.pt").write_bytes(b"nothing")
    assert main(arguments(tmp_path, data)) == 2
    error = capsys.readouterr().err
    assert "snapshot.pt: must be a whole snapshot; got a file of another kind, or of an earlier version; " in error
    assert len(error.splitlines()) == 1

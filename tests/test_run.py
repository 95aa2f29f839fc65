"""The whole program, on a data set of a few small pictures: what it writes, what it skips, how it goes on, and how it fails."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import main, run_command, write_data, write_protocol

from repro.models import build
from repro.models.weights import save_caffemodel
from repro.ops import backend
from repro.protocol import SYNTHETIC_NOTE
from repro.protocol import reading as protocol_module
from repro.records.store import SCHEMA, read_record
from repro.run import __main__ as run_module
from repro.run import row as row_module

ROWS = ("baseline", "max2", "attention3-extra")
SYNTHETIC = (
    "[common.test]",
    "[common.synthetic]\nnum_train = 4\nnum_val = 3\nsize = [33, 41]\nseed = 5\n\n[common.test]",
)


@pytest.fixture
def tiny(tmp_path):
    return run_command(tmp_path)


def records(tmp_path, out="out", name="tiny"):
    return {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / out / name).glob("*/record.json")}


def table_of(out):
    """Reads the printed table: row id -> its cells after the settings."""
    lines = [re.split(r" {2,}", line.strip()) for line in out.splitlines()]
    return {line[0]: line[4:] for line in lines if line[0] in ROWS}


def test_a_table_from_nothing(tiny, tmp_path, capsys):
    assert main(tiny) == 0
    out, err = capsys.readouterr()
    found = records(tmp_path)
    assert set(found) == {f"{row}-seed1" for row in ROWS}
    for row in ROWS:
        record = read_record(tmp_path / "out" / "tiny" / f"{row}-seed1" / "record.json")
        assert set(record) == set(SCHEMA)
        assert (
            record["table"],
            record["row"],
            record["seed"],
            record["n_images"],
            record["synthetic"],
            record["note"],
        ) == ("tiny", row, 1, 3, False, "")
        assert record["deviates"] == {"weights": "none"}
        confusion = np.array(record["confusion"])
        assert confusion.sum() == sum(
            (np.asarray(Image.open(p)) != 255).sum() for p in (tmp_path / "data" / "Labels").glob("val*")
        )
        union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
        per_class = 100 * np.diag(confusion) / np.maximum(union, 1)
        assert list(record["per_class"].values()) == pytest.approx(
            list(per_class[[0, 2, 1]])
        )  # keys are sorted: background, ball, box
        assert record["value"] == pytest.approx(per_class.mean())
        assert len(record["loss_curve"]) == 6
        assert np.isfinite(record["loss_curve"]).all()
        assert record["settings"]["solver"]["max_iter"] == 6
        assert set(record["provenance"]) == {
            "protocol_sha256",
            "settings_sha256",
            "data_sha256",
            "weights",
            "weights_sha256",
            "seed",
            "precision",
            "backend",
            "metric",
        }
        assert (record["provenance"]["backend"], record["provenance"]["precision"]) == (backend(), "fp32")
        assert set(record["run"]) == {
            "device",
            "device_name",
            "deterministic",
            "cuda_graph",
            "threads",
            "world_size",
            "versions",
            "git",
            "finished",
            "resumed_under",
            "seconds",
            "train_seconds",
        }
        assert 0 < record["run"]["train_seconds"] < record["run"]["seconds"]
    assert found["baseline-seed1"]["paper"] == 51.91
    assert found["attention3-extra-seed1"]["paper"] is None

    assert out.startswith(
        "Tiny (mean IoU, percent; paper: nowhere)\nNOTE: deviates from the protocol: weights = none\n\nrow "
    )
    cells = table_of(out)
    for row in ROWS:
        record = found[f"{row}-seed1"]
        paper = record["paper"]
        difference = "-" if paper is None else f"{record['value'] - paper:+.2f}"
        assert cells[row] == [
            "-" if paper is None else f"{paper:.2f}",
            f"{record['value']:.2f}",
            difference,
            f"{record['run']['seconds']:.0f}",
        ]
    assert "The paper's orderings:" in out
    assert "Iteration 2, loss = " in err
    assert "[2/3] tiny max2, seed 1" in err
    assert (tmp_path / "out" / "tiny" / "table.md").read_text().startswith("**Tiny**")


def test_recorded_rows_are_skipped(tiny, tmp_path, capsys, monkeypatch):
    assert main(tiny) == 0
    first = capsys.readouterr().out
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("**/record.json")}

    def not_again(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(row_module, "Training", not_again)
    assert main([*tiny, "--set", "solver.display=1", "--set", "solver.snapshot=1"]) == 0  # neither changes a number
    out, err = capsys.readouterr()
    assert out == first
    assert err.count(": recorded, ") == 3
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("**/record.json")} == stamps


def test_chosen_rows(tiny, tmp_path, capsys):
    assert main([*tiny, "--row", "max2", "--row", "max2"]) == 0
    assert set(records(tmp_path)) == {"max2-seed1"}
    assert table_of(capsys.readouterr().out)["baseline"] == ["51.91", "-", "-", "-"]
    assert main([*tiny, "--row", "baseline"]) == 0
    cells = table_of(capsys.readouterr().out)
    assert set(records(tmp_path)) == {"max2-seed1", "baseline-seed1"}
    assert cells["max2"][1] == f"{records(tmp_path)['max2-seed1']['value']:.2f}"  # recorded earlier


def test_several_seeds(tiny, tmp_path, capsys):
    assert main([*tiny, "--row", "baseline", "--seed", "4", "--seeds", "2"]) == 0
    found = records(tmp_path)
    assert set(found) == {"baseline-seed4", "baseline-seed5"}
    assert found["baseline-seed4"]["loss_curve"] != found["baseline-seed5"]["loss_curve"]
    out = capsys.readouterr().out
    values = [record["value"] for record in found.values()]
    assert table_of(out)["baseline"][1] == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
    assert "NOTE: mean ± standard deviation over seeds 4, 5" in out


def test_overrides_are_declared(tiny, tmp_path, capsys):
    assert (
        main(
            [
                *tiny,
                "--row",
                "baseline",
                "--set",
                "solver.max_iter=2",
                "--set",
                "model.scales=[1]",
                "--precision",
                "bf16",
            ]
        )
        == 0
    )
    record = records(tmp_path)["baseline-seed1"]
    assert record["deviates"] == {"weights": "none", "solver.max_iter": 2, "model.scales": [1], "precision": "bf16"}
    assert len(record["loss_curve"]) == 2
    out = capsys.readouterr().out
    for note in ("solver.max_iter = 2", "model.scales = [1]", "precision = bf16"):
        assert f"NOTE: deviates from the protocol: {note}\n" in out


def test_a_class_as_the_metric(tiny, tmp_path):
    assert main([*tiny, "--row", "baseline"]) == 0
    per_class = records(tmp_path)["baseline-seed1"]["per_class"]
    best = max(per_class, key=per_class.get)
    write_protocol(tmp_path, ('"mean_iou"', f'"{best}"'))
    assert main([*tiny, "--row", "baseline", "--out", str(tmp_path / "other")]) == 0
    record = records(tmp_path, "other")["baseline-seed1"]
    assert record["value"] == per_class[best] > 0


def test_dry_run_writes_nothing(tiny, tmp_path, capsys):
    before = sorted(tmp_path.glob("**/*"))
    arguments = [argument for argument in tiny if argument not in ("--data-root", str(tmp_path / "data"))]
    assert main([*arguments, "--dry-run", "--seeds", "2", "--set", "solver.max_iter=30"]) == 0
    out = capsys.readouterr().out
    assert sorted(tmp_path.glob("**/*")) == before
    assert out.startswith("tiny: Tiny\n3 rows, 6 trainings; records under ")
    assert "  solver.max_iter = 30\n" in out
    assert re.search(
        r"^  max2: 60 images, [\d.e-]+ GFLOP forward each, 3 tested, [\d.e-]+ PFLOP in all; .*; .*\"model.merge\": \"max\"",
        out,
        re.MULTILINE,
    )
    assert main([*tiny, "--row", "max2"]) == 0
    capsys.readouterr()
    assert main([*tiny, "--dry-run"]) == 0
    assert " PFLOP in all, 1 of 1 recorded; " in capsys.readouterr().out


def test_a_declared_subset(tiny, tmp_path, capsys):
    (tmp_path / "data" / "ImageSets" / "train.txt").write_text("train0\ntrain1\n")
    assert main([*tiny, "--row", "baseline", "--subset"]) == 0
    assert records(tmp_path)["baseline-seed1"]["deviates"] == {"weights": "none", "data.num_train": 2}
    assert "NOTE: deviates from the protocol: data.num_train = 2\n" in capsys.readouterr().out


def test_weights_from_a_file(tiny, tmp_path, capsys):
    settings = protocol_module.load_protocol(tiny[0]).rows[0].settings
    save_caffemodel(build(settings["model"], 3, seed=9), tmp_path / "data" / "tiny.caffemodel")
    arguments = [argument for argument in tiny if argument not in ("--weights", "none")]
    assert main([*arguments, "--row", "baseline"]) == 0
    record = records(tmp_path)["baseline-seed1"]
    assert record["deviates"] == {}
    assert record["provenance"]["weights"] == "tiny.caffemodel"
    assert re.fullmatch("[0-9a-f]{64}", record["provenance"]["weights_sha256"])
    out, err = capsys.readouterr()
    assert "NOTE" not in out
    assert "tiny.caffemodel (V2): 16 layers loaded" in err


def test_the_stand_in_runs_where_no_data_are_given(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(protocol_module, "PROTOCOLS", tmp_path)
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("repro.data.synthetic.cache.write_dataset", lambda root, *args, **kwargs: write_data(root))
    write_protocol(tmp_path, ('source = "nowhere"', 'source = "nowhere"\nstand_in = "drawn"'), name="real")
    write_protocol(tmp_path, SYNTHETIC, name="drawn")
    arguments = [
        "real",
        *(argument for argument in tiny[1:] if argument not in ("--data-root", str(tmp_path / "data"))),
        "--row",
        "baseline",
    ]
    assert main([*arguments, "--set", "synthetic.seed=6"]) == 0
    out, err = capsys.readouterr()
    record = records(tmp_path, name="drawn")["baseline-seed1"]
    assert (record["table"], record["synthetic"], record["note"]) == ("drawn", True, SYNTHETIC_NOTE)
    assert record["deviates"] == {"weights": "none", "synthetic.seed": 6}
    assert f"NOTE: {SYNTHETIC_NOTE}" in out
    assert SYNTHETIC_NOTE in (tmp_path / "out" / "drawn" / "table.md").read_text()
    assert f"real: no --data-root given, so its stand-in drawn runs: {SYNTHETIC_NOTE}" in err
    assert main(["real", *tiny[1:], "--row", "baseline"]) == 0  # with data, the real one
    assert records(tmp_path, name="real")["baseline-seed1"]["synthetic"] is False


def test_a_stop_between_iterations(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_module, "_stop_asked", True)
    assert main(tiny) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "interrupted; the same command goes on from the last snapshot"
    assert records(tmp_path) == {}


def test_a_stop_while_testing(tiny, tmp_path, capsys, monkeypatch):
    real = row_module.evaluate

    def evaluate(*args, **kwargs):
        run_module._stop_asked = True
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(row_module, "evaluate", evaluate)
        assert main([*tiny, "--row", "max2"]) == 130
    assert records(tmp_path) == {}
    capsys.readouterr()
    assert main([*tiny, "--row", "max2"]) == 0
    assert "Iteration" not in capsys.readouterr().err  # training was done
    assert len(records(tmp_path)["max2-seed1"]["loss_curve"]) == 6


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A command without --out, and the record that it makes where nothing interrupts it."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    overrides = ("solver.max_iter=40", "solver.stepsize=20", "solver.display=1", "solver.snapshot=7")
    row = ["--row", "attention3-extra", *(part for text in overrides for part in ("--set", text))]
    command = [
        write_protocol(folder),
        "--data-root",
        str(write_data(folder / "data")),
        "--weights",
        "none",
        "--device",
        "cpu",
        *row,
    ]
    assert main([*command, "--workers", "0", "--out", str(folder / "out")]) == 0
    return command, records(folder)["attention3-extra-seed1"]


@pytest.mark.parametrize(
    ("number", "workers", "send"),
    [
        (signal.SIGINT, "1", os.killpg),  # as a terminal does, to the whole process group: data workers get it too
        (signal.SIGTERM, "0", os.kill),
        (signal.SIGTERM, "1", os.killpg),  # as a batch system does
        (signal.SIGKILL, "0", os.killpg),
    ],
    ids=["SIGINT", "SIGTERM", "SIGTERM to all", "SIGKILL"],
)
def test_a_signal_in_training(uninterrupted, tmp_path, number, workers, send):
    command, whole = uninterrupted
    command = [*command, "--out", str(tmp_path / "out")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(run_module.__file__).parents[1])}
    program = [sys.executable, "-m", "repro.run", *command, "--workers", workers]
    with subprocess.Popen(
        program, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("  Iteration 10,"):
                send(process.pid, number)
        code = process.wait(60)
        assert process.stdout.read() == ""
    if number == signal.SIGKILL:
        assert code == -number
    else:
        assert code == 130, lines
        assert sum(line.startswith("stopping after this iteration") for line in lines) == 1, lines
        assert lines[-1] == "interrupted; the same command goes on from the last snapshot\n"
        assert not any("Traceback" in line for line in lines)
    assert records(tmp_path) == {}

    starts = []
    log = row_module.log
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_module, "log", lambda text: (starts.append(text), log(text)))
        assert main([*command, "--workers", "0"]) == 0
    start = int(re.search(r"Starting at iteration (\d+) of 40", "\n".join(starts))[1])
    assert 7 <= start < 40
    assert number != signal.SIGKILL or start % 7 == 0
    (resumed,) = records(tmp_path).values()
    assert resumed["run"] != whole["run"]
    assert resumed | {"run": None} == whole | {"run": None}

"""Records beside the paper's numbers: what counts, what does not, and what lies outside."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
from record_cases import other_settings, record, stamped
from tiny import main

from repro.protocol import PROTOCOLS, load_protocol
from repro.records.check import compare, default_folders
from repro.records.store import record_path, write_record
from repro.run.plan import tables_of


def evaluation(table, row_id, value, **changes):
    """Makes a record as an evaluation of released weights would."""
    deviates = {"solver.max_iter": 0, "weights.file": "released.caffemodel"}
    made = record(table, row_id, value, deviates=deviates)
    made["settings"]["weights"] = load_protocol(table).row(row_id).settings["weights"]
    return stamped(made) | changes


@pytest.fixture
def check(tmp_path, capsys):
    """Writes records, runs the check over them, and returns its exit code and lines."""

    def run(*made):
        for one in made:
            write_record(record_path(tmp_path / "runs", one["table"], one["row"], one["seed"]), one)
        (tmp_path / "runs").mkdir(exist_ok=True)
        code = main(["check", "--runs", str(tmp_path / "runs")])
        out, err = capsys.readouterr()
        assert err == ""
        return code, out.splitlines()

    return run


def test_one_run_within_its_tolerance(check):
    code, lines = check(record("table3", "baseline", 61.30))
    assert code == 0
    assert lines == [
        "within   table3 baseline (trained, 1 run): measured 61.30, paper 62.28, off by -0.98, tolerance 1",
        # The earlier paper's number is quoted beside the same record.
        "within   text largefov-voc (trained, 1 run): measured 61.30, paper 62.25, off by -0.95, tolerance 1",
        "2 numbers of the paper compared: 2 within, 0 outside.",
    ]


def test_one_run_outside(check):
    code, lines = check(record("table3", "max2", 66.00))
    assert code == 1
    assert lines[0] == "OUTSIDE  table3 max2 (trained, 1 run): measured 66.00, paper 64.81, off by +1.19, tolerance 1"
    assert lines[-1] == "1 numbers of the paper compared: 0 within, 1 outside."


def test_seeds_are_averaged_and_their_spread_counts(check):
    code, lines = check(*(record("table3", "max2", 63.0 + seed, seed) for seed in (0, 1, 2)))
    assert code == 0
    assert lines[0] == (
        "within   table3 max2 (trained, 3 seeds): measured 64.00 ± 1.00, paper 64.81, off by -0.81, tolerance 1; the paper lies within mean ± 2 spread"
    )


def test_released_weights_have_a_tolerance_of_their_own(check):
    code, lines = check(evaluation("table3", "max2", 64.40))
    assert (code, lines[0]) == (
        0,
        "within   table3 max2 (released weights, 1 run): measured 64.40, paper 64.81, off by -0.41, tolerance 0.5",
    )
    code, lines = check(evaluation("table3", "max2", 64.10))
    assert code == 1
    assert "off by -0.71, tolerance 0.5" in lines[0]


def test_a_view_compares_each_class(check):
    row = load_protocol("table2")
    per_class = {one.metric: one.paper for one in row.rows if one.metric != "mean_iou"} | {"head": 79.0}
    code, lines = check(record("table1", "attention3-extra", 56.39, per_class=per_class))
    assert code == 1
    assert lines[:3] == [
        "within   table1 attention3-extra (trained, 1 run): measured 56.39, paper 56.39, off by +0.00, tolerance 1",
        "OUTSIDE  table2 head (trained, 1 run): measured 79.00, paper 81.47, off by -2.47, tolerance 1",
        "within   table2 torso (trained, 1 run): measured 59.06, paper 59.06, off by +0.00, tolerance 1",
    ]
    assert lines[-1] == "9 numbers of the paper compared: 8 within, 1 outside."


def test_a_printed_difference(check):
    made = record("text", "attention-fc8", 54.10), record("text", "attention-fc6", 57.0)
    code, lines = check(*made)
    assert code == 0
    assert lines == [
        "Not comparable with the paper:",
        "  text attention-fc8: prints a difference from table1/attention3-extra, which has no comparable record",
        "  text attention-fc6: the paper prints no number for it",
        "Nothing was compared: no record here is comparable with a number of the paper.",
    ]
    check(*(record("table1", "attention3-extra", value, seed) for seed, value in ((1, 56.0), (2, 55.0))))
    code, lines = check()
    assert (
        "within   text attention-fc8 minus table1/attention3-extra (trained, 1 run): measured -1.40, paper -0.50, off by -0.90, tolerance 1"
        in lines
    )
    code, lines = check(record("text", "attention-kernel1", 53.90))
    assert code == 1
    assert (
        "OUTSIDE  text attention-kernel1 minus table1/attention3-extra (trained, 1 run): measured -1.60, paper -0.40 to -0.10, off by -1.20, tolerance 1"
        in lines
    )


def test_what_is_not_comparable_is_never_passed(check, tmp_path):
    made = [
        record("table3", "baseline", 62.28, deviates={"weights": "none", "data.num_val": 9}),
        record("demo", "max2", 64.81),
        other_settings(record("table3", "max3", 65.15)),
        evaluation("table3", "average2", 64.86, deviates={"solver.max_iter": 0, "precision": "bf16"}),
        record("table4", "attention", None, submission={"archive": "a", "sha256": "0", "score": None}),
        record("demo", "max2", 64.81, seed=2),
    ]
    damaged = record_path(tmp_path / "runs", "table3", "average3", 1)
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    foreign = record("table3", "baseline", 1.0) | {"row": "another"}
    code, lines = check(*made, foreign)
    assert code == 0
    runs = tmp_path / "runs"
    assert lines[0] == "Not comparable with the paper:"
    assert lines[-1] == "Nothing was compared: no record here is comparable with a number of the paper."
    expected = {
        f"  table3, in {runs}: deviates from the protocol in data.num_val, weights",
        f"  demo, in {runs} (2 records): synthetic data",
        f"  {runs}/table3/max3-seed1/record.json: made with another table3.toml than the present one; measure the row again",
        f"  {damaged}: damaged: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        f"  {runs}/table3/another-seed1/record.json: foreign: table 'table3' has no row 'another' to run",
        f"  table3, in {runs}: deviates from the protocol in precision",
        f"  table4, in {runs}: no score of the server yet",
    }
    assert not expected - set(lines), lines


def test_a_score_that_a_person_entered_is_compared(check):
    score = {"value": 71.0, "source": "http://host", "entered": "2026-01-01"}
    code, lines = check(record("table4", "attention", 71.0, submission={"archive": "a", "sha256": "0", "score": score}))
    assert (code, lines[0]) == (
        0,
        "within   table4 attention (trained, 1 run): measured 71.00, paper 71.50, off by -0.50, tolerance 1",
    )


def test_it_ends_as_every_program(check, tmp_path, monkeypatch):
    made = [record("table1", "baseline", value, seed=seed) for seed, value in ((1, 51.0), (2, 52.0))]
    assert "±" in check(*made)[1][0]
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding="ascii", write_through=True))
    assert main(["check", "--runs", str(tmp_path / "runs")]) == 0
    assert b"\\xb1" in content.getvalue()


def test_folders(check, tmp_path, capsys, monkeypatch):
    assert check()[1] == ["Nothing was compared: no record here is comparable with a number of the paper."]
    assert main(["check", "--runs", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err == (
        f"error: --runs: {tmp_path}/nowhere must be a folder; got none there; give the --out of a run\n"
    )
    monkeypatch.chdir(tmp_path)
    assert default_folders() == [Path("runs"), PROTOCOLS / "measured"]
    (tmp_path / "runs").rmdir()
    assert default_folders() == [PROTOCOLS / "measured"]


def test_the_packages_own_records_do_not_contradict_the_paper():
    report = compare([PROTOCOLS / "measured"])
    assert [str(comparison) for comparison in report.compared if not comparison.judged.within] == []
    assert report.compared or report.aside


@pytest.mark.data
def test_recorded_runs_agree_with_the_paper():
    folder = os.environ.get("REPRO_RUNS")
    if not folder:
        pytest.skip("needs REPRO_RUNS, a folder of records of the paper's protocols (the --out of repro.run)")
    report = compare([Path(folder)])
    if not report.compared:
        pytest.skip(f"needs records that are comparable with the paper; {folder} has none")
    assert [str(comparison) for comparison in report.compared if not comparison.judged.within] == []


RELEASED = [(table, row.id) for table in tables_of("all") for row in load_protocol(table).runnable if row.paper]


@pytest.mark.data
@pytest.mark.parametrize(("table", "row_id"), RELEASED)
def test_released_weights_agree_with_the_paper(data_root, tmp_path, table, row_id):
    weights = data_root / "released" / table / f"{row_id}.caffemodel"
    row = load_protocol(table).row(row_id)
    if not weights.is_file() or not (data_root / row.dataset).is_dir():
        pytest.skip(f"needs {weights} (the authors' trained weights) and {data_root / row.dataset}/ (all images)")
    if "submission" in row.settings:
        pytest.skip("a submission has no value without the server")
    command = [table, "--row", row_id, "--data-root", str(data_root), "--weights", str(weights)]
    assert main([*command, "--set", "solver.max_iter=0", "--out", str(tmp_path)]) == 0
    (comparison,) = (one for one in compare([tmp_path]).compared if one.cell == f"{table} {row_id}")
    assert comparison.judged.within, str(comparison)
    assert json.loads(record_path(tmp_path, table, row_id, 1).read_text())["loss_curve"] == []

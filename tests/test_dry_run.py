"""The plan that --dry-run prints: resolved settings by table, rows that differ, costs and their source."""

import re

import pytest
import torch
from tiny import CRF, main, run_command, write_protocol

from repro.device import Compute
from repro.protocol import load_protocol
from repro.run import dry_run
from repro.run.cost import row_flops
from repro.run.dry_run import idle_lines, plan_lines
from repro.run.options import Options
from repro.run.plan import Plan


@pytest.fixture
def tiny(tmp_path):
    return run_command(tmp_path)


def options(out):
    return Options(out, Compute(torch.device("cpu")))


def test_rows_show_what_they_do_not_share(tiny, tmp_path):
    plan = Plan(tiny[:1], [], [1, 2], ["solver.max_iter=3"])
    lines = plan_lines(plan, plan.jobs, options(tmp_path / "out"), "no such device")
    assert lines[:3] == [
        "tiny: Tiny",
        f"3 rows, 6 trainings; records under {tmp_path}/out; device cpu (no such device), fp32",
        "settings of tiny:",
    ]
    assert "  solver.max_iter = 3" in lines
    assert not any(line.startswith("  model.merge") for line in lines)
    assert "  model.width = 0.03125" in lines
    (max2,) = (line for line in lines if line.startswith("  max2: 6 images, "))
    assert max2.endswith(
        'PFLOP in all; duration unknown: no record on this device; {"model.scales": [1, 0.5], "model.merge": "max", "model.extra_supervision": false}'
    )
    assert not any(line.startswith("together") for line in lines)


def test_what_is_recorded_costs_nothing_more(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(dry_run, "PROTOCOLS", tmp_path)  # no records but those of this test
    assert main([*tiny, "--row", "max2"]) == 0
    capsys.readouterr()
    assert main([*tiny, "--row", "max2", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"PFLOP in all, 1 of 1 recorded; about 0 s at [\d.e+-]+ GFLOP/s \(out/tiny/max2-seed1\); ", out)
    assert out.splitlines()[-1] == "together about 0 s"
    assert main([*tiny, "--row", "max2", "--dry-run", "--set", "solver.max_iter=1000000", "--seeds", "3"]) == 0
    out = capsys.readouterr().out
    assert re.search(r", 1 of 3 recorded; about [\d.]+ (min|h|days) at ", out)


def test_a_crf_is_costed(tiny, tmp_path):
    def lines():
        plan = Plan(tiny[:1], ["max2"], [1], [])
        return plan_lines(plan, plan.jobs, options(tmp_path / "out"), "no such device")

    assert not any("CRF of" in line for line in lines())
    write_protocol(tmp_path, CRF)
    shown = lines()
    assert "  crf.bi_xy_std = 20" in shown
    (max2,) = (line for line in shown if line.startswith("  max2: "))
    # 3 iterations, 41 x 41 pixels, 3 classes, 46 operations
    assert (
        f" GFLOP forward each, 3 tested with a CRF of 3 iterations, {3 * 41 * 41 * 3 * 46 / 1e9:.3g} GFLOP each, "
        in max2
    )
    settings = load_protocol(tiny[0]).row("max2").settings
    plain = {section: table for section, table in settings.items() if section != "crf"}
    assert row_flops(settings) == row_flops(plain) + 3 * (3 * 41 * 41 * 3 * 46)


def test_a_share_is_planned_like_the_whole(tiny, capsys):
    shown = []
    for index in (1, 2):
        assert main([*tiny, "--dry-run", "--shard", f"{index}/2"]) == 0
        shown += re.findall(r"^  ([\w-]+): \d+ images", capsys.readouterr().out, re.MULTILINE)
    assert sorted(shown) == ["attention3-extra", "baseline", "max2"]
    assert main([*tiny, "--dry-run", "--shard", "9/9"]) == 0  # more machines than rows
    assert capsys.readouterr().out.splitlines()[1].startswith("0 rows, 0 trainings; ")
    assert main([*tiny, "--dry-run", "--shard", "0/9"]) == 2
    assert capsys.readouterr().err.startswith("error: --shard: must be i/n")


def test_rows_that_do_not_run_are_named():
    plan = Plan(["table4"], [], [1], [])
    idle = [row for row in plan.tables[0].rows if row.status != "run"]
    assert {row.status for row in idle} == {"quoted"}
    assert idle_lines(plan) == [f"table4 {row.id} does not run: {row.status}: {row.why}" for row in idle]


def test_it_looks_at_data_and_weights_as_the_run_would(tiny, tmp_path, capsys):
    def planned(*arguments):
        code = main([*tiny, "--row", "baseline", "--dry-run", *arguments])
        return code, *capsys.readouterr()

    assert planned()[0] == 0
    code, _, err = planned("--data-root", str(tmp_path / "none"))
    assert code == 2
    assert f"images and labels: {tmp_path}/none/JPEGImages/ and {tmp_path}/none/Labels/" in err
    code, _, err = planned("--weights", "/nonexistent.caffemodel")
    assert code == 2
    assert err.startswith(
        "error: weights: /nonexistent.caffemodel must exist; got no such file; give one as --weights\n  "
    )
    (tmp_path / "a.caffemodel").write_bytes(b"<html>404</html>")
    code, _, err = planned("--weights", f"{tmp_path}/a.caffemodel")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_subset_is_costed_with_its_own_counts(tiny, tmp_path, capsys):
    (tmp_path / "data" / "ImageSets" / "val.txt").write_text("val0\n")
    assert main([*tiny, "--row", "baseline", "--dry-run"]) == 2
    assert "val: must list 3 images as the protocol says; got 1; add --subset" in capsys.readouterr().err
    assert main([*tiny, "--row", "baseline", "--dry-run", "--subset"]) == 0
    out = capsys.readouterr().out
    assert "data: 4 training and 1 test images; weights: none; deviates in data.num_val = 1, weights = none" in out
    assert ", 1 tested, " in out


def test_without_a_data_root_the_plan_says_that_nothing_was_looked_at(capsys):
    assert main(["table3", "--row", "baseline", "--dry-run", "--device", "cpu"]) == 0
    assert "data and weights were not looked at: no --data-root given" in capsys.readouterr().err

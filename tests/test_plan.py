"""What a command runs: each training once, stages first, shares that are whole, disjoint and even."""

import dataclasses
import re

import pytest
from record_cases import record

from repro.protocol import PAPER, load_protocol
from repro.records.store import record_path, write_record
from repro.run.plan import STAGE_SEED, Plan, list_lines, parse_shard, share, tables_of


@pytest.fixture(scope="module")
def paper():
    return Plan(tables_of("all"), [], range(1, 4), [])


def test_all_is_the_whole_paper(paper):
    assert [protocol.name for protocol in paper.tables] == list(PAPER)
    rows = {(p.name, row.id) for p in map(load_protocol, PAPER) for row in p.runnable}
    stages = [job.key for job in paper.jobs if job.stage]
    assert stages == [
        ("table4", "largefov", STAGE_SEED),
        ("coco_pretrain", "largefov", STAGE_SEED),
        ("table4", "crf-coco-largefov", STAGE_SEED),
        *((table, "baseline", STAGE_SEED) for table in ("table1", "table3", "table6")),
    ]
    trained = {job.key for job in paper.jobs} - {("coco_pretrain", "largefov", STAGE_SEED)}
    assert trained == {(*row, seed) for row in rows for seed in (1, 2, 3)}
    assert len({job.key for job in paper.jobs}) == len(paper.jobs)
    assert paper.jobs[0].stage
    assert not {job.protocol.name for job in paper.jobs} & {"table2", "table7"}


def test_the_order_is_seed_by_seed_in_the_papers_order():
    plan = Plan(["table3", "table1"], [], [4, 5], [])
    rows = [("table3", row.id) for row in load_protocol("table3").rows]
    rows += [("table1", row.id) for row in load_protocol("table1").rows]
    assert [job.key for job in plan.jobs] == [(*row, seed) for seed in (4, 5) for row in rows]
    assert str(plan.jobs[0]) == "table3 baseline, seed 4"


def test_a_view_runs_the_rows_that_it_shows():
    assert [job.key for job in Plan(["table2"], [], [1], []).jobs] == [("table1", "attention3-extra", 1)]
    both = Plan(["table1", "table2"], [], [1], [])
    assert len(both.jobs) == 13
    assert [p.name for p in both.tables] == ["table1", "table2"]
    assert [job.key for job in Plan(["table7"], ["max3"], [1], []).jobs] == [("table6", "max3", 1)]


def test_a_stage_comes_first_and_once_whatever_the_seeds():
    plan = Plan(["table5"], ["max2", "baseline"], [7, 8], [])
    assert [job.key for job in plan.jobs] == [
        ("coco_pretrain", "largefov", STAGE_SEED),
        *(("table5", row, seed) for seed in (7, 8) for row in ("max2", "baseline")),
    ]
    assert [job.stage for job in plan.jobs] == [True, False, False, False, False]
    both = Plan(["table5", "coco_pretrain"], [], [STAGE_SEED], []).jobs
    assert len(both) == 14
    assert both[0].stage


def test_a_row_that_is_only_evaluated_needs_no_stage():
    plan = Plan(["table5"], ["max2"], [1], ["solver.max_iter=0"])
    assert [job.key for job in plan.jobs] == [("table5", "max2", 1)]


def test_overrides_reach_every_row():
    plan = Plan(["table2", "table5"], [], [1], ["solver.max_iter=9"])
    assert {job.row.settings["solver"]["max_iter"] for job in plan.jobs} == {9}
    assert all(job.protocol.overrides == {"solver.max_iter": 9} for job in plan.jobs)


def test_a_row_that_does_not_run_cannot_be_asked_for():
    row = load_protocol("table4").row("parsenet")
    message = f"table4: --row must name a row that runs; got parsenet, which is quoted ({row.why}); choose another"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Plan(["table4"], ["parsenet"], [1], [])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_shares_are_whole_disjoint_even_and_repeatable(paper, count):
    costs = {job.key: 1.0 + 3 * number % 7 for number, job in enumerate(paper.jobs)}

    def shares():
        return [share(paper.jobs, index, count, lambda job: costs[job.key]) for index in range(1, count + 1)]

    found = shares()
    assert [[job.key for job in own] for own in found] == [[job.key for job in own] for own in shares()]
    keys = [job.key for own in found for job in own]
    assert sorted(keys) == sorted(job.key for job in paper.jobs)
    loads = [sum(costs[job.key] for job in own) for own in found]
    assert max(loads) - min(loads) <= max(costs.values())
    assert found[0][0].stage
    assert not any(job.stage for own in found[1:] for job in own)
    for own in found:
        order = [(not job.stage, "stage" in job.row.settings) for job in own]
        assert order == sorted(order)  # what waits for a stage comes last, of the stages too


def test_the_costliest_job_is_placed_first():
    jobs = Plan(["table1"], [], [1], []).jobs[:4]
    costs = dict(zip((job.key for job in jobs), (3.0, 3.0, 2.0, 6.0), strict=True))
    first, second = (share(jobs, index, 2, lambda job: costs[job.key]) for index in (1, 2))
    assert [job.key for job in first] == [jobs[2].key, jobs[3].key]  # 6 + 2, in the plan's order
    assert [job.key for job in second] == [jobs[0].key, jobs[1].key]  # 3 + 3


def test_all_stages_are_the_first_machines():
    jobs = [dataclasses.replace(job, stage=number < 2) for number, job in enumerate(Plan(["table1"], [], [1], []).jobs)]
    first, second = (share(jobs, index, 2, lambda job: 1.0) for index in (1, 2))
    assert [job.stage for job in first[:3]] == [True, True, False]
    assert not any(job.stage for job in second)


def test_parse_shard():
    assert parse_shard("2/4") == (2, 4)
    for text in ("0/2", "3/2", "1", "1/2/3", "a/b", "1/0", "-1/2"):
        message = f"--shard: must be i/n with 1 <= i <= n <= 10000; got {text!r}; for example --shard 2/4"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            parse_shard(text)


def test_the_list_shows_every_row_of_every_table(tmp_path):
    lines = list_lines(tables_of("all"), tmp_path, [1, 2])
    protocols = [load_protocol("coco_pretrain"), *map(load_protocol, PAPER)]
    assert len(lines) == sum(1 + len(protocol.rows) for protocol in protocols)
    assert lines[0] == "coco_pretrain: MS-COCO pre-training of DeepLab-LargeFOV (stage)"
    assert "table2: PASCAL-Person-Part, validation set, per part (view; IoU by class and their mean)" in lines
    for protocol in protocols:
        start = next(n for n, line in enumerate(lines) if line.startswith(f"{protocol.name}: "))
        for row, line in zip(protocol.rows, lines[start + 1 :], strict=False):
            beside = row.printed or "-" if protocol.printed else "run;"  # of a stage nothing is printed
            assert line.split()[:2] == [row.id, beside]
            expected = f"{row.status}: {row.why}" if row.status != "run" else "not recorded"
            assert line.endswith(expected)
    assert list_lines(["table3"], tmp_path, [1])[0].startswith("table3: ")
    titles = [line.partition(":")[0] for line in list_lines(["text"], tmp_path, [1]) if not line.startswith(" ")]
    assert titles == ["coco_pretrain", "text"]  # table 1's baseline is a stage too, and a row of its table first


def test_the_list_shows_what_is_recorded(tmp_path):
    made = record("table1", "attention3-extra", 56.0, deviates={"weights": "none"})
    made["per_class"]["head"] = 80.125
    write_record(record_path(tmp_path, "table1", "attention3-extra", 1), made)
    write_record(record_path(tmp_path, "table1", "attention3-extra", 2), made | {"value": 57.0, "deviates": {}})
    record_path(tmp_path, "table1", "max2", 1).parent.mkdir()
    record_path(tmp_path, "table1", "max2", 1).write_text("{")
    submission = {"archive": "a.tgz", "sha256": "0", "score": None}
    write_record(
        record_path(tmp_path, "table4", "attention", 1), record("table4", "attention", None, submission=submission)
    )
    text = "\n".join(list_lines(["table1", "table2", "table4"], tmp_path, [1, 2]))
    assert "attention3-extra  56.39  run; recorded (seed 1: 56.00, deviates; seed 2: 57.00)\n" in text
    assert "max2              52.90  run; recorded (seed 1: damaged record)\n" in text
    assert "shows table1/attention3-extra; recorded (seed 1: 80.12, deviates; seed 2: 80.12)\n" in text
    assert "71.5  run; recorded (seed 1: archive written, no score yet)\n" in text

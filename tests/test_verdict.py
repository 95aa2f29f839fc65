"""The judge: values, spread, differences, tolerance, and what a difference says to a claim."""

import copy
import math

import pytest
from record_cases import other_settings, record
from tiny import write_protocol

from repro.protocol import load_protocol
from repro.protocol import reading as protocol_module
from repro.records.verdict import (
    ABOVE,
    BELOW,
    CONTRADICTED,
    IN_SPREAD,
    MIXED,
    NOT_MEASURED,
    SUPPORTED,
    WITHIN,
    WITHIN_SPREAD,
    Judgement,
    Measured,
    finding,
    judge_difference,
    judge_value,
    measure,
    minus,
    row_of,
    row_value,
    row_values,
    unfit,
    verdict,
)


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        (None, NOT_MEASURED),
        (Measured(0.1, None, 1), SUPPORTED),
        (Measured(-0.1, None, 1), CONTRADICTED),
        (Measured(0.0, None, 1), WITHIN_SPREAD),  # a tie is a tie
        (Measured(0.5, 0.5, 2), WITHIN_SPREAD),
        (Measured(0.51, 0.5, 2), SUPPORTED),
        (Measured(-0.5, 0.5, 2), WITHIN_SPREAD),
        (Measured(-0.51, 0.5, 2), CONTRADICTED),
    ],
)
def test_what_a_difference_says(difference, expected):
    assert finding(difference) == expected


@pytest.mark.parametrize(
    ("findings", "expected"),
    [
        ([], NOT_MEASURED),
        ([NOT_MEASURED], NOT_MEASURED),
        ([NOT_MEASURED, SUPPORTED], SUPPORTED),
        ([WITHIN_SPREAD, SUPPORTED], SUPPORTED),
        ([WITHIN_SPREAD, CONTRADICTED], CONTRADICTED),
        ([WITHIN_SPREAD, NOT_MEASURED], WITHIN_SPREAD),
        ([SUPPORTED, CONTRADICTED, WITHIN_SPREAD], MIXED),
    ],
)
def test_the_verdict_of_several_findings(findings, expected):
    assert verdict(findings) == expected


def test_a_cell_and_a_difference_of_two():
    assert measure([]) is None
    assert measure([51.5]) == (51.5, None, 1)
    several = measure([50.0, 52.0, 54.0])
    assert several == (52.0, 2.0, 3)
    assert minus(several, measure([55.0, 56.0])) == (-3.5, pytest.approx(math.sqrt(4 + 0.5)), 3)
    assert minus(several, measure([50.0])) == (2.0, None, 3)  # one seed has no spread
    assert minus(several, None) is minus(None, several) is None


@pytest.mark.parametrize(
    ("values", "distance", "mark", "in_spread"),
    [
        ([64.0], -0.81, WITHIN, None),
        ([62.9, 63.1], -1.81, BELOW, False),  # close together, far off
        ([61.0, 65.0], -1.81, IN_SPREAD, True),  # far apart
        ([64.0, 64.2], -0.71, WITHIN, False),  # the tolerance decides
        ([66.0], 1.19, ABOVE, None),
        ([65.81], 1.0, WITHIN, None),
    ],
)
def test_tolerance_and_spread(values, distance, mark, in_spread):
    judged = Judgement(measure(values), 64.81, 64.81, 1.0 + 1e-9)
    assert judged.distance == pytest.approx(distance)
    assert (judged.mark, judged.in_spread, judged.within) == (mark, in_spread, mark in (WITHIN, IN_SPREAD))


def test_a_printed_value_and_a_printed_difference():
    text = load_protocol("text")
    both, difference = text.row("four-scales"), text.row("attention-kernel1")
    assert judge_value(both, measure([56.0]), 1.0).distance == pytest.approx(56.0 - 56.14)
    assert judge_value(both, None, 1.0) is judge_value(difference, measure([56.0]), 1.0) is None
    for mean, distance in ((-0.2, 0.0), (-0.5, -0.1), (0.4, 0.5)):  # printed: -0.4 to -0.1
        assert judge_difference(difference, Measured(mean, None, 1), 1.0).distance == pytest.approx(distance)
    assert judge_difference(difference, None, 1.0) is None
    assert judge_difference(load_protocol("table1").row("max2"), Measured(1.0, None, 1), 1.0) is None


def test_a_row_reads_its_own_metric(tmp_path, monkeypatch):
    monkeypatch.setattr(protocol_module, "PROTOCOLS", tmp_path)
    write_protocol(tmp_path)
    (tmp_path / "view.toml").write_text(
        'title = "V"\nsource = "s"\nmetric = "ball"\n[[row]]\nid = "a"\nof = "tiny/max2"\n[[row]]\nid = "m"\nof = "tiny/max2"\nmetric = "mean_iou"\n'
    )
    ball, mean = load_protocol("view").rows
    found = record("tiny", "max2", 40.0)
    assert (row_value(ball, found), row_value(mean, found)) == (30.0, 40.0)
    waiting = found | {"value": None, "per_class": {}, "seed": 2}
    assert row_value(ball, waiting) is row_value(mean, waiting) is None
    assert row_values(mean, [found, waiting, found | {"seed": 3, "value": 1.0}]) == {1: 40.0, 3: 1.0}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"synthetic": True}, "synthetic data"),
        (
            {"deviates": {"solver.gamma": 1, "precision": "bf16"}},
            "deviates from the protocol in precision, solver.gamma",
        ),
        ({"value": None}, "no score of the server yet"),
        ({"provenance": {"settings_sha256": "0"}}, "made with other settings than the protocol has now"),
    ],
)
def test_what_is_comparable_with_the_paper(change, reason):
    table3 = load_protocol("table3")
    assert unfit(record("table3", "max2", 64.0) | change, table3.row("max2"), table3) == reason


def test_which_row_a_record_is_of():
    protocols = {name: load_protocol(name) for name in ("table1", "table2", "demo")}
    made = record("table1", "max2", 52.0)
    assert row_of(made, protocols) is protocols["table1"].row("max2")

    def refused(changed):
        with pytest.raises(ValueError, match=r"^(damaged|foreign|made with)") as caught:
            row_of(changed, protocols)
        return str(caught.value)

    assert refused(made | {"table": "table9"}) == "foreign: unknown table 'table9'"
    assert refused(made | {"row": "base"}) == "foreign: table 'table1' has no row 'base' to run"
    assert refused(made | {"table": "table2", "row": "head"}) == "foreign: table 'table2' has no row 'head' to run"
    assert refused(made | {"synthetic": True}) == "damaged: synthetic is True, its protocol says False"
    stale = other_settings(copy.deepcopy(made))
    assert refused(stale) == "made with another table1.toml than the present one; measure the row again"
    assert row_of(stale | {"deviates": {"solver.gamma": 0.5}}, protocols).id == "max2"

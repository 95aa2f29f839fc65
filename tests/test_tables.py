"""The tables that people read, from hand-made records."""

import pytest
from tiny import write_protocol

from repro.protocol import SYNTHETIC_NOTE, load_protocol
from repro.tables import as_markdown, as_text, notes, orderings, per_class_line, spread, table_lines

SYNTHETIC = "[common.synthetic]\nnum_train = 1\nnum_val = 1\nsize = [9, 9]\nseed = 1\n\n[common.test]"


def record(value, seed=1, seconds=10.0, deviates=None):
    return {"value": value, "seed": seed, "run": {"seconds": seconds}, "deviates": deviates or {}}


@pytest.fixture
def tiny(tmp_path):
    return load_protocol(write_protocol(tmp_path))


def test_spread():
    assert spread([]) == "-"
    assert spread([51.914]) == "51.91"
    assert spread([50.0, 52.0]) == "51.00 ± 1.41"  # sample standard deviation, sqrt(2)
    assert spread([1.0, 2.0, 3.0]) == "2.00 ± 1.00"


def test_lines(tiny):
    records = {
        "baseline": [record(50.0, seconds=3.2)],
        "max2": [record(53.0, 1, 10), record(54.0, 2, 20)],
        "attention3-extra": [record(7.126)],
    }
    assert table_lines(tiny, records) == [
        ["row", "scales", "merge", "extra", "paper", "measured", "difference", "seconds"],
        ["baseline", "{1}", "none", "w/o", "51.91", "50.00", "-1.91", "3"],
        ["max2", "{1, 0.5}", "max", "w/o", "52.90", "53.50 ± 0.71", "+0.60", "15"],
        ["attention3-extra", "{1, 0.75, 0.5}", "attention", "w/", "-", "7.13", "-", "10"],
    ]
    assert table_lines(tiny, {})[1] == ["baseline", "{1}", "none", "w/o", "51.91", "-", "-", "-"]
    assert table_lines(tiny, {"max2": []})[2][4:] == ["52.90", "-", "-", "-"]


def test_notes(tiny, tmp_path):
    assert notes(tiny, {"baseline": [record(1.0)]}) == []
    several = {
        "baseline": [record(1.0, 3), record(2.0, 1)],
        "max2": [record(1.0, 3, deviates={"solver.max_iter": 9}), record(1.0, 1, deviates={"weights": "none"})],
    }
    assert notes(tiny, several) == [
        "mean ± standard deviation over seeds 1, 3",
        "deviates from the protocol: solver.max_iter = 9",
        "deviates from the protocol: weights = none",
    ]
    synthetic = load_protocol(write_protocol(tmp_path, ("[common.test]", SYNTHETIC)))
    assert notes(synthetic, {}) == [SYNTHETIC_NOTE]


def test_orderings_of_the_full_grid():
    protocol = load_protocol("table1")
    as_printed = {row.id: [record(row.paper)] for row in protocol.rows}
    assert orderings(protocol, as_printed) == [
        "several scales are better than one: measured in 12 of 12 pairs of cells, printed in 12 of 12",
        "extra supervision helps: measured in 6 of 6 pairs of cells, printed in 6 of 6",
        "attention is at least as good as average and max: measured in 8 of 8 pairs of cells, printed in 8 of 8",
        "attention over three scales with extra supervision is the best: measured in 12 of 12 pairs of cells, printed in 12 of 12",
    ]
    reversed_ = {row.id: [record(-row.paper)] for row in protocol.rows}
    assert [line.partition("measured in ")[2].split(" pairs")[0] for line in orderings(protocol, reversed_)] == [
        "0 of 12",
        "0 of 6",
        "0 of 8",
        "0 of 12",
    ]


def test_orderings_by_hand():
    protocol = load_protocol("table1")
    values = {
        "baseline": [50.0],
        "average2": [52.0, 46.0],
        "max2": [51.0],
        "attention2": [51.0],
        "attention2-extra": [50.5],
        "max2-extra": [60.0],
        "attention3-extra": [59.0],
    }
    records = {row_id: [record(value, seed) for seed, value in enumerate(found)] for row_id, found in values.items()}
    measured = [line.partition("measured in ")[2].split(" pairs")[0] for line in orderings(protocol, records)]
    # 1: all but average2 (mean 49). 2: max2-extra above max2, attention2-extra below attention2. 3: attention2 against average2 and (equal) max2 holds,
    # attention2-extra against max2-extra does not. 4: above all six but max2-extra.
    assert measured == ["5 of 6", "1 of 2", "2 of 3", "5 of 6"]


def test_orderings_without_pairs(tiny):
    assert orderings(tiny, {"baseline": [record(1.0)]}) == []
    assert orderings(tiny, {}) == []
    assert orderings(tiny, {"baseline": [record(1.0)], "max2": [record(0.5)]}) == [
        "several scales are better than one: measured in 0 of 1 pairs of cells, printed in 1 of 1",
    ]


def test_per_class_line():
    assert per_class_line({"per_class": {"background": 93.654, "head": 0.0}}) == "background 93.65, head 0.00"


def test_text(tiny):
    records = {"baseline": [record(50.0)], "max2": [record(53.0, deviates={"model.width": 0.5})]}
    assert as_text(tiny, records) == (
        "Tiny (mean IoU, percent; paper: nowhere)\n"
        "NOTE: deviates from the protocol: model.width = 0.5\n"
        "\n"
        "row               scales          merge      extra  paper  measured  difference  seconds\n"
        "----------------------------------------------------------------------------------------\n"
        "baseline          {1}             none       w/o    51.91     50.00       -1.91       10\n"
        "max2              {1, 0.5}        max        w/o    52.90     53.00       +0.10       10\n"
        "attention3-extra  {1, 0.75, 0.5}  attention  w/         -         -           -        -\n"
        "\n"
        "The paper's orderings:\n"
        "  several scales are better than one: measured in 1 of 1 pairs of cells, printed in 1 of 1\n"
    )
    assert "orderings" not in as_text(tiny, {})


def test_markdown(tiny):
    lines = as_markdown(
        tiny, {"baseline": [record(50.0)], "max2": [record(53.0, deviates={"model.width": 0.5})]}
    ).splitlines()
    assert lines == [
        "**Tiny** (mean IoU, percent; paper: nowhere)",
        "",
        "*deviates from the protocol: model.width = 0.5*",
        "",
        "| row | scales | merge | extra | paper | measured | difference | seconds |",
        "| :-- | :-- | :-- | :-- | --: | --: | --: | --: |",
        "| baseline | {1} | none | w/o | 51.91 | 50.00 | -1.91 | 10 |",
        "| max2 | {1, 0.5} | max | w/o | 52.90 | 53.00 | +0.10 | 10 |",
        "| attention3-extra | {1, 0.75, 0.5} | attention | w/ | - | - | - | - |",
        "",
        "The paper's orderings:",
        "",
        "- several scales are better than one: measured in 1 of 1 pairs of cells, printed in 1 of 1",
    ]

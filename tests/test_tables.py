"""The tables that people read, from hand-made records."""

from pathlib import Path

import pytest
from tiny import write_protocol

from repro.protocol import SYNTHETIC_NOTE, load_protocol
from repro.protocol import reading as protocol_module
from repro.records.tables import (
    as_markdown,
    as_text,
    learnt_line,
    notes,
    per_class_line,
    records_of,
    remarks,
    spread,
    table_lines,
    values_name,
)
from repro.records.verdict import measure
from repro.run.__main__ import last_line

SYNTHETIC = "[common.synthetic]\nnum_train = 1\nnum_val = 1\nsize = [9, 9]\nseed = 1\n\n[common.test]"


# A table of every kind of row beside tiny.toml.
MIXED = """
title = "Mixed"
source = "text"
metric = "mean_iou"
[[row]]
id = "crf"
paper = 70.30
status = "planned"
why = "needs the CRF"
[[row]]
id = "theirs"
paper = 69.8
status = "quoted"
why = "ParseNet"
[[row]]
id = "shown"
of = "tiny/baseline"
paper = 52.10
[[row]]
id = "changed"
extends = "tiny/max2"
difference = { row = "tiny/max2", between = [-0.4, -0.1] }
[[row]]
id = "both"
extends = "tiny/max2"
paper = 50.5
difference = { row = "tiny/max2", between = [-0.5, -0.5] }
why = "printed twice"
[[row]]
id = "own"
extends = "tiny/max2"
"""


def record(value, seed=1, seconds=10.0, deviates=None, **more):
    return {
        "value": value,
        "seed": seed,
        "run": {"seconds": seconds},
        "deviates": deviates or {},
        "provenance": {},
    } | more


@pytest.fixture
def tiny(tmp_path):
    return load_protocol(write_protocol(tmp_path))


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """Writes a protocol beside tiny.toml, and reads it."""
    monkeypatch.setattr(protocol_module, "PROTOCOLS", tmp_path)
    write_protocol(tmp_path)

    def write(text, name="mixed"):
        (tmp_path / f"{name}.toml").write_text(text)
        return load_protocol(name)

    return write


def test_spread():
    assert spread(measure([])) == "-"
    assert spread(measure([51.914])) == "51.91"
    assert spread(measure([50.0, 52.0])) == "51.00 ± 1.41"  # sample standard deviation, sqrt(2)
    assert spread(measure([1.0, 2.0, 3.0])) == "2.00 ± 1.00"


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
    said = [SYNTHETIC_NOTE, "the paper's values, of other data, stand beside for their order alone"]
    assert notes(synthetic, {}) == said
    remarked = load_protocol(
        write_protocol(tmp_path, ("[common.test]", SYNTHETIC), ("title =", 'remark = "small"\ntitle ='))
    )
    assert notes(remarked, {}) == [*said, "small"]
    assert remarked.note == SYNTHETIC_NOTE


def test_drawn_data_have_no_difference_from_the_paper(tmp_path):
    synthetic = load_protocol(write_protocol(tmp_path, ("[common.test]", SYNTHETIC)))
    records = {"baseline": [record(50.0)], "max2": [record(53.0)]}
    assert table_lines(synthetic, records)[:2] == [
        ["row", "scales", "merge", "extra", "paper", "measured", "seconds"],
        ["baseline", "{1}", "none", "w/o", "51.91", "50.00", "10"],
    ]
    text = as_markdown(synthetic, records)
    assert "difference" not in text
    assert "\n| :-- | :-- | :-- | :-- | --: | --: | --: |\n" in text
    assert "several scales are better than one: supported; 2 pairs: 1 for, 1 not measured (printed: 1 of 1 for)" in text


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
        "  several scales are better than one: supported; 2 pairs: 1 for, 1 not measured (printed: 1 of 1 for)\n"
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
        "- several scales are better than one: supported; 2 pairs: 1 for, 1 not measured (printed: 1 of 1 for)",
    ]


def test_the_name_of_a_metric(tables):
    view = tables(
        'metric = "ball"\n[[row]]\nid = "a"\nof = "tiny/max2"\n[[row]]\nid = "m"\nof = "tiny/max2"\nmetric = "mean_iou"\n'
    )
    assert values_name(view) == "IoU by class and their mean"
    assert values_name(tables('metric = "ball"\n[[row]]\nid = "a"\nof = "tiny/max2"\n')) == "IoU of ball"


def test_records_of_rows_that_lie_elsewhere(tables):
    mixed = tables(MIXED)
    base, max2, own = record(50.0), record(53.0), record(54.0)
    every = {"tiny": {"baseline": [base], "max2": [max2], "own": [base]}, "mixed": {"own": [own], "changed": []}}
    assert records_of(mixed, every) == {"shown": [base], "tiny/max2": [max2], "own": [own]}
    assert records_of(load_protocol("tiny"), every) == {"baseline": [base], "max2": [max2]}
    assert records_of(mixed, {}) == {}


def test_no_row_is_left_out(tables):
    mixed = tables(MIXED)
    assert [line[4:] for line in table_lines(mixed, {})] == [
        ["paper", "measured", "difference", "seconds"],
        ["70.30", "planned", "-", "-"],
        ["69.8", "quoted", "-", "-"],
        ["52.10", "-", "-", "-"],
        ["(-0.4 to -0.1)", "-", "-", "-"],
        ["50.5 (-0.5)", "-", "-", "-"],
        ["-", "-", "-", "-"],
    ]
    assert [line[1:4] for line in table_lines(mixed, {})[1:4]] == [["-"] * 3, ["-"] * 3, ["{1}", "none", "w/o"]]
    records = {
        "shown": [record(50.0)],
        "changed": [record(51.0), record(52.0, 2)],
        "both": [record(52.25)],
        "tiny/max2": [record(51.0), record(53.0, 2)],
        "own": [record(None, seconds=7)],
    }
    assert [line[5:] for line in table_lines(mixed, records)[3:]] == [
        ["50.00", "-2.10", "10"],
        ["51.50 ± 0.71 (-0.50)", "-", "10"],
        ["52.25 (+0.25)", "+1.75", "10"],
        ["no score yet", "-", "7"],
    ]
    assert table_lines(mixed, {"both": [record(52.25)]})[5][5] == "52.25"
    listed = [
        "crf (planned): needs the CRF",
        "theirs (quoted): ParseNet",
        "shown (the record of tiny/baseline)",
        "changed (in brackets: difference from tiny/max2)",
        "both (in brackets: difference from tiny/max2): printed twice",
    ]
    assert remarks(mixed) == listed
    assert "\n\nAbout the rows:\n  " + "\n  ".join(listed) + "\n" in as_text(mixed, {})
    assert "\n\nAbout the rows:\n\n- " + "\n- ".join(listed) + "\n" in as_markdown(mixed, records)


def test_a_view_says_whose_records_it_shows(tables):
    one = tables('metric = "box"\n[[row]]\nid = "a"\nof = "tiny/max2"\n[[row]]\nid = "b"\nof = "tiny/max2"\n')
    assert notes(one, {}) == ["shows the records of tiny/max2; nothing is trained for it"]
    assert remarks(one) == []
    several = tables('metric = "box"\n[[row]]\nid = "a"\nof = "tiny/max2"\n[[row]]\nid = "b"\nof = "tiny/baseline"\n')
    assert notes(several, {}) == ["shows the records of tiny; nothing is trained for it"]
    assert "About the rows" not in as_text(several, {})


def test_a_score_says_where_it_comes_from(tiny):
    def scored(source):
        return record(70.5, submission={"score": {"value": 70.5, "source": source, "entered": "2020-01-01"}})

    assert notes(
        tiny, {"max2": [scored("b"), scored("a")], "baseline": [record(None, submission={"score": None})]}
    ) == [
        "scored by a server, entered by hand from a",
        "scored by a server, entered by hand from b",
    ]


def test_what_several_tables_say_in_one_line(tiny, tables):
    view = tables('metric = "box"\n[[row]]\nid = "a"\nof = "tiny/max2"\n')
    found = {"baseline": [record(50.0)], "max2": [record(51.0)]}
    assert learnt_line([(tiny, found), (view, {})]) == "tiny: several scales help in 1 of 1"
    assert learnt_line([(view, {})]) == ""
    assert last_line("", Path("runs")) == "Next: python -m repro.report"
    assert last_line("a b", Path("my runs")) == "Learnt: a b. Next: python -m repro.report --runs 'my runs'"

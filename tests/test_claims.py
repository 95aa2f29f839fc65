"""What measured values say to the paper's claims."""

import json
import math

import pytest
from record_cases import other_settings, record
from tiny import write_protocol

from repro.protocol import load_protocol
from repro.records import claims as claims_module
from repro.records.claims import claims, known_spreads, learnt, orderings
from repro.records.store import record_path, write_record
from repro.records.verdict import CONTRADICTED, MIXED, NOT_MEASURED, SUPPORTED, WITHIN_SPREAD

ORDERINGS = (
    "several scales are better than one",
    "extra supervision helps",
    "attention is at least as good as average and max",
    "attention over three scales with extra supervision is the best",
)


def as_printed(protocol, sign=1):
    return {row.id: [sign * row.paper] for row in protocol.rows}


@pytest.mark.parametrize("table", ["table1", "table3", "table5", "table6", "table7"])
def test_the_printed_tables_support_every_claim_except_where_the_paper_itself_does_not(table):
    protocol = load_protocol(table)
    found = claims(protocol, as_printed(protocol))
    assert [claim.text for claim in found] == list(ORDERINGS)
    assert [len(claim.pairs) for claim in found] == [12, 6, 8, 12]
    for claim in found:
        assert all(pair.measured == (pair.printed, None, 1) for pair in claim.pairs)
    verdicts = [claim.verdict for claim in found]
    # Without extra supervision, attention over three scales is printed below max or average in tables 3, 5, 6.
    assert verdicts == [SUPPORTED, SUPPORTED, SUPPORTED if table in ("table1", "table7") else MIXED, SUPPORTED]
    assert {claim.verdict for claim in claims(protocol, as_printed(protocol, -1))} <= {CONTRADICTED, MIXED}
    assert {claim.verdict for claim in claims(protocol, {})} == {NOT_MEASURED}


def test_the_spread_of_a_difference_is_that_of_both_cells():
    protocol = load_protocol("table1")
    values = {"baseline": [50.0, 52.0, 54.0], "max2": [55.0, 56.0], "max3": [60.0]}
    pairs = {pair.upper: pair for pair in claims(protocol, values)[0].pairs}
    assert pairs["max2"].measured == (pytest.approx(3.5), pytest.approx(math.sqrt(4.0 + 0.5)), 2)
    assert pairs["max2"].printed == pytest.approx(52.90 - 51.91)
    assert pairs["max3"].measured == (8.0, None, 1)  # one seed has no spread
    assert pairs["average2"].measured is None


@pytest.mark.parametrize("table", ["table2", "text"])
def test_rows_that_make_no_grid_support_nothing(table):
    assert claims(load_protocol(table), {row.id: [1.0] for row in load_protocol(table).rows}) == []


def test_rows_that_differ_in_more_than_the_grid_support_nothing(tmp_path):
    row = '[[row]]\nid = "baseline"'
    twin = '[[row]]\nid = "narrow"\nmodel.scales = [1]\nmodel.merge = "none"\nmodel.extra_supervision = false\nmodel.width = 0.5\n'
    protocol = load_protocol(write_protocol(tmp_path, (row, twin + row)))
    assert claims(protocol, {row.id: [1.0] for row in protocol.rows}) == []


def test_a_row_without_a_printed_value(tmp_path):
    protocol = load_protocol(write_protocol(tmp_path))
    pairs = {pair.upper: pair for pair in claims(protocol, {"baseline": [1.0], "attention3-extra": [2.0]})[0].pairs}
    assert (pairs["attention3-extra"].printed, pairs["attention3-extra"].measured.mean) == (None, 1.0)


def test_orderings_count_pairs_and_a_tie_is_no_win():
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
    # 1: all but average2 (mean 49). 2: max2-extra above max2, attention2-extra below attention2. 3: attention2 above average2 and equal to max2,
    # attention2-extra below max2-extra. 4: above all six but max2-extra.
    assert orderings(protocol, values) == [
        f"{ORDERINGS[0]}: mixed; 12 pairs: 5 for, 1 against, 6 not measured (printed: 12 of 12 for)",
        f"{ORDERINGS[1]}: mixed; 6 pairs: 1 for, 1 against, 4 not measured (printed: 6 of 6 for)",
        f"{ORDERINGS[2]}: mixed; 8 pairs: 1 for, 1 against, 1 within the spread, 5 not measured (printed: 8 of 8 for)",
        f"{ORDERINGS[3]}: mixed; 12 pairs: 5 for, 1 against, 6 not measured (printed: 12 of 12 for)",
    ]
    assert orderings(protocol, {"baseline": [1.0]}) == orderings(protocol, {}) == []


def test_with_one_seed_the_spread_is_that_of_the_kept_records(tmp_path, monkeypatch):
    monkeypatch.setattr(claims_module, "MEASURED", tmp_path)
    protocol = load_protocol("table1")
    assert known_spreads(protocol) == {}
    for row, values in {"baseline": (50.0, 52.0), "max2": (53.0, 54.0), "max3": (55.0,)}.items():
        for seed, value in enumerate(values, start=1):
            write_record(record_path(tmp_path, "table1", row, seed), record("table1", row, value, seed))
    for seed, value in ((1, 40.0), (2, 50.0)):  # neither of another protocol nor overridden ones, nor damaged ones
        write_record(
            record_path(tmp_path, "table1", "average2", seed), other_settings(record("table1", "average2", value, seed))
        )
        made = record("table1", "average3", value, seed, deviates={"solver.gamma": 0.5})
        write_record(record_path(tmp_path, "table1", "average3", seed), made)
    record_path(tmp_path, "table1", "max2", 3).parent.mkdir()
    record_path(tmp_path, "table1", "max2", 3).write_text(json.dumps({"format": 1}))
    known = known_spreads(protocol)
    assert known == {"baseline": pytest.approx(math.sqrt(2)), "max2": pytest.approx(math.sqrt(0.5))}

    def found(**values):
        pairs = {pair.upper: pair for pair in claims(protocol, values, known)[0].pairs}
        return pairs["max2"].finding, pairs["max3"].finding

    spread = math.sqrt(2.5)
    assert found(baseline=[50.0], max2=[50 + spread - 0.01], max3=[50.1]) == (WITHIN_SPREAD, SUPPORTED)
    assert found(baseline=[50.0], max2=[50 + spread + 0.01]) == (SUPPORTED, NOT_MEASURED)
    assert found(baseline=[50.0], max2=[50 - spread - 0.01]) == (CONTRADICTED, NOT_MEASURED)
    assert found(baseline=[50.0, 50.2], max2=[50.9, 51.1])[0] == SUPPORTED  # its own seeds come before the kept ones


def test_what_was_learnt_in_one_line():
    protocol = load_protocol("table3")
    assert learnt(protocol, as_printed(protocol)) == (
        "several scales help in 12 of 12, extra supervision helps in 6 of 6, attention leads in 7 of 8, the paper's best row leads in 12 of 12"
    )
    values = {"baseline": [50.0], "max2": [50.0], "max3": [51.0]}  # a tie is none
    assert learnt(protocol, values) == "several scales help in 1 of 2"
    assert learnt(protocol, {}) == ""

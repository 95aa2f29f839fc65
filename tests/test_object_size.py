"""Attention against object size: which half of the objects a scale prefers, which scale leads on each, and the sentence that says so."""

import math

import pytest
import report_cases as cases

from repro.records.object_size import Lead, larger_objects, lead_verdict, leads, size_claim
from repro.records.verdict import CONTRADICTED, MIXED, NOT_MEASURED, SUPPORTED, WITHIN_SPREAD
from repro.report.collect import collect
from repro.report.data import build


def test_weight_on_large_objects_against_small_ones():
    def one(objects, weight, std=0.0):
        return {"n_objects": objects, "mean_weight": [weight, 1 - weight], "std": [std, std]}

    assert larger_objects([one(4, 0.5)], 0) is None
    assert larger_objects([one(4, 0.5), one(0, 0.0)], 0) is None
    assert larger_objects([], 0) is None
    falls = [one(4, 0.75), one(4, 0.5), one(8, 0.25)]  # halves of eight objects each: means 0.625 and 0.25
    assert larger_objects(falls, 0).mean == pytest.approx(-37.5)
    assert larger_objects(falls, 1).mean == pytest.approx(37.5)
    assert larger_objects(falls, 0).spread == pytest.approx(100 * math.sqrt(0.125**2 / 8))
    assert larger_objects([one(9, 0.75, 0.3), one(1, 0.25)], 0) == (
        pytest.approx(-50.0),
        pytest.approx(100 * 0.3 / 3),
        1,
    )


def curve(small, large, row="a", seed=1, std=0.0):
    """Makes a curve of two bins of eight objects each: the weight of scale 0.5, of two scales, on small and on large ones."""
    bins = [
        {"n_objects": 8, "mean_weight": [weight, 1 - weight], "std": [std, std], "size_min": size, "size_max": 2 * size}
        for weight, size in ((small, 4), (large, 8))
    ]
    return {"row": row, "seed": seed, "scales": [0.5, 1], "bins": bins}


@pytest.mark.parametrize(
    ("curves", "verdict", "measured"),
    [
        ([], NOT_MEASURED, []),
        ([curve(0.25, 0.5)], SUPPORTED, [25, 25]),
        ([curve(0.5, 0.25)], CONTRADICTED, [-25, -25]),
        ([curve(0.5, 0.5)], WITHIN_SPREAD, [0, 0]),
        ([curve(0.25, 0.5, std=0.5)], WITHIN_SPREAD, [25, 25]),  # the standard error is 25
        ([curve(0.25, 0.5, std=0.49)], SUPPORTED, [25, 25]),
        ([curve(0.25, 0.5), curve(0.5, 0.25, "b")], MIXED, [25, 25, -25, -25]),
        ([curve(0.25, 0.5), curve(0.5, 0.25, seed=2)], WITHIN_SPREAD, [0, 0]),  # seeds differ by more than their mean
        (
            [curve(0.25, 0.5, std=9.0), curve(0.25, 0.5, seed=2)],
            SUPPORTED,
            [25, 25],
        ),  # several seeds: their spread counts
    ],
)
def test_attention_against_object_size(curves, verdict, measured):
    claim = size_claim(curves)
    assert claim.verdict == verdict
    assert [pair.measured.mean for pair in claim.pairs] == pytest.approx(measured)
    for pair in claim.pairs[:2]:
        assert pair.upper.endswith(
            ("scale 1 on the smaller half of the objects", "scale 0.5 on the larger half of the objects")
        )


def test_which_scale_leads():
    found = leads([curve(0.25, 0.75), curve(0.75, 0.875, "b"), curve(0.25, 0.25, "b", seed=2)])
    assert found == {
        "a": Lead([0.5, 1], [0.25, 0.75], [0.75, 0.25]),
        "b": Lead([0.5, 1], [0.5, 0.5], [0.5625, 0.4375]),  # the mean of both seeds
    }
    assert str(found["a"]) == (
        "on the smaller half of the objects scale 0.5 0.25, scale 1 0.75; on the larger half of the objects scale 0.5 0.75, scale 1 0.25"
    )
    one_bin = curve(0.25, 0.75)
    one_bin["bins"][0]["n_objects"] = 0
    assert leads([one_bin]) == {}


@pytest.mark.parametrize(
    ("smaller", "larger", "answer"),
    [
        ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5], "yes"),
        ([0.5, 0.3, 0.2], [0.3, 0.4, 0.3], "on small objects alone"),
        ([0.2, 0.3, 0.5], [0.1, 0.2, 0.7], "on large objects alone"),  # though scale 1 has less weight there
        ([0.2, 0.5, 0.3], [0.4, 0.3, 0.3], "on neither"),
    ],
)
def test_whether_the_finest_and_the_coarsest_lead(smaller, larger, answer):
    assert Lead([1, 0.75, 0.5], smaller, larger).answer == answer


def test_the_verdict_in_one_sentence():
    yes, large = curve(0.25, 0.75), [curve(0.75, 0.8, row) for row in ("b", "c")]
    question = "Does scale 1 lead on small objects and scale 0.5 on large ones?"
    assert lead_verdict(leads([yes, *large])) == f"{question} On large objects alone in b, c; yes in a."
    assert lead_verdict(leads([yes])) == f"{question} Yes in a."
    question = "Does the finest scale lead on small objects and the coarsest on large ones?"
    assert lead_verdict({}) == f"{question} Not measured."
    four = Lead([1, 0.25], [0.6, 0.4], [0.4, 0.6])
    assert lead_verdict(leads([yes]) | {"four": four}) == f"{question} Yes in a, four."


@pytest.mark.parametrize("table", ["demo", "voc_scale_model"])
def test_every_table_with_a_row_of_attention_says_it(tmp_path, table):
    def attention():
        found = {one["name"]: one for one in build(collect([tmp_path]), tmp_path / "report")["tables"]}
        assert found["table3"]["attention"] is None
        return found[table]["attention"]

    cases.write(tmp_path, table, "max2", 40.0)
    assert attention() is None
    path = cases.write(tmp_path, table, "attention2", 41.0)
    said = attention()
    assert said["verdict"].endswith("on large ones? Not measured.")
    more = " --data-root DIR" if table != "demo" else ""
    assert said["command"] == f"python -m repro.visualize --run DIR --table {table}{more}"
    sha256 = collect([tmp_path]).records[table, "attention2"][0].sha256
    cases.write_figures(tmp_path, table, records={"attention2-seed1": sha256})
    said = attention()
    assert said["verdict"] == "Does scale 1 lead on small objects and scale 0.5 on large ones? Yes in attention2."
    assert said["command"] == ""
    assert said["weights"]["attention2"].startswith("on the smaller half of the objects scale 1 0.75, scale 0.5 0.25; ")
    cases.write_figures(tmp_path, table, records={"attention2-seed1": "another run's"})
    assert attention()["verdict"].endswith("Not measured.")
    assert path.is_file()

"""The data behind the report: every state of a cell, what is left out and why, and the whole document as kept in report_golden.json."""

import json
from pathlib import Path

import pytest
import report_cases as cases
from record_cases import stamped

from repro.files import write_json
from repro.protocol import SYNTHETIC_NOTE
from repro.report.collect import collect
from repro.report.data import build

GOLDEN = Path(__file__).parent / "report_golden.json"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    cases.write_protocols(tmp_path / "protocols", monkeypatch)
    return tmp_path / "runs"


def document(runs):
    return build(collect([runs]), runs / "report")


def cells(data, table):
    return {cell["row"]: cell for t in data["tables"] if t["name"] == table for cell in t["cells"]}


def test_the_whole_document_is_the_kept_one(runs):
    """Kept: what these records gave when a person read it through. Where the document changes on purpose, keep `found` anew, and read it through."""
    cases.write_every_state(runs)
    cases.write_figures(runs)
    cases.write_benchmark(runs)
    found = document(runs)
    for key in ("version", "rulings", "rulings_in_code", "differences_from_caffe", "deviations_in_code"):
        assert found.pop(key)
    found = json.loads(json.dumps(found).replace(str(runs.parent), "TMP"))
    for table in found[
        "tables"
    ]:  # fingerprints of the files that the test itself writes, with their moments and places
        for entry in table["provenance"]["records"]:
            assert len(entry.pop("record_sha256")) == 64
            entry["facts"].pop("settings sha256", None)
        table["provenance"]["shared"].pop("settings sha256", None)
    assert found == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_every_state_of_a_cell(runs):
    cases.write_every_state(runs)
    data = document(runs)
    found = cells(data, "table1")
    facts = {row: (cell["state"], cell["mean"], cell["mark"], cell["comparable"]) for row, cell in found.items()}
    assert facts == {
        "baseline": ("measured", 52.0, "within", True),
        "max2": ("measured", 51.4, "in spread", True),
        "max2-extra": ("measured", 53.0, "below", True),
        "attention2": ("measured", 53.0, "not comparable", False),
        "attention2-extra": ("measured", 58.0, "above", True),
    }
    assert found["baseline"]["spread"] == pytest.approx(0.5**0.5)
    assert found["baseline"]["difference"] == pytest.approx(52.0 - 51.91)
    assert found["baseline"]["values"] == {"1": 51.5, "2": 52.5}
    assert found["max2-extra"]["spread"] is None
    assert found["attention2"]["overrides"] == {"data.num_val": 2, "solver.max_iter": 3}
    by_class = cells(data, "table2")
    assert [by_class[row]["mean"] for row in ("box", "ball", "average")] == [58.0, 48.0, 58.0]
    assert by_class["box"]["records"] == ["table1/attention2-extra/1"]
    server = cells(data, "table4")
    assert {row: cell["state"] for row, cell in server.items()} == {
        "average": "awaiting score",
        "attention": "measured",
        "crf": "planned",
        "other": "quoted",
    }
    text = cells(data, "text")
    assert text["kernel1"]["from"] == {"row": "table1/attention2-extra", "low": -0.4, "high": -0.1, "measured": -1.0}
    assert text["kernel1"]["difference"] == pytest.approx(-0.6)  # as far outside the printed range
    assert text["kernel1"]["mark"] == "within"
    assert text["fc6"]["state"] == "not run"
    assert {cell["difference"] for cell in cells(data, "demo").values()} == {None}  # other data than the paper's
    assert {cell["mark"] for cell in cells(data, "demo").values()} == {""}


def test_what_is_left_out_and_why(runs):
    cases.write_every_state(runs)
    reasons = {Path(one["file"]).parent.name: one["reason"] for one in document(runs)["not_used"]}
    expected = {
        "damaged-seed1": "damaged: Expecting property name",
        "foreign-seed1": "foreign: no record of a run, for it has no format number",
        "newer-seed1": "newer: record of a run of format 2; this program reads 1",
        "unknown-seed1": "foreign: unknown table 'table9'",
        "stale-seed1": "made with another table1.toml than the present one; measure the row again",
        "copy-seed1": f"an equal copy: {runs / 'table1' / 'baseline-seed1' / 'record.json'} stands for it",
        "attention2-seed2": "made from other settings, data, weights or precision: its cell shows records that do not override solver.max_iter",
    }
    assert reasons.keys() == expected.keys()
    for name, reason in expected.items():
        assert reasons[name].startswith(reason), name


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ({"row": "base"}, "foreign: table 'table1' has no row 'base' to run"),
        ({"row": None}, "damaged: row must be text"),
        ({"seed": "1"}, "damaged: seed must be a count"),
        ({"per_class": {"background": "NaN"}}, "damaged: per_class must be a table of percentages"),
        ({"synthetic": True}, "damaged: synthetic is True, its protocol says False"),
        ({"format": "1"}, "foreign: no record of a run, for it has no format number"),
    ],
)
def test_a_record_that_no_report_can_show(runs, spoil, reason):
    path = runs / "table1" / "baseline-seed1" / "record.json"
    write_json(path, cases.record("table1", "baseline", 52.0) | spoil)
    data = document(runs)
    assert [one["reason"] for one in data["not_used"]] == [reason]
    assert data["records"] == 0


def test_a_directory_in_place_of_a_record_and_too_deep_a_document(runs):
    (runs / "table1" / "baseline-seed1" / "record.json").mkdir(parents=True)
    deep = runs / "table1" / "max2-seed1" / "record.json"
    deep.parent.mkdir()
    deep.write_text("[" * 200000)
    assert [one["reason"].partition(":")[0] for one in document(runs)["not_used"]] == ["damaged", "damaged"]


def test_the_first_of_two_folders_stands(runs, tmp_path):
    cases.write(runs, "table1", "baseline", 52.0)
    cases.write(tmp_path / "other", "table1", "baseline", 60.0)
    cases.write(tmp_path / "other", "table1", "baseline", 54.0, 2)
    data = build(collect([runs, tmp_path / "other"]), runs)
    assert cells(data, "table1")["baseline"]["values"] == {"1": 52.0, "2": 54.0}
    assert [one["reason"].partition(":")[0] for one in data["not_used"]] == ["another run of the same row and seed"]


def test_released_weights_are_comparable_within_their_own_tolerance_and_give_way_to_trained_ones(runs):
    released = {"solver.max_iter": 0, "weights.file": "released.caffemodel"}
    found = cases.record("table1", "max2", 52.2, deviates=released, loss_curve=[])
    found["settings"]["weights"]["file"] = "tiny.caffemodel"
    found["settings"]["solver"]["max_iter"] = 0
    write_json(runs / "table1" / "max2-seed1" / "record.json", stamped(found))
    data = document(runs)
    cell = cells(data, "table1")["max2"]
    assert (cell["way"], cell["tolerance"], cell["comparable"], cell["mark"]) == ("evaluate", 0.5, True, "below")
    assert cell["overrides"] == {}
    assert data["notices"] == []
    assert next(t for t in data["tables"] if t["name"] == "table1")["curves"] == {}
    cases.write(runs, "table1", "max2", 52.2, 2)
    cell = cells(document(runs), "table1")["max2"]
    assert (cell["way"], cell["tolerance"], cell["mark"], list(cell["values"])) == ("retrain", 1.0, "within", ["2"])


def test_a_record_of_the_protocol_stands_before_many_overridden_ones(runs):
    for seed in (1, 2, 3):
        cases.write(runs, "table1", "max2", 50.0, seed, deviates={"model.width": 0.5})
    cases.write(runs, "table1", "max2", 52.5, 4)
    data = document(runs)
    assert cells(data, "table1")["max2"]["values"] == {"4": 52.5}
    assert len(data["not_used"]) == 3
    assert data["notices"] == []  # they are in no cell


def test_notices_say_synthetic_and_overridden(runs):
    cases.write(runs, "table1", "baseline", 52.0)
    assert document(runs)["notices"] == []
    cases.write(runs, "demo", "baseline", 40.0)
    cases.write(runs, "table1", "max2", 50.0, deviates={"model.width": 0.5})
    synthetic, overridden = document(runs)["notices"]
    assert synthetic["kind"] == "synthetic"
    assert synthetic["text"].startswith("1 of 3 records (table demo) were measured on pictures that this package draws")
    assert overridden["kind"] == "overridden"
    assert overridden["text"].startswith("1 of 3 records depart from their protocol: model.width = 0.5 (1).")


def test_a_tables_remark_stands_with_its_note(runs):
    cases.write(runs, "demo", "baseline", 40.0)
    path = cases.protocol.PROTOCOLS / "demo.toml"
    path.write_text('remark = "small"\n' + path.read_text())
    notes = {table["name"]: table["note"] for table in document(runs)["tables"]}
    assert notes["demo"] == f"{SYNTHETIC_NOTE}; drawn; small"
    assert notes["table1"] == ""


def test_a_claims_verdict_is_that_on_the_papers_data_alone(runs):
    cases.write(runs, "demo", "baseline", 50.0)
    cases.write(runs, "demo", "max2", 60.0)
    claim = document(runs)["claims"][0]
    assert (claim["verdict"], [(one["table"], one["kind"], one["verdict"]) for one in claim["tables"]]) == (
        "not measured",
        [("demo", "synthetic", "supported")],
    )
    cases.write(runs, "table1", "baseline", 50.0)
    cases.write(runs, "table1", "max2", 45.0, deviates={"model.width": 0.5})
    assert document(runs)["claims"][0]["verdict"] == "not measured"  # an overridden cell is no pair for one that is not
    cases.write(runs, "table1", "max2-extra", 45.0)
    assert document(runs)["claims"][0]["verdict"] == "contradicted"
    for row in ("attention2", "attention2-extra"):  # more overridden cells than others change nothing
        cases.write(runs, "table1", row, 60.0, deviates={"model.width": 0.5})
    assert document(runs)["claims"][0]["verdict"] == "contradicted"


def test_figures_of_other_records_are_called_stale(runs):
    path = cases.write(runs, "demo", "attention2", 40.0)
    sha256 = cases.write_figures(runs) and collect([runs]).records["demo", "attention2"][0].sha256
    demo = next(table for table in document(runs)["tables"] if table["name"] == "demo")
    assert demo["figures"]["stale"] == ["attention2-seed1"]
    cases.write_figures(runs, records={"attention2-seed1": sha256})
    demo = next(table for table in document(runs)["tables"] if table["name"] == "demo")
    assert demo["figures"]["stale"] == []
    assert path.is_file()


def test_kept_benchmarks_stand_beside_a_runs_own(runs, tmp_path):
    cases.write_benchmark(runs)
    cases.write_benchmark(tmp_path / "kept")
    cases.write(tmp_path / "kept", "table1", "baseline", 52.0)
    data = build(collect([runs], tmp_path / "kept"), runs)
    assert [one["href"] for one in data["benchmarks"]] == ["bench/bench-cpu.json", "../kept/bench/bench-cpu.json"]
    assert data["records"] == 0
    assert len(collect([runs], runs).benchmarks) == 1


def test_speed_and_curves_by_hand(runs):
    cases.write(runs, "table1", "max2", 50.0)
    cases.write(runs, "table1", "max2", 51.0, 2, loss_curve=[4.0, 3.5, 3.25, 3.0, 2.75, 2.5])
    table = next(t for t in document(runs)["tables"] if t["name"] == "table1")
    assert table["speed"] == [
        {
            "row": "max2",
            "device": "A processor, 2 threads",
            "train_seconds": 3.0,
            "train_images_per_second": pytest.approx(6 * 2 / 3.0),
            "test_ms_per_image": pytest.approx(1000 * 1.5 / 3),
        }
    ]
    curve = table["curves"]["max2"]
    assert (curve["iterations"], curve["starts"]) == (6, [0, 1, 2, 3, 4, 5])
    assert curve["loss"]["2"] == [4.0, 3.5, 3.25, 3.0, 2.75, 2.5]
    assert curve["learning_rate"] == pytest.approx([1e-3] * 5 + [1e-4])
    assert table["confusion"]["shares"] == [[0.9, 0.05, 0.05], [0.2, 0.8, 0.0], [None, None, None]]
    long = [float(n) for n in range(1500)]
    cases.write(runs, "table1", "baseline", 50.0, loss_curve=long)
    curve = next(t for t in document(runs)["tables"] if t["name"] == "table1")["curves"]["baseline"]
    assert len(curve["starts"]) == 150
    assert curve["loss"]["1"][:2] == [4.5, 14.5]


def test_classes_stand_beside_the_papers(runs):
    cases.write(runs, "demo", "baseline", 40.0)
    for seed, value in ((1, 50.0), (2, 52.0)):
        cases.write(runs, "demo", "attention2-extra", value, seed)
    demo = next(table for table in document(runs)["tables"] if table["name"] == "demo")["classes"]
    assert demo["classes"] == ["background", "box", "ball"]
    assert demo["printed"] == {"box": 60.0, "ball": 50.0}
    assert [one["row"] for one in demo["series"]] == ["baseline", "attention2-extra"]
    assert demo["series"][1]["mean"] == [61.0, 51.0, 41.0]
    assert demo["series"][1]["spread"] == pytest.approx([2**0.5] * 3)


def test_attention_against_object_size_has_a_verdict_where_its_figures_are_the_records(runs):
    cases.write(runs, "demo", "attention2", 40.0)
    cases.write_figures(runs)
    text = "attention looks at small objects in the finest scale, at large ones in the coarsest"
    assert text not in {claim["text"] for claim in document(runs)["claims"]}  # drawn from other records
    sha256 = collect([runs]).records["demo", "attention2"][0].sha256
    cases.write_figures(runs, records={"attention2-seed1": sha256})
    claim = next(claim for claim in document(runs)["claims"] if claim["text"] == text)
    assert claim["verdict"] == "not measured"  # on the paper's data
    (demo,) = claim["tables"]
    assert (demo["table"], demo["kind"], demo["verdict"]) == ("demo", "synthetic", "supported")
    assert demo["evidence"] == "2 pairs: 2 for"
    assert demo["pairs"][0] == {
        "upper": "attention2, scale 1 on the smaller half of the objects",
        "lower": "attention2, scale 1 on the larger half of the objects",
        "printed": None,
        "measured": pytest.approx(50.0),
        "spread": pytest.approx(100 * (0.1**2 / 20 + 0.1**2 / 3) ** 0.5),
        "finding": "supported",
    }

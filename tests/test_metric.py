"""A list of classes as a row's metric: read strictly, computed over these classes alone, kept in the record, and named wherever the value stands."""

import numpy as np
import pytest
from record_cases import record as row_record
from tiny import main, run_command, write_protocol

from repro.evaluate.__main__ import main as evaluate
from repro.evaluate.metrics import summary
from repro.protocol import as_toml, load_protocol, metric_name
from repro.records.store import metric_of, read_record, record_path, write_record
from repro.records.tables import values_name
from repro.records.verdict import row_of, row_value, value_before_crf
from repro.report.collect import collect
from repro.report.data import build
from repro.report.words import of_class
from repro.run.plan import list_lines

LIST = ('"mean_iou"', '["background", "ball"]')
NAMES = ("background", "ball")
WORDS = "mean IoU of background, ball"


@pytest.fixture
def path(tmp_path):
    return write_protocol(tmp_path, LIST)


def test_every_row_has_the_headers_list(path, tmp_path):
    protocol = load_protocol(path)
    assert protocol.metric == NAMES
    assert {row.metric for row in protocol.rows} == {NAMES}
    assert metric_name(NAMES) == values_name(protocol) == WORDS
    (tmp_path / "kept.toml").write_text(as_toml(protocol))
    assert load_protocol(str(tmp_path / "kept.toml")).rows == protocol.rows


def test_a_row_has_its_own_list(tmp_path):
    path = write_protocol(tmp_path, ('id = "max2"', 'id = "max2"\nmetric = ["ball", "box"]'))
    protocol = load_protocol(path)
    assert [row.metric for row in protocol.rows] == ["mean_iou", ("ball", "box"), "mean_iou"]
    assert values_name(protocol) == "IoU by class and their mean"
    (tmp_path / "kept.toml").write_text(as_toml(protocol))
    assert load_protocol(str(tmp_path / "kept.toml")).rows == protocol.rows


@pytest.mark.parametrize(
    ("metric", "got"),
    [
        ("[]", "[]; correct it"),
        ('["ball", "box", "ball"]', "['ball', 'box', 'ball']; correct it"),
        ('["ball", "boxx"]', "['ball', 'boxx']; did you mean 'box'?"),
        ('["ball", "mean_iou"]', "['ball', 'mean_iou']; correct it"),
    ],
)
@pytest.mark.parametrize("place", ['metric = "mean_iou"', 'id = "max2"'])
def test_what_is_no_list_of_classes(tmp_path, metric, got, place):
    own = place.startswith("id")
    path = write_protocol(tmp_path, (place, f"{place}\nmetric = {metric}" if own else f"metric = {metric}"))
    with pytest.raises(ValueError, match=r"^tiny.toml") as raised:
        load_protocol(path)
    where = f"tiny.toml, row {'max2' if own else 'baseline'!r}"
    assert str(raised.value) == (
        f'{where}: metric must be "mean_iou", a class name or a list of different class names; got {got}'
    )


@pytest.mark.parametrize("metric", ["[]", '["cat", "cat"]'])
def test_a_list_is_looked_at_where_no_row_feels_it(tmp_path, metric):
    text = f'metric = {metric}\n[[row]]\nid = "later"\nstatus = "planned"\nwhy = "x"\nmetric = "cat"\n'
    (tmp_path / "later.toml").write_text(text)
    with pytest.raises(ValueError, match=r"^later.toml: metric must be .* a list of different class names; got \["):
        load_protocol(str(tmp_path / "later.toml"))


def test_the_value_is_the_mean_of_the_lists_classes():
    confusion = np.array([[6, 2, 0], [2, 3, 1], [0, 0, 4]])  # IoU 60 %, 37.5 %, 80 %
    values = {metric: summary(confusion, ["a", "b", "c"], metric)["value"] for metric in ("mean_iou", ("c", "a"), "b")}
    assert values == {"mean_iou": pytest.approx(177.5 / 3), ("c", "a"): pytest.approx(70.0), "b": pytest.approx(37.5)}


def test_a_run_from_the_protocol_to_the_report(tmp_path, capsys):
    command = run_command(tmp_path)
    write_protocol(tmp_path, LIST)
    assert main([*command, "--row", "baseline"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"Tiny ({WORDS}, percent; paper: nowhere)\n")
    path = record_path(tmp_path / "out", "tiny", "baseline", 1)
    record = read_record(path)
    mean = sum(record["per_class"][name] for name in NAMES) / 2
    assert record["value"] == pytest.approx(mean)
    assert record["value"] != pytest.approx(sum(record["per_class"].values()) / 3)
    assert metric_of(record) == NAMES
    assert f"seed 1: {WORDS} {mean:.2f}" in err
    assert f"| {mean:.2f} |" in (tmp_path / "out" / "tiny" / "table.md").read_text()
    # Another metric of the same run: nothing is trained again, and every reader has the other value.
    protocol = write_protocol(tmp_path, ('"mean_iou"', '["box"]'))
    assert main([*command, "--row", "baseline"]) == 0
    out, err = capsys.readouterr()
    assert "recorded, " in err
    assert out.startswith("Tiny (mean IoU of box, percent")
    assert list_lines([protocol], tmp_path / "out", [1])[0] == "tiny: Tiny (3 rows run; mean IoU of box)"
    assert f"seed 1: {record['per_class']['box']:.2f}" in list_lines([protocol], tmp_path / "out", [1])[1]
    table = next(t for t in build(collect([tmp_path / "out"]), tmp_path)["tables"] if t["name"] == "tiny")
    cell = table["cells"][0]
    assert (table["metric"], cell["metric"]) == ("mean IoU of box", ["box"])
    assert cell["mean"] == record["per_class"]["box"]
    assert [of_class({"metric": metric}) for metric in (["box", "ball"], "box", "mean_iou")] == [
        "mean of box, ball",
        "box",
        "mean",
    ]


def test_the_programs_that_score_labels_name_it(tmp_path, capsys):
    command = run_command(tmp_path)
    path = write_protocol(tmp_path, LIST)
    assert main([*command, "--row", "baseline"]) == 0
    capsys.readouterr()
    root, run = str(tmp_path / "data"), record_path(tmp_path / "out", "tiny", "baseline", 1)
    assert evaluate(["--run", str(run.parent), "--data-root", root, "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith("mean IoU ")
    assert lines[4] == f"{WORDS}: {read_record(run)['value']:.2f}"
    labels = ["--pred", f"{root}/Labels", "--table", path, "--data-root", root, "--trimap", "2"]
    assert evaluate(labels) == 0
    assert f"{WORDS}: IoU 100.00, trimap 2 100.00\n" in capsys.readouterr().out


def record(path):
    """Makes a record of the tiny protocol as an early run wrote it."""
    per_class = {"background": 50.0, "box": 40.0, "ball": 20.0}
    return row_record(path, "max2", 36.5, per_class=per_class) | {"table": "tiny"}


def test_a_record_is_read_by_the_rows_metric(tmp_path, path):
    row = load_protocol(path).row("max2")
    protocols = {"tiny": load_protocol(path)}
    made = record(path)
    assert row_value(row, made) == 35.0  # its value is the mean of all
    stated = made | {"provenance": made["provenance"] | {"metric": list(NAMES)}, "value": 12.0}
    assert row_value(row, stated) == 12.0
    assert value_before_crf(row, stated | {"before_crf": {"value": 11.0, "per_class": {}}}) == 11.0
    every = load_protocol(write_protocol(tmp_path)).row("max2")
    assert row_value(every, stated) == pytest.approx(110 / 3)
    assert row_value(every, made) == 36.5
    assert row_of(made, protocols) == row
    other = made | {"per_class": {"background": 1.0, "cat": 2.0}, "deviates": {"data.class_names": []}}
    with pytest.raises(ValueError, match=r"^damaged: per_class has no ball$"):
        row_of(other, protocols)


@pytest.mark.parametrize("metric", [[], ["ball", "cat"], ["ball", "ball"], 5, [["ball"]], "cat", None])
def test_a_record_of_a_foreign_metric(tmp_path, metric, path):
    made = record(path)
    made["provenance"]["metric"] = metric
    with pytest.raises(ValueError, match=r"got provenance: metric must be \"mean_iou\", a class name or a list"):
        write_record(tmp_path / "record.json", made)

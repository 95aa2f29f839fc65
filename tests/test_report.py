"""The program: README's tables, written from records and found stale when either changes, and where it finds and puts things."""

import json
import subprocess
import sys

import pytest
from record_cases import other_settings, record

from repro.protocol import PROTOCOLS, load_protocol
from repro.records.store import record_path, write_record
from repro.report import __main__ as report
from repro.report.readme import BEGIN, END


@pytest.fixture
def readme(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    return path


def run(readme, tmp_path, what):
    return report.main(["--runs", str(tmp_path / "measured"), what, str(readme)])


def test_tables_are_written_from_the_records_and_stale_ones_found(tmp_path, readme):
    folder = tmp_path / "measured"
    for seed, value in ((1, 51.0), (2, 52.0)):
        write_record(record_path(folder, "table1", "baseline", seed), record("table1", "baseline", value, seed))
    assert run(readme, tmp_path, "--check") == 1
    assert run(readme, tmp_path, "--write") == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| baseline | {1} | none | w/o | 51.91 | 51.50 ± 0.71 | -0.41 | 4 |" in text
    assert run(readme, tmp_path, "--check") == 0
    write_record(record_path(folder, "table1", "baseline", 2), record("table1", "baseline", 53.0, 2))
    assert run(readme, tmp_path, "--check") == 1


def test_an_empty_folder_says_so(tmp_path, readme):
    assert run(readme, tmp_path, "--write") == 0
    assert "Nothing has been measured yet." in readme.read_text()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda path: path.write_text("{"),
            "record.json: must be a record that a table can show; got damaged: Expecting",
        ),
        (
            lambda path: write_record(path, other_settings(record("table1", "baseline", 51.0))),
            "got made with another table1.toml than the present one; measure the row again; remove it",
        ),
        (
            lambda path: path.write_text(json.dumps(record("table1", "baseline", 51.0) | {"row": "base"})),
            "got foreign: table 'table1' has no row 'base' to run",
        ),
    ],
)
def test_a_bad_record_is_one_line(spoil, message, tmp_path, readme, capsys):
    path = record_path(tmp_path / "measured", "table1", "baseline", 1)
    write_record(path, record("table1", "baseline", 51.0))
    spoil(path)
    assert run(readme, tmp_path, "--check") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_file_without_the_marks_is_one_line(tmp_path, capsys):
    path = tmp_path / "x.md"
    path.write_text("nothing")
    assert report.main(["--write", str(path)]) == 2
    assert "the file must hold the lines" in capsys.readouterr().err
    assert path.read_text() == "nothing"


def test_several_folders_and_a_view(tmp_path, readme):
    first, second = tmp_path / "one", tmp_path / "two"
    per_class = dict.fromkeys(load_protocol("table1").row("baseline").settings["data"]["class_names"], 50.0)
    best = record("table1", "attention3-extra", 56.0) | {"per_class": per_class}
    write_record(record_path(first, "table1", "attention3-extra", 1), best)
    write_record(record_path(second, "table1", "baseline", 1), record("table1", "baseline", 51.0))
    assert report.main(["--runs", str(first), str(second), "--write", str(readme)]) == 0
    text = readme.read_text()
    assert "| 51.91 | 51.00 |" in text
    assert "| 56.39 | 56.00 |" in text
    assert "| 81.47 | 50.00 |" in text  # table 2 shows the same record


def test_the_kept_records_stand_in_the_readme():
    readme = PROTOCOLS.parent / "README.md"
    assert report.main(["--check", str(readme)]) == 0


def test_runs_are_taken_where_they_are(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "MEASURED", tmp_path / "kept")
    (tmp_path / "runs").mkdir()
    (tmp_path / "kept").mkdir()
    write_record(record_path(tmp_path / "kept", "table1", "baseline", 1), record("table1", "baseline", 51.0))
    assert report.main([]) == 0  # an empty runs/ gives way
    assert capsys.readouterr().out == "runs/report/report.html: 1 records\n"
    write_record(record_path(tmp_path / "runs", "table1", "max2", 1), record("table1", "max2", 51.0))
    write_record(record_path(tmp_path / "runs", "table1", "max3", 1), record("table1", "max3", 51.0))
    assert report.main(["--out", "page"]) == 0
    assert capsys.readouterr().out == "page/report.html: 2 records\n"
    assert sorted(p.name for p in (tmp_path / "page").iterdir()) == [
        "figures",
        "report.html",
        "report.json",
        "report.md",
    ]


def test_a_folder_that_is_none_is_one_line(tmp_path, capsys):
    assert report.main(["--runs", str(tmp_path / "none"), "--out", str(tmp_path / "page")]) == 2
    assert capsys.readouterr().err == (
        f"error: --runs: must be folders; got {tmp_path / 'none'}, which is none; give the --out of a run\n"
    )
    (tmp_path / "page").write_text("a file")
    assert report.main(["--runs", str(tmp_path), "--out", str(tmp_path / "page")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_report_needs_no_torch():
    code = "import sys, repro.report.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

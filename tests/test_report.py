"""README's tables: written from records, found stale when either changes."""

import json

import pytest

from repro import report
from repro.protocol import load_protocol, settings_sha256
from repro.records import KEYS, record_path, write_record


def record(row_id, value, seed=1, deviates=None, sha256=None):
    row = load_protocol("table1").row(row_id)
    made = dict.fromkeys(KEYS) | {
        "format": 1,
        "table": "table1",
        "row": row_id,
        "seed": seed,
        "value": value,
        "paper": row.paper,
        "per_class": {},
        "deviates": deviates or {},
        "settings": {},
        "provenance": {"settings_sha256": sha256 or settings_sha256(row.settings)},
        "run": {"seconds": 12.0},
    }
    return made


@pytest.fixture
def readme(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    return path


def run(readme, tmp_path, what):
    return report.main(["--runs", str(tmp_path / "measured"), what, str(readme)])


def test_tables_are_written_from_the_records_and_stale_ones_found(tmp_path, readme):
    folder = tmp_path / "measured"
    for seed, value in ((1, 51.0), (2, 52.0)):
        write_record(record_path(folder, "table1", "baseline", seed), record("baseline", value, seed))
    assert run(readme, tmp_path, "--check") == 1
    assert run(readme, tmp_path, "--write") == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| baseline | {1} | none | w/o | 51.91 | 51.50 ± 0.71 | -0.41 | 12 |" in text
    assert run(readme, tmp_path, "--check") == 0
    write_record(record_path(folder, "table1", "baseline", 2), record("baseline", 53.0, 2))
    assert run(readme, tmp_path, "--check") == 1


def test_an_empty_folder_says_so(tmp_path, readme):
    assert run(readme, tmp_path, "--write") == 0
    assert "Nothing has been measured yet." in readme.read_text()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_text("{"), "record.json: must be a record of a run"),
        (
            lambda path: write_record(path, record("baseline", 51.0, sha256="0")),
            "record.json: must have been made with table1.toml as it is",
        ),
        (
            lambda path: path.write_text(json.dumps(record("baseline", 51.0) | {"row": "base"})),
            "table1: a row must be one of",
        ),
    ],
)
def test_a_bad_record_is_one_line(spoil, message, tmp_path, readme, capsys):
    path = record_path(tmp_path / "measured", "table1", "baseline", 1)
    write_record(path, record("baseline", 51.0))
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

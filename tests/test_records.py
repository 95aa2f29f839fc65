"""Records: written whole or not at all, and read with suspicion."""

import json
import re
from pathlib import Path

import pytest

from repro.files import write_json
from repro.records import store as records
from repro.records.store import FORMAT, KEYS, git_state, read_record, record_path, write_record


def record(**changes):
    tables = {key: {} for key in ("per_class", "deviates", "settings", "provenance")}
    return dict.fromkeys(KEYS) | tables | {"format": FORMAT, "value": 12.5, "run": {"seconds": 1.0}} | changes


SUBMITTED = {"archive": "a.tgz", "sha256": "0", "score": None}
SCORE = {"value": 12.5, "source": "http://host", "entered": "2026-01-01"}


def fails(path, reason):
    return pytest.raises(
        ValueError,
        match=f"^{re.escape(f'{path}: must be a record of a run; got {reason}')}.*; delete it to measure the row again$",
    )


def test_round_trip(tmp_path):
    path = record_path(tmp_path, "table1", "max2", 3)
    assert path == tmp_path / "table1" / "max2-seed3" / "record.json"
    write_record(path, record(row="max2", loss_curve=[0.1, 1 / 3]))
    assert read_record(path) == record(row="max2", loss_curve=[0.1, 1 / 3])
    assert list(json.loads(path.read_text())) == sorted(KEYS)
    assert [p.name for p in path.parent.iterdir()] == ["record.json"]


@pytest.mark.parametrize("wrong", [{"extra": 1}, {"seed": ...}])
def test_a_writer_that_forgets_or_invents_a_key(tmp_path, wrong):
    document = {key: value for key, value in (record() | wrong).items() if value is not ...}
    path = tmp_path / "record.json"
    message = (
        f"{path}: a record must have exactly the known keys; got a difference in {list(wrong)}; correct the writer"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        write_record(path, document)
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ('{"format": 1, "val', "Unterminated string"),
        ("[1]", f"no record of format {FORMAT}"),
        (json.dumps({"weights": "another program's"}), f"no record of format {FORMAT}"),
        (json.dumps(record(format=FORMAT + 1)), f"no record of format {FORMAT}"),
        (json.dumps(record(surplus=1)), f"no record of format {FORMAT}"),
        (json.dumps({k: v for k, v in record().items() if k != "seed"}), f"no record of format {FORMAT}"),
        (json.dumps(record(value=None)), "value is no number"),
        (json.dumps(record(value=True)), "value is no number"),
        (json.dumps(record(value=float("nan"))), "value is no number"),
        (json.dumps(record(value="12")), "value is no number"),
        (json.dumps(record(provenance=[])), "no table in provenance"),
        (
            json.dumps(record(value=None, submission={"archive": "a"})),
            "submission is no table of archive, sha256, score",
        ),
        (json.dumps(record(value=None, submission=None)), "submission is no table of archive, sha256, score"),
        (json.dumps(record(submission=SUBMITTED)), "value is not the score entered"),
        (json.dumps(record(value=None, submission=SUBMITTED | {"score": SCORE})), "value is not the score entered"),
        (json.dumps(record(value=12.0, submission=SUBMITTED | {"score": SCORE})), "value is not the score entered"),
        (json.dumps(record(submission=SUBMITTED | {"score": 12.5})), "value is not the score entered"),
        (json.dumps(record(submission=SUBMITTED | {"score": SCORE | {"by": "x"}})), "value is not the score entered"),
        (json.dumps(record(run={})), "no run.seconds"),
    ],
)
def test_damaged_foreign_and_newer_files_are_refused_in_one_line(tmp_path, text, reason):
    path = tmp_path / "record.json"
    path.write_text(text)
    with fails(path, reason) as caught:
        read_record(path)
    assert "\n" not in str(caught.value)


def test_the_record_of_a_submission(tmp_path):
    for number, made in enumerate(
        (record(value=None, submission=SUBMITTED), record(submission=SUBMITTED | {"score": SCORE}))
    ):
        write_record(tmp_path / f"{number}.json", made)
        assert read_record(tmp_path / f"{number}.json") == made


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "record.json"
    path.write_bytes(b"\x80\x03}")
    with fails(path, "'utf-8' codec"):
        read_record(path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "record.json"
    write_json(path, {"b": 1, "a": 2})
    before = path.read_text()
    assert before == '{\n "a": 2,\n "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("inf")})
    assert path.read_text() == before

    def die(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", die)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"a": 3})
    assert path.read_text() == before


def test_git_state(tmp_path, monkeypatch):
    git_state.cache_clear()
    state = git_state()
    assert set(state) == {"commit", "dirty"}
    assert (state["commit"] is None) == (state["dirty"] is None)
    assert state["commit"] is None or re.fullmatch("[0-9a-f]{40}", state["commit"])
    monkeypatch.setattr(records, "__file__", str(tmp_path / "repro" / "records.py"))
    git_state.cache_clear()
    assert git_state() == {"commit": None, "dirty": None}
    monkeypatch.setenv("PATH", str(Path(tmp_path)))
    git_state.cache_clear()
    assert git_state() == {"commit": None, "dirty": None}
    git_state.cache_clear()

"""Records: written whole or not at all, read with suspicion, found by one walk."""

import copy
import importlib.metadata
import json
import os
import re
from pathlib import Path

import pytest
from record_cases import record as row_record
from record_cases import stamped

from repro.records import store as records
from repro.records.store import FORMAT, SCHEMA, Stored, git_state, read_record, record_path, walk, write_record

SUBMITTED = {"archive": "a.tgz", "sha256": "0", "score": None}
SCORE = {"value": 12.5, "source": "http://host", "entered": "2026-01-01"}


def record(**changes):
    return row_record("table1", "max2", 12.5) | changes


def submitted(**changes):
    return record(per_class={}, confusion=[]) | changes


def fails(path, reason):
    return pytest.raises(
        ValueError,
        match=f"^{re.escape(f'{path}: must be a record of a run; got {reason}')}.*; delete it to measure the row again$",
    )


def test_round_trip(tmp_path):
    path = record_path(tmp_path, "table1", "max2", 3)
    assert path == tmp_path / "table1" / "max2-seed3" / "record.json"
    write_record(path, record(loss_curve=[0.1, 1 / 3]))
    assert read_record(path) == record(loss_curve=[0.1, 1 / 3])
    assert list(json.loads(path.read_text())) == sorted(SCHEMA)
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


def test_a_writer_of_what_no_reader_takes(tmp_path):
    path = tmp_path / "record.json"
    message = f"{path}: a record must be one that its reader takes; got seed must be a count; correct the writer"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        write_record(path, record(seed=-1))
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "damaged: Expecting value"),
        ('{"format": 1, "val', "damaged: Unterminated string"),
        ("[1]", "foreign: no record of a run, for it has no format number"),
        (json.dumps({"weights": "another program's"}), "foreign: no record of a run, for it has no format number"),
        (json.dumps(record(format="1")), "foreign: no record of a run, for it has no format number"),
        (json.dumps(record(format=FORMAT + 1)), f"newer: record of a run of format {FORMAT + 1}; this program reads 1"),
        (json.dumps(record(format=0)), "damaged: format must be 1"),
        (json.dumps(record(surplus=1)), "damaged: its keys are not a record's, a difference in surplus"),
        (
            json.dumps({k: v for k, v in record().items() if k not in ("seed", "note")}),
            "damaged: its keys are not a record's, a difference in note, seed",
        ),
        (json.dumps(record(value=float("nan"))), "damaged: NaN is no number of JSON"),
        (json.dumps(record(value=1e308)), "damaged: a number is larger than 1e+30"),
        (json.dumps(record(note="\ud800")), "damaged: a string holds half of a surrogate pair"),
    ],
)
def test_damaged_foreign_and_newer_files_are_refused_in_one_line(tmp_path, text, reason):
    path = tmp_path / "record.json"
    path.write_text(text)
    with fails(path, reason) as caught:
        read_record(path)
    assert "\n" not in str(caught.value)


COUNTS = "a square of counts"
CLASSES = "sections of plain values, with 1 to 256 different data.class_names"
RUN = "a table of facts with seconds and, at most as many, train_seconds"
NAMES = record()["settings"]["data"]["class_names"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"table": ["table1"]}, "table must be text"),
        ({"row": None}, "row must be text"),
        ({"seed": "1"}, "seed must be a count"),
        ({"seed": True}, "seed must be a count"),
        ({"seed": 2**63}, "seed must be a count"),
        ({"value": True}, "value must be a percentage, or null"),
        ({"value": "12"}, "value must be a percentage, or null"),
        ({"value": 100.5}, "value must be a percentage, or null"),
        ({"value": -1}, "value must be a percentage, or null"),
        ({"value": None}, "value is no number"),
        ({"paper": "51"}, "paper must be a number, or null"),
        ({"per_class": []}, "per_class must be a table of percentages"),
        ({"per_class": {"head": "NaN"}}, "per_class must be a table of percentages"),
        ({"per_class": {"head": 50.0}}, "per_class must have the classes of settings.data.class_names"),
        ({"confusion": 3}, f"confusion must be {COUNTS}"),
        ({"confusion": [[1, 2]]}, f"confusion must be {COUNTS}"),
        ({"confusion": [[1, 2], 3]}, f"confusion must be {COUNTS}"),
        ({"confusion": [[1, 2], [3, -4]]}, f"confusion must be {COUNTS}"),
        ({"confusion": [[1, 2], [3, 4.0]]}, f"confusion must be {COUNTS}"),
        ({"confusion": [[1]]}, "confusion must have the classes of settings.data.class_names"),
        ({"n_images": -1}, "n_images must be a count"),
        ({"loss_curve": "falling"}, "loss_curve must be a list of numbers"),
        ({"loss_curve": [1.0, "2"]}, "loss_curve must be a list of numbers"),
        ({"loss_curve": [1.0, None]}, "loss_curve must be a list of numbers"),
        ({"deviates": []}, "deviates must be a table of plain values"),
        ({"deviates": {"weights": None}}, "deviates must be a table of plain values"),
        ({"deviates": {"weights": {"a": 1}}}, "deviates must be a table of plain values"),
        ({"synthetic": 0}, "synthetic must be true or false"),
        ({"note": 3}, "note must be text"),
        ({"settings": []}, f"settings must be {CLASSES}"),
        ({"settings": {}}, f"settings must be {CLASSES}"),
        ({"settings": {"data": 1}}, f"settings must be {CLASSES}"),
        ({"settings": {"data": {"class_names": []}}}, f"settings must be {CLASSES}"),
        ({"settings": {"data": {"class_names": ["a", 1]}}}, f"settings must be {CLASSES}"),
        ({"settings": {"data": {"class_names": ["a", "a"]}}}, f"settings must be {CLASSES}"),
        ({"settings": {"data": {"class_names": [str(n) for n in range(257)]}}}, f"settings must be {CLASSES}"),
        ({"settings": {"data": {"class_names": ["a"]}}}, "settings are not those of provenance.settings_sha256"),
        ({"provenance": []}, "provenance must be a table of plain values"),
        ({"provenance": {}}, "settings are not those of provenance.settings_sha256"),
        ({"run": {}}, f"run must be {RUN}"),
        ({"run": {"seconds": 1.0}}, f"run must be {RUN}"),
        ({"run": {"seconds": 1.0, "train_seconds": "1"}}, f"run must be {RUN}"),
        ({"run": {"seconds": 1.0, "train_seconds": 2.0}}, f"run must be {RUN}"),
        ({"run": {"seconds": -1.0, "train_seconds": -1.0}}, f"run must be {RUN}"),
        ({"run": {"seconds": 1.0, "train_seconds": 1.0, "git": 3}}, f"run must be {RUN}"),
        ({"run": {"seconds": 1.0, "train_seconds": 1.0, "device": {"a": 1}}}, f"run must be {RUN}"),
        ({"value": None, "submission": {"archive": "a"}}, "submission is no table of archive, sha256, score"),
        ({"value": None, "submission": None}, "submission is no table of archive, sha256, score"),
        ({"value": None, "submission": SUBMITTED | {"sha256": 1}}, "submission.archive and submission.sha256 must be"),
        ({"submission": SUBMITTED}, "value is not the score entered"),
        ({"value": None, "submission": SUBMITTED | {"score": SCORE}}, "value is not the score entered"),
        ({"value": 12.0, "submission": SUBMITTED | {"score": SCORE}}, "value is not the score entered"),
        ({"submission": SUBMITTED | {"score": 12.5}}, "value is not the score entered"),
        ({"submission": SUBMITTED | {"score": SCORE | {"by": "x"}}}, "value is not the score entered"),
        ({"submission": SUBMITTED | {"score": SCORE | {"source": 1}}}, "value is not the score entered"),
    ],
)
def test_a_record_of_the_wrong_shape(tmp_path, changes, reason):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record(**changes)))
    with fails(path, f"damaged: {reason}"):
        read_record(path)


def test_class_names_of_a_record_may_be_overridden(tmp_path):
    made = copy.deepcopy(record())
    made["settings"]["data"]["class_names"] = [name.upper() for name in NAMES]
    made["per_class"] = {name.upper(): 50.0 for name in NAMES}
    write_record(tmp_path / "record.json", stamped(made))
    assert read_record(tmp_path / "record.json") == made


def test_the_record_of_a_submission(tmp_path):
    for number, made in enumerate(
        (submitted(value=None, submission=SUBMITTED), submitted(submission=SUBMITTED | {"score": SCORE}))
    ):
        write_record(tmp_path / f"{number}.json", made)
        assert read_record(tmp_path / f"{number}.json") == made


def test_the_walk_gives_every_record_or_the_reason_why_not(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    good = record_path(first, "table1", "max2", 1)
    write_record(good, record())
    os.mkfifo(_folder(first, "table1", "pipe") / "record.json")
    (_folder(first, "table1", "device") / "record.json").symlink_to("/dev/zero")
    _folder(first, "table2", "directory", "record.json")
    (_folder(second, "table3", "text") / "record.json").write_bytes(b"\x80\x03}")
    _folder(second, "table3", "empty")
    found = list(walk([first, second, first]))
    assert [(one.path.parent.name, one.out, bool(one.record)) for one in found] == [
        ("device", first, False),
        ("max2-seed1", first, True),
        ("pipe", first, False),
        ("directory", first, False),
        ("text", second, False),
    ]
    assert [one.reason for one in found] == [
        "damaged: no regular file",
        "",
        "damaged: no regular file",
        "damaged: Is a directory",
        "damaged: 'utf-8' codec can't decode byte 0x80 in position 0: invalid start byte",
    ]
    assert found[1] == Stored(good, record(), found[1].sha256, "")
    assert len(found[1].sha256) == 64
    assert [one.path.parent.name for one in walk([first], "table2")] == ["directory"]
    assert list(walk([first], "[t]able1")) == list(walk([tmp_path / "none"])) == []


def _folder(*parts):
    path = Path(*parts)
    path.mkdir(parents=True)
    return path


def test_git_state(tmp_path, monkeypatch):
    git_state.cache_clear()
    state = git_state()
    assert set(state) == {"commit", "dirty"}
    assert (state["commit"] is None) == (state["dirty"] is None)
    assert state["commit"] is None or re.fullmatch("[0-9a-f]{40}", state["commit"])
    monkeypatch.setattr(records, "__file__", str(tmp_path / "repro" / "records.py"))

    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    def elsewhere(version):
        monkeypatch.setattr(importlib.metadata, "version", version)
        git_state.cache_clear()
        return git_state()

    assert elsewhere(not_installed) == {"commit": None, "dirty": None}
    assert elsewhere(lambda name: "0.1.0") == {"commit": None, "dirty": None}
    assert elsewhere(lambda name: "0.1.0+g0123456789ab") == {"commit": "0123456789ab", "dirty": False}
    assert elsewhere(lambda name: "0.1.0+g0123456789ab.dirty") == {"commit": "0123456789ab", "dirty": True}
    git_state.cache_clear()

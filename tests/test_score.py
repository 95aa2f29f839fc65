"""The score that a person brings back from the VOC server, put into the record of a submission."""

import hashlib
import json

import pytest
from record_cases import record
from tiny import SUBMISSION, main, write_protocol

from repro.protocol import reading as protocol_module
from repro.records.store import read_record, record_path, write_record


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A row's folder with its archive and its record."""
    monkeypatch.setattr(protocol_module, "PROTOCOLS", tmp_path)
    write_protocol(tmp_path, SUBMISSION)
    path = record_path(tmp_path / "out", "tiny", "max2", 1)
    path.parent.mkdir(parents=True)
    (path.parent / "max2-seed1.tgz").write_bytes(b"label maps")
    submission = {"archive": "max2-seed1.tgz", "sha256": hashlib.sha256(b"label maps").hexdigest(), "score": None}
    write_record(path, record("tiny", "max2", None, submission=submission))
    return path.parent


def test_a_score_is_entered_by_a_person(folder, tmp_path, capsys):
    before = json.loads((folder / "record.json").read_text())
    out = ["--out", str(tmp_path / "out")]
    capsys.readouterr()
    command = ["score", "tiny", "max2", "71.5", "--source", " http://host/anonymous/1.html ", *out]
    assert main(command) == 0
    entered = read_record(folder / "record.json")
    score = entered["submission"]["score"]
    assert score == {"value": 71.5, "source": "http://host/anonymous/1.html", "entered": score["entered"]}
    assert capsys.readouterr().out == (
        f"{folder / 'record.json'}: 71.50 entered on {score['entered']}, source: http://host/anonymous/1.html\n"
    )
    assert entered["value"] == 71.5
    assert entered | {"value": None, "submission": before["submission"]} == before

    def refused(*arguments):
        assert main([*arguments, *out]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err

    path = folder / "record.json"
    assert refused(*command[:6]) == (
        f"error: {path}: must have no score yet; got 71.5 from http://host/anonymous/1.html; add --replace to correct it\n"
    )
    assert main([*command, "--replace"]) == 0
    capsys.readouterr()
    where = "error: score tiny max2: "
    assert refused("score", "tiny", "max2", "101", "--source", "x") == (
        f"{where}the value must be a percentage, 0..100; got 101.0; correct it\n"
    )
    assert refused("score", "tiny", "max2", "nan", "--source", "x").startswith(f"{where}the value must be a percentage")
    assert refused("score", "tiny", "max2", "50", "--source", " ") == (
        f"{where}--source must say where the score can be seen; got nothing; give the server's address of it\n"
    )
    assert refused("score", "tiny", "max3", "50", "--source", "x") == (
        f"error: {tmp_path}/out/tiny/max3-seed1/record.json: must be the record of a submission; got no such file; run tiny --row max3 first\n"
    )
    (folder / "max2-seed1.tgz").write_bytes(b"another")
    assert refused(*command[:6], "--replace") == (
        f"error: {folder}/max2-seed1.tgz: must be the archive that was recorded; got other bytes; delete the record and run the row again\n"
    )


def test_a_measured_row_takes_no_score(tmp_path, capsys):
    path = record_path(tmp_path, "table1", "baseline", 1)
    write_record(path, record("table1", "baseline", 50.0))
    assert main(["score", "table1", "baseline", "50", "--source", "x", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {path}: must be the record of a submission; got one whose value was measured; enter no score for it\n"
    )

"""A row with a CRF: its record, tables, page, snapshot and archives, and whatever else tests a row."""

import hashlib
import json
import re
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from record_cases import record
from tiny import CRF, CRF_KEYS, SUBMISSION, items_of, main, run_command, write_protocol

import repro
from repro.device import Compute
from repro.evaluate.labels import label_maps
from repro.protocol import load_protocol, settings_sha256
from repro.records.score import enter_score
from repro.records.score import main as score
from repro.records.store import BEFORE_CRF, read_record, record_path, write_record
from repro.records.tables import as_markdown, as_text
from repro.report.__main__ import main as report
from repro.run.plan import list_lines
from repro.solver.snapshot import read_snapshot, training_identity
from repro.visualize import figures_of_run
from repro.visualize.__main__ import main as visualize
from repro.visualize.network import see
from repro.visualize.photos import read_photo

CPU = Compute(torch.device("cpu"))
AS_DRAWN = (
    "--set",
    "solver.base_lr=0.0",
)  # a few iterations of learning leave one class alone; the fillers' network sees several


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A row without and the same row with a CRF, run; and the program's output."""
    folder = tmp_path_factory.mktemp("ran")
    command = [*run_command(folder), "--row", "max2", "--set", "solver.max_iter=3", *AS_DRAWN]
    assert main(command) == 0
    write_protocol(folder, CRF, name="refined")
    assert main([f"{folder}/refined.toml", *command[1:], "--workers", "2"]) == 0
    return folder


def recorded(folder, table="refined"):
    return read_record(record_path(folder / "out", table, "max2", 1))


def test_a_record_holds_both_numbers(ran):
    plain, refined = recorded(ran, "tiny"), recorded(ran)
    assert BEFORE_CRF not in plain
    assert refined[BEFORE_CRF] == {key: plain[key] for key in ("value", "per_class", "confusion")}
    assert refined["confusion"] != plain["confusion"]
    assert refined["value"] == pytest.approx(np.mean(list(refined["per_class"].values())))
    assert refined["settings"]["crf"] == CRF_KEYS
    assert refined["provenance"]["settings_sha256"] == settings_sha256(refined["settings"])
    assert "crf.max_iter" not in refined["deviates"]


def test_the_tables_show_both(ran):
    protocol, made = load_protocol(f"{ran}/refined.toml"), recorded(ran)
    before, after = (f"{one['value']:.2f}" for one in (made[BEFORE_CRF], made))
    text, page = (show(protocol, {"max2": [made]}) for show in (as_text, as_markdown))
    (head,) = (line.split() for line in text.splitlines() if line.startswith("row "))
    assert head == ["row", "scales", "merge", "extra", "paper", "before", "CRF", "measured", "difference", "seconds"]
    assert re.search(rf"^max2 .* 52\.90 +{before} +{after} +[+-]", text, re.MULTILINE)
    assert f"| 52.90 | {before} | {after} | " in page
    assert "before CRF" not in as_text(load_protocol(f"{ran}/tiny.toml"), {"max2": [made]})
    lines = list_lines([f"{ran}/refined.toml"], ran / "out", [1])
    assert (
        f"  max2              52.90  run with a CRF; recorded (seed 1: {after}, {before} before the CRF, deviates)"
        in lines
    )


def test_the_report_shows_both(ran, tmp_path):
    assert report(["--runs", str(ran / "out"), "--out", str(tmp_path)]) == 0
    before, after = (f"{one['value']:.2f}" for one in (recorded(ran)[BEFORE_CRF], recorded(ran)))
    (cell,) = (
        cell
        for table in json.loads((tmp_path / "report.json").read_text())["tables"]
        for cell in table["cells"]
        if (table["name"], cell["row"]) == ("refined", "max2")
    )
    assert cell["before_crf"] == {"mean": recorded(ran)[BEFORE_CRF]["value"], "spread": None}
    page = (tmp_path / "report.html").read_text()
    (shown,) = re.findall(r'data-cell="refined/max2">(.*?)</td>', page, re.DOTALL)
    assert shown.startswith(f'{after} <span class="quiet">before the CRF {before}</span>')
    assert f"**{after}** (before the CRF {before})" in (tmp_path / "report.md").read_text()
    (shown,) = re.findall(r'data-cell="tiny/max2">(.*?)</td>', page, re.DOTALL)
    assert shown.startswith(before)
    assert "CRF" not in shown


def test_another_crf_costs_no_training(ran, capsys):
    """The snapshot is of the training: with other keys of the CRF the row is tested again, nothing else."""
    made, folder = recorded(ran), record_path(ran / "out", "refined", "max2", 1).parent
    snapshot = read_snapshot(folder / "snapshot.pt")
    alike = record_path(ran / "out", "tiny", "max2", 1).with_name("snapshot.pt")
    assert (
        folder / "snapshot.pt"
    ).read_bytes() == alike.read_bytes()  # with its sittings and seconds: it was trained once
    assert snapshot.identity == training_identity(made["provenance"], made["settings"])
    assert snapshot.identity == training_identity(
        recorded(ran, "tiny")["provenance"], recorded(ran, "tiny")["settings"]
    )
    stamp, text = (folder / "snapshot.pt").stat().st_mtime_ns, (folder / "record.json").read_text()
    command = [
        f"{ran}/refined.toml",
        "--data-root",
        f"{ran}/data",
        "--weights",
        "none",
        "--device",
        "cpu",
        "--row",
        "max2",
    ]
    command += ["--out", f"{ran}/out", "--set", "solver.max_iter=3", *AS_DRAWN, "--set", "crf.bi_w=1"]
    assert main(command) == 2
    assert "must have been made with the settings asked for; got other settings_sha256" in capsys.readouterr().err
    (folder / "record.json").unlink()
    try:
        assert main(command) == 0
        again = recorded(ran)
        assert (folder / "snapshot.pt").stat().st_mtime_ns == stamp
        assert again[BEFORE_CRF] == made[BEFORE_CRF]
        assert again["deviates"]["crf.bi_w"] == 1
    finally:
        (folder / "record.json").write_text(text)


def test_a_damaged_snapshot_of_a_row_trained_alike_is_not_taken(tmp_path, capsys):
    command = [*run_command(tmp_path), "--row", "baseline", "--set", "solver.max_iter=1", *AS_DRAWN]
    assert main(command) == 0
    damaged = record_path(tmp_path / "out", "tiny", "baseline", 1).with_name("snapshot.pt")
    damaged.write_bytes(damaged.read_bytes()[:100])
    write_protocol(tmp_path, CRF, name="refined")
    capsys.readouterr()
    assert main([f"{tmp_path}/refined.toml", *command[1:]]) == 0
    assert "trained already" not in (err := capsys.readouterr().err)
    assert "Starting at iteration 0 of 1" in err
    damaged.unlink()
    record_path(tmp_path / "out", "refined", "baseline", 1).unlink()
    assert main([f"{tmp_path}/refined.toml", *command[1:]]) == 0  # its own snapshot
    write_protocol(tmp_path, CRF, name="again")
    assert main([f"{tmp_path}/again.toml", *command[1:]]) == 0
    assert "  trained already, as refined baseline\n" in capsys.readouterr().err


def test_a_record_that_its_reader_refuses(ran, tmp_path):
    made = recorded(ran)
    for harm, message in (
        ({BEFORE_CRF: None}, "before_crf is no table of confusion, per_class, value"),
        ({BEFORE_CRF: made[BEFORE_CRF] | {"value": None}}, "before_crf: value is no number"),
        ({BEFORE_CRF: made[BEFORE_CRF] | {"value": 101.0}}, "before_crf.value must be a percentage, or null"),
        ({BEFORE_CRF: made[BEFORE_CRF] | {"per_class": {}}}, "before_crf: per_class must have the classes of settings"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"got {message}")):
            write_record(tmp_path / "record.json", made | harm)
    both = "before_crf must be there where settings.crf is, and only there"
    with pytest.raises(ValueError, match=both):
        write_record(tmp_path / "record.json", {key: value for key, value in made.items() if key != BEFORE_CRF})
    with pytest.raises(ValueError, match=both):
        write_record(tmp_path / "record.json", record("table3", "max2", 50.0) | {BEFORE_CRF: made[BEFORE_CRF]})


# The server's archive.


def test_a_row_with_a_crf_writes_two_archives(tmp_path, capsys):
    command = [*run_command(tmp_path), "--row", "max2", "--set", "solver.max_iter=2", *AS_DRAWN, "--workers", "2"]
    (tmp_path / "data" / "ImageSets" / "test.txt").write_text("/JPEGImages/val0.jpg\n/JPEGImages/val2.jpg\n")
    write_protocol(tmp_path, SUBMISSION, name="plain")
    assert main([f"{tmp_path}/plain.toml", *command[1:]]) == 0
    write_protocol(tmp_path, SUBMISSION, CRF)
    assert main(command) == 0
    folder = tmp_path / "out" / "tiny" / "max2-seed1"
    made, archives = recorded(tmp_path, "tiny"), ("max2-seed1.tgz", "max2-seed1-before-crf.tgz")
    for result, name in zip((made, made[BEFORE_CRF]), archives, strict=True):
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert result["submission"] == {"archive": name, "sha256": digest, "score": None}
        assert (result["value"], result["per_class"], result["confusion"]) == (None, {}, [])
    plain = tmp_path / "out" / "plain" / "max2-seed1" / archives[0]
    assert (folder / archives[1]).read_bytes() == plain.read_bytes()
    members = []
    for name in archives:
        with tarfile.open(folder / name) as archive:
            members.append({one.name: archive.extractfile(one).read() for one in archive})
    assert list(members[0]) == list(members[1])
    assert members[0] != members[1]
    err = capsys.readouterr().err
    assert f"{archives[0]} is written, no score yet; before the CRF {archives[1]} is written, no score yet" in err

    line = ["tiny", "max2", "60.5", "--source", "the server", "--out", str(tmp_path / "out")]
    assert score([*line, "--before-crf"]) == 0
    assert recorded(tmp_path, "tiny")["value"] is None
    assert score(["tiny", "max2", "70.25", *line[3:]]) == 0
    made = recorded(tmp_path, "tiny")
    assert (made["value"], made[BEFORE_CRF]["value"]) == (70.25, 60.5)
    text = as_text(load_protocol(f"{tmp_path}/tiny.toml"), {"max2": [made]})
    assert re.search(r"^max2 .* 52\.90 +60\.50 +70\.25 ", text, re.MULTILINE)
    with pytest.raises(ValueError, match="must be of a row with a CRF for --before-crf; got one without; leave it out"):
        enter_score(tmp_path / "out", "plain", "max2", 1, 1.0, "x", before_crf=True)


def test_label_maps_before_the_crf_are_made_again_where_one_is_missing(tmp_path, capsys):
    command = [*run_command(tmp_path), "--row", "max2", "--set", "solver.max_iter=2", *AS_DRAWN]
    (tmp_path / "data" / "ImageSets" / "test.txt").write_text("/JPEGImages/val0.jpg\n/JPEGImages/val2.jpg\n")
    write_protocol(tmp_path, SUBMISSION, CRF)
    assert main(command) == 0
    folder = tmp_path / "out" / "tiny" / "max2-seed1"
    made = [path.read_bytes() for path in sorted(folder.glob("*.tgz"))]
    (folder / "record.json").unlink()
    next(folder.glob("before_crf/**/val2.png")).unlink()
    capsys.readouterr()
    assert main(command) == 0
    assert "1 of 2 images are labelled already" in capsys.readouterr().err
    assert [path.read_bytes() for path in sorted(folder.glob("*.tgz"))] == made


# Whatever else tests a row.


def test_a_library_and_pictures_take_the_crf(ran, tmp_path):
    folder = record_path(ran / "out", "refined", "max2", 1).parent
    model = repro.load(folder, device="cpu")
    (item, *_) = items_of(ran / "data", "val")
    ((expected,),) = label_maps(model.network, [item], model.settings, CPU)
    assert (expected.labels != expected.before_crf).any()
    given = model.predict(read_photo(item.image))
    assert np.array_equal(given.labels, expected.labels.numpy())
    assert np.array_equal(given.probabilities.argmax(0), given.labels)
    np.testing.assert_allclose(given.probabilities.sum(0), 1, atol=1e-5)
    (seen,) = see(model.network, [item], model.settings, CPU)
    assert np.array_equal(seen.prediction, expected.labels.numpy())
    assert np.array_equal(seen.before_crf, expected.before_crf.numpy())
    (plain,) = see(model.network, [item], {key: model.settings[key] for key in model.settings if key != "crf"}, CPU)
    assert plain.before_crf is None
    assert np.array_equal(plain.prediction, seen.before_crf)

    index = figures_of_run(ran / "out", "refined", data_root=ran / "data", folder=tmp_path)
    drawn = json.loads(index.read_text())
    assert drawn["repeated"]["max2-seed1"]["different"] == 0
    assert any("the prediction of max2 before its CRF and after it" in figure["caption"] for figure in drawn["figures"])

    arguments = ["--run", str(ran / "out"), "--table", "refined", "--row", "max2", "--device", "cpu"]
    arguments += [
        "--images",
        str(item.image.parent),
        "--labels-out",
        str(tmp_path / "labels"),
        "--out",
        str(tmp_path / "p"),
    ]
    assert visualize(arguments) == 0
    written = np.asarray(Image.open(tmp_path / "labels" / f"{item.name}.png"))
    assert np.array_equal(written, expected.labels.numpy())

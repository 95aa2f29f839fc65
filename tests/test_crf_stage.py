"""The CRF as a stage of the test: against the same steps by hand, before and after it in one pass, beside the network, and in everything that shows a row."""

import hashlib
import json
import re
import tarfile
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from record_cases import record
from test_evaluate import MEAN, Known, items  # noqa: F401  a fixture
from tiny import CRF, CRF_KEYS, SUBMISSION, items_of, main, run_command, write_protocol
from torch.nn import functional as F

import repro
from repro import ops
from repro.data.stream import read_test_item
from repro.data.transforms import read_label
from repro.device import Compute
from repro.evaluate import postprocess
from repro.evaluate.labels import evaluate, label_maps
from repro.protocol import load_protocol, settings_sha256
from repro.records.own import keep_protocol, kept_path
from repro.records.score import enter_score
from repro.records.score import main as score
from repro.records.store import BEFORE_CRF, read_record, record_path, write_record
from repro.records.tables import as_markdown, as_text
from repro.run.plan import Plan, list_lines
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


def settings_for(crf=CRF_KEYS, batch_size=2):
    return {
        "data": {"class_names": ["a", "b", "c"], "ignore_label": 255},
        "transform": {"mean_bgr": MEAN},
        "test": {"crop_size": 17, "batch_size": batch_size},
    } | ({"crf": crf} if crf else {})


def crf_by_hand(network, item):
    """Goes from an image to the labels before and after the CRF, step by step."""
    data, _, (height, width) = read_test_item(item, MEAN, 17)
    with torch.no_grad():
        (scores,) = network.eval()(data).scores
    large = ops.interp(scores, data.shape[2:])[:, :, :height, :width]
    k = CRF_KEYS
    refined = ops.dense_crf(
        F.log_softmax(large, 1),
        data[:, :, :height, :width],
        k["max_iter"],
        k["pos_w"],
        k["pos_xy_std"],
        k["bi_w"],
        k["bi_xy_std"],
        k["bi_rgb_std"],
    )
    return large.argmax(1)[0], refined.argmax(1)[0]


def test_labels_are_those_of_the_chain_by_hand(items):  # noqa: F811
    found = [one for batch in label_maps(Known(), items, settings_for(), CPU) for one in batch]
    assert [one.image.item for one in found] == items
    changed = 0
    for item, one in zip(items, found, strict=True):
        before, after = crf_by_hand(Known(), item)
        assert torch.equal(one.labels.long(), after)
        assert torch.equal(one.before_crf.long(), before)
        assert one.labels.dtype == one.before_crf.dtype == torch.uint8
        changed += int((before != after).sum())
    assert changed > 20


def test_one_pass_counts_before_and_after(items):  # noqa: F811
    network, progress = Known(), []
    counts = evaluate(network, items, settings_for(), CPU, progress.append)
    plain = Known()
    assert np.array_equal(counts.before_crf, evaluate(plain, items, settings_for(None), CPU).confusion)
    assert not np.array_equal(counts.before_crf, counts.confusion)
    assert len(network.seen) == len(plain.seen)
    assert progress == [2, 1, 1, 1]
    by_hand = np.zeros((3, 3), np.int64)
    for item in items:
        label, after = read_label(item.label), crf_by_hand(Known(), item)[1].numpy()
        np.add.at(by_hand, (label[label != 255], after[label != 255]), 1)
    assert np.array_equal(counts.confusion, by_hand)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_change_nothing(items, workers):  # noqa: F811
    before = threading.active_count()
    here, beside = (
        evaluate(Known(), items * 3, settings_for(batch_size=size), Compute(torch.device("cpu"), workers=number))
        for size, number in ((2, 0), (1, workers))
    )
    assert np.array_equal(here.confusion, beside.confusion)
    assert np.array_equal(here.before_crf, beside.before_crf)
    assert threading.active_count() == before


def test_the_crf_runs_beside_the_network_and_never_far_behind(items, monkeypatch):  # noqa: F811
    real, waiting, started, most = postprocess.ops.dense_crf, threading.Event(), [], []

    def dense_crf(*arguments):
        started.append(threading.current_thread())
        assert waiting.wait(60)
        return real(*arguments)

    class Watched(Known):
        def forward(self, data):
            most.append(len(started))
            if len(most) == 3:  # the first CRF has not ended: the network is ahead of it
                waiting.set()
            return super().forward(data)

    monkeypatch.setattr(postprocess.ops, "dense_crf", dense_crf)
    network, before = Watched(), threading.active_count()
    batches = label_maps(network, items * 2, settings_for(batch_size=1), Compute(torch.device("cpu"), workers=2))
    next(batches)
    assert len(network.seen) == 4  # two workers, two batches each
    assert threading.main_thread() not in started
    next(batches)
    assert len(network.seen) == 5
    batches.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_what_progress_raises_ends_the_evaluation(items, workers):  # noqa: F811
    def progress(images):
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        evaluate(Known(), items, settings_for(), Compute(torch.device("cpu"), workers=workers), progress)
    assert threading.active_count() == before


# The protocol.


def test_a_section_that_some_rows_have(tmp_path):
    own = "".join(f"crf.{key} = {value}\n" for key, value in CRF_KEYS.items())
    path = write_protocol(tmp_path, ('id = "max2"\n', f'id = "max2"\n{own}'))
    rows = {row.id: row.settings for row in load_protocol(path, ["crf.bi_w=6"]).rows}
    assert rows["max2"]["crf"] == CRF_KEYS | {"bi_w": 6}
    assert "crf" not in rows["baseline"]  # an override of one key changes the rows that have the section
    every = [f"crf.{key}={value}" for key, value in CRF_KEYS.items()]
    assert all(row.settings["crf"] == CRF_KEYS for row in load_protocol(path, every).rows)
    assert Plan([path], [], [1], ["crf.bi_w=6"]).jobs
    with pytest.raises(
        ValueError, match=r"^--set: crf\.bi_w must change a row that has such a key; got none among the "
    ):
        Plan([path], ["baseline"], [1], ["crf.bi_w=6"])
    keep_protocol(tmp_path, load_protocol(path))
    again = load_protocol(str(kept_path(tmp_path, "tiny")))
    assert [row.settings for row in again.rows] == [row.settings for row in load_protocol(path).rows]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("bi_w = 4\n", ""), "tiny.toml, row 'baseline': every key must be given; got none for crf.bi_w; add to "),
        (
            ("bi_w = 4\n", "bi_ww = 4\n"),
            "tiny.toml: a key of crf must be known; got crf.bi_ww; did you mean 'crf.bi_w'",
        ),
        (("max_iter = 3\n", "max_iter = 3.5\n"), "tiny.toml: crf.max_iter must be an integer; got 3.5; correct it"),
        (("bi_xy_std = 20", "bi_xy_std = 0"), "tiny.toml, row 'baseline': crf.bi_xy_std must be within 0.1 and 10000"),
        (("pos_w = 3", "pos_w = -1"), "tiny.toml, row 'baseline': crf.pos_w must be within 0 and 10000.0; got -1; "),
    ],
)
def test_what_is_no_crf(tmp_path, change, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        load_protocol(write_protocol(tmp_path, (CRF[0], CRF[1].replace(*change))))
    with pytest.raises(ValueError, match=r"^--set: a key of crf must be known; got crf\.bi_x; did you mean "):
        load_protocol(write_protocol(tmp_path), ["crf.bi_x=3"])


# The run.


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


def test_another_crf_costs_no_training(ran, capsys):
    """The snapshot is of the training: with other keys of the CRF the row is tested again, nothing else."""
    made, folder = recorded(ran), record_path(ran / "out", "refined", "max2", 1).parent
    snapshot = read_snapshot(folder / "snapshot.pt")
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

"""The figures of a run: which images, what they show, and when they are drawn; on a tiny run."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import items_of, run_command
from tiny import main as run_main

from repro.data.lists import Item
from repro.data.stream import read_test_item
from repro.device import Compute
from repro.evaluate.labels import label_maps
from repro.models import Output
from repro.ops import interp, merge_scores
from repro.protocol import SYNTHETIC_NOTE
from repro.records.store import read_record
from repro.solver.snapshot import trained_network
from repro.visualize import figures, figures_of_run, paint
from repro.visualize.__main__ import main
from repro.visualize.choose import choose, count, image_iou, reference_run
from repro.visualize.draw import FLAT, class_colours, draw_strips
from repro.visualize.network import Seen, scale_maps, see
from repro.visualize.runs import Recorded, joint_note, read_records, validation_items

CPU = Compute(torch.device("cpu"))
TABLE = "tiny"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ran")
    assert run_main(run_command(folder)) == 0
    shutil.rmtree(folder / "out" / TABLE / "figures", ignore_errors=True)
    return folder


@pytest.fixture
def run(ran, tmp_path):
    shutil.copytree(ran / "out", tmp_path / "out")
    return tmp_path / "out"


def folder_of(run, row):
    return run / TABLE / f"{row}-seed1"


def network_of(run, row):
    record = read_record(folder_of(run, row) / "record.json")
    return trained_network(record, folder_of(run, row) / "snapshot.pt"), record["settings"]


def index_of(path):
    return json.loads(path.read_text())


@torch.no_grad()
def output_of(run, row, item):
    network, settings = network_of(run, row)
    data, _, (height, width) = read_test_item(
        item, tuple(settings["transform"]["mean_bgr"]), settings["test"]["crop_size"]
    )
    return network(data), data.shape[2:], (height, width)


def test_figures_of_a_run(run, ran):
    index = figures_of_run(run, TABLE, data_root=ran / "data")
    assert index == run / TABLE / "figures" / "figures.json"
    document = index_of(index)
    assert (document["format"], document["table"], document["synthetic"]) == (1, TABLE, False)
    assert document["note"] == "deviates from the protocol in weights"
    assert "Images 0, 1, 2 of the 3 validation images" in document["rule"]
    assert "attention3-extra, seed 1" in document["rule"]
    drawn = document["figures"]
    assert [figure["row"] for figure in drawn] == ["attention3-extra"] * 4 + ["max2"] * 3
    assert [figure["kind"] for figure in drawn] == ["gallery"] + ["qualitative"] * 6
    for figure in drawn:
        assert all(figure[key] for key in ("title", "alt", "caption", "image", "chosen"))
        with Image.open(index.parent / figure["file"]) as image:
            assert (image.format, image.mode) == ("PNG", "RGB")
    assert sorted(document["files"]) == sorted(path.name for path in index.parent.iterdir() if path != index)
    assert set(document["records"]) == {f"{row}-seed1" for row in ("baseline", "max2", "attention3-extra")}
    pixels = sum((np.asarray(Image.open(path)) != 255).sum() for path in (ran / "data" / "Labels").glob("val*"))
    assert document["repeated"] == {"attention3-extra-seed1": {"pixels": pixels, "different": 0}}


def test_the_iou_beside_an_image_is_that_of_its_pixels(run, ran):
    document = index_of(figures_of_run(run, TABLE, data_root=ran / "data"))
    items = items_of(ran / "data", "val")
    for row in ("max2", "attention3-extra"):
        network, settings = network_of(run, row)
        ious = {}
        for batch in label_maps(network, items, settings, CPU):
            for (item, label, _), prediction, _ in batch:
                valid, seen = label.numpy() != 255, prediction.numpy()
                each = []
                for c in range(3):
                    union = ((seen == c) | (label.numpy() == c))[valid].sum()
                    if union:
                        each.append(((seen == c) & (label.numpy() == c))[valid].sum() / union)
                ious[item.name] = 100 * np.mean(each)
        shown = [figure for figure in document["figures"] if figure["row"] == row and figure["kind"] == "qualitative"]
        assert {figure["image"]: figure["iou"] for figure in shown} == pytest.approx(ious)
        if row == "attention3-extra":
            assert "best" in next(f for f in shown if f["image"] == max(ious, key=ious.get))["chosen"]
            assert "worst" in next(f for f in shown if f["image"] == min(ious, key=ious.get))["chosen"]


def test_the_maps_shown_are_the_networks(run, ran, monkeypatch):
    drawn = {}

    def keep(strips, title, subtitle, classes):
        drawn[title] = strips
        return draw_strips(strips, title, subtitle, classes)

    monkeypatch.setattr(paint, "draw_strips", keep)
    figures_of_run(run, TABLE, data_root=ran / "data")
    colours = class_colours(3)
    for item in items_of(ran / "data", "val")[:1]:
        (strip,) = next(
            strips for title, strips in drawn.items() if title.startswith("attention3-extra, fixed index 0")
        )
        assert [panel.title.partition("\n")[0] for panel in strip.panels] == [
            *("image", "label", "baseline", "attention"),
            *("scale 1", "scale 0.75", "scale 0.5"),
        ]
        assert (strip.panels[0].pixels == np.asarray(Image.open(item.image))).all()
        assert (strip.panels[1].pixels == colours[np.asarray(Image.open(item.label))]).all()
        output, size, (height, width) = output_of(run, "attention3-extra", item)
        merged, weights = merge_scores(output.scores, output.logits)
        weights = interp(weights, size)[0, :, :height, :width].numpy()
        np.testing.assert_allclose(np.stack([panel.pixels for panel in strip.panels[4:]]), weights, atol=1e-6)
        np.testing.assert_allclose(sum(panel.pixels for panel in strip.panels[4:]), 1, atol=1e-5)
        classes = interp(merged, size)[0, :, :height, :width].argmax(0).numpy()
        assert (strip.panels[3].pixels == colours[classes]).mean() > 0.999
        output, size, _ = output_of(run, "baseline", item)
        classes = interp(output.scores[0], size)[0, :, :height, :width].argmax(0).numpy()
        assert (strip.panels[2].pixels == colours[classes]).mean() > 0.999

        (strip,) = next(strips for title, strips in drawn.items() if title.startswith("max2, fixed index 0"))
        output, _, _ = output_of(run, "max2", item)
        fine = [interp(scores, output.scores[0].shape[2:])[0].numpy() for scores in output.scores]
        for y, x in ((0, 0), (3, 3), (4, 4), (12, 20), (height - 1, width - 1)):
            at = (y + 4) // 8, (x + 4) // 8
            c = np.maximum(*fine)[:, at[0], at[1]].argmax()
            wins = [float(fine[1][c][at] < fine[0][c][at]), float(fine[1][c][at] >= fine[0][c][at])]
            assert [float(panel.pixels[y, x]) for panel in strip.panels[4:]] == wins


def test_maxima_follow_caffes_ties():
    scores = [torch.tensor([s, s - 9.0]).view(1, 2, 1, 1) for s in (1.0, 1.0, 1.0)]
    assert scale_maps(Output(scores, None, "max")).flatten().tolist() == [0, 1, 0]
    scores = [scores[0], *(torch.full((1, 2, 1, 1), v) for v in (0.5, 2.0))]
    assert scale_maps(Output(scores, None, "max")).flatten().tolist() == [0, 0, 1]
    assert scale_maps(Output(scores, None, "average")) is None


def test_images_are_chosen_by_rule():
    items = [Item(f"i{n}", None, None) for n in range(7)]
    chosen = choose([50, 90, None, 20, 90, 1, 20.5], [True, True, True, True, True, False, True], items)
    assert [(choice.index, choice.item.name, choice.why) for choice in chosen] == [
        (0, "i0", "fixed index 0"),
        (2, "i2", "fixed index 2"),
        (4, "i4", "fixed index 4"),
        (1, "i1", "best"),  # the first of two equal ones
        (3, "i3", "worst"),  # the one without an object is worse, but left out
    ]
    chosen = choose([5.0], [True], items[:1])
    assert [(choice.index, choice.why) for choice in chosen] == [(0, "fixed index 0, best, worst")]
    assert len(choose([None] * 7, [True] * 7, items)) == 3


def test_an_images_iou_leaves_absent_classes_out():
    seen = Seen(np.array([[0, 0, 1, 1]], np.uint8), np.array([[0, 1, 1, 255]], np.uint8), None)
    assert image_iou(count(seen, 5, 255)) == pytest.approx(50)
    nothing = Seen(seen.prediction, np.full((1, 4), 255, np.uint8), None)
    assert image_iou(count(nothing, 5, 255)) is None


def recorded(tmp_path, row, merge, value, seed=1):
    record = {
        "row": row,
        "seed": seed,
        "value": value,
        "settings": {"model": {"merge": merge}},
        "note": "",
        "deviates": {},
    }
    return Recorded(tmp_path / f"{row}-seed{seed}" / "record.json", record, "")


def test_the_reference_is_the_papers_best_row_or_the_best_recorded(tmp_path):
    runs = [recorded(tmp_path, "baseline", "none", 99.0), recorded(tmp_path, "max3", "max", 60.0)]
    assert reference_run(runs).key == "max3-seed1"
    runs += [recorded(tmp_path, "attention2", "attention", v, s) for v, s in ((40.0, 1), (41.0, 2))]
    assert reference_run(runs).key == "attention2-seed2"
    runs += [recorded(tmp_path, "attention3-extra", "attention", 10.0, s) for s in (3, 2)]
    assert reference_run(runs).key == "attention3-extra-seed2"
    assert joint_note(runs) == ""


def test_figures_are_drawn_once_and_anew_when_a_record_changes(run, ran):
    lines = []
    index = figures_of_run(run, TABLE, data_root=ran / "data", log=lines.append)
    stamps = {path: path.stat().st_mtime_ns for path in index.parent.iterdir()}
    assert figures_of_run(run, TABLE, log=lines.append) == index  # needs no data
    assert {path: path.stat().st_mtime_ns for path in index.parent.iterdir()} == stamps
    assert lines[-1] == f"{TABLE}: figures are up to date: {index}"
    other = figures_of_run(run, TABLE, data_root=ran / "data", folder=run / "other", log=lines.append).parent
    assert {p.name: p.read_bytes() for p in other.iterdir()} == {p.name: p.read_bytes() for p in index.parent.iterdir()}

    shutil.rmtree(folder_of(run, "max2"))
    assert figures_of_run(run, TABLE, data_root=ran / "data", log=lines.append) == index
    assert not list(index.parent.glob("max2*"))
    assert {figure["row"] for figure in index_of(index)["figures"]} == {"attention3-extra"}
    (index.parent / "attention3-extra.png").unlink()
    figures_of_run(run, TABLE, data_root=ran / "data", log=lines.append)
    assert (index.parent / "attention3-extra.png").is_file()


def test_synthetic_pictures_say_so(run, ran, monkeypatch):
    for path in run.glob("*/*/record.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"synthetic": True, "note": SYNTHETIC_NOTE}))
    heads = []
    monkeypatch.setattr(paint, "draw_strips", lambda *args: heads.append(args[1:3]) or draw_strips(*args))
    document = index_of(figures_of_run(run, TABLE, data_root=ran / "data"))
    note = f"{SYNTHETIC_NOTE}; deviates from the protocol in weights"
    said = f"{note[0].upper()}{note[1:]}."
    assert document["synthetic"] is True
    assert document["note"] == note
    assert all(said in figure["caption"] for figure in [*document["figures"], document["curve"]])
    assert heads
    assert all(subtitle.startswith(said) for _, subtitle in heads)


def test_the_curve_is_measured_on_the_labels(run, ran):
    document = index_of(figures_of_run(run, TABLE, data_root=ran / "data"))
    (entry,) = document["attention_by_size"]
    assert (entry["row"], entry["seed"], entry["scales"]) == ("attention3-extra", 1, [1, 0.75, 0.5])
    sizes = []
    for item in items_of(ran / "data", "val"):
        label = np.asarray(Image.open(item.label))
        sizes += [np.sqrt((label == c).sum()) for c in (1, 2)]  # a box and a ball, each in one piece
    for one in entry["bins"]:
        assert one["n_objects"] == sum(one["size_min"] <= size < one["size_max"] for size in sizes)
        assert sum(one["mean_weight"]) == pytest.approx(1, abs=1e-5)
    assert sum(one["n_objects"] for one in entry["bins"]) == len(sizes)
    assert (run / TABLE / "figures" / document["curve"]["svg"]).read_text().startswith("<svg")


def test_every_attention_run_has_a_curve(run, ran):
    for row, seed in (("attention3-extra", 2), ("attention3", 1)):
        folder = run / TABLE / f"{row}-seed{seed}"
        shutil.copytree(folder_of(run, "attention3-extra"), folder)
        record = json.loads((folder / "record.json").read_text()) | {"row": row, "seed": seed}
        (folder / "record.json").write_text(json.dumps(record))
    document = index_of(figures_of_run(run, TABLE, data_root=ran / "data"))
    entries = document["attention_by_size"]
    assert [(e["row"], e["seed"]) for e in entries] == [
        ("attention3", 1),
        ("attention3-extra", 1),
        ("attention3-extra", 2),
    ]
    assert all(entry["bins"] == entries[0]["bins"] != [] for entry in entries)
    assert len(document["repeated"]) == 3
    rows = [figure["row"] for figure in document["figures"] if figure["kind"] == "qualitative"]
    assert rows == ["attention3-extra"] * 3 + ["attention3"] * 3 + ["max2"] * 3  # one seed of each row


def test_rows_without_parameters_are_left_out(run, ran):
    lines = []
    (folder_of(run, "attention3-extra") / "snapshot.pt").unlink()
    (folder_of(run, "baseline") / "record.json").write_text("{")
    document = index_of(figures_of_run(run, TABLE, data_root=ran / "data", log=lines.append))
    assert {figure["row"] for figure in document["figures"]} == {"max2"}
    assert "curve" not in document
    assert any("attention3-extra-seed1: its figures are left out, for its snapshot.pt was not kept" in x for x in lines)
    assert any(line.startswith("not used: ") and "baseline-seed1" in line for line in lines)
    (folder_of(run, "max2") / "snapshot.pt").unlink()
    assert figures_of_run(run, TABLE, log=lines.append) is None
    assert (
        lines[-1] == f"{TABLE}: no figures, for no row of several scales or with a CRF is recorded with its parameters"
    )


def test_an_image_without_an_object_is_neither_best_nor_worst(run, ran, tmp_path, monkeypatch):
    items = items_of(ran / "data", "val")
    for n in range(len(items)):
        label = np.zeros_like(np.asarray(Image.open(items[n].label)))
        label[0, 0] = 255
        Image.fromarray(label).save(tmp_path / "empty.png")
        changed = [item._replace(label=tmp_path / "empty.png") if i == n else item for i, item in enumerate(items)]
        monkeypatch.setattr(figures, "validation_items", lambda run, root, changed=changed: changed)
        document = index_of(figures_of_run(run, TABLE, folder=tmp_path / str(n)))
        chosen = [one["chosen"] for one in document["figures"] if one["image"] == items[n].name]
        assert chosen == [f"fixed index {n}"] * 2
        assert "best" in str(document["figures"])


def test_another_runs_snapshot_is_refused(run, ran):
    figures_of_run(run, TABLE, data_root=ran / "data")
    path = folder_of(run, "max2") / "record.json"
    path.write_text(path.read_text() + "\n")
    shutil.copy(folder_of(run, "max2") / "snapshot.pt", folder_of(run, "attention3-extra") / "snapshot.pt")
    with pytest.raises(
        ValueError, match=r"attention3-extra-seed1/snapshot\.pt: must be a whole snapshot of this very run"
    ):
        figures_of_run(run, TABLE, data_root=ran / "data")
    assert not (run / TABLE / "figures" / "figures.json").exists()


def test_the_validation_images_must_be_the_records(run, ran, tmp_path):
    one = read_records(run, TABLE, print)[0]
    items = items_of(ran / "data", "val")
    assert validation_items(one, ran / "data") == items
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "voc2012").symlink_to(ran / "data")
    assert [item.name for item in validation_items(one, tmp_path / "common")] == [item.name for item in items]
    with pytest.raises(FileNotFoundError, match=r"record\.json: its validation images must be at hand; got no --data"):
        validation_items(one, None)
    with pytest.raises(FileNotFoundError, match="list train: one of"):
        validation_items(one, tmp_path)
    shutil.copytree(ran / "data", tmp_path / "changed")
    (tmp_path / "changed" / "ImageSets" / "val.txt").write_text("val1\nval0\nval2\n")
    with pytest.raises(ValueError, match=r"changed: must hold the images of .*; got other lists or files"):
        validation_items(one, tmp_path / "changed")


def test_images_of_several_sizes_come_in_their_order(run, ran):
    items = items_of(ran / "data", "val")
    network, settings = network_of(run, "max2")
    together = list(see(network, items, settings, CPU))
    for item, seen in zip(items, together, strict=True):
        assert seen.label.shape == seen.prediction.shape == seen.maps.shape[1:]
        assert (seen.label == np.asarray(Image.open(item.label))).all()
    assert next(see(network, items[:1], settings, Compute(torch.device("cpu"), "bf16"))).maps.dtype == np.float32


def test_flat_maps_are_an_option(run, ran, monkeypatch):
    spans = []
    monkeypatch.setattr(
        paint,
        "draw_strips",
        lambda strips, *a: spans.append([p.span for p in strips[0].panels]) or draw_strips(strips, *a),
    )
    index = figures_of_run(run, TABLE, data_root=ran / "data")
    assert any(span != FLAT for strip in spans for span in strip)
    assert "each from its lowest to its highest, which stand below it" in index_of(index)["figures"][0]["caption"]
    spans.clear()
    command = ["--run", str(run), "--data-root", str(ran / "data"), "--device", "cpu", "--flat"]
    assert main(command) == 0  # the figures that are there are of the other kind
    assert spans
    assert all(span == FLAT for strip in spans for span in strip)
    assert "from 0 to 1" in index_of(index)["figures"][0]["caption"]


def test_the_command_draws_a_run(run, ran, capsys, tmp_path):
    data = ["--data-root", str(ran / "data"), "--device", "cpu"]
    assert main(["--run", str(run), *data]) == 0
    assert capsys.readouterr().out == f"{run / TABLE / 'figures' / 'figures.json'}\n"
    assert main(["--run", str(run / TABLE), "--table", TABLE, "--out", str(tmp_path / "x"), *data]) == 0
    assert (tmp_path / "x" / "figures.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "RUN"], "its validation images must be at hand; got no --data-root; give the folder"),
        (["--run", "RUN", "--table", "table9"], "--table: must be one of tiny; got 'table9'; correct it"),
        (["--run", "NONE"], "none: must hold records of a run; got none; run `python -m repro.run table1 --out"),
        ([], "--run: must be given, and a row goes with --images alone; got no --images; for example --run runs"),
        (
            ["--run", "RUN", "--row", "max2"],
            "--run: must be given, and --row goes with --images alone; got no --images",
        ),
        (["--run", "RUN", "--device", "tpu"], "--device: must be auto, cpu, cuda or cuda:N; got 'tpu'"),
    ],
)
def test_what_a_run_lacks_is_one_line(arguments, message, run, tmp_path, capsys):
    places = {"RUN": str(run), "NONE": str(tmp_path / "none")}
    assert main([places.get(argument, argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.splitlines()[-1].startswith("error: ")

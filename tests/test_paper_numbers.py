"""The paper's numbers, typed here a second time from the paper, against the protocols; and what each protocol's rows train."""

import re
import statistics
import tomllib

import pytest
import torch
from test_paper_rows import STAGE, differing

from repro.data.prepare import coco, person_part, voc
from repro.models import build
from repro.protocol import PAPER, PROTOCOLS, load_protocol
from repro.records.claims import claims
from repro.solver.loss import losses

# Per grid: the baseline; then per scale set {1, .5} and {1, .75, .5} the merges max, average, attention, each without and with extra supervision.
GRIDS = {
    "table1": "51.91 | 52.90 55.26 52.71 55.17 53.49 55.85 | 53.02 55.78 52.56 55.72 53.12 56.39",
    "table3": "62.28 | 64.81 67.43 64.86 67.79 65.27 68.24 | 65.15 67.79 63.92 67.98 64.37 69.08",
    "table5": "67.58 | 69.15 70.01 69.22 70.44 69.90 70.76 | 69.70 70.06 68.82 70.55 69.47 71.42",
    "table6": "31.22 | 32.95 34.70 33.69 35.14 34.03 35.41 | 33.58 35.08 33.74 35.72 33.42 35.78",
    "table7": "68.76 | 70.07 71.06 70.38 71.60 70.66 72.20 | 69.97 71.43 69.69 71.70 70.14 72.72",
}
CELLS = {
    "table2": {
        "head": "81.47",
        "torso": "59.06",
        "upper-arms": "44.15",
        "lower-arms": "42.50",
        "upper-legs": "38.28",
        "lower-legs": "35.62",
        "background": "93.65",
        "average": "56.39",
    },
    "table4": {
        "largefov": "65.1",
        "msc-largefov": "67.0",
        "tti-zoomout-v2": "69.6",
        "parsenet": "69.8",
        "average": "70.5",
        "max": "70.6",
        "attention": "71.5",
        "crf-coco-largefov": "72.7",
        "msc-crf-coco-largefov": "73.6",
        "crf-rnn": "74.7",
        "boxsup": "75.2",
        "dpn": "77.5",
        "adelaide": "77.8",
        "attention-coco": "75.1",
        "attention-plus-coco": "75.7",
        "attention-dt-coco": "76.3",
    },
    "text": {
        "msc-person-part": "53.72",
        "four-scales": "56.14",
        "msc-voc": "64.39",
        "four-scales-voc": "68.83",
        "largefov-voc": "62.25",
        "largefov-crf-voc": "67.64",
        "largefov-test": "65.1",
        "largefov-crf-test": "70.3",
        "msc-coco": "31.61",
    },
}
# The text's differences, percentage points from Person-Part's best cell.
DIFFERENCES = {
    "attention-one-layer": (-0.4, -0.1),
    "attention-kernel1": (-0.4, -0.1),
    "attention-filters256": (-0.4, -0.1),
    "attention-filters1024": (-0.4, -0.1),
    "attention-fc8": (-0.5, -0.5),
    "four-scales": (-0.5, -0.5),
}
COUNTS = {"table1": 13, "table2": 8, "table3": 13, "table4": 16, "table5": 13, "table6": 13, "table7": 13, "text": 16}
# Of the pairs of cells of each claim, those that the printed values bear out: several scales, extra supervision, attention, the best cell.
CLAIMS = {
    "table1": ["12 of 12", "6 of 6", "8 of 8", "12 of 12"],
    "table3": ["12 of 12", "6 of 6", "7 of 8", "12 of 12"],
    "table5": ["12 of 12", "6 of 6", "7 of 8", "12 of 12"],
    "table6": ["12 of 12", "6 of 6", "6 of 8", "12 of 12"],
    "table7": ["12 of 12", "6 of 6", "8 of 8", "12 of 12"],
}
MERGES = ("max", "average", "attention")
ALL = (*PAPER, "demo", "coco_pretrain", "voc_scale_stage", "voc_scale_model", "voc_scale_crf")


def grid(name):
    """Reads a grid as typed above: (scales, merge, extra supervision) -> the printed digits."""
    baseline, two, three = (part.split() for part in GRIDS[name].split("|"))
    found = {((1,), "none", False): baseline[0]}
    for scales, values in (((1, 0.5), two), ((1, 0.75, 0.5), three)):
        cells = [(scales, merge, extra) for merge in MERGES for extra in (False, True)]
        found |= dict(zip(cells, values, strict=True))
    return found


def place(row):
    """Says where in a grid a row stands."""
    model = row.settings["model"]
    return tuple(model["scales"]), model["merge"], model["extra_supervision"]


def test_number_of_cells():
    assert {name: len(load_protocol(name).rows) for name in PAPER} == COUNTS
    assert list(COUNTS) == list(PAPER)
    assert {path.stem for path in PROTOCOLS.glob("*.toml")} == set(ALL)


@pytest.mark.parametrize("name", GRIDS)
def test_grids_are_as_printed(name):
    protocol = load_protocol(name)
    assert {place(row): row.printed for row in protocol.rows} == grid(name)
    assert [row.paper for row in protocol.rows] == [float(digits) for digits in grid(name).values()]
    names = {
        f"{merge}{len(scales)}{'-extra' if extra else ''}" if merge != "none" else "baseline": (scales, merge, extra)
        for scales, merge, extra in grid(name)
    }
    assert {row.id: place(row) for row in protocol.rows} == names
    assert f"table {name[-1]}" in protocol.source


@pytest.mark.parametrize("name", CELLS)
def test_cells_are_as_printed(name):
    protocol = load_protocol(name)
    assert {row.id: row.printed for row in protocol.rows if row.printed} == CELLS[name]
    assert all(row.paper == (float(row.printed) if row.printed else None) for row in protocol.rows)


def test_table2_is_the_best_cell_of_table1_by_class():
    protocol = load_protocol("table2")
    assert {row.of for row in protocol.rows} == {"table1/attention3-extra"}
    parts = [row for row in protocol.rows if row.id != "average"]
    assert [row.metric.replace(" ", "-") for row in parts] == [row.id for row in parts]
    assert sorted(row.metric for row in parts) == sorted(person_part.CLASS_NAMES)
    average = protocol.row("average")
    assert average.metric == "mean_iou"
    assert round(statistics.fmean(row.paper for row in parts), 4) == 56.39
    assert average.paper == load_protocol("table1").row("attention3-extra").paper


@pytest.mark.parametrize("name", GRIDS)
def test_the_best_cells(name):
    rows = load_protocol(name).rows
    assert max(rows, key=lambda row: row.paper).id == "attention3-extra"
    for scales in (2, 3):
        block = [row for row in rows if len(row.settings["model"]["scales"]) == scales]
        assert max(block, key=lambda row: row.paper).id == f"attention{scales}-extra"
    plain = {
        scales: max(
            (r for r in rows if len(r.settings["model"]["scales"]) == scales and not r.id.endswith("-extra")),
            key=lambda row: row.paper,
        ).id
        for scales in (2, 3)
    }
    assert plain[2] == "attention2"
    best = {"table1": "attention3", "table3": "max3", "table5": "max3", "table6": "average3", "table7": "attention3"}
    assert plain[3] == best[name]


@pytest.mark.parametrize("name", GRIDS)
def test_how_often_the_printed_values_bear_the_claims_out(name):
    protocol = load_protocol(name)
    found = claims(protocol, {row.id: [row.paper] for row in protocol.rows})
    counts = [re.search(r": (\d+) for.*\(printed: (\d+ of \d+) for\)$", claim.evidence).groups() for claim in found]
    assert [(f"{n} of {len(claim.pairs)}", printed) for claim, (n, printed) in zip(found, counts, strict=True)] == [
        (count, count) for count in CLAIMS[name]
    ]


def test_differences_of_the_text():
    text = load_protocol("text")
    assert {row.id: row.difference for row in text.rows if row.difference} == {
        row_id: ("table1/attention3-extra", *ends) for row_id, ends in DIFFERENCES.items()
    }
    best = {name: load_protocol(name).row("attention3-extra").paper for name in ("table1", "table3")}
    assert round(text.row("four-scales").paper - best["table1"], 2) == -0.25
    assert round(text.row("four-scales-voc").paper - best["table3"], 2) == -0.25
    fc6 = text.row("attention-fc6")
    assert (fc6.paper, fc6.difference) == (None, None)
    assert "like those with fc7" in fc6.why


def test_status_of_the_rows():
    quoted = {"table4": ["tti-zoomout-v2", "parsenet", "crf-rnn", "boxsup", "dpn", "adelaide"]}
    for name in ALL:
        rows = load_protocol(name).rows
        assert [row.id for row in rows if row.status == "planned"] == []
        assert [row.id for row in rows if row.status == "quoted"] == quoted.get(name, [])
    assert [row.id for row in load_protocol("table4").runnable] == [
        *("largefov", "msc-largefov", "average", "max", "attention"),
        *("crf-coco-largefov", "msc-crf-coco-largefov", "attention-coco", "attention-plus-coco", "attention-dt-coco"),
    ]
    assert [name for name in ALL if load_protocol(name).view] == ["table2", "table7"]
    assert [len(load_protocol(name).runnable) for name in ALL] == [13, 0, 13, 10, 13, 13, 0, 14, 14, 1, 1, 13, 3]


def test_settings_of_the_paper():
    settings = load_protocol("table3").row("attention3-extra").settings
    solver = {
        "base_lr": 0.001,
        "lr_policy": "step",
        "gamma": 0.1,
        "stepsize": 2000,
        "power": 0.9,
        "max_iter": 6000,
        "batch_size": 30,
        "iter_size": 1,
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "clip_gradients": 0.0,
        "snapshot": 500,
        "display": 20,
    }
    assert settings["solver"] == solver
    assert (settings["transform"]["crop_size"], settings["test"]["crop_size"]) == (321, 513)
    assert settings["transform"]["mean_bgr"] == [104.008, 116.669, 122.675]
    model = {
        "width": 1,
        "pool5a": True,
        "fc8_filler_std": 0.01,
        "attention_input": "fc7",
        "attention_layers": 2,
        "attention_kernel": 3,
        "attention_filters": 512,
        "lr_mult": [1, 2],
        "fc8_lr_mult": [10, 20],
        "attention_lr_mult": [10, 20],
        "decay_mult": [1, 0],
    }
    assert {key: settings["model"][key] for key in model} == model
    for name in ("table1", "table3", "table5", "table6", "coco_pretrain"):
        for row in load_protocol(name).rows:
            assert row.settings["solver"] == solver
            assert row.settings["transform"] == settings["transform"]
            assert {key: row.settings["model"][key] for key in model} == model
    server = load_protocol("table4").runnable
    assert all(row.settings["solver"] == solver | {"max_iter": 8000} for row in server)


@pytest.mark.parametrize(
    ("name", "dataset", "train", "val", "classes"),
    [
        ("table1", "person_part", ("train", 1716), ("val", 1817), person_part.CLASS_NAMES),
        ("table3", "voc2012", ("train_aug", 10582), ("val", 1449), voc.CLASS_NAMES),
        ("table4", "voc2012", ("trainval_aug", 12031), ("val", 1449), voc.CLASS_NAMES),
        ("table5", "voc2012", ("train_aug", 10582), ("val", 1449), voc.CLASS_NAMES),
        ("table6", "coco", ("train", 10000), ("val", 1500), coco.CLASS_NAMES),
        ("coco_pretrain", "coco", ("train2014", 82783), ("val", 1500), coco.CLASS_NAMES),
    ],
)
def test_data_of_the_tables(name, dataset, train, val, classes):
    for row in load_protocol(name).runnable:
        data = row.settings["data"]
        assert ((data["train_list"], data["num_train"]), (data["val_list"], data["num_val"])) == (train, val)
        assert data["class_names"] == list(classes)
        assert row.dataset == dataset
        assert row.settings.get("submission") == ({"list": "test", "num": 1456} if name == "table4" else None)
        stages = {f"msc-{first}": {"protocol": "table4", "row": first} for first in ("largefov", "crf-coco-largefov")}
        if name == "table5" or (name == "table4" and "coco" in row.id):
            stages.setdefault(row.id, {"protocol": "coco_pretrain", "row": "largefov"})
        assert row.settings.get("stage") == stages.get(row.id)


def test_rows_of_a_grid_differ_in_the_grid_alone():
    for name in GRIDS:
        first, *others = load_protocol(name).rows
        for row in others:
            assert set(differing(row, first)) <= {"model.scales", "model.merge", "model.extra_supervision"}
    for mine, base in zip(load_protocol("table5").rows, load_protocol("table3").rows, strict=True):
        assert differing(mine, base) == STAGE
    for mine, base in zip(load_protocol("table7").rows, load_protocol("table6").rows, strict=True):
        assert (mine.of, mine.metric, differing(mine, base)) == (f"table6/{base.id}", "person", {})


@pytest.mark.parametrize("name", ALL)
def test_files_say_what_people_need(name):
    protocol = load_protocol(name)
    assert protocol.tolerance == {"evaluate": 0.5, "retrain": 1.0}
    assert protocol.title
    assert protocol.source
    assert {row.dataset for row in protocol.rows} <= {"person_part", "voc2012", "coco"}
    head = (PROTOCOLS / f"{name}.toml").read_text().split("\ntitle", 1)[0]
    for word in ("Source:", "Expected", "Command: python -m repro.run"):
        assert word in head
    written = tomllib.loads((PROTOCOLS / f"{name}.toml").read_text())
    assert name in ("table1", "demo") or "stand_in" not in written


@pytest.mark.parametrize("name", [name for name in ALL if load_protocol(name).runnable])
def test_every_row_trains_a_step_of_a_thin_twin(name):
    """Each row's network, a thirty-second as wide, computes its losses, and every layer gets a gradient."""
    seen = []
    for row in load_protocol(name, ["model.width=0.03125"]).runnable:
        model = row.settings["model"]
        if model in seen:
            continue
        seen.append(model)
        network = build(model, 3, seed=1)
        image = torch.randn(1, 3, 33, 33, generator=torch.Generator().manual_seed(1))
        label = torch.arange(33 * 33).view(1, 33, 33) % 3
        sum(losses(network(image), label, model["scales"], model["extra_supervision"]).values()).backward()
        without = [layer for layer, conv in network.convolutions().items() if conv.weight.grad is None]
        assert not without


def test_the_readme_lists_every_file():
    text = (PROTOCOLS / "README.md").read_text()
    listed = dict(re.findall(r"^\| `(\w+)\.toml` \| .* \| ([\d-]+)(?:, after the stage)? \|$", text, re.MULTILINE))
    assert listed == {name: str(len(load_protocol(name).runnable) or "-") for name in ALL}

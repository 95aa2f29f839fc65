"""What the rows beyond the grids change of the row that they are made from: the one thing that their names say."""

import pytest

from repro.protocol import load_protocol


def test_what_the_rows_of_the_text_change():
    """Every row that runs differs from its cell in the one thing that its name says, a CRF's being six keys."""
    changed = {
        "attention-one-layer": ("table1", "model.attention_layers", 1),
        "attention-kernel1": ("table1", "model.attention_kernel", 1),
        "attention-filters256": ("table1", "model.attention_filters", 256),
        "attention-filters1024": ("table1", "model.attention_filters", 1024),
        "attention-fc8": ("table1", "model.attention_input", "fc8"),
        "attention-fc6": ("table1", "model.attention_input", "fc6"),
        "four-scales": ("table1", "model.scales", [1, 0.75, 0.5, 0.25]),
        "four-scales-voc": ("table3", "model.scales", [1, 0.75, 0.5, 0.25]),
        "attention-plus": ("table5", "transform.scale_factors", [0.6, 0.8, 1.0, 1.2, 1.4]),
    }
    text = load_protocol("text")
    refined = {"largefov-crf-voc": "table3/baseline", "largefov-crf-test": "table4/largefov"}
    trained_twice = {"msc-person-part", "msc-voc", "msc-coco"}
    assert {row.id for row in text.runnable} == changed.keys() | refined.keys() | trained_twice
    for row_id, name in refined.items():
        table, _, base = name.partition("/")
        assert differing(text.row(row_id), load_protocol(table).row(base)) == crf_keys(5, 50, 10)
        assert text.row(row_id).dataset == "voc2012"
    for row_id, (table, key, value) in changed.items():
        row = text.row(row_id)
        base = load_protocol(table).row("attention3-extra")
        assert differing(row, base) == {key: value}
        assert row.dataset == base.dataset
    assert text.row("largefov-voc").of == "table3/baseline"
    assert text.row("largefov-test").of == "table4/largefov"


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("text/msc-person-part", "table1/baseline"),
        ("text/msc-voc", "table3/baseline"),
        ("text/msc-coco", "table6/baseline"),
        ("table4/msc-largefov", "table4/largefov"),
        ("table4/msc-crf-coco-largefov", "table4/crf-coco-largefov"),
        ("demo/msc", "demo/baseline"),
    ],
)
def test_deeplab_msc_is_trained_from_the_largefov_of_its_table_with_the_trunk_fixed(name, base):
    first, second = (load_protocol(one.split("/")[0]).row(one.split("/")[1]) for one in (base, name))
    branches = {
        "filters": 128,
        "dropout_ratio": 0.5,
        "filler_std": 0.001,
        "score_filler_std": 0.01,
        "lr_mult": [10, 20],
    }
    assert differing(second, first) == {f"model.msc_{key}": value for key, value in branches.items()} | {
        "model.lr_mult": [0, 0],
        "stage.protocol": base.split("/")[0],
        "stage.row": first.id,
    }
    assert second.dataset == first.dataset


def test_the_scale_model_has_the_rows_of_table_1_and_deeplab_msc():
    demo, table1 = load_protocol("demo").rows, load_protocol("table1").rows
    assert [(row.id, row.printed) for row in demo[:-1]] == [(row.id, row.printed) for row in table1]
    assert (demo[-1].id, demo[-1].printed) == ("msc", load_protocol("text").row("msc-person-part").printed)
    assert "no cell of table 1" in demo[-1].why


def crf_keys(bi_w, bi_xy_std, bi_rgb_std):
    """Names the settings of a CRF as the authors searched them: the last three."""
    keys = {"max_iter": 10, "pos_w": 3, "pos_xy_std": 3, "bi_w": bi_w, "bi_xy_std": bi_xy_std, "bi_rgb_std": bi_rgb_std}
    return {f"crf.{key}": value for key, value in keys.items()}


STAGE = {"stage.protocol": "coco_pretrain", "stage.row": "largefov"}


def test_the_servers_rows_with_a_crf():
    """Each is a row of the same table that starts from MS-COCO and ends in a CRF; Attention+ differs in the scales that images are drawn at."""
    table4 = load_protocol("table4")
    coco = STAGE | crf_keys(5, 67, 3)
    assert differing(table4.row("crf-coco-largefov"), table4.row("largefov")) == coco
    assert differing(table4.row("attention-coco"), table4.row("attention")) == coco
    scales = {"transform.scale_factors": [0.6, 0.8, 1.0, 1.2, 1.4]}
    assert differing(table4.row("attention-plus-coco"), table4.row("attention-coco")) == scales
    transform = {"dt_num_iter": 3, "dt_spatial_sigma": 100, "dt_range_sigma": 1, "dt_min_weight": 0}
    edge = {"edge_filler_std": 0.001, "edge_lr_mult": [10, 20]}
    assert differing(table4.row("attention-dt-coco"), table4.row("attention-coco")) == {
        "model.extra_supervision": False,
        **{f"model.{key}": value for key, value in (transform | edge).items()},
    }
    assert all(
        "crf" not in row.settings
        for name in ("table1", "table3", "table5", "table6")
        for row in load_protocol(name).rows
    )


def differing(row, base):
    """Lists the keys of a row's settings that differ from another row's, with their values."""
    keys = {(s, k) for settings in (row.settings, base.settings) for s, table in settings.items() for k in table}
    mine = {f"{s}.{k}": row.settings.get(s, {}).get(k) for s, k in sorted(keys)}
    return {key: v for key, v in mine.items() if v != base.settings.get(key.split(".")[0], {}).get(key.split(".")[1])}

"""Protocols: the paper's numbers in them, how they resolve, and what is refused."""

import re
from pathlib import Path

import pytest
from tiny import PROTOCOL, write_protocol

from repro import protocol as protocol_module
from repro.protocol import PROTOCOLS, SCHEMA, UNFELT, load_protocol, parse_override, settings_sha256

# The paper's tables 1 and 3, in the order baseline, then {1, .5} and {1, .75, .5}: max w/o, w/; average w/o, w/; attention w/o, w/.
TABLE1 = [51.91, 52.90, 55.26, 52.71, 55.17, 53.49, 55.85, 53.02, 55.78, 52.56, 55.72, 53.12, 56.39]
TABLE3 = [62.28, 64.81, 67.43, 64.86, 67.79, 65.27, 68.24, 65.15, 67.79, 63.92, 67.98, 64.37, 69.08]
GRID = {"baseline": ([1], "none", False)} | {
    f"{merge}{len(scales)}{'-extra' if extra else ''}": (scales, merge, extra)
    for scales in ([1, 0.5], [1, 0.75, 0.5])
    for merge in ("max", "average", "attention")
    for extra in (False, True)
}


def fails(message):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize(("name", "values"), [("table1", TABLE1), ("table3", TABLE3)])
def test_rows_are_the_papers(name, values):
    protocol = load_protocol(name)
    assert [row.paper for row in protocol.rows] == values
    assert {
        row.id: tuple(row.settings["model"][k] for k in ("scales", "merge", "extra_supervision"))
        for row in protocol.rows
    } == GRID
    assert protocol.name == name
    assert protocol.metric == "mean_iou"
    assert name[-1] in protocol.source
    assert not protocol.synthetic
    assert protocol.overrides == {}


@pytest.mark.parametrize("path", sorted(PROTOCOLS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_protocol_loads(path):
    protocol = load_protocol(path.stem)
    assert protocol.sha256 == load_protocol(str(path)).sha256
    if protocol.stand_in:
        stand_in = load_protocol(protocol.stand_in)
        assert stand_in.synthetic
        assert [(row.id, row.paper) for row in stand_in.rows] == [(row.id, row.paper) for row in protocol.rows]


def test_rows_differ_only_in_what_the_grid_says():
    first, *others = load_protocol("table1").rows
    for row in others:
        for section, table in row.settings.items():
            for key, value in table.items():
                assert value == first.settings[section][key] or (section, key) in {
                    ("model", "scales"),
                    ("model", "merge"),
                    ("model", "extra_supervision"),
                }


def test_settings_of_the_paper():
    settings = load_protocol("table3").row("attention3-extra").settings
    assert settings["solver"] == {
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
    assert (settings["data"]["num_train"], settings["data"]["num_val"], len(settings["data"]["class_names"])) == (
        10582,
        1449,
        21,
    )
    assert (settings["transform"]["crop_size"], settings["test"]["crop_size"]) == (321, 513)
    assert settings["transform"]["mean_bgr"] == [104.008, 116.669, 122.675]
    model = settings["model"]
    assert [model[k] for k in ("lr_mult", "fc8_lr_mult", "attention_lr_mult", "decay_mult")] == [
        [1, 2],
        [10, 20],
        [10, 20],
        [1, 0],
    ]
    assert (
        model["width"],
        model["pool5a"],
        model["attention_input"],
        model["attention_filters"],
        model["fc8_filler_std"],
    ) == (1, True, "fc7", 512, 0.01)
    table1 = load_protocol("table1").rows[0].settings["data"]
    assert (table1["num_train"], table1["num_val"], len(table1["class_names"])) == (1716, 1817, 7)


def test_rows_apply_their_own_keys_and_overrides_win(tmp_path):
    path = write_protocol(tmp_path, ('id = "max2"', 'id = "max2"\nsolver.max_iter = 9\nsolver.gamma = 0.5'))
    assert [row.settings["solver"]["max_iter"] for row in load_protocol(path).rows] == [6, 9, 6]
    protocol = load_protocol(path, ["solver.max_iter=3", "model.width=0.25"])
    assert [row.settings["solver"]["max_iter"] for row in protocol.rows] == [3, 3, 3]
    assert [row.settings["solver"]["gamma"] for row in protocol.rows] == [0.1, 0.5, 0.1]
    assert protocol.overrides == {"solver.max_iter": 3, "model.width": 0.25}
    assert protocol.sha256 == load_protocol(path).sha256


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("solver.max_iter=200", ("solver", "max_iter", 200)),
        (" solver.base_lr = 1e-3", ("solver", "base_lr", 0.001)),
        ("model.scales=[1, 0.5]", ("model", "scales", [1, 0.5])),
        ("model.pool5a=false", ("model", "pool5a", False)),
        ('model.merge="max"', ("model", "merge", "max")),
        ("model.merge=max", ("model", "merge", "max")),
        ("data.obtain=a=b", ("data", "obtain", "a=b")),
    ],
)
def test_override_forms(text, expected):
    parsed = parse_override(text)
    assert parsed == expected
    assert type(parsed[2]) is type(expected[2])


@pytest.mark.parametrize("text", ["max_iter=3", "solver.max_iter", "=3", ".max_iter=3", "solver.=3", ""])
def test_override_without_a_key_is_refused(text):
    with fails(f"--set: must be section.key=value; got {text!r}; for example --set solver.max_iter=200"):
        parse_override(text)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "solver.maxiter=3",
            "--set: a key of solver must be known; got solver.maxiter; did you mean 'solver.max_iter'?",
        ),
        (
            "model.batch_size=3",
            "--set: a key of model must be known; got model.batch_size; did you mean 'solver.batch_size'?",
        ),
        (
            "sovler.max_iter=3",
            "--set: a section must be one of data, model, weights, transform, solver, test; got 'sovler'; did you mean 'solver'?",
        ),
        (
            "qqq.max_iter=3",
            "--set: a section must be one of data, model, weights, transform, solver, test; got 'qqq'; correct it",
        ),
        ("solver.max_iter=3.5", "--set: solver.max_iter must be an integer; got 3.5; correct it"),
        ("solver.max_iter=true", "--set: solver.max_iter must be an integer; got True; correct it"),
        ("model.pool5a=1", "--set: model.pool5a must be true or false; got 1; correct it"),
        ("solver.base_lr=much", "--set: solver.base_lr must be a finite number; got 'much'; correct it"),
        ("solver.base_lr=nan", "--set: solver.base_lr must be a finite number; got nan; correct it"),
        ("solver.clip_gradients=inf", "--set: solver.clip_gradients must be a finite number; got inf; correct it"),
        ("model.merge=3", "--set: model.merge must be a string; got 3; correct it"),
        ("model.scales=1", "--set: model.scales must be a list, each a finite number; got 1; correct it"),
        (
            "model.scales=[1, true]",
            "--set: model.scales must be a list, each a finite number; got [1, True]; correct it",
        ),
    ],
)
def test_wrong_overrides(tmp_path, override, message):
    with fails(message):
        load_protocol(write_protocol(tmp_path), [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("solver.max_iter=0", "solver.max_iter must be at least 1; got 0; correct it"),
        ("solver.iter_size=-1", "solver.iter_size must be at least 1; got -1; correct it"),
        ("solver.lr_policy=exp", 'solver.lr_policy must be "fixed", "step" or "poly"; got \'exp\'; correct it'),
        ("transform.crop_size=32", "transform.crop_size must be of the form 8k+1; got 32; correct it"),
        ("test.crop_size=1", "test.crop_size must be of the form 8k+1; got 1; correct it"),
        ("model.lr_mult=[1]", "model.lr_mult must have 2 values; got [1]; correct it"),
        ("transform.mean_bgr=[1, 2]", "transform.mean_bgr must have 3 values; got [1, 2]; correct it"),
        (
            "test.batch_size=0",
            "test.batch_size >= 1, 0 < model.width <= 4 and 0 <= model.dropout_ratio < 1 must hold; got 0, 0.03125, 0.5; correct them",
        ),
        (
            "model.width=0",
            "test.batch_size >= 1, 0 < model.width <= 4 and 0 <= model.dropout_ratio < 1 must hold; got 2, 0, 0.5; correct them",
        ),
        (
            "model.dropout_ratio=1",
            "test.batch_size >= 1, 0 < model.width <= 4 and 0 <= model.dropout_ratio < 1 must hold; got 2, 0.03125, 1; correct them",
        ),
    ],
)
def test_values_that_make_no_sense(tmp_path, override, message):
    with fails(f"tiny.toml, row 'baseline': {message}"):
        load_protocol(write_protocol(tmp_path), [override])


def test_crop_for_labels_at_one_sixteenth(tmp_path):
    with fails(
        "tiny.toml, row 'attention3-extra': transform.crop_size must be of the form 16k+1 for labels at 1/16; got 41; correct it"
    ):
        load_protocol(write_protocol(tmp_path), ["transform.crop_size=41"])
    load_protocol(write_protocol(tmp_path), ["transform.crop_size=41", "model.extra_supervision=false"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("gamma = 0.1\n", ""),
            "tiny.toml, row 'baseline': every key must be given; got none for solver.gamma; add to [common.*]",
        ),
        (
            ('merge = "max"', 'merg = "max"'),
            "tiny.toml, row 'max2': a key of model must be known; got model.merg; did you mean 'model.merge'?",
        ),
        (
            ("gamma = 0.1", "gama = 0.1"),
            "tiny.toml: a key of solver must be known; got solver.gama; did you mean 'solver.gamma'?",
        ),
        (
            ("[common.test]", "[common.tset]"),
            "tiny.toml: a section must be one of data, model, weights, transform, solver, test; got 'tset'; did you mean 'test'?",
        ),
        (
            ("paper = 51.91", "paper = 52"),
            "tiny.toml, row 'baseline': paper must be the printed number, with its decimals; got 52; correct it",
        ),
        (
            ('"max2"', '"baseline"'),
            "tiny.toml, row 'baseline': id must be a unique name of letters, digits, - and _; got 'baseline'; correct it",
        ),
        (
            ('"max2"', '"../max2"'),
            "tiny.toml, row '../max2': id must be a unique name of letters, digits, - and _; got '../max2'; correct it",
        ),
        (
            ('id = "max2"', ""),
            "tiny.toml, row None: id must be a unique name of letters, digits, - and _; got None; correct it",
        ),
        (
            ('title = "Tiny"', 'titel = "Tiny"'),
            "tiny.toml: a top-level key must be known; got 'titel'; did you mean 'title'?",
        ),
        (('title = "Tiny"', "title = 3"), "tiny.toml: title must be a string; got 3; correct it"),
        (
            ('"mean_iou"', '"cat"'),
            "tiny.toml, row 'baseline': metric must be \"mean_iou\" or a class name; got 'cat'; correct it",
        ),
        (
            ('id = "max2"', 'id = "max2"\ndata.val_list = "other"'),
            "tiny.toml, row 'max2': all rows must share [common.data]; got another one; make a table of its own for the row",
        ),
    ],
)
def test_wrong_files(tmp_path, change, message):
    with fails(message):
        load_protocol(write_protocol(tmp_path, change))


def test_several_missing_keys_are_all_named(tmp_path):
    with fails(
        "tiny.toml, row 'baseline': every key must be given; got none for solver.gamma, solver.power; add to [common.*]"
    ):
        load_protocol(write_protocol(tmp_path, ("gamma = 0.1\n", ""), ("power = 0.9\n", "")))


def test_a_file_without_rows(tmp_path):
    with fails("tiny.toml: there must be at least one [[row]]; got none; add one"):
        load_protocol(write_protocol(tmp_path, (PROTOCOL[PROTOCOL.index("[[row]]") :], "")))
    with fails("tiny.toml: row must be a list, each a table; got {'id': 'a'}; correct it"):
        load_protocol(write_protocol(tmp_path, (PROTOCOL[PROTOCOL.index("[[row]]") :], '[row]\nid = "a"\n')))


def test_a_file_that_is_not_toml(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("[common\n")
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: must be TOML; got [^\n]*; correct it$"):
        load_protocol(str(path))
    path.write_bytes(b"title = '\xff'")
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: must be TOML; got .*utf-8.*; correct it$"):
        load_protocol(str(path))


def test_unknown_table(tmp_path):
    names = ", ".join(sorted(path.stem for path in PROTOCOLS.glob("*.toml")))
    with fails(f"repro.protocol: a table must be one of {names} or a .toml file; got 'tabel3'; did you mean 'table3'?"):
        load_protocol("tabel3")
    with fails(
        f"repro.protocol: a table must be one of {names} or a .toml file; got '{tmp_path}/none.toml'; correct it"
    ):
        load_protocol(f"{tmp_path}/none.toml")


def test_unknown_row(tmp_path):
    protocol = load_protocol(write_protocol(tmp_path))
    assert protocol.row("max2") is protocol.rows[1]
    with fails("tiny: a row must be one of baseline, max2, attention3-extra; got 'max3'; did you mean 'max2'?"):
        protocol.row("max3")


def test_extends_takes_over_what_the_file_does_not_state(tmp_path, monkeypatch):
    monkeypatch.setattr(protocol_module, "PROTOCOLS", tmp_path)
    write_protocol(tmp_path)
    (tmp_path / "small.toml").write_text(
        'extends = "tiny"\ntitle = "Small"\n[common.solver]\nmax_iter = 2\n[common.synthetic]\nnum_train = 1\nnum_val = 1\nsize = [9, 9]\nseed = 1\n'
    )
    base, small = load_protocol("tiny"), load_protocol("small")
    assert (small.name, small.title, small.source) == ("small", "Small", base.source)
    assert small.synthetic
    assert not base.synthetic
    assert [(row.id, row.paper) for row in small.rows] == [(row.id, row.paper) for row in base.rows]
    for mine, theirs in zip(small.rows, base.rows, strict=True):
        assert mine.settings["solver"] == theirs.settings["solver"] | {"max_iter": 2}
        assert mine.settings["model"] == theirs.settings["model"]
    before = small.sha256
    write_protocol(tmp_path, ("gamma = 0.1", "gamma = 0.2"))
    assert load_protocol("small").sha256 != before
    with (tmp_path / "small.toml").open("a") as file:
        file.write('[[row]]\nid = "own"\nmodel.scales = [1]\nmodel.merge = "none"\nmodel.extra_supervision = false\n')
    assert [(row.id, row.paper) for row in load_protocol("small").rows] == [("own", None)]
    (tmp_path / "lost.toml").write_text('extends = "tinny"\n')
    with fails(
        "repro.protocol: a table must be one of lost, small, tiny or a .toml file; got 'tinny'; did you mean 'tiny'?"
    ):
        load_protocol("lost")


def changed(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [*value, value[0]] if value else [1]
    return value + "x" if isinstance(value, str) else value + 1


def test_fingerprint_changes_with_every_key_that_is_felt(tmp_path):
    settings = load_protocol(write_protocol(tmp_path)).rows[0].settings
    base = settings_sha256(settings)
    for section, keys in SCHEMA.items():
        for key in keys:
            other = settings | {section: settings[section] | {key: changed(settings[section][key])}}
            assert (settings_sha256(other) == base) == (f"{section}.{key}" in UNFELT), f"{section}.{key}"
    assert UNFELT == ("solver.snapshot", "solver.display")
    assert (
        settings_sha256({section: dict(reversed(table.items())) for section, table in reversed(settings.items())})
        == base
    )


def test_protocols_lie_beside_the_package():
    assert Path(protocol_module.__file__).parents[1] / "protocols" == PROTOCOLS

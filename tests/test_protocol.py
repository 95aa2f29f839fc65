"""Protocols: how they resolve, and which files are refused."""

import re
from pathlib import Path

import pytest
from tiny import PROTOCOL, write_protocol

from repro.protocol import PROTOCOLS, load_protocol
from repro.protocol import reading as protocol_module
from repro.protocol.reading import parse_override


def fails(message):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize("path", sorted(PROTOCOLS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_protocol_loads(path):
    protocol = load_protocol(path.stem)
    assert protocol.sha256 == load_protocol(str(path)).sha256
    if protocol.stand_in:
        stand_in = load_protocol(protocol.stand_in)
        assert stand_in.synthetic
        rows = [(row.id, row.paper) for row in protocol.rows]
        assert [(row.id, row.paper) for row in stand_in.rows][: len(rows)] == rows


def test_rows_are_added_to_those_of_the_extended_file(tmp_path):
    write_protocol(tmp_path)
    text = f'extends = "{tmp_path}/tiny.toml"\n{{}}[[row]]\nid = "half"\npaper = 1.50\nmodel.scales = [0.5]\nmodel.merge = "none"\nmodel.extra_supervision = false\n'
    (tmp_path / "more.toml").write_text(text.format("adds_rows = true\n"))
    more = load_protocol(str(tmp_path / "more.toml"))
    assert [(row.id, row.printed) for row in more.rows] == [
        ("baseline", "51.91"),
        ("max2", "52.90"),
        ("attention3-extra", ""),
        ("half", "1.50"),
    ]
    (tmp_path / "other.toml").write_text(text.format(""))
    assert [row.id for row in load_protocol(str(tmp_path / "other.toml")).rows] == ["half"]
    (tmp_path / "wrong.toml").write_text(text.format('adds_rows = "yes"\n'))
    with pytest.raises(ValueError, match=r"wrong.toml: adds_rows must be true or false; got 'yes'; correct it"):
        load_protocol(str(tmp_path / "wrong.toml"))


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
            "tiny.toml, row 'baseline': metric must be \"mean_iou\", a class name or a list of different class names; got 'cat'; correct it",
        ),
        (
            ('source = "nowhere"', 'source = "nowhere"\ntolerance = { evaluate = 0.5 }'),
            "tiny.toml: tolerance must be { evaluate = POINTS, retrain = POINTS }; got {'evaluate': 0.5}; correct it",
        ),
        (
            ('source = "nowhere"', 'source = "nowhere"\ntolerance = { evaluate = 0.5, retrain = -1 }'),
            "tiny.toml: tolerance must be { evaluate = POINTS, retrain = POINTS }; got {'evaluate': 0.5, 'retrain': -1}; correct it",
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


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """Writes protocols that refer to one another: `tables(other="...")` writes other.toml beside tiny.toml."""
    monkeypatch.setattr(protocol_module, "PROTOCOLS", tmp_path)
    write_protocol(tmp_path)

    def write(**files):
        for name, text in files.items():
            (tmp_path / f"{name}.toml").write_text(text)
        return load_protocol("other")

    return write


def test_a_row_that_extends_another_states_only_the_difference(tables):
    text = 'metric = "mean_iou"\n[[row]]\nid = "wide"\nextends = "tiny/attention3-extra"\nmodel.attention_filters = 9\npaper = 1.50\n'
    other = tables(other=text)
    base = load_protocol("tiny").row("attention3-extra")
    (row,) = other.rows
    assert row.settings["model"] == base.settings["model"] | {"attention_filters": 9}
    assert {k: v for k, v in row.settings.items() if k != "model"} == {
        k: v for k, v in base.settings.items() if k != "model"
    }
    assert (row.id, row.paper, row.printed, row.status, row.of) == ("wide", 1.5, "1.50", "run", "")
    assert other.runnable == [row]
    assert not other.view
    (overridden,) = load_protocol("other", ["model.attention_filters=3", "solver.max_iter=2"]).rows
    assert overridden.settings["model"]["attention_filters"] == 3
    assert overridden.settings["solver"]["max_iter"] == 2
    assert base.settings["model"]["attention_filters"] == 512


def test_a_view_shares_the_settings_of_its_rows(tables):
    header = 'title = "View"\nmetric = "ball"\ndataset = "coco"\n'
    view = tables(
        other=f'{header}[[row]]\nid = "a"\nof = "tiny/max2"\n[[row]]\nid = "b"\nof = "tiny/max2"\nmetric = "box"\n'
    )
    base = load_protocol("tiny")
    assert view.view
    assert view.runnable == []
    assert [(row.of, row.metric, row.settings) for row in view.rows] == [
        ("tiny/max2", "ball", base.row("max2").settings),
        ("tiny/max2", "box", base.row("max2").settings),
    ]
    assert (
        load_protocol("other", ["model.width=0.5"]).rows[0].settings
        == load_protocol("tiny", ["model.width=0.5"]).row("max2").settings
    )
    assert not base.view
    assert base.runnable == base.rows


def test_the_fingerprint_covers_what_is_referred_to(tables, tmp_path):
    other = tables(other='[[row]]\nid = "a"\nof = "tiny/max2"\nmetric = "box"\n')
    write_protocol(tmp_path, ("gamma = 0.1", "gamma = 0.2"))
    assert load_protocol("other").sha256 != other.sha256


def test_rows_that_do_not_run_have_facts_alone(tables):
    text = """
dataset = "coco"
tolerance = { evaluate = 0.5, retrain = 1 }
metric = "mean_iou"
[[row]]
id = "crf"
paper = 70.30
status = "planned"
why = "the CRF"
[[row]]
id = "theirs"
paper = 69.8
status = "quoted"
why = "ParseNet"
dataset = "voc2012"
[[row]]
id = "kernel1"
extends = "tiny/max2"
difference = { row = "tiny/baseline", between = [-0.4, 0] }
"""
    other = tables(other=text)
    planned, quoted, run = other.rows
    assert (planned.status, planned.why, planned.paper, planned.printed) == ("planned", "the CRF", 70.3, "70.30")
    assert (planned.settings, planned.dataset, planned.metric) == ({}, "coco", "mean_iou")
    assert (quoted.status, quoted.why, quoted.dataset, quoted.settings) == ("quoted", "ParseNet", "voc2012", {})
    assert (run.status, run.difference, run.paper, run.printed) == ("run", ("tiny/baseline", -0.4, 0), None, "")
    assert other.runnable == [run]
    assert not other.synthetic
    assert (other.dataset, other.tolerance) == ("coco", {"evaluate": 0.5, "retrain": 1})
    tiny = load_protocol("tiny")
    assert (tiny.dataset, tiny.tolerance, tiny.rows[0].dataset) == ("", {}, "")
    changed = load_protocol("other", ["model.width=0.5"])
    assert [row.settings.get("model", {}).get("width") for row in changed.rows] == [None, None, 0.5]


def test_a_row_keeps_its_model_in_a_file_that_extends_its_own(tables):
    head = 'extends = "tiny"\n[common.solver]\nmax_iter = 2\n[common.submission]\nlist = "test"\nnum = 5\n'
    other = tables(other=head + '[[row]]\nid = "max2"\npaper = 1.25\n[[row]]\nid = "baseline"\nmodel.width = 0.5\n')
    base = load_protocol("tiny")
    assert [(row.id, row.paper, row.printed) for row in other.rows] == [("max2", 1.25, "1.25"), ("baseline", None, "")]
    assert other.rows[0].settings["model"] == base.row("max2").settings["model"]
    assert other.rows[1].settings["model"] == base.row("baseline").settings["model"] | {"width": 0.5}
    assert [row.settings["solver"]["max_iter"] for row in other.rows] == [2, 2]
    assert other.rows[0].settings["submission"] == {"list": "test", "num": 5}
    assert "submission" not in base.rows[0].settings


def test_a_chain_of_files(tables):
    middle = 'extends = "tiny"\ntitle = "Middle"\n[common.solver]\ngamma = 0.5\nmax_iter = 2\n'
    other = tables(middle=middle, other='extends = "middle"\n[common.solver]\nmax_iter = 3\n')
    assert [row.id for row in other.rows] == ["baseline", "max2", "attention3-extra"]
    assert [other.rows[0].settings["solver"][key] for key in ("gamma", "max_iter", "momentum")] == [0.5, 3, 0.9]
    assert (other.title, load_protocol("middle").rows[0].settings["solver"]["max_iter"]) == ("Middle", 2)


def test_a_stage_names_a_row_that_is_trained(tables):
    stage = 'extends = "tiny"\n[common.stage]\nprotocol = "first"\nrow = "{}"\n'
    first = 'extends = "tiny"\n[[row]]\nid = "largefov"\nmodel.scales = [1]\nmodel.merge = "none"\nmodel.extra_supervision = false\n'
    other = tables(first=first, other=stage.format("largefov"))
    assert other.rows[0].settings["stage"] == {"protocol": "first", "row": "largefov"}
    with fails("first: a row must be one of largefov; got 'largefow'; did you mean 'largefov'?"):
        tables(other=stage.format("largefow"))
    with fails("other.toml, row 'baseline': every key must be given; got none for stage.row; add to [common.*]"):
        tables(other=stage.replace('row = "{}"\n', ""))


ROW = '[[row]]\nid = "a"\nmetric = "mean_iou"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'{ROW}of = "tiny"\n', "other.toml, row 'a': of must be \"TABLE/ROW\"; got 'tiny'; correct it"),
        (f'{ROW}extends = "tiny/"\n', "other.toml, row 'a': extends must be \"TABLE/ROW\"; got 'tiny/'; correct it"),
        (f'{ROW}of = "other/a"\n', "other.toml, row 'a': of must lead to another file; got 'other/a'; correct it"),
        (f'{ROW}of = "back/b"\n', "back.toml, row 'b': extends must lead to another file; got 'other/a'; correct it"),
        (
            '[[row]]\nid = "a"\nof = "tiny/max2"\nmetric = "cat"\n',
            "other.toml, row 'a': metric must be \"mean_iou\", a class name or a list of different class names; got 'cat'; correct it",
        ),
        (
            f'{ROW}of = "tiny/max3"\n',
            "tiny: a row must be one of baseline, max2, attention3-extra; got 'max3'; did you mean 'max2'?",
        ),
        (
            f'{ROW}extends = "facts/view"\n',
            "other.toml, row 'a': extends must be a row that is trained; got 'facts/view', which shows tiny/max2; correct it",
        ),
        (
            f'{ROW}extends = "tiny/max2"\ndifference = {{ row = "facts/later", between = [0, 0] }}\n',
            "other.toml, row 'a': difference.row must be a row that is trained; got 'facts/later', which is planned; correct it",
        ),
        (
            f'extends = "tiny"\n{ROW}extends = "tiny/max2"\n',
            "other.toml, row 'a': extends must not stand beside [common.*], from which such a row takes nothing; "
            "got common.data, common.model, common.weights, common.transform, common.solver, common.test; drop one",
        ),
        ('extends = "other"\n', "other.toml: extends must not lead back to a file; got 'other' again; correct it"),
        ('extends = "round"\n', "other.toml: extends must not lead back to a file; got 'other' again; correct it"),
    ],
)
def test_wrong_references(tables, text, message):
    facts = 'metric = "mean_iou"\n[[row]]\nid = "view"\nof = "tiny/max2"\n[[row]]\nid = "later"\nstatus = "planned"\nwhy = "x"\n'
    back = 'metric = "mean_iou"\n[[row]]\nid = "b"\nextends = "other/a"\n'
    with fails(message):
        tables(facts=facts, back=back, round='extends = "other"\n', other=text)


def test_protocols_lie_beside_the_package():
    assert Path(protocol_module.__file__).parents[2] / "protocols" == PROTOCOLS

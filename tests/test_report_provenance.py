"""Commands that regenerate numbers, and what protocols and code say of rulings and differences."""

import shlex

import pytest

from repro.protocol import PROTOCOLS, load_protocol
from repro.report.provenance import code_notes, commands, differences_from_caffe, rulings
from repro.run import __main__ as run


@pytest.mark.parametrize(
    ("table", "typed", "seeds", "deviates", "expected"),
    [
        ("demo", "table1", [1], {}, "table1 --row max2"),
        ("demo", "table1", [1, 2, 3], {}, "table1 --row max2 --seeds 3"),
        ("demo", "table1", [2, 3], {"weights": "none"}, "table1 --row max2 --weights none --seed 2 --seeds 2"),
        ("table1", "table1", [], {}, "table1 --row max2 --data-root DIR --weights FILE"),
        ("table1", "table1", [7], {"weights": "none"}, "table1 --row max2 --data-root DIR --weights none --seed 7"),
        (
            "table1",
            "table1",
            [1],
            {"data.num_val": 2, "data.num_train": 3, "precision": "bf16", "weights.file": "a b", "model.scales": [1]},
            "table1 --row max2 --data-root DIR --weights 'a b' --precision bf16 --subset --set 'model.scales=[1]'",
        ),
    ],
)
def test_the_command_of_a_row(table, typed, seeds, deviates, expected):
    records = [{"deviates": deviates}] * len(seeds)
    (line,) = commands(load_protocol(table), "max2", seeds, typed, records)
    assert line == f"python -m repro.run {expected}"
    options = run.parse_arguments(shlex.split(line)[3:])  # the program takes it
    assert options.row == ["max2"]
    assert options.subset is ("data.num_val" in deviates)


def test_seeds_with_a_gap_are_runs_of_their_own():
    found = commands(load_protocol("demo"), "max2", [1, 3], "table1", [{"deviates": {}}])
    assert found == [f"python -m repro.run table1 --row max2 --seed {seed}" for seed in (1, 3)]


def test_rulings_by_hand(tmp_path):
    (tmp_path / "one.toml").write_text(
        "# inferred: nothing, this is the file's header\n"
        'title = "x"\n'
        "[common.model]\n"
        'a = "#"  # inferred: because\n'
        "b = 2  # plain\n"
        "# inferred: a reason on\n"
        "# two lines\n"
        "c = [1, 2]  # and more\n"
        "[[row]]\n"
        'id = "r-1"\n'
        "model.d = 3  # inferred for one row\n"
    )
    (tmp_path / "two.toml").write_text('[common.model]\na = "#"  # inferred: because\na = 5  # inferred: because\n')
    found = rulings(tmp_path)
    assert [(one["key"], one["value"], one["why"], one["files"]) for one in found if one["key"] != ".title"] == [
        ("model.a", '"#"', "because", ["one.toml", "two.toml"]),
        ("model.c", "[1, 2]", "a reason on two lines", ["one.toml"]),
        ("row r-1, model.d", "3", "for one row", ["one.toml"]),
        ("model.a", "5", "because", ["two.toml"]),
    ]


def test_every_mark_in_the_protocols_is_listed():
    marks = sum(path.read_text().count("# inferred") for path in PROTOCOLS.glob("*.toml"))
    assert sum(len(one["files"]) for one in rulings()) == marks > 5


def test_what_code_says(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "a.py").write_text(
        '"""A module.\n\nDeviates: of the module.\n"""\n\n\ndef f():\n    """Does.\n\n    Caffe: somewhere.\n    Deviates: over\n    two lines.\n    Paper: no rule; inferred.\n    """\n'
    )
    assert code_notes(package, "Deviates:") == [
        {"where": "package/a.py", "text": "of the module."},
        {"where": "package/a.py, f", "text": "over two lines."},
    ]
    assert code_notes(package, "Paper:", "inferred") == [{"where": "package/a.py, f", "text": "no rule; inferred."}]
    assert code_notes(package, "Paper:", "measured") == []


def test_the_readmes_differences(tmp_path):
    readme = tmp_path / "README.md"
    assert differences_from_caffe(readme) == []
    readme.write_text(
        "# T\n\n- no\n\n## Differences from Caffe\n\nIntro.\n\n- One,\n  still one.\n- Two.\n\nOutro.\n\n## Next\n\n- no\n"
    )
    assert differences_from_caffe(readme) == ["One, still one.", "Two."]
    assert len(differences_from_caffe()) >= 5

"""The schema of protocols: which keys and values are refused, and with what words; and that a fingerprint feels every key."""

import re

import pytest
from tiny import CRF, DT, FILL, MSC, write_protocol

from repro.protocol import UNFELT, load_protocol, settings_sha256
from repro.protocol.bounds import BOUNDS
from repro.protocol.schema import GROUPS, NUMBER, OPTIONAL, SCHEMA


def fails(message):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


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
        ("solver.max_iter=-1", "solver.max_iter must be within 0 and 2147483647; got -1; correct it"),
        ("solver.batch_size=0", "solver.batch_size must be within 1 and 65536; got 0; correct it"),
        ("solver.iter_size=-1", "solver.iter_size must be within 1 and 65536; got -1; correct it"),
        ("solver.lr_policy=exp", 'solver.lr_policy must be "fixed", "step" or "poly"; got \'exp\'; correct it'),
        ("transform.crop_size=32", "transform.crop_size must be of the form 8k+1; got 32; correct it"),
        ("test.crop_size=1", "test.crop_size must be within 9 and 8193; got 1; correct it"),
        ("model.lr_mult=[1]", "model.lr_mult must have 2 values; got [1]; correct it"),
        ("transform.mean_bgr=[1, 2]", "transform.mean_bgr must have 3 values; got [1, 2]; correct it"),
        ("test.batch_size=0", "test.batch_size must be within 1 and 65536; got 0; correct it"),
        ("model.width=0", "model.width must be within 0.0009765625 and 4; got 0; correct it"),
        ("model.dropout_ratio=1", "model.dropout_ratio must be within 0 and 0.999; got 1; correct it"),
        ("model.attention_kernel=2", "model.attention_kernel must be odd; got 2; correct it"),
        ('data.class_names=["a", "b", "a"]', "data.class_names must differ; got 'a' twice; rename one"),
        ("data.class_names=[]", "data.class_names must be 1 to 256 names; got 0; correct it"),
        ('data.class_names=["a", " "]', "data.class_names must be 1 to 256 names; got 2; correct it"),
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
    ("facts", "message"),
    [
        ('status = "runs"', "status must be one of run, planned, quoted; got 'runs'; did you mean 'run'?"),
        ("why = 3", "why must be a string; got 3; correct it"),
        ("metric = true", "metric must be a string or a list, each a string; got True; correct it"),
        ('status = "planned"', "a planned row must say why; got nothing; state what is missing in `why`"),
        ('status = "quoted"\npaper = 1.0', "a quoted row must say why; got nothing; state whose number it is in `why`"),
        ('status = "quoted"\nwhy = "x"', "a quoted row must have a number; got none; give `paper`"),
        (
            'status = "planned"\nwhy = "x"\nof = "table1/max2"\nsolver.gamma = 1',
            "a planned row must have no settings; got of, solver; drop them",
        ),
        (
            'of = "table1/max2"\nsolver.gamma = 1',
            "a row that shows another's records must have no settings; got solver; drop them",
        ),
        (
            'of = "table1/max2"\nextends = "table1/max2"',
            "a row that shows another's records must have no settings; got extends; drop them",
        ),
        (
            'difference = { row = "table1/max2" }',
            "difference must be { row = \"TABLE/ROW\", between = [low, high] }; got {'row': 'table1/max2'}; correct it",
        ),
        (
            'difference = { row = "table1/max2", between = [1, 0] }',
            "difference must be { row = \"TABLE/ROW\", between = [low, high] }; got {'row': 'table1/max2', 'between': [1, 0]}; correct it",
        ),
        (
            'difference = { row = "table1/max2", between = [1] }',
            "difference must be { row = \"TABLE/ROW\", between = [low, high] }; got {'row': 'table1/max2', 'between': [1]}; correct it",
        ),
        (
            'wy = "x"',
            "a section must be one of data, model, weights, transform, solver, test; got 'wy'; did you mean 'why'?",
        ),
    ],
)
def test_facts_of_a_row_that_do_not_fit(tmp_path, facts, message):
    path = write_protocol(tmp_path)
    with open(path, "a") as file:
        file.write(f'[[row]]\nid = "own"\n{facts}\n')
    with fails(f"tiny.toml, row 'own': {message}"):
        load_protocol(path)


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


def every_key():
    """Lists the sections with all keys that any row may have."""
    model = {key: kind for keys in (SCHEMA["model"], *GROUPS.values()) for key, kind in keys.items()}
    return SCHEMA | OPTIONAL | {"model": model}


EVERY_NUMBER = [(section, key) for section in set(BOUNDS) - {"synthetic", "submission"} for key in BOUNDS[section]]


@pytest.mark.parametrize("value", ["-1e9", "1e39", "9" * 400, "-" + "9" * 400])
@pytest.mark.parametrize(("section", "key"), sorted(EVERY_NUMBER))
def test_no_number_is_without_bounds(tmp_path, section, key, value):
    kind, path = every_key()[section][key], write_protocol(tmp_path, CRF, MSC, DT, FILL)
    if isinstance(kind, list):
        value = "[" + ", ".join([value] * len(load_protocol(path).rows[0].settings[section][key])) + "]"
    elif kind is int and "e" in value:
        value = str(int(float(value)))
    with pytest.raises(
        ValueError, match=rf"^tiny\.toml, row 'baseline': {section}\.{key} must be (within|a finite|a list)"
    ) as caught:
        load_protocol(path, [f"{section}.{key}={value}"])
    assert len(str(caught.value)) < 600


def test_every_number_of_the_schema_has_bounds():
    numbers = {
        (section, key)
        for section, keys in every_key().items()
        for key, kind in keys.items()
        if kind in (int, NUMBER, [int], [NUMBER])
    }
    assert numbers - {("model", "scales")} == {(section, key) for section, keys in BOUNDS.items() for key in keys}


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../b", "", "a//../b", ".", "a\\..", "a b"])
@pytest.mark.parametrize("key", ["data.images", "data.labels", "weights.file"])
def test_paths_stay_below_the_data_root(tmp_path, key, path):
    with pytest.raises(ValueError, match=rf"^tiny\.toml, row 'baseline', {key}: a name must be one word"):
        load_protocol(write_protocol(tmp_path), [f'{key}="{path}"'.replace("\\", "\\\\")])


@pytest.mark.parametrize("name", ["../table1", "/table1", "a b", "..", ".hidden/x"])
def test_names_of_tables_stay_among_the_protocols(name):
    with pytest.raises(ValueError, match=r"^repro\.protocol, a table's name: a name must be one word"):
        load_protocol(name)

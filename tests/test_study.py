"""The page of a study: the rule's choice, its tables, and the kept study, whose page must be what the program writes."""

import json
import shutil

import pytest
from record_cases import record, stamped

from repro.protocol import PROTOCOLS, load_protocol, settings_sha256
from repro.records.store import record_path, write_record
from repro.records.study import read_study
from repro.report import study

KEPT = PROTOCOLS / "studies" / "demo_regime"
ROWS = ("average3", "average3-extra", "attention3", "attention3-extra")


def run_of(out, values, seed=1, **changes):
    """Writes records of the study's rows, with a regime of their own."""
    for row, value in zip(ROWS, values, strict=True):
        made = record("demo", row, value, seed, deviates={key.replace("__", "."): v for key, v in changes.items()})
        write_record(record_path(out, "demo", row, seed), stamped(made))


@pytest.fixture
def folder(tmp_path):
    """A study of three regimes: the first, a better one, and the best, which costs too much."""
    folder = tmp_path / "study"
    folder.mkdir()
    shutil.copy(KEPT / "study.toml", folder)
    first = load_protocol("demo").row("average3").settings
    shape = first["transform"]["crop_size"], first["solver"]["batch_size"]
    results = [
        {"crop_size": crop, "batch_size": batch, "cpu_ms": ms} for crop, batch, ms in ((*shape, 100.0), (41, 2, 50.0))
    ]
    made = {"format": 1, "device_name": "A processor", "threads": 1, "versions": {"torch": "2.13.0"}}
    (folder / "cost.json").write_text(json.dumps(made | {"rounds": 3, "row": "demo/average3", "results": results}))
    norms = {"merged": 2.0, "all": 7.0}
    trained = {"settings_sha256": settings_sha256(load_protocol("demo").row("average3-extra").settings)}
    one = trained | {"row": "average3-extra", "seed": 1, "value": 42.0, "alone": {"1": 40.0, "0.5": 30.0}}
    branches = [one | {"gradient_at_start": norms, "gradient_at_end": norms}]
    (folder / "branches.json").write_text(json.dumps(made | {"batches": 5, "results": branches}))
    length = first["solver"]["max_iter"]
    run_of(tmp_path / "a", (40.0, 41.0, 42.0, 41.0))
    short = {"transform__crop_size": 41, "solver__batch_size": 2}
    run_of(tmp_path / "b", (41.0, 42.0, 42.5, 43.5), **short, solver__max_iter=2 * length)
    run_of(tmp_path / "b2", (42.0, 41.0, 43.5, 44.5), seed=2, **short, solver__max_iter=2 * length)
    run_of(tmp_path / "c", (51.0, 52.0, 52.0, 53.0), **short, solver__max_iter=3 * length)
    assert study.main([str(folder), "--add", *(str(tmp_path / name) for name in ("a", "b", "b2", "c"))]) == 0
    return folder


def lines_of(folder, start):
    return [line for line in (folder / study.PAGE).read_text().splitlines() if line.startswith(start)]


def test_the_rule_takes_the_best_mean_within_the_cost(folder):
    table = [line.strip("| ").split(" | ") for line in lines_of(folder, "| ") if line.count("|") == 13]
    head, first, chosen, dear = (line for line in table if not line[0].startswith(":"))
    assert head[4:10] == ["cost", *ROWS, "mean"]
    assert first[4:] == [
        "1.00",
        "40.00",
        "41.00",
        "42.00",
        "41.00",
        "41.00",
        "1 of 2 (+1.00, −1.00)",
        "1 of 2 (+2.00, +0.00)",
    ]
    assert chosen[2:6] == ["**2**", "**41**", "**1.00**", "**41.00**"]  # half the cost an iteration, twice as many
    (line,) = lines_of(folder, "Over the 2 regimes")
    assert "extra supervision helps: 3 of 4 pairs, mean difference +0.50;" in line  # 1, −1, 1 and 1
    assert dear[4:6] == ["1.50", "51.00"]  # better, but beyond the limit of cost


def test_seeds_branches_and_gradients_stand_in_their_tables(folder):
    (mean,) = lines_of(folder, "| mean ±")
    assert mean.split(" | ")[1:] == [
        "41.50 ± 0.71",
        "41.50 ± 0.71",
        "43.00 ± 0.71",
        "44.00 ± 0.71",
        "1 of 2 (+0.00, +1.00)",
        "2 of 2 (+1.50, +2.50) |",
    ]
    branch, gradient = lines_of(folder, "| average3-extra, seed 1")
    assert branch == "| average3-extra, seed 1 | 42.00 | 40.00 | 30.00 |"
    assert gradient == "| average3-extra, seed 1 | 2 | 7 | 3.50 | 2 | 7 | 3.50 |"


def test_the_same_records_are_kept_once(folder, tmp_path):
    before = (folder / "trials.json").read_text()
    assert study.main([str(folder), "--add", str(tmp_path / "a")]) == 0
    assert (folder / "trials.json").read_text() == before


def test_a_stale_page_is_found(folder, capsys):
    assert study.main([str(folder), "--check"]) == 0
    (folder / study.PAGE).write_text("other")
    assert study.main([str(folder), "--check"]) == 1
    assert "the page is stale; run python -m repro.report.study" in capsys.readouterr().err
    assert (folder / study.PAGE).read_text() == "other"


def spoil_branches(folder):
    path = folder / "branches.json"
    path.write_text(path.read_text().replace('"settings_sha256": "', '"settings_sha256": "0'))


def spoil_costs(folder):
    path = folder / "cost.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"results": document["results"][:1]}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "study.toml").write_text("="), "study.toml: must be TOML; got "),
        (
            lambda folder: (folder / "study.toml").write_text("title = ''"),
            "study.toml: must have exactly the known keys; got a difference in cost_limit, found,",
        ),
        (lambda folder: (folder / "cost.json").write_text("{"), "cost.json: must be part of a study; got damaged: "),
        (
            spoil_branches,
            "branches.json: must be of rows of one regime that was tried; got rows of none, or of several; measure",
        ),
        (
            spoil_costs,
            "cost.json: must have the cost of every crop and batch that was tried; got none of [(41, 2)]; measure",
        ),
    ],
)
def test_unusable_files_are_named(folder, spoil, message, capsys):
    spoil(folder)
    assert study.main([str(folder), "--check"]) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_record_is_named(folder, tmp_path, capsys):
    path = record_path(tmp_path / "a", "demo", "average3", 1)
    path.write_text("{")
    assert study.main([str(folder), "--add", str(tmp_path / "a")]) == 2
    assert f"{path}: must be a record of a run; got damaged" in capsys.readouterr().err


def test_a_study_of_one_row_counts_pixels_and_makes_no_claim(folder, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    text = (folder / "study.toml").read_text().replace(f"rows = {json.dumps(ROWS)}", 'rows = ["average3"]')
    (alone / "study.toml").write_text(text)
    assert study.main([str(alone), "--add", *(str(tmp_path / name) for name in ("a", "b", "c"))]) == 0
    first = load_protocol("demo").row("average3").settings
    pixels = first["solver"]["batch_size"] * first["transform"]["crop_size"] ** 2
    cost = {name: f"{times * 2 * 41**2 / pixels:.2f}" for name, times in (("b", 2), ("c", 3))}
    table = [line.strip("| ").replace("*", "").split(" | ") for line in lines_of(alone, "| ")]
    assert [line[4:] for line in table if line[0] != ":--"] == [
        ["cost", "average3"],
        ["1.00", "40.00"],
        [cost["b"], "41.00"],
        [cost["c"], "51.00"],
    ]
    page = (alone / study.PAGE).read_text()
    assert "- Cost: iterations times the pixels of a batch.\n" in page
    assert "## Every scale" not in page
    assert "Over the" not in page


@pytest.mark.parametrize("kept", sorted(PROTOCOLS.glob("studies/*/study.toml")), ids=lambda path: path.parent.name)
def test_the_kept_page_is_what_the_program_writes(kept):
    assert study.main([str(kept.parent), "--check"]) == 0


@pytest.mark.parametrize("name", ["scale_model_rate", "scale_model_rows"])
def test_the_scale_models_protocols_hold_what_their_studies_chose(name):
    found = read_study(PROTOCOLS / "studies" / name)
    settings = found.protocol.row(found.text["rows"][0]).settings
    assert found.chosen.base_lr == settings["solver"]["base_lr"]
    assert found.chosen.shape == (settings["transform"]["crop_size"], settings["solver"]["batch_size"])

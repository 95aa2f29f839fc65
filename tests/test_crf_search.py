"""The search for a CRF's keys: each setting's value is the row's own, a stopped search goes on, and what it writes can be used as it is."""

import json
import re
import shutil
import signal

import pytest
import torch
from matplotlib import colors
from tiny import CRF, CRF_KEYS, DT, items_of, main, run_command, write_protocol

from repro.charts.crf_search import crf_search as chart
from repro.evaluate import kept
from repro.evaluate.labels import label_maps
from repro.models import build
from repro.protocol import load_protocol
from repro.records.store import BEFORE_CRF, read_record, record_path
from repro.run import crf_search
from repro.run.plan import Plan

ROW = "baseline"
GRID = [
    "--bi-w",
    "4,1",
    "--bi-xy-std",
    "20",
    "--bi-rgb-std",
    "5,60",
    "--max-iter",
    "3",
]  # the row's own setting among them


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ran")
    command = run_command(folder)
    write_protocol(folder, CRF)
    more = ["--row", ROW, "--set", "solver.max_iter=2", "--set", "solver.base_lr=0.0"]
    assert main([*command, *more]) == 0
    return folder


@pytest.fixture
def command(ran):
    fixed = [
        f"{ran}/tiny.toml",
        "--row",
        ROW,
        "--data-root",
        f"{ran}/data",
        "--out",
        f"{ran}/out",
        "--device",
        "cpu",
    ]
    yield [*fixed, "--workers", "2"]
    shutil.rmtree(place(ran), ignore_errors=True)


def place(ran):
    return record_path(ran / "out", "tiny", ROW, 1).parent / "crf-search"


def results(ran):
    return json.loads((place(ran) / "search.json").read_text())


def without_seconds(document):
    for one in (*document["tried"], document["best"]):
        assert one.pop("seconds") > 0
    return document


def test_values_are_the_rows_own(ran, command, capsys):
    record = read_record(record_path(ran / "out", "tiny", ROW, 1))
    assert crf_search.main([*command, *GRID]) == 0
    out, err = capsys.readouterr()
    found = results(ran)
    values = {(one["crf"]["bi_w"], one["crf"]["bi_rgb_std"]): one["value"] for one in found["tried"]}
    assert list(values) == [(4, 5), (4, 60), (1, 5), (1, 60)]
    assert len(set(values.values())) > 1
    assert values[4, 5] == record["value"]
    assert found["before_crf"] == record[BEFORE_CRF]["value"]
    assert found["images"] == ["val0", "val1", "val2"]
    assert found["best"]["value"] == max(values.values())
    assert "[1/4] bi_w 4, bi_xy_std 20, bi_rgb_std 5: " in err
    head, columns, *lines = out.splitlines()
    assert head == "tiny baseline, seed 1: 3 images; mean IoU, percent; by bi_xy_std; pos_w 3, pos_xy_std 3, max_iter 3"
    assert columns.split() == ["bi_w", "bi_rgb_std", "20"]
    shown = {tuple(map(float, line.split()[:2])): line.split()[2] for line in lines[:4]}
    best = tuple(found["best"]["crf"][key] for key in ("bi_w", "bi_rgb_std"))
    assert shown == {key: f"{value:.2f}{'*' if key == best else ''}" for key, value in values.items()}
    assert (place(ran) / "table.txt").read_text().splitlines() == out.splitlines()[:-1]
    assert {path.name for path in place(ran).iterdir() if path.is_file()} >= {"search.svg", "search.png", "crf.toml"}

    # What was chosen, as a piece of protocol and as options.
    (ran / "chosen.toml").write_text(f'extends = "{ran}/tiny.toml"\n{(place(ran) / "crf.toml").read_text()}')
    assert load_protocol(f"{ran}/chosen.toml").row(ROW).settings["crf"] == found["best"]["crf"]
    line = next(line for line in lines if line.startswith("without a CRF "))
    assert line.startswith(f"without a CRF {found['before_crf']:.2f}; best* {found['best']['value']:.2f}: --set crf.")
    sets = re.findall(r"--set (\S+)", line)
    write_protocol(ran, name="plain")
    assert Plan([f"{ran}/plain.toml"], [ROW], [1], sets).jobs[0].row.settings["crf"] == found["best"]["crf"]


def test_a_stopped_search_goes_on(ran, command, capsys, monkeypatch):
    assert crf_search.main([*command, *GRID]) == 0
    whole, plot = without_seconds(results(ran)), (place(ran) / "search.png").read_bytes()
    shutil.rmtree(place(ran))
    capsys.readouterr()

    real, measured = crf_search.keep_outputs, []

    def one_image(network, items, settings, compute, folder, progress):
        def stop(images):
            signal.raise_signal(signal.SIGTERM)

        real(network, items, settings | {"test": settings["test"] | {"batch_size": 1}}, compute, folder, stop)

    monkeypatch.setattr(crf_search, "keep_outputs", one_image)
    assert crf_search.main([*command, *GRID]) == 130
    assert "interrupted; the same command goes on where it stopped" in capsys.readouterr().err
    assert len(list(place(ran).glob("scores-*/*.pt"))) == 1
    monkeypatch.setattr(crf_search, "keep_outputs", real)

    measure = crf_search.Search.measured

    def stop_in_the_third(self, crf):
        measured.append(crf)
        if len([one for one in measured if one]) == 3:
            signal.raise_signal(signal.SIGINT)
        return measure(self, crf)

    monkeypatch.setattr(crf_search.Search, "measured", stop_in_the_third)
    assert crf_search.main([*command, *GRID]) == 130
    assert len(results(ran)["tried"]) == 2
    capsys.readouterr()

    def no_network(*arguments):
        raise AssertionError("the scores are kept")

    monkeypatch.setattr(crf_search.Search, "measured", lambda self, crf: (measured.append(crf), measure(self, crf))[1])
    monkeypatch.setattr(kept, "padded_batches", lambda items, *_: no_network() if items else [])
    measured.clear()
    assert crf_search.main([*command, *GRID]) == 0
    assert [(one["bi_w"], one["bi_rgb_std"]) for one in measured] == [(1, 5), (1, 60)]
    assert "[2/4] bi_w 4, bi_xy_std 20, bi_rgb_std 60: " in (err := capsys.readouterr().err)
    assert err.count("tried before") == 2
    assert without_seconds(results(ran)) == whole
    assert (place(ran) / "search.png").read_bytes() == plot
    # A larger grid keeps what was tried; fewer workers give the same values.
    measured.clear()
    assert crf_search.main([*command, *GRID, "--bi-w", "4,1,2", "--workers", "0"]) == 0
    assert [(one["bi_w"], one["bi_rgb_std"]) for one in measured] == [(2, 5), (2, 60)]


def test_fewer_images_are_evenly_drawn(ran, command):
    assert crf_search.main([*command, *GRID, "--images", "2"]) == 0
    assert results(ran)["images"] == ["val0", "val1"]
    assert crf_search.drawn(list("abcdefghij"), 3) == ["a", "d", "g"]
    assert crf_search.drawn(list("ab"), 100) == ["a", "b"]


def test_the_authors_grid_is_the_default():
    options = crf_search.parse_arguments(["table3", "--row", "baseline", "--data-root", "x"])
    grid = crf_search.settings_of_grid(options)
    assert len(grid) == 4 * 8 * 4
    assert grid[0] == {"max_iter": 10, "pos_w": 3, "pos_xy_std": 3, "bi_w": 3, "bi_xy_std": 30, "bi_rgb_std": 3}
    assert grid[-1] == grid[0] | {"bi_w": 6, "bi_xy_std": 100, "bi_rgb_std": 6}
    assert options.images == 100


def test_it_refuses_what_is_another_search(ran, command, capsys):
    assert crf_search.main([*command, *GRID, "--images", "2"]) == 0
    capsys.readouterr()
    assert crf_search.main([*command, *GRID]) == 2
    folder = place(ran)
    message = f"error: {folder}/search.json: must be of this very network and these images; got another search; delete "
    assert capsys.readouterr().err.startswith(message)
    (output, *_) = folder.glob("scores-*/*.pt")
    content = output.read_bytes()
    output.write_bytes(content[: len(content) // 2])
    assert crf_search.main([*command, *GRID, "--images", "2", "--bi-w", "6"]) == 2
    assert f"error: {output}: must be a network's output as it was kept; got " in capsys.readouterr().err
    (folder / "search.json").write_text("{")
    assert crf_search.main([*command, *GRID, "--images", "2"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {folder}/search.json: must be a search's results; got ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bi-w", "3,-1"], "--bi-w: must be within 0 and 10000.0; got -1; correct it"),
        (["--max-iter", "2.5"], "--max-iter: must be an integer within 1 and 1000; got 2.5; correct it"),
        (["--pos-w", "3,4"], "--pos-w: must be one number; got [3, 4]; leave one"),
        (["--images", "0"], "--images, --workers: must be at least 1, and 0..1024; got 0, 2; correct them"),
        (
            ["--seed", "7"],
            "{ran}/out/tiny/baseline-seed7/record.json: must be the record of a trained row; got no such file; run ",
        ),
    ],
)
def test_what_it_refuses(ran, command, capsys, arguments, message):
    assert crf_search.main([*command, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message.format(ran=ran)}")


def test_what_is_no_list(command, capsys):
    with pytest.raises(SystemExit):
        crf_search.main([*command, "--bi-w", "3;4"])
    assert "must be numbers with commas between them, such as 3,4,5; got '3;4'" in capsys.readouterr().err


def test_images_that_are_tried_at_once_share_the_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for workers, threads in ((0, 4), (1, 4), (2, 2), (9, 1)):
            with crf_search.shared_threads(workers):
                assert torch.get_num_threads() == threads
            assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_it_is_a_command_of_the_runner(capsys):
    with pytest.raises(SystemExit):
        main(["crf-search", "--help"])
    assert "python -m repro.run crf-search" in capsys.readouterr().out


def test_the_plot_shows_every_value():
    grid = [
        CRF_KEYS | {"bi_w": w, "bi_xy_std": xy, "bi_rgb_std": rgb}
        for w in (3, 4)
        for xy in (50, 30)
        for rgb in (3, 5, 6)
    ]
    tried = [{"crf": crf, "value": 50.0 + number} for number, crf in enumerate(grid)]
    axes = [one for one in chart(tried, 49.0, "mean IoU", "A title").axes if one.get_visible()]
    assert [one.get_title(loc="left") for one in axes] == ["bi_rgb_std 3", "bi_rgb_std 5", "bi_rgb_std 6"]
    for rgb, panel in zip((3, 5, 6), axes, strict=True):
        before, *lines = panel.get_lines()
        assert set(before.get_ydata()) == {49.0}
        for weight, line in zip((3, 4), lines, strict=True):
            expected = {
                one["crf"]["bi_xy_std"]: one["value"]
                for one in tried
                if (one["crf"]["bi_w"], one["crf"]["bi_rgb_std"]) == (weight, rgb)
            }
            assert dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) == expected
            assert list(line.get_xdata()) == [30, 50]
            assert line.get_label() == f"bi_w {weight}"
    assert colors.to_hex(axes[0].get_lines()[1].get_color()) != colors.to_hex(axes[0].get_lines()[2].get_color())


def test_an_output_is_kept_as_it_was(ran, command):
    """Attention weights and the edge map of a domain transform too."""

    settings = load_protocol(write_protocol(ran, CRF, DT, name="filtered")).row("attention3-extra").settings
    network, compute = build(settings["model"], 3, seed=1), crf_search.Compute(torch.device("cpu"))
    items = items_of(ran / "data", "val")
    kept.keep_outputs(network, items, settings, compute, place(ran) / "scores-x")
    for batch in label_maps(network, items, settings, compute):
        for one in batch:
            labels, before, label = kept.kept_labels(one.image.item, settings, place(ran) / "scores-x", compute.device)
            assert torch.equal(labels, one.labels)
            assert torch.equal(before, one.before_crf)
            assert torch.equal(label, one.image.label)

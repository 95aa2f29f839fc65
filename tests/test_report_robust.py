"""One bad item never ends a report: it is listed under "not used" with its reason, and the rest is shown."""

import json
import os
import struct
import zlib

import html5lib
import pytest
import report_cases as cases
from PIL import Image
from record_cases import stamped

from repro.files import json_text
from repro.records.store import record_path
from repro.report import __main__ as report
from repro.report.collect import collect
from repro.report.data import build
from repro.report.pictures import read_picture
from repro.report.readme import BEGIN, END


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A run's folder with one good record."""
    cases.write_protocols(tmp_path / "protocols", monkeypatch)
    cases.write(tmp_path / "runs", "demo", "baseline", 40.0)
    return tmp_path / "runs"


def made(runs):
    """Makes the report, which must come without a warning; returns report.json."""
    assert report.main(["--runs", str(runs), "--out", str(runs / "report")]) == 0
    html = (runs / "report" / "report.html").read_text(encoding="utf-8")
    html5lib.HTMLParser(strict=True).parse(html)
    document = json.loads((runs / "report" / "report.json").read_text())
    assert all(
        one["reason"] in (runs / "report" / "report.md").read_text().replace("\\", "") for one in document["not_used"]
    )
    return document


def document_of(runs):
    """Makes the document behind a report, which can be written as JSON."""
    data = build(collect([runs]), runs / "report")
    json_text(data).encode()
    return data


def spoiled(value, path, text):
    """Writes JSON in which one value, found by its keys, is text that json.dumps would not write."""
    *parents, last = path
    document = json.loads(json.dumps(value))
    at = document
    for key in parents:
        at = at[key]
    assert last in at if isinstance(at, dict) else True
    at[last] = "@"
    return json.dumps(document).replace('"@"', text, 1)


BAD = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e308",
    "1e299",
    '"\\ud800"',
    "[1]",
    "{}",
    "null",
    '"text"',
    "true",
    "-1",
    "1" + "0" * 400,
]
PATHS = [
    ("value",),
    ("seed",),
    ("loss_curve", 0),
    ("loss_curve",),
    ("per_class", "box"),
    ("per_class",),
    ("confusion", 0, 0),
    ("confusion", 0),
    ("confusion",),
    ("n_images",),
    ("deviates",),
    ("run", "seconds"),
    ("run", "versions"),
    ("run", "git"),
    ("settings", "data", "class_names"),
    ("settings", "solver"),
    ("provenance",),
    ("table",),
    ("row",),
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: "-".join(map(str, path)))
def test_a_record_spoiled_in_any_way(runs, path):
    written = {}
    for number, bad in enumerate(BAD):
        file = runs / "demo" / f"bad{number}-seed1" / "record.json"
        file.parent.mkdir(parents=True)
        file.write_text(spoiled(cases.record("demo", "max2", 41.0), path, bad))
        written[str(file)] = bad
    document = document_of(runs)
    left_out = {one["file"]: one["reason"] for one in document["not_used"]}
    assert document["records"] in (1, 2)  # a few are good: a loss of -1, an empty table of versions
    assert set(left_out) <= set(written)
    for file, bad in written.items():
        if bad in ("NaN", "Infinity", "-Infinity", "1e308", "1e299", '"\\ud800"'):
            assert left_out[file].startswith("damaged: "), (file, bad)


def test_records_that_are_no_regular_files_and_names_that_are_no_text(runs):
    folder = runs / "demo"
    for name in ("pipe", "device", "directory"):
        (folder / name).mkdir()
    os.mkfifo(folder / "pipe" / "record.json")
    (folder / "device" / "record.json").symlink_to("/dev/zero")
    (folder / "directory" / "record.json").mkdir()
    wild = os.fsdecode(os.fsencode(folder) + b"/\xff\x01-seed1")
    os.mkdir(wild)
    with open(wild + "/record.json", "w") as file:
        file.write("{")
    document = made(runs)
    assert document["records"] == 1
    assert {one["file"].removeprefix(f"{folder}/"): one["reason"] for one in document["not_used"]} == {
        "device/record.json": "damaged: no regular file",
        "directory/record.json": "damaged: Is a directory",
        "pipe/record.json": "damaged: no regular file",
        "\\xff\x01-seed1/record.json": "damaged: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
    }


def test_a_record_of_extremes_is_shown(runs):
    made_ = cases.record("demo", "max2", 41.0, loss_curve=[1e30, 0.0, -1e30] * 300, n_images=2**62)
    names = ["a\0b\x1f\n" * 50, "\U0001f600 \u5b57", "\ufffe"]
    made_["settings"]["data"]["class_names"] = names
    made_["per_class"] = dict.fromkeys(names, 100.0)
    made_["settings"]["solver"] |= {"batch_size": 10**20, "base_lr": 1e30, "gamma": -1e30, "stepsize": 0.3}
    made_["deviates"] = {"solver.base_lr": 1e30, "data.class_names": names}
    made_["confusion"] = [[2**62] * 3] * 3
    made_["run"] |= {"seconds": 1e30, "train_seconds": 1e-30}
    made_["note"] = "\0"
    path = record_path(runs, "demo", "max2", 1)
    path.parent.mkdir()
    path.write_text(json.dumps(stamped(made_)))
    assert made(runs)["records"] == 2


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, data=b""):
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + data + chunk(b"IEND", b"")


def cut(folder):
    Image.effect_noise((64, 64), 90).save(folder / "whole.png")
    return (folder / "whole.png").read_bytes()[:-900]


TOO_LARGE = "more than a page can show"
PICTURES = {
    "text": (lambda _: b"no picture", "no PNG"),
    "empty": (lambda _: b"", "no PNG"),
    "jpeg": (lambda _: b"\xff\xd8\xff\xe0" + bytes(40), "no PNG"),
    "cut": (cut, "no whole PNG: "),
    "no data": (lambda _: png(8, 8), "no whole PNG: "),
    "nonsense": (lambda _: png(8, 8, chunk(b"IDAT", b"nonsense")), "no whole PNG: "),
    "no size": (lambda _: png(0, 0, chunk(b"IDAT", zlib.compress(b""))), "no whole PNG: "),
    "too wide for WebP": (lambda _: png(16384, 1, chunk(b"IDAT", zlib.compress(bytes(16385)))), TOO_LARGE),
    "bomb": (lambda _: png(16000, 16000, chunk(b"IDAT", zlib.compress(bytes(16001 * 16000)))), TOO_LARGE),
    "bomb that lies": (lambda _: png(2**31 - 1, 2**31 - 1), TOO_LARGE),
    "bomb of text": (lambda _: png(1, 1, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 27)))), "no whole PNG: "),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_no_page_can_show(runs, tmp_path, name):
    make, reason = PICTURES[name]
    index = cases.write_figures(runs)
    (index.parent / "one.png").write_bytes(make(tmp_path))
    document = document_of(runs)
    (left_out,) = document["not_used"]
    assert left_out["file"] == str(index)
    assert left_out["reason"].startswith("damaged: figure 0: one.png: ")
    assert reason in left_out["reason"]
    figures = next(table for table in document["tables"] if table["name"] == "demo")["figures"]
    assert [one["kind"] for one in figures["figures"]] == ["gallery"]  # the other is shown


def test_the_largest_picture_that_a_page_can_show(tmp_path):
    path = tmp_path / "wide.png"
    path.write_bytes(png(16383, 1, chunk(b"IDAT", zlib.compress(bytes(16384)))))
    picture = read_picture(path)
    picture.save(tmp_path / "wide.webp")
    assert picture.size == (16383, 1)


FIGURES = [
    ({"figures": "many"}, "damaged: figures and attention_by_size must be lists of at most 1000"),
    ({"figures": [{}] * 1001}, "damaged: figures and attention_by_size must be lists of at most 1000"),
    ({"table": ["demo"]}, "damaged: table, rule and note must be text"),
    ({"note": ["drawn"]}, "damaged: table, rule and note must be text"),
    ({"records": ["0"]}, "damaged: records must be a table of fingerprints"),
    ({"format": 2}, "newer: list of figures of format 2; this program reads 1"),
    ({"table": "table9"}, "foreign: unknown table 'table9'"),
    ({"figures": [3]}, "damaged: figure 0: no table"),
    (
        {"figures": [{"file": ["one.png"]}]},
        "damaged: figure 0: its file must be the name of a PNG beside it; got ['one.png']",
    ),
    ({"figures": [{"file": "../one.png"}]}, "damaged: figure 0: its file must be the name of a PNG beside it"),
    ({"figures": [{"file": "/etc/hostname.png"}]}, "damaged: figure 0: its file must be the name of a PNG beside it"),
    ({"figures": [{"file": "none.png"}]}, "damaged: figure 0: none.png: No such file or directory"),
    ({"figures": [{"file": "one.png", "alt": ["x"]}]}, "damaged: figure 0: alt must be text"),
    ({"figures": [{"file": "one.png", "iou": "40"}]}, "damaged: figure 0: iou must be a number, or null"),
    ({"attention_by_size": ["x"]}, "damaged: attention_by_size 0: must have a row and a seed"),
    ({"attention_by_size": [{"row": "a"}]}, "damaged: attention_by_size 0: must have a row and a seed"),
]
BIN = {"size_min": 4.0, "size_max": 8.0, "n_objects": 20, "mean_weight": [0.75, 0.25], "std": [0.1, 0.1]}
CURVES = [
    {"scales": "1"},
    {"scales": []},
    {"scales": [1, 1]},
    {"scales": [1, -0.5]},
    {"scales": list(range(1, 10))},
    {"bins": None},
    {"bins": [BIN] * 65},
    {"bins": [BIN | {"size_min": 0}]},
    {"bins": [BIN | {"size_max": 4.0}]},
    {"bins": [BIN | {"n_objects": 2.5}]},
    {"bins": [BIN | {"mean_weight": [0.75]}]},
    {"bins": [BIN | {"mean_weight": [0.75, "0.25"]}]},
    {"bins": [BIN | {"std": None}]},
    {"bins": [BIN | {"std": [0.1, 1e29]}]},
    {"bins": [[4.0]]},
]


@pytest.mark.parametrize(("changes", "reason"), FIGURES)
def test_a_list_of_figures_spoiled(runs, changes, reason):
    index = cases.write_figures(runs)
    index.write_text(json.dumps(json.loads(index.read_text()) | changes))
    (left_out,) = document_of(runs)["not_used"]
    assert (left_out["file"], left_out["reason"][: len(reason)]) == (str(index), reason)


@pytest.mark.parametrize("changes", CURVES)
def test_a_curve_of_attention_spoiled(runs, changes):
    index = cases.write_figures(runs)
    document = json.loads(index.read_text())
    document["attention_by_size"].insert(0, document["attention_by_size"][0] | changes | {"seed": 2})
    index.write_text(json.dumps(document))
    shown = document_of(runs)
    (left_out,) = shown["not_used"]
    assert left_out["reason"].startswith("damaged: attention_by_size 0: ")
    figures = next(table for table in shown["tables"] if table["name"] == "demo")["figures"]
    assert [one["seed"] for one in figures["attention_by_size"]] == [1]


def test_curves_of_one_row_must_fit_together_and_may_be_empty(runs):
    index = cases.write_figures(runs)
    document = json.loads(index.read_text())
    (curve,) = document["attention_by_size"]
    document["attention_by_size"] += [
        curve,
        curve | {"seed": 2, "scales": [0.5, 1]},
        curve | {"row": "empty", "bins": []},
    ]
    index.write_text(json.dumps(document))
    reason = "another of its row has other scales, or the same seed"
    assert [one["reason"] for one in made(runs)["not_used"]] == [
        f"damaged: attention_by_size {number}: {reason}" for number in (1, 2)
    ]


def test_benchmarks_spoiled_and_of_extremes(runs):
    good = json.loads(cases.write_benchmark(runs).read_text())
    for number, bad in enumerate(BAD):
        text = spoiled(good, ("results", 0, "ratio"), bad)
        (runs / "bench" / f"bench-bad{number}.json").write_text(text)
    extreme = json.loads(json.dumps(good))
    extreme["results"][0] |= {"ratio": 1e30, "share_of_copy": 1e29, "op": "\0" * 400}
    extreme["results"][1] |= {"ratio": 1e-30}
    (runs / "bench" / "bench-extreme.json").write_text(json.dumps(extreme))
    document = made(runs)
    assert [one["name"] for one in document["benchmarks"]][:2] == ["bench-cpu", "bench-extreme"]
    assert len(document["not_used"]) == len(BAD)


def test_an_old_report_stays_whole_where_the_new_one_fails(runs, monkeypatch):
    made(runs)
    files = {path: path.read_bytes() for path in (runs / "report").rglob("*") if path.is_file()}
    cases.write(runs, "demo", "max2", 41.0)

    def fail(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        assert report.main(["--runs", str(runs), "--out", str(runs / "report")]) == 2
    assert {path: path.read_bytes() for path in (runs / "report").rglob("*") if path.is_file()} == files


def test_a_readme_is_rewritten_whole_or_not_at_all(runs, tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    text = f"before\n{BEGIN}\n{END}\nafter\n"
    readme.write_text(text)
    command = ["--runs", str(runs), "--write", str(readme)]

    def fail(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        assert report.main(command) == 2
    assert readme.read_text() == text
    assert report.main(command) == 0
    assert "| baseline |" in readme.read_text()

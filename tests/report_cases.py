"""Small protocols, and hand-made records, figures and benchmarks of them that bring every cell of a report into each of its states: for the report's tests."""

import json
from pathlib import Path

from PIL import Image
from record_cases import other_settings, record
from tiny import PROTOCOL

from repro.files import write_json
from repro.protocol import reading as protocol
from repro.records.store import FORMAT, record_path, write_record

ROW = """
[[row]]
id = "{id}"
paper = {paper}
model.scales = {scales}
model.merge = "{merge}"
model.extra_supervision = {extra}
"""
COMMON = PROTOCOL.partition("[common.data]")[2].partition("[[row]]")[0]
GRID = (
    ("baseline", "51.91", "[1]", "none", "false"),
    ("max2", "52.90", "[1, 0.5]", "max", "false"),
    ("max2-extra", "55.26", "[1, 0.5]", "max", "true"),
    ("attention2", "53.49", "[1, 0.5]", "attention", "false"),
    ("attention2-extra", "55.85", "[1, 0.5]", "attention", "true"),
)
SOURCE = 'source = "the paper"\nmetric = "mean_iou"\ntolerance = { evaluate = 0.5, retrain = 1.0 }\ndataset = "person_part"\n'
TABLES = {
    "table1": f'title = "Parts"\nstand_in = "demo"\n{SOURCE}\n[common.data]{COMMON}'
    + "".join(ROW.format(**dict(zip(("id", "paper", "scales", "merge", "extra"), row, strict=True))) for row in GRID),
    "demo": 'extends = "table1"\ntitle = "Parts, drawn"\nnote = "drawn"\n[common.synthetic]\nnum_train = 4\nnum_val = 3\nsize = [33, 33]\nseed = 1\n',
    "table2": f'title = "Parts, by class"\n{SOURCE}'
    + "".join(
        f'[[row]]\nid = "{row}"\npaper = {paper}\nof = "table1/attention2-extra"\n{metric}\n'
        for row, paper, metric in (
            ("box", "60.00", 'metric = "box"'),
            ("ball", "50.00", 'metric = "ball"'),
            ("average", "55.85", ""),
        )
    ),
    "table4": 'extends = "table1"\ntitle = "Test server"\nstand_in = ""\n[common.submission]\nlist = "test"\nnum = 2\n'
    + ROW.format(id="average", paper="70.5", scales="[1, 0.5]", merge="average", extra="true")
    + ROW.format(id="attention", paper="71.5", scales="[1, 0.5]", merge="attention", extra="true")
    + '[[row]]\nid = "crf"\npaper = 72.7\nstatus = "planned"\nwhy = "needs the CRF"\n'
    + '[[row]]\nid = "other"\npaper = 77.8\nstatus = "quoted"\nwhy = "Other et al."\n',
    "text": f'title = "Numbers of the text"\n{SOURCE}'
    + '[[row]]\nid = "kernel1"\nextends = "table1/attention2-extra"\nmodel.attention_kernel = 1\n'
    + 'difference = { row = "table1/attention2-extra", between = [-0.4, -0.1] }\n'
    + '[[row]]\nid = "fc6"\nextends = "table1/attention2-extra"\nmodel.attention_input = "fc6"\nwhy = "about equal"\n',
}


def write_protocols(folder: Path, monkeypatch) -> None:
    """Writes the protocols and lets the package find them in place of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in TABLES.items():
        (folder / f"{name}.toml").write_text(text)
    monkeypatch.setattr(protocol, "PROTOCOLS", folder)


def write(runs: Path, table: str, row_id: str, value: float | None, seed: int = 1, **changes) -> Path:
    """Writes such a record where a run would; returns its file."""
    path = record_path(runs, table, row_id, seed)
    write_record(path, record(table, row_id, value, seed, **changes))
    return path


def write_every_state(runs: Path) -> None:
    """Writes records for a cell in every state, and files that a report must leave out."""
    for seed, value in ((1, 51.5), (2, 52.5)):
        write(runs, "table1", "baseline", value, seed)  # within the tolerance
    for seed, value in ((1, 50.4), (2, 52.4)):
        write(runs, "table1", "max2", value, seed)  # outside the tolerance and one spread, within two
    write(runs, "table1", "max2-extra", 53.0)  # below
    write(runs, "table1", "attention2", 53.0, deviates={"solver.max_iter": 3, "data.num_val": 2})  # overridden
    write(runs, "table1", "attention2", 50.0, 2, deviates={"solver.max_iter": 2})  # other overrides: not used
    write(runs, "table1", "attention2-extra", 58.0)  # above; table2 shows it
    for seed, value in ((1, 40.0), (2, 41.0)):
        for place, row in enumerate(GRID):
            write(runs, "demo", row[0], value + place, seed)
    submission = {"archive": "results.tgz", "sha256": "a", "score": None}
    write(runs, "table4", "average", None, submission=submission)
    score = {"value": 71.0, "source": "the server", "entered": "2026-01-02"}
    write(runs, "table4", "attention", 71.0, submission=submission | {"score": score})
    write(runs, "text", "kernel1", 57.0)  # text fc6 is not run
    spoiled = {
        "damaged-seed1": "{",
        "foreign-seed1": json.dumps({"weights": "another program's"}),
        "newer-seed1": json.dumps(record("table1", "baseline", 50.0) | {"format": FORMAT + 1}),
        "unknown-seed1": json.dumps(record("table1", "baseline", 50.0) | {"table": "table9"}),
        "stale-seed1": json.dumps(other_settings(record("table1", "baseline", 50.0))),
        "copy-seed1": record_path(runs, "table1", "baseline", 1).read_text(),
    }
    for name, text in spoiled.items():
        path = runs / "table1" / name / "record.json"
        path.parent.mkdir()
        path.write_text(text)


def write_figures(runs: Path, table: str = "demo", **changes) -> Path:
    """Writes what repro.visualize leaves: a picture of a row, its gallery, and the curve of attention."""
    folder = runs / table / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("one.png", "all.png"):
        Image.new("RGB", (60, 20), (90, 120, 30)).save(folder / name)
    figure = {"row": "attention2", "title": "A title", "alt": "An alternative", "caption": "A caption", "image": "val0"}
    bins = [
        {"size_min": 4.0, "size_max": 8.0, "n_objects": 20, "mean_weight": [0.75, 0.25], "std": [0.1, 0.1]},
        {"size_min": 8.0, "size_max": 16.0, "n_objects": 3, "mean_weight": [0.25, 0.75], "std": [0.1, 0.1]},
    ]
    document = {
        "format": 1,
        "table": table,
        "rule": "the first image",
        "note": "drawn",
        "synthetic": True,
        "records": {"attention2-seed1": "0"},
        "figures": [
            figure | {"file": "one.png", "kind": "qualitative", "iou": 40.0, "chosen": "fixed index 0"},
            figure | {"file": "all.png", "kind": "gallery", "iou": None, "chosen": "fixed index 0; worst"},
        ],
        "attention_by_size": [{"row": "attention2", "seed": 1, "scales": [1, 0.5], "bins": bins}],
    }
    write_json(folder / "figures.json", document | changes)
    return folder / "figures.json"


def write_benchmark(runs: Path, **changes) -> Path:
    """Writes what repro.bench leaves."""
    times = {"p20_ms": 0.9, "p80_ms": 1.2, "extra_bytes": 10, "ideal_bytes": 100, "error": 1e-7, "direction": "forward"}
    where = {"op": "merge_scores", "case": "table3-train-3"}
    results = [
        where
        | times
        | {"contestant": name, "median_ms": ms, "gb_per_s": 8 / ms, "share_of_copy": 0.8 / ms, "ratio": 5.0 / ms}
        for name, ms in (("ours", 1.0), ("eager", 5.0), ("compile", 2.5))
    ]
    document = {
        "format": 1,
        "quick": True,
        "conditions": {"device": "cpu", "device_name": "A processor", "threads": 2, "dtype": "float32"},
        "copy_gb_per_s": 10.0,
        "results": results,
        "targets": [
            where | {"direction": "forward", "what": "time", "required": 5.0, "measured": 5.0, "reached": True}
        ],
    }
    path = runs / "bench" / "bench-cpu.json"
    write_json(path, document | changes)
    return path

"""The report on evidence from a device: shown where there is any, said to be missing where there is none, and never made of a rehearsal."""

import json

import pytest
import report_cases as cases

from repro.files import write_json
from repro.records.evidence import read_evidence
from repro.report import __main__ as report
from repro.report.device import evidence

NONE = "No evidence from a device exists"


def step(name, found=(), **changes):
    one = {
        "name": name,
        "what": f"what {name} does",
        "state": "passed",
        "reason": "",
        "seconds": 12.5,
        "device_name": "NVIDIA H200",
    }
    return one | {"finished": "2026-01-01T00:00:00+00:00", "commit": None, "found": dict(found)} | changes


STEPS = [
    step("versions", {"versions": {"torch": "2.13.0", "driver": "580.1", "nvcc": "13.0"}}),
    step("smoke", {"calls": {"interp float32": {"bits_of_the_cpu": True}, "predict float32": {"bits_of_the_cpu": False}}, "graph": "same bits"}),
    step("training", {"precisions": {"tf32": {"gradient_error": 0.0123, "tolerance": 0.03}, "bf16": {"state": "left out"}}}),
    step("tests", {"passed": 400, "failed": 2, "skipped": {"a": 3, "b": 1}}, state="failed", reason="exit code 1: x | y"),
    step("memcheck", {"of_our_kernels": 0, "of_others": 1}),
    step("bench-fp32", {"copy_gb_per_s": 3012.4, "targets": 10, "missed": ["interp"]}),
    step("ncu", state="left out", reason="needs ncu", seconds=0),
    step("speed", {"precisions": {"fp32": {"median_seconds": 1.5, "batch": 30, "peak_bytes": 2**34, "with": {"--deterministic": {"median_seconds": 2}, "--cuda-graph": {"state": "failed"}}}}}),
    step("demo-bf16", {"value": 41.234, "value_kept": 40.9}),
    step("loader", {"streams": [{"images_per_second": 200.4}, {"images_per_second": 90}]}),
]  # fmt: skip
FACTS = [
    "driver 580.1; torch 2.13.0",
    "2 calls, 1 with the CPU's bits; graph: same bits",
    "tf32: gradients 0.012 from the CPU's, 0.03 allowed",
    "400 passed, 2 failed, 4 skipped",
    "0 errors in our kernels, 1 in others",
    "copy 3012 GB/s; 9 of 10 targets reached",
    "",
    "fp32: 1500 ms for 30 images, 16.0 GiB, --deterministic 2000 ms",
    "41.23, kept 40.90",
    "200 images/s at most",
]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    cases.write_protocols(tmp_path / "protocols", monkeypatch)
    cases.write(tmp_path / "runs", "table1", "baseline", 52.0)
    monkeypatch.setattr(report, "MEASURED", tmp_path / "kept")
    return tmp_path / "runs"


def pages(runs):
    assert report.main(["--runs", str(runs), "--out", str(runs / "report")]) == 0
    return [
        (runs / "report" / name).read_text(encoding="utf-8") for name in ("report.html", "report.md", "report.json")
    ]


def test_what_the_steps_found_in_words():
    found = evidence({"rehearsal": False, "steps": STEPS}, "gpu/evidence.json")
    assert ["; ".join(one["facts"]) for one in found["steps"]] == FACTS
    assert (found["device"], found["counts"]) == ("NVIDIA H200", "8 passed, 1 failed, 1 left out")


@pytest.mark.parametrize("kept", [False, True])
def test_evidence_stands_on_the_page(runs, tmp_path, kept):
    folder = (tmp_path / "kept" if kept else runs) / "gpu"
    write_json(folder / "evidence.json", {"format": 1, "rehearsal": False, "steps": STEPS})
    bench = cases.write_benchmark(tmp_path / "elsewhere")
    (folder / "bench-fp32.json").write_text(bench.read_text())
    html, markdown, document = pages(runs)
    for page in (html, markdown):
        assert NONE not in page
        assert "NVIDIA H200" in page
        assert "41.23, kept 40.90" in page
        assert "exit code 1: x" in page
    assert "exit code 1: x \\| y; 400 passed" in markdown
    assert [one["name"] for one in json.loads(document)["benchmarks"]] == ["bench-fp32"]


def test_without_evidence_or_with_a_rehearsal_alone_the_page_says_so(runs):
    html, markdown, _ = pages(runs)
    assert NONE in html
    assert NONE in markdown
    write_json(runs / "gpu" / "evidence.json", {"format": 1, "rehearsal": True, "steps": STEPS})
    cases.write_benchmark(runs).rename(runs / "gpu" / "bench-fp32.json")
    html, markdown, document = pages(runs)
    assert NONE in html
    assert NONE in markdown
    assert json.loads(document)["benchmarks"] == []
    (left_out,) = json.loads(document)["not_used"]
    assert left_out["reason"] == "a rehearsal on the CPU: no evidence from a device"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 2}, "newer: evidence of format 2; this program reads 1"),
        ({"format": None}, "foreign: no evidence, for it has no format number"),
        ({"rehearsal": 0}, "damaged: rehearsal must be true or false"),
        ({"steps": {}}, "damaged: steps must be a list of at most 100 steps"),
        ({"steps": STEPS * 11}, "damaged: steps must be a list of at most 100 steps"),
        ({"steps": [step("a", state="fine")]}, "damaged: steps must be a list of at most 100 steps"),
        ({"steps": [step("a", seconds="1")]}, "damaged: steps must be a list of at most 100 steps"),
        ({"steps": [step("a", found=()) | {"found": []}]}, "damaged: steps must be a list of at most 100 steps"),
    ],
)
def test_damaged_evidence(tmp_path, changes, reason):
    path = tmp_path / "evidence.json"
    write_json(path, {"format": 1, "rehearsal": False, "steps": STEPS} | changes)
    with pytest.raises(ValueError, match=f"^{reason}$"):
        read_evidence(path)


@pytest.mark.parametrize("bad", [None, "x", -1, [], {}, [{}], {"a": {}}, {"a": "b"}, True])
def test_findings_of_any_kind_make_no_error(bad):
    keys = (
        "versions",
        "calls",
        "precisions",
        "passed",
        "skipped",
        "of_our_kernels",
        "copy_gb_per_s",
        "missed",
        "targets",
        "value",
        "streams",
    )
    for name in ("versions", "smoke", "tests", "loader"):
        evidence({"rehearsal": False, "steps": [step(name, dict.fromkeys(keys, bad))]}, "")
        for key in keys:
            evidence({"rehearsal": False, "steps": [step(name, {key: bad}), step(name, {key: {"fp32": bad}})]}, "")
    timed = {
        "fp32": {"median_seconds": 1, "with": bad},
        "bf16": {"median_seconds": 1, "with": {"--deterministic": bad}},
    }
    evidence({"rehearsal": False, "steps": [step("speed", {"precisions": timed})]}, "")

"""The benchmark's program: what it leaves, whatever befalls a contestant, a case or the run itself."""

import csv
import json
import re

import pytest
import torch
from bench_cases import ALL, SMALL

from repro import ops
from repro.bench import __main__ as program
from repro.bench import cases, eager, measure, results
from repro.bench.cases import BACKWARD, BOTH, FORWARD

MEMORY = measure._memory


@pytest.fixture
def small_run(monkeypatch, tmp_path):
    """Runs the program on the small cases of an op; returns its exit code and output folder."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(cases, "CASES", SMALL)
    monkeypatch.setattr(program, "copy_bandwidth", lambda clock, repeats: 1e10)
    measured = {"extra_bytes": 0, "resident_bytes": None, "launches": None}  # test_bench.py has the tests of memory
    monkeypatch.setattr(measure, "_memory", lambda call, device: measured)
    yield lambda *arguments: (program.main(["--device", "cpu", "--out", str(tmp_path), *arguments]), tmp_path)
    torch.set_num_threads(threads)


WRONG = "must agree with the float64 reference within 1e-05; got a relative error of 1.00e-03"


def test_a_rival_that_disagrees_is_left_out_and_the_others_are_measured(small_run, monkeypatch, capsys):
    def in_channels_last_only(x, size):
        y = ops.interp(x, size)
        return y * 1.001 if x.is_contiguous(memory_format=torch.channels_last) else y

    monkeypatch.setattr(eager, "interp", in_channels_last_only)
    code, out = small_run("--quick", "--op", "interp", "--case", "up")
    assert code == 0
    document = json.loads(next(out.glob("*.json")).read_text())
    assert {(r["direction"], r["contestant"]) for r in document["results"]} == {
        (direction, name) for direction in ALL for name in ("ours", "eager-nchw")
    }
    left_out = [entry for entry in document["left_out"] if entry["contestant"] == "eager"]
    assert [(e["op"], e["case"], e["direction"]) for e in left_out] == [("interp", "up", d) for d in ALL]
    assert f"interp up forward: eager {WRONG}" in left_out[0]["reason"]
    assert f"eager is left out: interp up forward: eager {WRONG}" in capsys.readouterr().err


def test_a_kernel_that_disagrees_is_an_error_at_the_end(small_run, monkeypatch, capsys):
    monkeypatch.setattr(ops, "interp", lambda x, size: eager.interp(x, size) * (1.001 if x.shape[0] == 2 else 1))
    code, out = small_run("--quick", "--op", "interp")
    assert code == 1
    printed = capsys.readouterr()
    assert f"error: not measured: interp up forward: ours {WRONG}" in printed.err
    document = json.loads(next(out.glob("*.json")).read_text())
    assert {r["case"] for r in document["results"] if r["contestant"] == "ours"} == {"down"}
    assert {r["case"] for r in document["results"] if r["contestant"] == "eager"} == {"up", "down"}
    assert "interp  down  forward" in printed.out


@pytest.mark.parametrize("which", ["truth", "take_turns", "eager"])
def test_a_failure_costs_its_case_alone(small_run, monkeypatch, which):
    failing = RuntimeError("CUDA out of\nmemory")
    if which == "eager":
        monkeypatch.setattr(eager, "interp", lambda x, size: (_ for _ in ()).throw(TypeError("no such map")))
    else:
        original, seen = getattr(measure, which), []

        def fails_at_first(*arguments):
            seen.append(arguments)
            if len(seen) == 1:
                raise failing
            return original(*arguments)

        monkeypatch.setattr(measure, which, fails_at_first)
    code, out = small_run("--quick", "--op", "interp", "--case", "up")
    assert code == 1
    document = json.loads(next(out.glob("*.json")).read_text())
    reasons = {(e["contestant"], e["direction"]): e["reason"] for e in document["left_out"] if "op" in e}
    measured = [r["direction"] for r in document["results"] if r["contestant"] == "ours"]
    if which == "eager":
        assert reasons["eager", FORWARD] == "no such map"
        assert reasons["ours", BOTH] == "no eager layout could be measured, so there is no ratio"
        assert measured == []
    else:
        assert reasons["ours", FORWARD] == "CUDA out of memory"
        assert measured == [BACKWARD, BOTH]


def test_an_interrupted_run_keeps_what_it_measured_and_goes_on(small_run, monkeypatch, capsys):
    original, calls = program.measure, []

    def interrupted(case, direction, session):
        calls.append(direction)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(case, direction, session)

    monkeypatch.setattr(program, "measure", interrupted)
    arguments = ("--quick", "--op", "interp", "--case", "up")
    code, out = small_run(*arguments)
    assert code == 130
    assert "interrupted; the same command goes on with the next case" in capsys.readouterr().err
    (path,) = out.glob("*.json")
    first = json.loads(path.read_text())
    assert [r["direction"] for r in first["results"] if r["contestant"] == "ours"] == [FORWARD]
    assert "finished" not in first["conditions"]
    monkeypatch.setattr(program, "copy_bandwidth", lambda clock, repeats: 2e10)  # the first sitting's stands
    code, _ = small_run(*arguments)
    assert code == 0
    document = json.loads(path.read_text())
    assert calls == [FORWARD, BACKWARD, BACKWARD, BOTH]
    assert document["results"][: len(first["results"])] == first["results"]
    assert [r["direction"] for r in document["results"] if r["contestant"] == "ours"] == list(ALL)
    assert (document["copy_gb_per_s"], len(document["left_out"])) == (10.0, 1)
    assert results.unfinished(out, path.stem, first["conditions"]) is None  # what is finished is measured anew


def test_runs_of_different_ops_keep_their_own_files(small_run):
    assert small_run("--quick", "--op", "confusion_matrix")[0] == 0
    assert small_run("--quick", "--op", "predict", "--case", "max")[0] == 0
    _, out = small_run("--no-compile", "--op", "confusion_matrix")
    names = sorted(path.stem.partition("torch")[2].partition("-")[2] for path in out.glob("*.json"))
    assert names == ["confusion_matrix-quick", "max-predict-quick", "no-compile-confusion_matrix"]
    document = json.loads(next(out.glob("*-no-compile-*.json")).read_text())
    assert document["left_out"] == [{"contestant": "compile", "reason": "--no-compile"}]
    assert (document["quick"], document["conditions"]["repeats"]) == (False, program.REPEATS)


def test_quick_run_writes_what_it_measured(small_run, monkeypatch, capsys):
    monkeypatch.setattr(measure, "_memory", MEMORY)
    monkeypatch.setattr("os.getloadavg", lambda: (3.25, 0.0, 0.0))
    code, out = small_run("--quick", "--op", "merge_scores", "--case", "attention", "--threads", "1", "--plot")
    assert code == 0
    stem = next(out.glob("*.json")).stem
    assert stem.startswith("bench-cpu-")
    assert stem.endswith(
        "-1threads-torch" + ".".join(torch.__version__.split(".")[:2]) + "-attention-merge_scores-quick"
    )
    document = json.loads((out / f"{stem}.json").read_text())
    assert (document["format"], document["quick"], document["targets"], document["copy_gb_per_s"]) == (
        1,
        True,
        [],
        10.0,
    )
    assert document["left_out"] == [{"contestant": "compile", "reason": "--quick"}]
    assert document["conditions"]["threads"] == 1
    assert {"device_name", "versions", "git", "dtype", "finished", "load_average"} <= set(document["conditions"])
    assert [(r["direction"], r["contestant"]) for r in document["results"]] == [
        (direction, name) for direction in (FORWARD, BOTH) for name in ("ours", "eager", "eager-nchw")
    ]
    for r in document["results"]:
        assert set(r) == set(results.COLUMNS)
        assert 0 < r["p20_ms"] <= r["median_ms"] <= r["p80_ms"]
        assert r["repeats"] == program.QUICK_REPEATS
        assert r["gb_per_s"] == pytest.approx(r["ideal_bytes"] / r["median_ms"] / 1e6)
        assert r["share_of_copy"] == pytest.approx(r["gb_per_s"] / 10)
        assert 0 <= r["error"] <= document["conditions"]["tolerance"]
        assert (r["extra_bytes"] > 0) == (r["contestant"] != "ours" or r["direction"] == BOTH)
    with open(out / f"{stem}.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert table == [{k: "" if r[k] is None else str(r[k]) for k in results.COLUMNS} for r in document["results"]]
    assert (out / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr()
    assert "merge_scores  attention  forward+backward" in printed.out
    assert "few repeats: a trial" in printed.out
    assert "the machine is busy (load average 3.2)" in printed.err
    assert "[2/2] merge_scores attention forward+backward" in printed.err


def test_where_nothing_compiles_the_contestant_is_left_out_and_named(small_run, monkeypatch, capsys):
    def no_compiler(function, **_):
        raise RuntimeError("InvalidCxxCompiler:\nno working C++ compiler found")

    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setattr(program, "REPEATS", 5)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    code, out = small_run("--op", "interp", "--case", "up")
    assert code == 0
    document = json.loads(next(out.glob("*.json")).read_text())
    reason = "InvalidCxxCompiler: no working C++ compiler found"
    assert document["left_out"] == [
        {"contestant": "compile", "reason": reason, "op": "interp", "case": "up", "direction": d} for d in ALL
    ]
    assert {r["contestant"] for r in document["results"]} == {"ours", "eager", "eager-nchw"}
    assert capsys.readouterr().err.count(f"torch.compile is left out: {reason}") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "interpp"], "--op: must be one of interp, merge_scores, .*got 'interpp'; did you mean 'interp'?"),
        (["--case", "upp"], "--case: must be one of up, down, .*got 'upp'; did you mean 'up'?"),
        (["--op", "interp", "--case", "own"], "--op, --case: at least one case must have both; got interp and own; leave one"),
        (["--threads", "0"], "--threads: must be at least 1; got 0; use 2"),
        (["--device", "tpu"], "--device: must be auto, cpu, cuda or cuda:N; got 'tpu'"),
        (["--out", "/dev/null/x"], "--out: /dev/null/x must be a folder that can be written"),
    ],
)  # fmt: skip
def test_errors_are_one_line(small_run, capsys, arguments, message):
    assert small_run(*arguments)[0] == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert re.match("error: " + message.replace("?", r"\?"), printed)


def test_the_reference_is_no_contestant(small_run, monkeypatch, capsys):
    monkeypatch.setenv("REPRO_REFERENCE", "1")
    assert small_run("--quick")[0] == 2
    assert "REPRO_REFERENCE: must not be 1 in a benchmark of the kernels; got 1; unset it" in capsys.readouterr().err


@pytest.mark.gpu
def test_on_a_gpu(small_run):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device and a torch built for it")
    code, out = small_run("--quick", "--device", "cuda")
    assert code == 0
    document = json.loads(next(out.glob("bench-cuda-*.json")).read_text())
    assert all(r["launches"] >= 1 and r["resident_bytes"] is None for r in document["results"])

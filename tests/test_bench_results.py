"""The benchmark's ratios, targets and file names, from results made by hand."""

import re

import pytest

from repro.bench import cases, results, targets
from repro.bench.cases import BOTH, FORWARD


def result(op, case, direction, contestant, median=1.0, extra=0, **more):
    return dict.fromkeys(results.COLUMNS, 0) | {
        "op": op, "case": case, "direction": direction, "contestant": contestant, "median_ms": median, "p20_ms": median, "p80_ms": median,
        "extra_bytes": extra, "resident_bytes": extra, "ratio": 0.0, "launches": None, "called_ms": None, "least_ms": None,
    } | more  # fmt: skip


CONDITIONS = {
    "device": "cpu",
    "device_name": "AMD EPYC (tm) 7",
    "threads": 2,
    "dtype": "float32",
    "versions": {"torch": "2.13.0+cpu"},
}


def test_ratios_are_against_the_faster_layout():
    key = ("merge_scores", "table3-train-3", FORWARD)
    group = [
        result(*key, name, ms) for name, ms in (("eager", 8.0), ("eager-nchw", 6.0), ("compile", 3.0), ("ours", 1.5))
    ]
    assert [r["ratio"] for r in results.with_ratios(group)] == [0.75, 1.0, 2.0, 4.0]


def test_targets_on_the_cpu():
    key = ("merge_scores", "table3-train-3", FORWARD)
    both = [result(*key, "eager", 2.0, extra=100), result(*key, "eager-nchw", 5.0, extra=50)]
    slower_, time_, memory_ = targets.evaluate([*both, result(*key, "ours", 1.0, ratio=2.0, extra=10)], CONDITIONS)
    assert time_ == {
        "op": key[0],
        "case": key[1],
        "direction": FORWARD,
        "what": "time",
        "required": 5.0,
        "measured": 5.0,
        "reached": True,
    }
    assert (slower_["what"], slower_["required"], slower_["measured"], slower_["reached"]) == (
        "never slower",
        1.0,
        2.0,
        True,
    )
    assert (memory_["what"], memory_["required"], memory_["measured"], memory_["reached"]) == ("memory", 0.2, 0.2, True)
    hidden = result(*key, "ours", 1.25, ratio=1.6, extra=0, resident_bytes=11)  # memory torch's allocator does not see
    _, time_, memory_ = targets.evaluate([*both, hidden], CONDITIONS)
    assert (time_["reached"], memory_["reached"], memory_["measured"]) == (False, False, 0.22)
    text = targets.as_text([time_, memory_])
    assert "0 of 2 reached" in text
    assert "MISSED   merge_scores table3-train-3 forward: time 4×, required ≥ 5×" in text
    assert "memory 0.22 of eager's, required ≤ 0.2 of eager's" in text
    other = ("interp", "large-2049", FORWARD)
    (never_slower,) = targets.evaluate([result(*other, "eager"), result(*other, "ours", ratio=0.99)], CONDITIONS)
    assert (never_slower["required"], never_slower["reached"]) == (1.0, False)


def test_a_rivals_faster_layout_counts_and_one_that_is_not_there_is_no_target():
    key = ("domain_transform", f"table3-test-{cases.TEST_CROP}", BOTH)
    eager = [result(*key, "eager", 50.0), result(*key, "eager-nchw", 41.0)]
    found = {t["what"]: t for t in targets.evaluate([*eager, result(*key, "ours", 2.0, ratio=20.5)], CONDITIONS)}
    rival = found["time of eager"]
    assert (rival["required"], rival["measured"], rival["reached"]) == (20.0, 20.5, True)
    forward = (*key[:2], FORWARD)
    group = [result(*forward, "eager", 50.0), result(*forward, "ours", 2.0, ratio=25.0)]
    assert [t["what"] for t in targets.evaluate(group, CONDITIONS)] == ["never slower"]
    group.append(result(*forward, "opencv", 3.9))
    rival = targets.evaluate(group, CONDITIONS)[1]
    assert (rival["what"], rival["required"], rival["measured"], rival["reached"]) == (
        "time of opencv",
        2.0,
        1.95,
        False,
    )


def test_targets_on_cuda():
    cuda = CONDITIONS | {"device": "cuda:0", "threads": 16}
    key = ("merge_scores", "large-2049-3-batch16", FORWARD)
    ours = result(*key, "ours", 0.2, ratio=4.0, share_of_copy=0.79, launches=3)
    ours["called_ms"] = 1.0
    eager = [result(*key, "eager", 0.8, called_ms=0.9), result(*key, "eager-nchw", 1.0, called_ms=1.2)]
    found = {t["what"]: t for t in targets.evaluate([*eager, ours], cuda)}
    assert {what: (t["required"], t["measured"], t["reached"]) for what, t in found.items()} == {
        "never slower": (1.0, 4.0, True), "never slower as called": (1.0, 0.9, False), "time": (5.0, 5.0, True),
        "bandwidth": (0.8, 0.79, False), "launches": (2, 3, False),
    }  # fmt: skip
    key = ("dense_crf", "table4-test-375x500", FORWARD)
    found = targets.evaluate([result(*key, "eager", 40.0), result(*key, "ours", 10.1, ratio=4.0, launches=99)], cuda)
    assert [(t["what"], t["required"], t["measured"], t["reached"]) for t in found] == [
        ("never slower", 1.0, 4.0, True),
        ("time of the device", 10.0, 10.1, False),
    ]
    assert "time of the device 10.1 ms, required ≤ 10 ms" in targets.as_text(found)
    both = [result(*key, "eager", 40.0), result(*key, "cpu", 299.0), result(*key, "ours", 10.0, ratio=4.0)]
    assert "MISSED   dense_crf table4-test-375x500 forward: time of cpu 29.9×, required ≥ 30×" in targets.as_text(
        targets.evaluate(both, cuda)
    )


def test_every_target_names_a_case_that_is_measured():
    measured = [
        result(c.op, c.name, d, name, extra=1, launches=1)
        for c in cases.CASES
        for d in c.directions
        for name in ("eager", "eager-nchw", "opencv", "pydensecrf", "cpu", "ours")
    ]
    on_cpu = targets.evaluate(measured, CONDITIONS)
    assert sorted(t["required"] for t in on_cpu if t["what"] == "time") == [
        1.5,
        1.5,
        2.0,
        4.0,
        5.0,
        15.0,
        15.0,
    ]
    assert {t["what"]: t["required"] for t in on_cpu if t["what"].startswith("time of")} == {
        "time of opencv": 2.0,
        "time of eager": 20.0,
        "time of pydensecrf": 4.0,
    }
    assert sorted(t["required"] for t in on_cpu if t["what"] == "memory") == [0.05, 0.05, 0.2, 0.2]
    on_cuda = targets.evaluate(measured, CONDITIONS | {"device": "cuda:0"})
    assert [t["required"] for t in on_cuda if t["what"].startswith("time of cpu")] == [30.0, 30.0, 30.0]
    assert len([t for t in on_cuda if t["what"] == "bandwidth"]) == 9
    assert sorted(t["required"] for t in on_cuda if t["what"] == "time of the device") == [0.01, 0.025, 2.0, 10.0]
    assert {(t["op"], t["case"]) for t in on_cpu + on_cuda if t["what"] != "never slower"} >= targets.target_cases()


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"threads": 1}])
def test_targets_are_for_float32_and_two_threads(change):
    key = ("interp", "large-2049", FORWARD)
    assert targets.evaluate([result(*key, "eager"), result(*key, "ours")], CONDITIONS | change) == []
    assert "none apply" in targets.as_text([])


def test_file_names_carry_the_conditions():
    assert results.file_stem(CONDITIONS, quick=False) == "bench-cpu-amd-epyc-tm-7-2threads-torch2.13"
    cuda = CONDITIONS | {"device": "cuda:1", "device_name": "NVIDIA H200", "dtype": "float16"}
    stem = "bench-cuda-nvidia-h200-torch2.13-float16"
    assert (
        results.file_stem(cuda, quick=True, chosen=["predict", "large-2049", "predict"])
        == f"{stem}-large-2049-predict-quick"
    )
    assert results.file_stem(cuda, quick=False, compiles=False) == f"{stem}-no-compile"
    assert results.file_stem(cuda, quick=True, compiles=False) == f"{stem}-quick"
    many = [f"table{n}-test-513" for n in range(9)]
    names = {results.file_stem(cuda, quick=False, chosen=chosen) for chosen in (many, many[1:])}
    assert len(names) == 2
    assert all(re.fullmatch(stem + "-[89]-chosen-[0-9a-f]{12}", name) for name in names)


def test_a_case_without_an_eager_layout_has_no_ratio_and_one_without_ours_no_line():
    key = ("interp", "large-2049", FORWARD)
    assert results.with_ratios([result(*key, "ours"), result(*key, "compile")]) == []
    assert results.as_text([result(*key, "eager")]).count("\n") == 1
    assert results.as_text([result(*key, "ours"), result(*key, "eager-nchw")]).splitlines()[1].split()[3] == "-"
    line = results.as_text([result(*key, "ours", called_ms=1.2345), result(*key, "eager")]).splitlines()[1]
    assert line.split()[8] == "1.234"

"""repro.bench: the cases are the protocols', a wrong contestant is never timed, memory and figures are what they are said to be."""

import csv
import json
import math
import random
import re
import time

import pytest
import torch

from repro import ops
from repro.bench import __main__ as program
from repro.bench import cases, eager, measure, memory, results, targets, timing
from repro.bench.agreement import TOLERANCE, Disagreement, call, check, error, make_inputs, prepare, tolerance_of, truth
from repro.bench.cases import BACKWARD, BOTH, FORWARD, Case, ideal_bytes
from repro.protocol import PROTOCOLS, load_protocol

ALL = (FORWARD, BACKWARD, BOTH)
SMALL = [
    Case("interp", "up", ALL, 2, 3, (5,), 17),
    Case("interp", "down", ALL, 1, 2, (17,), 9),
    *(Case("merge_scores", mode, (FORWARD, BOTH), 2, 4, (11, 8, 6), 11, mode) for mode in ("attention", "average", "max")),
    *(Case("predict", mode, (FORWARD,), 1, 5, (9, 7, 5), 65, mode) for mode in ("attention", "average", "max")),
    Case("segmentation_loss", "own", (FORWARD, BOTH), 2, 4, (9,), 65, shrink=8),
    Case("segmentation_loss", "resampled", (FORWARD, BOTH), 2, 4, (7,), 65, shrink=8),
    Case("domain_transform", "filtered", (FORWARD, BOTH), 2, 4, (13,), 13),
    Case("confusion_matrix", "counts", (FORWARD,), 1, 4, (), 65),
    Case("dense_crf", "wide", (FORWARD,), 1, 4, (40,), 40, height=30),
]  # fmt: skip
IDS = [f"{case.op}-{case.name}" for case in SMALL]


@pytest.fixture
def small_run(monkeypatch, tmp_path):
    """Runs the program on the small cases of an op; returns its exit code and output folder."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(cases, "CASES", SMALL)
    monkeypatch.setattr(program, "copy_bandwidth", lambda clock, repeats: 1e10)
    yield lambda *arguments: (program.main(["--device", "cpu", "--out", str(tmp_path), *arguments]), tmp_path)
    torch.set_num_threads(threads)


def test_sizes_are_the_protocols():
    assert cases.map_sides(321, 3) == (41, 31, 21)
    assert cases.map_sides(513, 3) == (65, 49, 33)
    assert cases.map_sides(641, 2) == (81, 41)
    for table, classes in cases.CLASSES.items():
        if not (PROTOCOLS / f"{table}.toml").exists():
            continue
        settings = load_protocol(table).rows[0].settings
        assert len(settings["data"]["class_names"]) == classes
        assert settings["solver"]["batch_size"] == cases.BATCH
        assert settings["transform"]["crop_size"] == cases.CROP
        assert settings["test"]["crop_size"] in (cases.TEST_CROP, cases.COCO_CROP)


def test_every_case_has_a_name_of_its_own_and_the_paper_is_covered():
    names = [(case.op, case.name) for case in cases.CASES]
    assert len(set(names)) == len(names)
    assert {case.op for case in cases.CASES} == {name for name in ops.__all__ if name != "backend"}
    found = {(c.op, c.batch, c.channels, c.sides, c.side, c.mode) for c in cases.CASES}
    for classes in (7, 21, 81):
        for sides in ((41, 21), (41, 31, 21)):
            assert ("merge_scores", 30, classes, sides, 41, "attention") in found
        assert ("predict", 1, classes, (65, 49, 33), 513, "attention") in found
    assert ("interp", 1, 21, (65,), 513, "") in found
    assert ("interp", 30, 3, (321,), 161, "") in found
    assert ("interp", 30, 3, (321,), 241, "") in found
    assert ("merge_scores", 1, 21, (257, 193, 129), 257, "attention") in found
    assert ("segmentation_loss", 30, 21, (31,), 321, "") in found
    assert ("dense_crf", 1, 21, (500,), 500, "") in found


def test_ideal_bytes_by_hand():
    interp, attention, average, loss = SMALL[0], SMALL[2], SMALL[3], SMALL[9]
    assert ideal_bytes(interp, FORWARD, 4) == ideal_bytes(interp, BACKWARD, 4) == 4 * 2 * 3 * (25 + 289)
    assert ideal_bytes(interp, BOTH, 4) == 2 * 4 * 2 * 3 * (25 + 289)
    maps, logits, merged = 2 * 4 * (121 + 64 + 36), 2 * 3 * 121, 2 * 4 * 121
    assert ideal_bytes(attention, FORWARD, 2) == 2 * (maps + logits + merged)
    assert ideal_bytes(attention, BOTH, 2) == 2 * (3 * (maps + logits) + 2 * merged)
    assert ideal_bytes(average, BOTH, 2) == 2 * (2 * maps + 2 * merged)
    assert ideal_bytes(SMALL[5], FORWARD, 4) == 4 * (5 * (81 + 49 + 25) + 3 * 81) + 65**2
    assert ideal_bytes(loss, FORWARD, 4) == 4 * 2 * 4 * 49 + 2 * 81 + 8
    assert ideal_bytes(loss, BOTH, 4) == 2 * 4 * 2 * 4 * 49 + 2 * 81 + 8
    assert ideal_bytes(SMALL[10], FORWARD, 4) == 4 * 2 * (4 + 1 + 4) * 169
    assert ideal_bytes(SMALL[10], BOTH, 4) == 4 * 2 * (3 * (4 + 1) + 2 * 4) * 169
    assert ideal_bytes(SMALL[11], FORWARD, 4) == 2 * 65**2 + 8 * 16
    assert ideal_bytes(SMALL[12], FORWARD, 4) == 30 * 40 * (4 * 4 * 2 + 3)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", SMALL, ids=IDS)
def test_contestants_agree_with_float64(case, dtype, device):
    inputs = make_inputs(case, dtype)
    for direction in case.directions:
        expected = truth(case, direction, inputs.convert(dtype, torch.channels_last, torch.device(device)))
        for module in (ops, eager):
            for layout in (torch.channels_last, torch.contiguous_format):
                own = inputs.convert(dtype, layout, torch.device(device))
                function = lambda *tensors, module=module: call(module, case, *tensors)  # noqa: E731
                found = prepare(function, direction, own)()
                assert len(found) == len(expected)
                check(case, direction, module.__name__, found, expected, tolerance_of(case, dtype))


def test_a_gradient_of_max_is_zero_where_float32_may_see_another_maximum():
    case = Case("merge_scores", "max", (BOTH,), 1, 1, (1, 1), 1, "max")
    for seed in range(200):
        inputs = make_inputs(case, torch.bfloat16, seed)
        a, b = (x.double().item() for x in inputs.maps)
        near = abs(a - b) < TOLERANCE[torch.bfloat16] * max(abs(a), abs(b))
        assert (inputs.gradient.item() == 0) == near


@pytest.mark.parametrize("case", SMALL, ids=IDS)
def test_a_wrong_contestant_is_found(case):
    inputs = make_inputs(case, torch.float32)
    for direction in case.directions:
        expected = truth(case, direction, inputs)
        right = prepare(lambda *tensors: call(eager, case, *tensors), direction, inputs)()
        for n in range(len(right)):
            wrong = [r.detach().clone(memory_format=torch.contiguous_format) for r in right]
            position = wrong[n].argmax() if case.op != "predict" else 7
            if wrong[n].is_floating_point():
                wrong[n].view(-1)[position] += 3e-4 * wrong[n].abs().max()
                nan = [r.detach().clone(memory_format=torch.contiguous_format) for r in right]
                nan[n].view(-1)[-1] = torch.nan
                with pytest.raises(Disagreement, match="got a relative error of nan"):
                    check(case, direction, "eager", nan, expected, 1e-4)
            elif case.op == "predict":
                worst = expected[0].flatten(2)[0, :, position].argmin()
                wrong[n].view(-1)[position] = worst
            else:
                wrong[n].view(-1)[position] += 1
            tolerance = 1e-4 if case.op != "confusion_matrix" else 0
            with pytest.raises(
                Disagreement, match=f"{case.op} {case.name} .*eager must agree with the float64 reference"
            ):
                check(case, direction, "eager", wrong, expected, tolerance)
        if case.op != "confusion_matrix":
            assert math.isnan(error(case, [r[:1, :1] if r.ndim > 1 else r[None] for r in right], expected))


def test_labels_outside_the_classes_are_no_prediction():
    case = SMALL[5]
    expected = truth(case, FORWARD, make_inputs(case, torch.float32))
    for labels in (torch.full((1, 65, 65), 5), torch.full((1, 65, 65), -1), torch.zeros(1, 64, 65, dtype=torch.long)):
        with pytest.raises(Disagreement):
            check(case, FORWARD, "eager", [labels], expected, 1e-4)


def test_the_program_ends_where_a_contestant_disagrees(small_run, monkeypatch, capsys):
    monkeypatch.setattr(eager, "interp", lambda x, size: ops.interp(x, size) * 1.001)
    monkeypatch.setattr(timing, "take_turns", None)  # nothing may be timed
    code, out = small_run("--quick", "--op", "interp", "--case", "up")
    assert code == 1
    assert not list(out.iterdir())
    assert (
        "interp up forward: eager must agree with the float64 reference within 1e-05; got a relative error of 1.00e-03"
        in capsys.readouterr().err
    )


def test_pydensecrf_competes_where_it_is_installed_and_agrees(monkeypatch):
    case, cpu = SMALL[-1], torch.device("cpu")
    inputs = make_inputs(case, torch.float32)
    expected = truth(case, FORWARD, inputs)

    def errors():
        found = {}
        for name, function, layout in measure.contestants(case, cpu, compiles=True):
            own = inputs.convert(torch.float32, layout, cpu)
            found[name] = error(case, prepare(function, FORWARD, own)(), expected)
        return found

    pytest.importorskip("pydensecrf", reason="needs the extra bench: pip install .[bench]")
    found = errors()
    assert set(found) == {"ours", "eager", "eager-nchw", "pydensecrf"}
    assert max(found.values()) < 1e-5
    monkeypatch.setattr(measure.densecrf, "NORMALIZE_AFTER", measure.densecrf.NORMALIZE_SYMMETRIC)
    assert errors()["pydensecrf"] > tolerance_of(case, torch.float32)
    monkeypatch.setattr(measure, "densecrf", None)
    assert set(errors()) == {"ours", "eager", "eager-nchw"}


def test_the_targets_of_a_rival():
    def result(contestant, **figures):
        case = {"op": "dense_crf", "case": "table4-test-375x500", "direction": FORWARD, "contestant": contestant}
        return case | {"ratio": 1.0, "extra_bytes": 0, "resident_bytes": 50} | figures

    conditions = {"dtype": "float32", "device": "cpu", "threads": 2}
    ours, eager_ = result("ours", median_ms=10.0), result("eager-nchw", median_ms=90.0)
    rival = result("pydensecrf", median_ms=39.0, resident_bytes=50)
    found = targets.evaluate([ours, eager_, rival], conditions)
    assert [(t["what"], t["required"], t["measured"], t["reached"]) for t in found] == [
        ("never slower", 1.0, 1.0, True),
        ("time of pydensecrf", 4.0, 3.9, False),
        ("memory of pydensecrf", 1.0, 1.0, True),
    ]
    assert "table4-test-375x500 forward: time of pydensecrf 3.9×, required ≥ 4×" in targets.as_text(found)
    assert [t["what"] for t in targets.evaluate([ours, eager_], conditions)] == ["never slower"]


def test_peak_by_hand():
    assert memory.peak([], set()) == 0
    assert memory.peak([(1, 100), (2, 30), (1, -100), (3, 60), (2, -30)], set()) == 130
    assert memory.peak([(1, 100), (2, 30), (1, -100), (3, 60)], {3}) == 130
    assert (
        memory.peak([(1, 100), (1, -100), (2, 30), (1, 100)], {1}) == 100
    )  # a temporary, then a result, at one address
    assert memory.peak([(9, -500), (1, 100)], set()) == 100  # 9 is older than the call


def test_memory_is_exact_on_a_known_call():
    def known():
        first = torch.empty(1000, 1000)  # 4 MB
        second = torch.empty(500, 1000)  # 2 MB, which a result is a view of
        del first
        third = torch.empty(250, 1000)  # 1 MB
        return [torch.empty(1000, 1000), second[:10], third.sum()]

    known()
    assert memory.allocated_cpu(known) == 4_000_000
    assert memory.allocated_cpu(lambda: [torch.zeros(1000, 1000)]) == 0
    assert memory.allocated_cpu(lambda: []) == 0
    held = [torch.zeros(1000, 1000)]
    assert memory.allocated_cpu(lambda: [held.pop() + torch.empty(250, 1000)[0]]) == 1_000_000


def test_resident_memory_bounds_it():
    bound = memory.resident(lambda: [torch.ones(2000, 1000).sum()])
    if bound is None:
        pytest.skip("needs Linux with glibc and a writable /proc/self/clear_refs")
    assert 7_900_000 < bound < 9_500_000
    assert memory.resident(lambda: []) < 500_000


def test_contestants_take_turns_over_their_inputs():
    calls = []
    contestants = {
        name: [lambda name=name, n=n: calls.append((name, n)) for n in range(sets)]
        for name, sets in (("a", 1), ("b", 3))
    }
    clock = timing.Clock(torch.device("cpu"))
    found = timing.take_turns(clock, contestants, repeats=6, budget=60)
    assert {name: t.repeats for name, t in found.items()} == {"a": 6, "b": 6}
    warm, timed = calls[2 * timing.WARM_UP :: 2], calls[2 * timing.WARM_UP + 1 :: 2]
    assert warm == timed  # each right after one that is not timed
    rounds = [timed[n : n + 2] for n in range(0, 12, 2)]
    assert all({name for name, _ in pair} == {"a", "b"} for pair in rounds)
    assert {pair[0][0] for pair in rounds} == {"a", "b"}  # not always in one order
    assert [n for name, n in timed if name == "b"] == [0, 1, 2, 0, 1, 2]
    slow = {"slow": [lambda: time.sleep(0.01)]}
    assert timing.take_turns(clock, slow, repeats=50, budget=0.0)["slow"].repeats == 5
    assert 0.01 <= timing.take_turns(clock, slow, repeats=5, budget=1)["slow"].median < 0.1


def test_summary_by_hand():
    seconds = [float(n) for n in range(11)]
    random.Random(1).shuffle(seconds)
    assert timing.summarise(seconds) == (5.0, 2.0, 8.0, 11)


def test_quick_run_writes_what_it_measured(small_run, monkeypatch, capsys):
    monkeypatch.setattr("os.getloadavg", lambda: (3.25, 0.0, 0.0))
    code, out = small_run("--quick", "--op", "merge_scores", "--case", "attention", "--threads", "1", "--plot")
    assert code == 0
    stem = next(out.glob("*.json")).stem
    assert stem.startswith("bench-cpu-")
    assert stem.endswith("-1threads-torch" + ".".join(torch.__version__.split(".")[:2]) + "-partial-quick")
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

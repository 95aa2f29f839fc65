"""repro.bench: the cases are the protocols', a wrong contestant is never timed, memory and figures are what they are said to be."""

import math
import random
import time
import types

import pytest
import torch
from bench_cases import SMALL

from repro import ops
from repro.bench import cases, eager, measure, memory, targets, timing
from repro.bench.agreement import TOLERANCE, Disagreement, call, check, error, make_inputs, prepare, tolerance_of, truth
from repro.bench.cases import BACKWARD, BOTH, FORWARD, Case, ideal_bytes
from repro.bench.least import least_work
from repro.protocol import PROTOCOLS, load_protocol

IDS = [f"{case.op}-{case.name}" for case in SMALL]


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


def test_on_a_gpu_the_filters_compete_with_themselves_on_the_host():
    gpu = torch.device("cuda")
    places = {c.op: {one[0]: one[3] for one in measure.contestants(c, gpu, compiles=False)} for c in SMALL}
    assert {op for op, found in places.items() if "cpu" in found} == {"domain_transform", "dense_crf"}
    assert {found.pop("cpu", torch.device("cpu")).type for found in places.values()} == {"cpu"}
    assert {place for found in places.values() for place in found.values()} == {gpu}


def test_a_call_on_the_host_takes_the_threads_that_the_targets_are_for():
    before, threads = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        timing.OnHost(lambda: threads.append(torch.get_num_threads()))()
        threads.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
    assert threads == [cases.CPU_THREADS, 1]


def test_a_contestant_elsewhere_is_checked_and_timed_on_the_host(monkeypatch):
    """The "device" is the CPU here, and the other place one that holds no memory of its own."""
    case, device, seen = SMALL[10], torch.device("cpu"), []
    elsewhere = types.SimpleNamespace(type="elsewhere")
    ours = lambda *tensors: call(ops, case, *tensors)  # noqa: E731

    def listed(case, device, compiles):
        yield "ours", ours, torch.channels_last, device
        yield "eager", lambda *tensors: call(eager, case, *tensors), torch.channels_last, device
        yield "cpu", ours, torch.channels_last, elsewhere

    class Inputs(type(make_inputs(case, torch.float32))):
        def convert(self, dtype, memory_format, where):
            return super().convert(dtype, memory_format, device if where is elsewhere else where)

    monkeypatch.setattr(measure, "make_inputs", lambda *args: Inputs(**vars(make_inputs(*args))))
    monkeypatch.setattr(measure, "contestants", listed)
    monkeypatch.setattr(measure, "OnHost", lambda call_: seen.append(True) or timing.OnHost(call_))
    session = measure.Session(timing.Clock(device), torch.float32, 1e9, repeats=2, budget=0.0, compiles=False)
    found = {one["contestant"]: one for one in measure.measure(case, BOTH, session)}
    assert session.left_out == []
    assert found["cpu"]["error"] == found["ours"]["error"] <= tolerance_of(case, torch.float32)
    assert seen == [True]


def test_labels_outside_the_classes_are_no_prediction():
    case = SMALL[5]
    expected = truth(case, FORWARD, make_inputs(case, torch.float32))
    for labels in (torch.full((1, 65, 65), 5), torch.full((1, 65, 65), -1), torch.zeros(1, 64, 65, dtype=torch.long)):
        with pytest.raises(Disagreement):
            check(case, FORWARD, "eager", [labels], expected, 1e-4)


def test_pydensecrf_competes_where_it_is_installed_and_agrees(monkeypatch):
    case, cpu = SMALL[-1], torch.device("cpu")
    inputs = make_inputs(case, torch.float32)
    expected = truth(case, FORWARD, inputs)

    def errors():
        found = {}
        for name, function, layout, where in measure.contestants(case, cpu, compiles=True):
            own = inputs.convert(torch.float32, layout, where)
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
    # Large beside what the kernel has not added up yet: it counts pages per core, in batches of 32 or twice the number of cores (mm/percpu_counter).
    bound = memory.resident(lambda: [torch.ones(20_000, 1000).sum()])
    if bound is None:
        pytest.skip("needs Linux with glibc and a writable /proc/self/clear_refs")
    assert 78_000_000 < bound < 85_000_000
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
    assert timing.summarise([(s, None) for s in seconds]) == (5.0, 2.0, 8.0, 11, None)
    assert timing.summarise([(s, 2 * s + 1) for s in seconds]) == (5.0, 2.0, 8.0, 11, 11.0)


def test_two_are_compared_round_by_round():
    drifting = [1.0 + 0.5 * n for n in range(10)]  # a machine that slows down
    twice = [2.0 * one for one in drifting]
    assert timing.paired_ratio(twice, drifting) == (2.0, 2.0, 2.0)
    assert timing.paired_ratio([*twice[:9], 40 * drifting[9]], drifting)[0] == 2.0
    # ten values: of order statistics 2 and 9 cover the median with 97.9 %; of 3 and 8 with 89.1 %
    assert timing.paired_ratio([3, 1, 2, 5, 4, 10, 9, 7, 8, 6], [1] * 10) == (5.5, 2, 9)
    assert timing.paired_ratio([3, 1], [1, 1]) == (2, 1, 3)


class FakeCuda:
    """Stands for torch.cuda; notes what the clock asks of it. Its events are 2 ms apart."""

    def __init__(self):
        self.asked = []
        self.cuda = self

    def Event(self, enable_timing):
        event = types.SimpleNamespace(record=lambda: self.asked.append("event"), synchronize=lambda: None)
        event.elapsed_time = lambda other: 2.0
        return event

    def get_device_properties(self, device):
        return types.SimpleNamespace(L2_cache_size=1024)

    def synchronize(self, device):
        self.asked.append("wait")

    def _sleep(self, cycles):
        self.asked.append(("sleep", cycles))


def test_the_clock_of_a_gpu_reads_the_cache_away_and_sleeps_while_kernels_are_queued(monkeypatch):
    fake = FakeCuda()
    for name in ("Event", "get_device_properties", "synchronize", "_sleep"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    monkeypatch.setattr(torch, "zeros", lambda *shape, device, zeros=torch.zeros: zeros(*shape))
    clock = timing.Clock(torch.device("cuda", 0))
    assert clock._flush.nbytes == 2048
    monkeypatch.setattr(torch, "sum", lambda x, dim, out: fake.asked.append("read"))

    def call():
        fake.asked.append("call")
        time.sleep(0.003)

    device, called = clock.seconds(call)
    assert (device, called >= 0.003) == (0.002, True)
    (slept,) = (asked[1] for asked in fake.asked if isinstance(asked, tuple))
    assert slept == int(timing.CYCLES_PER_SECOND * min(timing.LONGEST_SLEEP, timing.SHORTEST_SLEEP + called))
    assert fake.asked == ["read", "wait", "call", "wait", "read", ("sleep", slept), "event", "call", "event"]
    clock.seconds(lambda: time.sleep(0.03))
    assert ("sleep", int(timing.CYCLES_PER_SECOND * timing.LONGEST_SLEEP)) in fake.asked
    fake.asked.clear()
    on_host, called = clock.seconds(timing.OnHost(lambda: time.sleep(0.003)))
    assert (on_host >= 0.003, called, fake.asked) == (True, None, [])


@pytest.mark.parametrize(
    ("op", "name", "direction"),
    [
        ("merge_scores", "table3-train-3", BOTH),
        ("segmentation_loss", "table3-train", BOTH),
        ("segmentation_loss", "table3-train", FORWARD),
        ("predict", "table3-test-513-3", FORWARD),
        ("interp", "table3-test-513", FORWARD),
    ],
)
def test_the_least_work_gives_results_of_the_same_kind_in_fresh_memory(op, name, direction, monkeypatch):
    case = next(case for case in cases.CASES if (case.op, case.name) == (op, name))
    inputs = make_inputs(case, torch.float32).convert(torch.float32, torch.channels_last, torch.device("cpu"))
    results = prepare(lambda *tensors: call(ops, case, *tensors), direction, inputs)()
    exponentials = []
    monkeypatch.setattr(torch, "exp", lambda x, out, exp=torch.exp: exponentials.append(x.numel()) or exp(x, out=out))
    made = least_work(case, direction, inputs, results)()
    assert [(m.shape, m.dtype, m.stride()) for m in made] == [(r.shape, r.dtype, r.stride()) for r in results]
    known = {tensor.data_ptr() for tensor in [*inputs.leaves(), *results]}
    assert not known & {m.data_ptr() for m in made}
    assert sum(exponentials) == (inputs.maps[0].numel() if op == "segmentation_loss" else 0)
    if op == "merge_scores":  # each map's gradient is written from the map, which is read so
        assert all(torch.equal(m, leaf) for m, leaf in zip(made[1:], inputs.leaves(), strict=True))
    if op == "interp":  # no input is of its size; the gradient is, which a forward pass does not read
        assert not made[0].any()

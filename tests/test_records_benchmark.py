"""Benchmarks: what a reader refuses, and targets in words with their bounds."""

import json

import pytest
import report_cases as cases

from repro.bench import targets
from repro.records.benchmark import KINDS, measured, read_benchmark, required

MANY = "results must be a list of at most 2000 measurements"
TARGETS = "targets must be a list of targets"
CONDITIONS = "conditions must be a table with device, device_name, threads and dtype"


def test_a_benchmark(tmp_path):
    path = cases.write_benchmark(tmp_path)
    assert read_benchmark(path) == json.loads(path.read_text())


def result(**changes):
    times = {"median_ms": 1.0, "p20_ms": 1.0, "p80_ms": 1.0, "ratio": 1.0, "gb_per_s": 1.0, "share_of_copy": 0.5}
    return times | {"op": "interp", "case": "x8", "direction": "forward", "contestant": "ours"} | changes


def target(**changes):
    found = {"op": "interp", "case": "x8", "direction": "forward", "what": "time"}
    return found | {"required": 5.0, "measured": 4.0, "reached": False} | changes


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ({"format": 2}, "newer: benchmark of format 2; this program reads 1"),
        ({"format": None}, "foreign: no benchmark, for it has no format number"),
        ({"results": "fast"}, f"damaged: {MANY}"),
        ({"results": [result(op=["interp"])]}, f"damaged: {MANY}"),
        ({"results": [result(ratio=0)]}, f"damaged: {MANY}"),  # on a logarithmic axis
        ({"results": [result(ratio=True)]}, f"damaged: {MANY}"),
        ({"results": [result(share_of_copy=None)]}, f"damaged: {MANY}"),
        ({"results": [result(called_ms="1")]}, f"damaged: {MANY}"),
        ({"results": [result(least_ms="1")]}, f"damaged: {MANY}"),
        ({"results": [result()] * 2001}, f"damaged: {MANY}"),
        ({"results": [result(), "more"]}, f"damaged: {MANY}"),
        ({"targets": None}, f"damaged: {TARGETS}"),
        ({"targets": [target(what="colour")]}, f"damaged: {TARGETS}"),
        ({"targets": [target(measured="4")]}, f"damaged: {TARGETS}"),
        ({"targets": [target(reached=1)]}, f"damaged: {TARGETS}"),
        ({"conditions": {}}, f"damaged: {CONDITIONS}"),
        ({"conditions": []}, f"damaged: {CONDITIONS}"),
        ({"copy_gb_per_s": "fast"}, "damaged: copy_gb_per_s must be a number"),
        ({"copy_gb_per_s": 1e308}, "damaged: a number is larger than 1e+30"),
        ({"quick": "no"}, "damaged: quick must be true or false"),
    ],
)
def test_a_damaged_benchmark(tmp_path, spoil, reason):
    path = cases.write_benchmark(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | spoil))
    with pytest.raises(ValueError, match=f"^{reason.replace('+', '.')}$"):
        read_benchmark(path)


@pytest.mark.parametrize(
    ("what", "bound", "found", "words"),
    [
        ("never slower", 1.0, 0.824, ("≥ 1×", "0.824×")),
        ("time", 5.0, 4.9, ("≥ 5×", "4.9×")),
        ("time of opencv", 20.0, 21.4, ("≥ 20×", "21.4×")),
        ("memory", 0.05, 0.0231, ("≤ 0.05 of eager's", "0.0231 of eager's")),
        ("bandwidth", 0.8, 0.79, ("≥ 80 % of a copy's", "79 % of a copy's")),
        ("launches", 2, 3, ("≤ 2", "3")),
        ("time of pydensecrf", 4.0, 3.14159, ("≥ 4×", "3.14×")),
        ("memory of pydensecrf", 1.0, 1.25, ("≤ 1 of pydensecrf's", "1.25 of pydensecrf's")),
    ],
)
def test_targets_in_words(what, bound, found, words):
    one = target(what=what, required=bound, measured=found)
    assert (required(one), measured(one)) == words
    line = targets.as_text([one]).splitlines()[1]
    assert line == f"  MISSED   interp x8 forward: {what} {words[1]}, required {words[0]}"


def test_every_kind_of_target_has_words():
    rivals = {"time of eager", "time of opencv", "time of pydensecrf", "time of cpu", "memory of pydensecrf"}
    own = {"never slower", "never slower as called", "time", "memory", "bandwidth", "time of the device", "launches"}
    assert set(KINDS) == own | rivals

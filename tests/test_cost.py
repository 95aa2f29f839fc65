"""What a row costs: operations counted, seconds estimated from records of the same device and of no other."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from tiny import MSC_KEYS, main, run_command, write_protocol

from repro.device import processor_name
from repro.models import build
from repro.protocol import load_protocol
from repro.run import cost
from repro.run.cost import (
    duration,
    estimate,
    flops,
    forward_flops,
    learned_flops,
    nearest,
    recorded_speeds,
    row_flops,
    training_images,
)


@pytest.fixture
def rows(tmp_path):
    return {row.id: row.settings for row in load_protocol(write_protocol(tmp_path)).rows}


@pytest.mark.parametrize("row", ["baseline", "attention3-extra"])
def test_operations_are_those_of_the_convolutions(rows, row):
    network = build(rows[row]["model"], 3, seed=0)
    counted = []

    def count(layer, inputs, output):
        counted.append(2 * layer.weight[0].numel() * output.numel())

    for layer in network.convolutions().values():
        layer.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, 3, 33, 33))
    assert forward_flops(rows[row], "transform") == sum(counted)
    counted.clear()
    with torch.no_grad():
        network(torch.zeros(1, 3, 41, 41))
    assert forward_flops(rows[row], "test") == sum(counted)


def test_a_row_trains_and_tests(rows):
    settings = rows["baseline"]
    settings["solver"]["iter_size"] = 2
    train, test = forward_flops(settings, "transform"), forward_flops(settings, "test")
    assert row_flops(settings) == 3 * train * 6 * 2 * 2 + test * 3
    assert row_flops(settings | {"submission": {"list": "test", "num": 7}}) == 3 * train * 24 + test * 7
    assert flops(settings, 0, 1) == test


def test_fixed_layers_have_no_backward_pass(rows):
    settings = rows["baseline"]
    model = settings["model"] | MSC_KEYS
    trained, fixed = (settings | {"model": model | {"lr_mult": rates}} for rates in ([1, 2], [0, 0]))
    trunk = forward_flops(settings, "transform") - 2 * 32 * 3 * 5 * 5  # but for fc8
    assert learned_flops(trained) == forward_flops(trained, "transform") == forward_flops(fixed, "transform")
    assert learned_flops(fixed) == forward_flops(fixed, "transform") - trunk
    assert row_flops(trained) - row_flops(fixed) == 2 * trunk * 6 * 2


def test_speeds_are_read_from_records_of_the_same_device(tmp_path, rows):
    assert main([*run_command(tmp_path), "--row", "baseline", "--row", "max2"]) == 0
    out = tmp_path / "out"
    name = processor_name()
    speeds = recorded_speeds([out, tmp_path / "nowhere"], name, "fp32")
    assert [speed.source.name for speed in speeds] == ["baseline-seed1", "max2-seed1"]
    record = json.loads((out / "tiny" / "max2-seed1" / "record.json").read_text())
    assert speeds[1].flops_per_second == pytest.approx(row_flops(rows["max2"]) / record["run"]["seconds"])
    assert speeds[1].image_flops == forward_flops(rows["max2"], "transform")
    assert recorded_speeds([out], "another", "fp32") == []
    assert recorded_speeds([out], name, "bf16") == []
    (out / "tiny" / "baseline-seed1" / "record.json").write_text("{")
    assert [speed.source.name for speed in recorded_speeds([out], name, "fp32")] == ["max2-seed1"]
    record["settings"] = {}
    (out / "tiny" / "max2-seed1" / "record.json").write_text(json.dumps(record))
    assert recorded_speeds([out], name, "fp32") == []


def speed_of(tmp_path, name, image_flops, flops_per_second=1e9):
    return cost.Speed(flops_per_second, image_flops, tmp_path / "table1" / name)


def test_the_nearest_network_is_taken(tmp_path, rows):
    own = forward_flops(rows["baseline"], "transform")
    speeds = [
        speed_of(tmp_path, "large", own * 10),
        speed_of(tmp_path, "small", own * 3),
        speed_of(tmp_path, "b", own * 3),
    ]
    assert nearest(rows["baseline"], speeds).source.name == "b"  # of equally near ones the first by name
    assert nearest(rows["baseline"], speeds[:2]).source.name == "small"
    assert nearest(rows["baseline"], []) is None


def test_an_estimate_says_where_it_comes_from(tmp_path, rows):
    settings = rows["baseline"]
    own = forward_flops(settings, "transform")
    folder = tmp_path.name
    seconds, words = estimate(settings, [speed_of(tmp_path, "a", own, row_flops(settings) / 60)], 2)
    assert seconds == pytest.approx(120)
    speed = f"{row_flops(settings) / 60 / 1e9:.3g}"
    assert words == f"about 2 min at {speed} GFLOP/s ({folder}/table1/a)"
    for size, word in ((own / 8, "8 times smaller"), (own * 8, "8 times larger")):
        unknown = f"duration unknown: the nearest record on this device is of a network {word}"
        assert estimate(settings, [speed_of(tmp_path, "a", size)], 1) == (None, unknown)
    assert estimate(settings, [], 1) == (None, "duration unknown: no record on this device")
    half = estimate(settings, [speed_of(tmp_path, "a", own)], 1, tested=0)[0]
    assert half < estimate(settings, [speed_of(tmp_path, "a", own)], 1)[0]
    assert estimate(settings, [speed_of(tmp_path, "a", own)], 0)[0] == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (3599, "60 min"),
        (3600, "1.0 h"),
        (75600, "21.0 h"),
        (259200, "3.0 days"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
    assert math.isfinite(seconds)


def test_smaller_and_larger_networks_are_as_near(tmp_path, rows):
    own = forward_flops(rows["baseline"], "transform")
    speeds = [speed_of(tmp_path, "larger", own * 5), speed_of(tmp_path, "smaller", own / 4)]
    assert nearest(rows["baseline"], speeds).source.name == "smaller"
    speeds = [speed_of(tmp_path, "larger", own * 4), speed_of(tmp_path, "smaller", own / 5)]
    assert nearest(rows["baseline"], speeds).source.name == "larger"


def test_the_documents_roofline_is_what_is_counted():
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    pattern = r"takes (\d+) PFLOP in convolutions \(max or average: (\d+)\).*? peak of (\d+) .*?, (\d+) .*? and (\d+) in fp32: ([\d.]+), ([\d.]+)\s+and (\d+) minutes"
    goals = r"goals are (\d+) minutes in bf16 and (\d+) in tf32, (\d+) % and (\d+) %"
    (stated,), (aims,) = (re.findall(one, text, re.S) for one in (pattern, goals))
    attention, others, *rest = stated
    for table in ("table1", "table3"):
        rows = {row.id: row.settings for row in load_protocol(table).rows}
        for row, pflop in (("attention3", attention), ("max3", others), ("average3-extra", others)):
            assert abs(flops(rows[row], training_images(rows[row]), test=0) / 1e15 - int(pflop)) < 0.6
    peaks, minutes = rest[:3], rest[3:]
    work = flops(rows["attention3"], training_images(rows["attention3"]), test=0)
    seconds = [work / (float(peak) * 1e12) for peak in peaks]
    assert [f"{seconds[0] / 60:.1f}", f"{seconds[1] / 60:.1f}", f"{seconds[2] / 60:.0f}"] == list(minutes)
    parts = [100 * second / (60 * float(goal)) for second, goal in zip(seconds, aims[:2], strict=False)]
    assert [f"{part:.0f}" for part in parts] == list(aims[2:])

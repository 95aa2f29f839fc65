"""What a row costs: its floating-point operations, and seconds by the speed of runs that were recorded on the same device."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from repro.distributed import world_size
from repro.models import MultiScale, build
from repro.models.build import lr_mult_key
from repro.records.store import walk

BACKWARD = 2  # a convolution's backward pass makes the forward's operations twice: for its input and for its weight
FAR = 4.0  # a record of a network that many times smaller or larger says nothing of a duration


@functools.cache
def _network(model: str, num_classes: int) -> MultiScale:
    return build(json.loads(model), num_classes, seed=0).to("meta")


def _key(settings: dict[str, dict]) -> tuple[str, int]:
    """Names a row's network as far as its convolutions go: what changes none is made equal, so that few networks have to be built."""
    model = settings["model"] | {"extra_supervision": False}
    model |= {"merge": "average"} if model["merge"] == "max" else {}
    return json.dumps(model, sort_keys=True), len(settings["data"]["class_names"])


def meta_network(settings: dict[str, dict]) -> MultiScale:
    """Makes a row's network without memory: its maps have shapes, but no values."""
    return _network(*_key(settings))


class Layer(NamedTuple):
    """A convolution over one scale of one image: its name, the elements of its output, and its floating-point operations."""

    name: str
    elements: int
    flops: int


@functools.cache
def _forward(model: str, num_classes: int, side: int) -> tuple[float, tuple[Layer, ...]]:
    """Counts the operations of a forward pass, and lists its convolutions in their order."""
    network = _network(model, num_classes)
    layers: list[Layer] = []

    def seen(name: str, module: nn.Conv2d, output: torch.Tensor) -> None:
        layers.append(Layer(name, output.numel(), 2 * output.numel() * module.weight[0].numel()))

    hooks = [
        module.register_forward_hook(lambda module, _, output, name=name: seen(name, module, output))
        for name, module in network.convolutions().items()
    ]
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.empty(1, 3, side, side, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return counter.get_total_flops(), tuple(layers)


def layers_of(settings: dict[str, dict], side: int) -> tuple[Layer, ...]:
    """Lists the convolutions of one image of `side` x `side` pixels, all scales, in their order."""
    return _forward(*_key(settings), side)[1]


def is_fixed(settings: dict[str, dict], layer: str) -> bool:
    """Tells whether a row's training keeps a layer as it is."""
    return not any(settings["model"][lr_mult_key(layer)])  # none for weight and bias


def forward_flops(settings: dict[str, dict], phase: str) -> float:
    """Counts the floating-point operations of the convolutions of one image's forward pass (a multiplication and an addition count 2).

    Args:
        settings: A row's.
        phase: "transform" for the training crop, "test" for the test crop.
    """
    return _forward(*_key(settings), settings[phase]["crop_size"])[0]


def learned_flops(settings: dict[str, dict]) -> float:
    """Counts the operations of those convolutions of a training image's forward pass that are not kept fixed: only these have a backward pass."""
    fixed = [
        layer.flops
        for layer in layers_of(settings, settings["transform"]["crop_size"])
        if is_fixed(settings, layer.name)
    ]
    return forward_flops(settings, "transform") - sum(fixed)


def crf_flops(settings: dict[str, dict]) -> float:
    """Counts the floating-point operations of the CRF of one test crop, 0 without one.

    Per pixel, class and iteration: a pixel goes to the 3 corners of its simplex in the lattice of positions and to the 6 in that of positions and colours and
    comes back from them (4 operations a corner), and its softmax is taken (about 10). The blur is left out: its lattice points depend on the image.
    """
    if "crf" not in settings:
        return 0.0
    pixels = settings["test"]["crop_size"] ** 2 * len(settings["data"]["class_names"])
    return float(settings["crf"]["max_iter"] * pixels * (4 * (3 + 6) + 10))


def training_images(settings: dict[str, dict]) -> int:
    """Counts the images that training passes through the network, repetitions included."""
    solver = settings["solver"]
    return solver["max_iter"] * solver["batch_size"] * solver["iter_size"]


def test_images(settings: dict[str, dict]) -> int:
    """Counts the images that the trained network is tried on."""
    return settings["submission"]["num"] if "submission" in settings else settings["data"]["num_val"]


def flops(settings: dict[str, dict], train: int, test: int) -> float:
    """Counts the operations of a whole row: training (forward and backward) and test.

    Args:
        settings: The row's.
        train: Images that pass through in training.
        test: Images that are tested; each counts as one test crop.
    """
    training = forward_flops(settings, "transform") + BACKWARD * learned_flops(settings)
    tested = forward_flops(settings, "test") + crf_flops(settings)
    return training * train + tested * test


def row_flops(settings: dict[str, dict], tested: int | None = None) -> float:
    """Counts the operations of a row as its protocol states it; `tested` images instead of the protocol's, where they were counted."""
    return flops(settings, training_images(settings), test_images(settings) if tested is None else tested)


@dataclass(frozen=True)
class Speed:
    """How fast one recorded run was.

    flops_per_second: Over training and test together.
    image_flops: Of one training image's forward pass: how large its network is.
    source: Folder of the record.
    """

    flops_per_second: float
    image_flops: float
    source: Path


def recorded_speeds(folders: Iterable[Path], device_name: str, precision: str) -> list[Speed]:
    """Reads the speed of every run recorded below some folders, of one device and precision and by as many processes as this run has; unreadable records are passed over.

    Args:
        folders: Each laid out as <table>/<row>-seed<seed>/record.json.
        device_name: As in the records.
        precision: As in the records.
    """
    speeds = []
    for path, record, _, reason in walk(folders):
        run = record.get("run", {})
        made_by = run.get("device_name"), record.get("provenance", {}).get("precision"), run.get("world_size", 1)
        if reason or made_by != (device_name, precision, world_size()):
            continue
        try:
            settings: dict[str, Any] = record["settings"]
            solver = settings["solver"]
            train = len(record["loss_curve"]) * solver["batch_size"] * solver["iter_size"]
            done = flops(settings, train, record["n_images"])
            if record["run"]["seconds"] > 0 and done > 0:
                speeds.append(Speed(done / record["run"]["seconds"], forward_flops(settings, "transform"), path.parent))
        except (ValueError, KeyError, TypeError):
            continue  # settings of no network of ours
    return speeds


def nearest(settings: dict[str, dict], speeds: list[Speed]) -> Speed | None:
    """Chooses the recorded run whose network is nearest in size to a row's; None where there is none."""
    own = forward_flops(settings, "transform")
    return min(speeds, key=lambda speed: (abs(math.log(speed.image_flops / own)), str(speed.source)), default=None)


def duration(seconds: float) -> str:
    """Writes seconds as a reader thinks of them: 45 s, 12 min, 21.3 h, 3.1 days."""
    for unit, size in (("days", 86400 * 2), ("h", 3600), ("min", 60)):
        if seconds >= size:
            value = seconds / (86400 if unit == "days" else size)
            return f"{value:.0f} {unit}" if unit == "min" else f"{value:.1f} {unit}"
    return f"{seconds:.0f} s"


def estimate(
    settings: dict[str, dict], speeds: list[Speed], runs: int, tested: int | None = None
) -> tuple[float | None, str]:
    """Estimates how long a row takes.

    Args:
        settings: The row's.
        speeds: Of the device that is meant.
        runs: How many times the row still has to run.
        tested: As for `row_flops`.

    Returns:
        The seconds, or None where nothing was recorded of a network of about this size; and the words that say where they come from.
    """
    speed = nearest(settings, speeds)
    if speed is None:
        return None, "duration unknown: no record on this device"
    ratio = forward_flops(settings, "transform") / speed.image_flops
    if not 1 / FAR <= ratio <= FAR:
        size = f"{ratio:.3g} times smaller" if ratio > 1 else f"{1 / ratio:.3g} times larger"
        return None, f"duration unknown: the nearest record on this device is of a network {size}"
    seconds = runs * row_flops(settings, tested) / speed.flops_per_second
    source = "/".join(speed.source.parts[-3:])
    return seconds, f"about {duration(seconds)} at {speed.flops_per_second / 1e9:.3g} GFLOP/s ({source})"

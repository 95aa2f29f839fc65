"""Training iterations of the paper's network at full width: `agree` does one in every precision beside the CPU's, `speed` times them, plain and with --deterministic and --cuda-graph."""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from repro.device import Compute, choose_algorithms, choose_device
from repro.files import write_json
from repro.models import MultiScale, build
from repro.protocol import load_protocol
from repro.solver import recorded
from repro.solver.train import Sitting, Training

TABLE, ROW = (
    "table3",
    "attention3-extra",
)  # three scales, attention and four losses: the largest network of the paper's grids
PRECISIONS = ("fp32", "tf32", "bf16")
# Of all gradients together, |a - b| / |b| beside the CPU's float32; the first loss, near the logarithm of the classes, feels little. About ten times what a CPU shows at
# full width: 1.4e-4 with sums in another order (oneDNN off), 1.2e-2 in bfloat16. tf32, three bits finer than that, was not measured.
TOLERANCE = {"fp32": 2e-3, "tf32": 3e-2, "bf16": 1e-1}
SMALL = {"width": 1 / 32, "crop_size": 65, "batch_size": 2}  # a rehearsal's
AGREE_BATCH = 2
WARM_UP, TIMED, HOTTEST = recorded.WARM_UP + 1, 10, 10  # the last of them is recorded where a graph is
# By the options of repro.run that ask for it. The graph comes last: a recording that fails may leave CUDA in any state.
OPTIONS: dict[str, dict[str, bool]] = {
    "": {},
    "--deterministic": {"deterministic": True},
    "--cuda-graph": {"cuda_graph": True},
}
NO_SNAPSHOT = Path("/nonexistent/snapshot.pt")  # no training here goes on from one, or leaves one


def row_settings(rehearsal: bool) -> dict[str, Any]:
    """Reads the row's settings; those of a rehearsal are small."""
    (row,) = (row for row in load_protocol(TABLE).rows if row.id == ROW)
    settings = copy.deepcopy(row.settings)
    if rehearsal:
        settings["model"]["width"] = SMALL["width"]
        settings["transform"]["crop_size"] = SMALL["crop_size"]
        settings["solver"]["batch_size"] = SMALL["batch_size"]
    return settings


def draw_batch(settings: dict[str, Any], images: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draws images, labels and sizes as the data stream makes them, of the training crop's size: noise in blocks of 8 pixels, a tenth of the labels ignored."""
    side, classes = settings["transform"]["crop_size"], len(settings["data"]["class_names"])
    generator, blocks = torch.Generator().manual_seed(0), -(-side // 8)

    def enlarged(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(8, -1).repeat_interleave(8, -2)[..., :side, :side]

    data = enlarged(torch.randn(images, 3, blocks, blocks, generator=generator) * 60)
    label = torch.randint(classes, (images, blocks, blocks), generator=generator)
    label[torch.rand(label.shape, generator=generator) < 0.1] = settings["data"]["ignore_label"]
    sizes = torch.full((images, 2), side)
    return data.contiguous(memory_format=torch.channels_last), enlarged(label).to(torch.uint8), sizes


def make(settings: dict[str, Any], compute: Compute) -> tuple[MultiScale, Training]:
    """Builds the network, with the filler's weights, on the device, and its training."""
    network = build(settings["model"], len(settings["data"]["class_names"]), seed=1).to(compute.device).train()
    return network, Training(network, [], settings, Sitting(1, "", NO_SNAPSHOT, compute))


def gradients(network: MultiScale) -> torch.Tensor:
    """Lines all gradients up, on the CPU."""
    return torch.cat([p.grad.detach().flatten().float().cpu() for p in network.parameters() if p.grad is not None])


def one_step(settings: dict[str, Any], compute: Compute) -> dict[str, Any]:
    """Does a first iteration without dropout, whose masks no two devices draw alike."""
    network, training = make(settings, compute)
    before = [p.detach().clone() for p in network.parameters()]
    loss = training.step(itertools.repeat(draw_batch(settings, AGREE_BATCH)))[0].item()
    moved = [not torch.equal(a, p) for a, p in zip(before, network.parameters(), strict=True)]
    finite = all(bool(p.isfinite().all()) for p in network.parameters())
    return {
        "loss": loss,
        "gradients": gradients(network),
        "moved": sum(moved),
        "parameters": len(moved),
        "finite": finite,
    }


def agree(device: torch.device, result: Path) -> bool:
    """Compares a first iteration in every precision with the CPU's in float32; returns whether all agree."""
    settings = row_settings(device.type == "cpu")
    settings["model"]["dropout_ratio"] = 0.0
    expected = one_step(settings, Compute(torch.device("cpu")))
    found: dict[str, Any] = {
        "batch": AGREE_BATCH,
        "width": settings["model"]["width"],
        "loss_on_the_cpu": expected["loss"],
    }
    found["precisions"] = {}
    good = True
    for precision in PRECISIONS:
        if precision == "tf32" and device.type == "cpu":
            found["precisions"][precision] = {"state": "left out: no CUDA device"}
            continue
        one = one_step(settings, Compute(choose_device(str(device), precision), precision))
        error = abs(one["loss"] - expected["loss"]) / abs(expected["loss"])
        difference = (one["gradients"] - expected["gradients"]).norm() / expected["gradients"].norm()
        close = one["finite"] and one["moved"] == one["parameters"] and bool(difference <= TOLERANCE[precision])
        good &= close
        found["precisions"][precision] = {
            "state": "agrees" if close else "disagrees",
            "loss": one["loss"] if math.isfinite(one["loss"]) else None,
            "loss_error": error if math.isfinite(error) else None,
            "gradient_error": difference.item() if difference.isfinite() else None,
            "tolerance": TOLERANCE[precision],
            "parameters_moved": one["moved"],
            "parameters": one["parameters"],
        }
        write_json(result, found)
        print(f"{precision}: {found['precisions'][precision]}", flush=True)
    return good


def hottest(call, device: torch.device) -> list[dict[str, Any]]:
    """Profiles a call; lists what takes the most time: kernels on a GPU, operators on the CPU."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities = [torch.profiler.ProfilerActivity.CUDA, *activities]
    with torch.profiler.profile(activities=activities) as profiler:
        call()
    kernels: dict[str, list[float]] = {}
    for event in profiler.events():
        if device.type == "cuda":
            if event.device_type == torch.autograd.DeviceType.CUDA:
                kernels.setdefault(event.name, []).append(event.time_range.elapsed_us())
        else:
            kernels.setdefault(event.name, []).append(event.self_cpu_time_total)
    total = sum(map(sum, kernels.values())) or 1.0
    order = sorted(kernels.items(), key=lambda item: -sum(item[1]))[:HOTTEST]
    return [
        {"name": name[:200], "calls": len(times), "ms": sum(times) / 1e3, "share": sum(times) / total}
        for name, times in order
    ]


def time_steps(settings: dict[str, Any], images: int, compute: Compute, profiled: bool) -> dict[str, Any]:
    """Times WARM_UP + TIMED iterations, each to the device's end; then profiles one more, where that is wanted."""
    device, cuda = compute.device, compute.device.type == "cuda"
    warm_up, timed = (WARM_UP, TIMED) if cuda else (1, 2)
    _, training = make(settings, compute)
    stream = itertools.repeat(draw_batch(settings, images))
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    loss = torch.zeros(())

    def step() -> None:
        nonlocal loss
        loss, _ = training.step(stream)
        if cuda:
            torch.cuda.synchronize(device)

    for _ in range(warm_up + timed):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds[warm_up:])
    finite = bool(torch.isfinite(loss))
    return {
        "state": "timed" if finite else "the loss is not finite",
        "batch": images,
        "seconds": seconds,
        "warm_up": warm_up,
        "median_seconds": median,
        "images_per_second": images / median,
        "peak_bytes": torch.cuda.max_memory_allocated(device) if cuda else None,
        "loss_is_finite": finite,
    } | ({"hottest": hottest(step, device)} if profiled else {})


def time_what_fits(settings: dict[str, Any], images: int, compute: Compute, profiled: bool) -> dict[str, Any]:
    """Times iterations of so many images, or of half as many as often as the device's memory is too small; says why where it cannot."""
    while True:
        try:
            return time_steps(settings, images, compute, profiled)
        except RuntimeError as error:
            state = {"state": " ".join(str(error).split())[:300]}
            if images == 1 or not isinstance(error, torch.OutOfMemoryError):
                return state
        images //= 2
        if compute.device.type == "cuda":
            torch.cuda.empty_cache()


def speed(device: torch.device, result: Path) -> bool:
    """Times training in every precision, on a GPU with every option too. Returns whether all trained."""
    settings = row_settings(device.type == "cpu")
    timed: dict[str, Any] = {}
    found = {"row": f"{TABLE} {ROW}", "width": settings["model"]["width"], "precisions": timed}
    good = True
    for (option, how), precision in itertools.product(OPTIONS.items(), PRECISIONS):
        if device.type == "cpu" and option:
            continue
        if device.type == "cpu" and precision == "tf32":
            timed[precision] = {"state": "left out: no CUDA device"}
            continue
        compute = Compute(choose_device(str(device), precision), precision, **how)
        choose_algorithms(compute.device, compute.deterministic)
        images = timed.get(precision, {}).get("batch", settings["solver"]["batch_size"])
        one = time_what_fits(settings, images, compute, profiled=not option)
        gc.collect()  # a recording and its training name each other
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if option:
            timed[precision].setdefault("with", {})[option] = one
        else:
            timed[precision] = one
        good &= one["state"] == "timed"
        write_json(result, found)
        shown = {key: value for key, value in one.items() if key not in ("hottest", "seconds")}
        print(f"{precision} {option}: {shown}", flush=True)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("agree", "speed"))
    parser.add_argument("--device", required=True)
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args()
    device = choose_device(options.device, "fp32")
    return not (agree if options.what == "agree" else speed)(device, options.result)


if __name__ == "__main__":
    sys.exit(main())

"""How long a net takes: `caffe time`, of every layer and of the whole."""

from __future__ import annotations

import time

import torch

from repro.caffe.log import info, number
from repro.caffe.net import Net

WARMUP = 2  # passes before anything is measured: memory is allocated, kernels are chosen


def time_net(net: Net, iterations: int) -> dict[str, float]:
    """Measures the whole net pass after pass, and then every layer by itself, and writes Caffe's log lines.

    Args:
        net: The net; its inputs are zeros unless they were set.
        iterations: Passes to take the mean of.

    Returns:
        Milliseconds: "forward", "backward", and "forward-backward" of the whole net.

    Caffe: tools/caffe.cpp, time.
    Deviates: the layers are measured in passes of their own, so that the whole is not slowed by the clock; each layer's backward starts from gradients of one.
    """
    info("Performing Forward")
    net()
    info(f"Initial loss: {number(float(net.loss()))}")
    info("Performing Backward")
    for _ in range(WARMUP):
        net.clear_param_diffs()
        net()
        net.backward()
    info("*** Benchmark begins ***")
    info(f"Testing for {iterations} iterations.")
    forward = backward = 0.0
    started = _now(net)
    for iteration in range(iterations):
        net.clear_param_diffs()
        begin = _now(net)
        net()
        middle = _now(net)
        net.backward()
        end = _now(net)
        forward, backward = forward + middle - begin, backward + end - middle
        info(f"Iteration: {iteration + 1} forward-backward time: {number((end - begin) * 1e3)} ms.")
    total = _now(net) - started
    info("Average time per layer: ")
    for name, (ahead, back) in time_layers(net, iterations).items():
        info(f"{name:>10}\tforward: {number(ahead)} ms.")
        info(f"{name:>10}\tbackward: {number(back)} ms.")
    means = {"forward": forward, "backward": backward, "forward-backward": forward + backward}
    means = {key: seconds * 1e3 / iterations for key, seconds in means.items()}
    info(f"Average Forward pass: {number(means['forward'])} ms.")
    info(f"Average Backward pass: {number(means['backward'])} ms.")
    info(f"Average Forward-Backward: {number(means['forward-backward'])} ms.")
    info(f"Total Time: {number(total * 1e3)} ms.")
    info("*** Benchmark ends ***")
    return means


def time_layers(net: Net, iterations: int) -> dict[str, tuple[float, float]]:
    """Measures every layer of a net by itself; of layers that one kernel computes together, the one that stands for them.

    Returns:
        By layer name, milliseconds forward and backward, the means over `iterations` passes.
    """
    times: dict[str, list[float]] = {}
    begin = 0.0

    def before(layer: torch.nn.Module, given: tuple) -> None:
        nonlocal begin
        begin = _now(net)

    def after(layer: torch.nn.Module, given: tuple, tops: tuple[torch.Tensor, ...]) -> None:
        nonlocal begin
        taken = times.setdefault(layer.name, [0.0, 0.0])
        taken[0] += (_now(net) - begin) * 1e3 / iterations
        roots = [top for top in tops if top.requires_grad]
        wanted = [value for value in (*given[0], *layer.blobs) if value.requires_grad]
        if roots and wanted:
            ones = [torch.ones_like(top) for top in roots]
            begin = _now(net)
            torch.autograd.grad(roots, wanted, ones, allow_unused=True)  # no further back than this layer's bottoms
            taken[1] += (_now(net) - begin) * 1e3 / iterations

    hooks = []
    for layer in net.layers.values():
        hooks += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
    try:
        for _ in range(iterations):
            net()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (ahead, back) for name, (ahead, back) in times.items()}


def _now(net: Net) -> float:
    """Returns the time in seconds when everything asked of the net's device is done."""
    if net.device.type == "cuda":
        torch.cuda.synchronize(net.device)
    return time.perf_counter()

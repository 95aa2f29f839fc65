"""How long a net takes: `caffe time`, of every layer and of the whole."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from repro.caffe.build import Step
from repro.caffe.fuse import Fused
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
    info(f"Initial loss: {number(float(net.loss().detach()))}")
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
    """Measures every step of a net by itself; layers that one kernel computes together are one step, with all their names.

    Returns:
        By name, milliseconds forward and backward, the means over `iterations` passes.
    """
    times: dict[str, list[float]] = {}
    alone: set[str] = set()  # layers that are steps of their own, as the Convolution is whose ReLU overwrites its top

    def watch(step: Step | Fused, bottoms: list[torch.Tensor], compute: Callable[..., tuple]) -> tuple:
        layers = [step.layer] if isinstance(step, Step) else step.layers
        if isinstance(step, Step):
            alone.add(step.layer.name)
        names = [layer.name for layer in layers if isinstance(step, Step) or layer.name not in alone]
        taken = times.setdefault("+".join(names), [0.0, 0.0])
        leaves = [x.detach().requires_grad_(x.requires_grad) for x in bottoms]
        given = [leaf.clone() for leaf in leaves]  # which may be overwritten
        begin = _now(net)
        tops = compute(given)
        taken[0] += (_now(net) - begin) * 1e3 / iterations
        roots = [top for top in tops if top.requires_grad]
        wanted = [x for x in (*leaves, *(blob for layer in layers for blob in layer.blobs)) if x.requires_grad]
        if roots and wanted:
            ones = [torch.ones_like(top) for top in roots]
            begin = _now(net)
            torch.autograd.grad(roots, wanted, ones, allow_unused=True)
            taken[1] += (_now(net) - begin) * 1e3 / iterations
        return tops

    net.watch = watch
    try:
        for _ in range(iterations):
            net()
    finally:
        net.watch = None
    return {name: (ahead, back) for name, (ahead, back) in times.items()}


def _now(net: Net) -> float:
    """Returns the time in seconds when everything asked of the net's device is done."""
    if net.device.type == "cuda":
        torch.cuda.synchronize(net.device)
    return time.perf_counter()

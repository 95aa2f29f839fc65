"""Training one row: the solver's loop, its log, and the snapshots from which it goes on."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from repro.data.lists import Item
from repro.data.stream import ImageSegData
from repro.models import MultiScale
from repro.solver.loss import losses
from repro.solver.sgd import Solver

SNAPSHOT_FORMAT = 1


def make_solver(network: MultiScale, settings: dict) -> Solver:
    """Makes the solver of a row, with the multipliers that its protocol gives each layer."""
    model = settings["model"]
    layers = network.convolutions()
    special = {"fc8": "fc8_lr_mult", "att_conv1": "attention_lr_mult", "att_fc": "attention_lr_mult"}
    lr_mult = {name: model[special.get(name, "lr_mult")] for name in layers}
    return Solver(layers, settings["solver"], lr_mult, model["decay_mult"])


def save_snapshot(path: Path, identity: str, solver: Solver, curve: list[float], seconds: float) -> None:
    """Writes everything that the rest of a run depends on; atomically, so that a killed run leaves the old snapshot or the new one.

    Random numbers need no saving: they are functions of the seed and the iteration.
    """
    state = {
        "format": SNAPSHOT_FORMAT,
        "identity": identity,
        "iteration": solver.iteration,
        "parameters": {
            name: parameter.detach().cpu() for name, parameter in zip(solver.history, solver.parameters, strict=True)
        },
        "history": {name: value.cpu() for name, value in solver.history.items()},
        "curve": torch.tensor(curve, dtype=torch.float64),
        "seconds": seconds,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_snapshot(path: Path, identity: str, solver: Solver) -> tuple[list[float], float]:
    """Puts a snapshot's values into the solver's parameters and history.

    Returns:
        The loss curve so far and the seconds it took.

    Raises:
        ValueError: The file is damaged, or another run's.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["format"] != SNAPSHOT_FORMAT or state["identity"] != identity:
            raise ValueError("another run's snapshot (settings, data, weights, seed or precision differ)")
        with torch.no_grad():
            for name, parameter in zip(solver.history, solver.parameters, strict=True):
                parameter.copy_(state["parameters"][name])
                solver.history[name].copy_(state["history"][name])
        solver.iteration = state["iteration"]
        return state["curve"].tolist(), state["seconds"]
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path}: must be a snapshot of this very run; got {reason}; delete it to start the row again, or choose another --out"
        ) from error


def iteration_seed(seed: int, iteration: int) -> int:
    """Mixes the run's seed with an iteration, so that an iteration's dropout is the same in an interrupted run (SplitMix64)."""
    z = (seed * 0x9E3779B97F4A7C15 + (iteration + 1) * 0xBF58476D1CE4E5B9) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return (z ^ (z >> 31)) >> 1


def train(
    network: MultiScale,
    items: list[Item],
    settings: dict,
    *,
    seed: int,
    identity: str,
    snapshot: Path,
    device: torch.device,
    autocast: torch.dtype | None = None,
    workers: int = 0,
    report: Callable[[int, float, float], None] = lambda iteration, loss, rate: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[list[float], float]:
    """Trains a network to the protocol's last iteration, going on from its snapshot where there is one.

    Args:
        network: On `device`, with its initial weights; changed in place.
        items: The training list.
        settings: The row's settings.
        seed: Caffe's random_seed, of the data's order and transform and of dropout.
        identity: Names this very run in its snapshot.
        snapshot: The snapshot's file.
        device: Where the network is.
        autocast: bfloat16, or None for float32.
        workers: Processes that decode ahead.
        report: Called now and then with the iteration just done (from 1), its loss and its rate.
        should_stop: Asked between iterations; where it says so a snapshot is written and KeyboardInterrupt raised.

    Returns:
        The loss of every iteration (the sum over all losses, mean over iter_size batches), and the seconds of training of all sittings.

    Raises:
        ValueError: A file is unusable, or the snapshot is another run's.
        RuntimeError: The loss is no longer finite.
        KeyboardInterrupt: should_stop said so.

    Caffe: src/caffe/solver.cpp, Solver::Step.
    """
    solver = make_solver(network, settings)
    table, transform = settings["solver"], settings["transform"]
    curve, seconds = load_snapshot(snapshot, identity, solver) if snapshot.exists() else ([], 0.0)
    if solver.iteration < table["max_iter"]:
        report(solver.iteration, curve[-1] if curve else float("nan"), 0.0)
    stream = iter(
        ImageSegData(
            items,
            batch_size=table["batch_size"],
            crop_size=transform["crop_size"],
            mean_bgr=tuple(transform["mean_bgr"]),
            mirror=transform["mirror"],
            scale_factors=transform["scale_factors"],
            shuffle=True,
            ignore_label=settings["data"]["ignore_label"],
            seed=seed,
            start_batch=solver.iteration * table["iter_size"],
            workers=workers if solver.iteration < table["max_iter"] else 0,
        )
    )
    pending: list[torch.Tensor] = []  # losses still on the device: reading each at once would make it wait

    def settle() -> float:
        for loss in torch.stack(pending).tolist() if pending else []:
            curve.append(loss)
            if not math.isfinite(loss):
                raise RuntimeError(
                    f"train: the loss must stay finite; got {loss} at iteration {len(curve)}; lower solver.base_lr"
                )
        pending.clear()
        return curve[-1]

    saved = solver.iteration

    def save() -> None:
        nonlocal saved
        settle()
        save_snapshot(snapshot, identity, solver, curve, seconds + time.monotonic() - started)
        saved = solver.iteration

    network.train()
    started = time.monotonic()
    try:
        while solver.iteration < table["max_iter"]:
            if should_stop():
                if solver.iteration > saved:
                    save()
                raise KeyboardInterrupt
            torch.manual_seed(iteration_seed(seed, solver.iteration))
            solver.zero_grad()
            total = torch.zeros((), dtype=torch.float64, device=device)
            for _ in range(table["iter_size"]):
                data, label = (part.to(device, non_blocking=True) for part in next(stream))
                with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                    output = network(data)
                loss = sum(
                    losses(
                        output,
                        label,
                        network.scales,
                        settings["model"]["extra_supervision"],
                        settings["data"]["ignore_label"],
                    ).values()
                )
                loss.backward()
                total += loss.detach()
            rate = solver.step()
            pending.append(total / table["iter_size"])
            done = solver.iteration
            if done % table["display"] == 0 or done == table["max_iter"]:
                report(done, settle(), rate)
            if done % table["snapshot"] == 0 or done == table["max_iter"]:
                save()
    finally:
        del stream
    return curve, seconds + time.monotonic() - started

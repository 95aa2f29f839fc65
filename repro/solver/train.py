"""Training one row: the solver's loop, its log, and the snapshots from which it goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from repro.data.lists import Item
from repro.data.stream import ImageSegData
from repro.device import Compute
from repro.distributed import GradientSum, any_of, broadcast, from_main, rank, share, total, world_size
from repro.models import MultiScale
from repro.models.build import lr_mult_key
from repro.models.layers import Dropout
from repro.solver.loss import losses
from repro.solver.recorded import Recorded
from repro.solver.sgd import Solver
from repro.solver.snapshot import Snapshot, load_parameters, parameter_shapes, read_snapshot, write_snapshot


@dataclass(frozen=True)
class Sitting:
    """The circumstances of a training, from its start or a snapshot to where it ends or is stopped.

    seed: Caffe's random_seed, of the data's order and transform and of dropout.
    identity: Names the run in its snapshot.
    snapshot: The snapshot's file.
    compute: Where and how.
    circumstances: What may change a sum's last bits, in words; a snapshot remembers those of every sitting.
    should_stop: Asked between iterations; where it says so a snapshot is written and KeyboardInterrupt raised.
    """

    seed: int
    identity: str
    snapshot: Path
    compute: Compute
    circumstances: dict[str, str] = field(default_factory=dict)
    should_stop: Callable[[], bool] = lambda: False


def make_solver(network: MultiScale, settings: dict) -> Solver:
    """Makes the solver of a row, with the multipliers that its protocol gives each layer."""
    model = settings["model"]
    layers = network.convolutions()
    lr_mult = {name: model[lr_mult_key(name)] for name in layers}
    return Solver(layers, settings["solver"], lr_mult, model["decay_mult"])


def iteration_seed(seed: int, iteration: int) -> int:
    """Mixes the run's seed with an iteration, so that an iteration's dropout is the same in an interrupted run (SplitMix64)."""
    z = (seed * 0x9E3779B97F4A7C15 + (iteration + 1) * 0xBF58476D1CE4E5B9) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return (z ^ (z >> 31)) >> 1


def training_stream(
    items: list[Item],
    settings: dict,
    seed: int,
    start_batch: int = 0,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    cache: bool = True,
) -> ImageSegData:
    """Makes the batches of a row's training, from one of them on.

    Args:
        items: The training list.
        settings: The row's.
        seed: Caffe's random_seed.
        start_batch: The number of batches passed over.
        workers: Processes that decode ahead; 0 decodes here.
        rank, world_size: Which share of every batch is made, and how many there are.
        cache: Whether decoded images are kept.
    """
    transform = settings["transform"]
    return ImageSegData(
        items,
        batch_size=settings["solver"]["batch_size"],
        crop_size=transform["crop_size"],
        mean_bgr=tuple(transform["mean_bgr"]),
        mirror=transform["mirror"],
        scale_factors=transform["scale_factors"],
        shuffle=True,
        ignore_label=settings["data"]["ignore_label"],
        seed=seed,
        start_batch=start_batch,
        workers=workers,
        rank=rank,
        world_size=world_size,
        cache=cache,
    )


class Training:
    """The training of a network to its protocol's last iteration, going on from its snapshot where there is one.

    Under torchrun every batch is divided among the processes, which sum losses and gradients: they stay equal, and compute what one process would, but for the order of sums.
    The first one alone reads and writes the snapshot.

    Args:
        network: On the sitting's device, with its initial weights; changed in place.
        items: The training list.
        settings: The row's.
        sitting: Its circumstances.

    Attributes:
        curve: The loss of every iteration so far (the sum over all losses, mean over iter_size batches).
        seconds: Of training, of all sittings so far.
        sittings: The circumstances of each sitting that changed them, this one's last.

    Raises:
        ValueError: The snapshot is damaged or another run's.

    Caffe: src/caffe/solver.cpp, Solver::Step.
    """

    def __init__(self, network: MultiScale, items: list[Item], settings: dict, sitting: Sitting):
        self._network, self._items, self._settings, self._sitting = network, items, settings, sitting
        self._solver = make_solver(network, settings)
        self.curve: list[float] = []
        self.seconds = 0.0
        self.sittings: list[dict[str, str]] = []
        if rank() == 0 and sitting.snapshot.exists():
            self._restore(read_snapshot(sitting.snapshot, sitting.identity, parameter_shapes(network)))
        if world_size() > 1:
            self._divide()
        self._gradients = GradientSum(p for p in self._solver.parameters if p.requires_grad)
        if not self.sittings or (self.sittings[-1] != sitting.circumstances and not self.finished):
            self.sittings.append(sitting.circumstances)
        self._saved = self.iteration
        self._pending: list[torch.Tensor] = []  # losses still on the device: reading each at once would make it wait
        self._recorded = Recorded(self._backward) if sitting.compute.cuda_graph else None

    @property
    def iteration(self) -> int:
        """The next iteration, counted from 0."""
        return self._solver.iteration

    @property
    def finished(self) -> bool:
        """Whether the last iteration is done."""
        return self.iteration >= self._settings["solver"]["max_iter"]

    def run(self, report: Callable[[int, float, float], None] = lambda iteration, loss, rate: None) -> None:
        """Trains to the end.

        Args:
            report: Called now and then with the iteration just done (from 1), its loss and its rate.

        Raises:
            ValueError: A file is unusable.
            RuntimeError: The loss is no longer finite.
            KeyboardInterrupt: The sitting's should_stop said so.
        """
        if self.finished:
            return
        table = self._settings["solver"]
        first = self.iteration * table["iter_size"]
        sitting = self._sitting
        part = {"rank": rank(), "world_size": world_size()}
        stream = iter(
            training_stream(self._items, self._settings, sitting.seed, first, sitting.compute.workers, **part)
        )
        self._network.train()
        started, before = time.monotonic(), self.seconds
        try:
            while not self.finished:
                stop = any_of(self._sitting.should_stop())
                if not stop:
                    loss, rate = self.step(stream)
                    self._pending.append(loss)
                    if self.iteration % table["display"] == 0 or self.finished:
                        report(self.iteration, self._settle(), rate)
                self.seconds = before + time.monotonic() - started
                if self._saved < self.iteration and (stop or self.iteration % table["snapshot"] == 0 or self.finished):
                    self._save()
                if stop:
                    raise KeyboardInterrupt
        finally:
            del stream
            self._recorded = None  # the test that follows needs the memory
        self.seconds = before + time.monotonic() - started

    def step(self, stream: Iterator[Sequence[torch.Tensor]]) -> tuple[torch.Tensor, float]:
        """Does one iteration.

        Args:
            stream: Of batches, each of data, label and dim as `repro.data.stream` makes them, on the CPU.

        Returns:
            The iteration's loss, float64 and on the device, and its rate.
        """
        compute, iter_size = self._sitting.compute, self._settings["solver"]["iter_size"]
        torch.manual_seed(iteration_seed(self._sitting.seed, self.iteration))
        batches = ([compute.send(part) for part in next(stream)] for _ in range(iter_size))
        loss = (self._recorded or self._backward)(batches)
        # The update is not recorded: its rates are numbers of Python, which a graph would keep, and its launches are few.
        return loss / iter_size, self._solver.step()

    def _backward(self, batches: Iterable[Sequence[torch.Tensor]]) -> torch.Tensor:
        """Leaves the gradients of an iteration, summed over its batches, at the parameters; returns the sum of its losses."""
        compute, iter_size = self._sitting.compute, self._settings["solver"]["iter_size"]
        extra, ignore = self._settings["model"]["extra_supervision"], self._settings["data"]["ignore_label"]
        self._solver.zero_grad()
        loss_sum = torch.zeros((), dtype=torch.float64, device=compute.device)
        for number, (data, label, dim) in enumerate(batches, start=1):
            with compute.autocast():
                output = self._network(data)
            loss = sum(losses(output, label, self._network.scales, extra, ignore, dim).values())
            with self._gradients.of_iteration(last=number == iter_size):
                loss.backward()
            loss_sum += loss.detach()
        return loss_sum

    def _settle(self) -> float:
        """Reads the losses that are still on the device; returns the last."""
        for loss in total(torch.stack(self._pending)).tolist() if self._pending else []:
            self.curve.append(loss)
            if not math.isfinite(loss):
                raise RuntimeError(
                    f"train: the loss must stay finite; got {loss} at iteration {len(self.curve)}; lower solver.base_lr"
                )
        self._pending.clear()
        return self.curve[-1]

    def _save(self) -> None:
        self._settle()
        self._saved = self.iteration
        if rank() > 0:
            return
        solver = self._solver
        parameters = {n: p.detach().cpu() for n, p in zip(solver.history, solver.parameters, strict=True)}
        history = {name: value.cpu() for name, value in solver.history.items()}
        curve = torch.tensor(self.curve, dtype=torch.float64)
        state = (self._sitting.identity, self.iteration, parameters, history, curve, self.seconds, self.sittings)
        write_snapshot(self._sitting.snapshot, Snapshot(*state))

    def _divide(self) -> None:
        """Takes the first process's state, and this one's part of every batch."""
        solver = self._solver
        broadcast([*solver.parameters, *solver.history.values()])
        state = from_main(lambda: (solver.iteration, self.curve, self.seconds, self.sittings))
        solver.iteration, self.curve, self.seconds, self.sittings = state
        batch_size = self._settings["solver"]["batch_size"]
        for layer in self._network.modules():
            if isinstance(layer, Dropout):
                layer.share = batch_size, share(batch_size, rank(), world_size())

    def _restore(self, snapshot: Snapshot) -> None:
        load_parameters(self._network, snapshot.parameters)
        for name, value in snapshot.history.items():
            self._solver.history[name].copy_(value)
        self._solver.iteration = snapshot.iteration
        self.curve, self.seconds, self.sittings = snapshot.curve.tolist(), snapshot.seconds, list(snapshot.sittings)

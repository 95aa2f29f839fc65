"""Caffe's Solver: iterations of a net, its tests, its log and its snapshots."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from caffe_weights.files.solverstate import read_solverstate
from caffe_weights.nets.prototxt import Message
from repro.caffe.log import info, number
from repro.caffe.net import Net
from repro.caffe.scores import added, described, scores, share_layers
from repro.caffe.snapshots import (
    check_prefix,
    find_learned_net,
    go_to,
    read_stream,
    snapshot_prefix,
    stream_file,
    stream_place,
    write_snapshot,
    write_stream,
)
from repro.caffe.solver_parameter import NetSource, read_solver
from repro.caffe.update import Update
from repro.data.caffe_rng import CaffeRNG

_PENDING = 100  # losses that may wait on the device before they are read


class Solver:
    """A solver and its nets, as its prototxt describes them.

    Args:
        prototxt: The solver's file.
        defines: Values of the ${VARS} in it and in its nets.
        stages, level: Added to the train net's state, as caffe's --stage and --level.
        fuse, allow_large, device, dtype: As for Net.
        root: The folder that relative paths start from; by default the current one, as Caffe's.
        get_action: Asked after every iteration, and between the batches of a test: "none", "snapshot" or "stop".

    Attributes:
        param: The SolverParameter.
        net: The train net. test_nets: The others.
        iter: Iterations done.
        update: What becomes of the gradients, with its `history`.
        smoothed_loss: The mean loss of the last average_loss iterations, as the log shows it.

    Raises:
        FileNotFoundError, ValueError: A file is unusable; one line says which, where and why.

    Caffe: src/caffe/solver.cpp, src/caffe/solvers/sgd_solver.cpp; pycaffe's SGDSolver, NesterovSolver and so on, by the prototxt's type.
    """

    def __init__(
        self,
        prototxt: str | os.PathLike,
        *,
        defines: Mapping[str, str] | None = None,
        stages: tuple[str, ...] = (),
        level: int = 0,
        fuse: bool = True,
        allow_large: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        root: Path = Path(),
        get_action: Callable[[], str] = lambda: "none",
    ):
        self._file = file = read_solver(Path(prototxt), defines)
        self.param, self._root, self._defines = file.parameter, Path(root), dict(defines or {})
        self.get_action = get_action
        self._prefix = snapshot_prefix(file.path, self.param.snapshot_prefix, self._root)
        if self.param.snapshot:
            check_prefix(self._prefix)
        seed = self.param.random_seed
        if seed < 0:
            seed = int.from_bytes(os.urandom(4), "little")
            info(f"random_seed was not specified and is set to {seed}")
        self._rng = CaffeRNG(seed % 2**32)
        self._net_options = {
            "defines": self._defines,
            "fuse": fuse,
            "allow_large": allow_large,
            "device": device,
            "dtype": dtype,
            "root": self._root,
            "seed": seed % 2**32,
            "rng": self._rng,
            "log": info,
        }
        info(f"Creating training net {file.train.words}")
        self.net = self._build(file.train, "TRAIN", level, stages)
        self.test_nets = []
        for index, source in enumerate(file.tests):
            info(f"Creating test net (#{index}) specified by {source.words}")
            self.test_nets.append(self._build(source, "TEST", 0, ()))
        for weights in self.param.weights:
            self.copy_from(weights)
        self.iter = 0
        self.update = Update(self.param, file.type, self.net.learnable)
        self._stopped = False
        self._losses: list[float] = []
        self._pending: list[torch.Tensor] = []
        self.smoothed_loss = 0.0
        info("Solver scaffolding done.")

    def _build(self, source: NetSource, phase: str, level: int, stages: tuple[str, ...]) -> Net:
        """Builds a net in the state that the command line and the solver give it; the net may have stages and a level of its own.

        Caffe: src/caffe/solver.cpp, InitTrainNet and InitTestNets.
        """
        return Net(
            source.net if isinstance(source.net, Message) else self._root / source.net,
            phase=source.phase or phase,
            level=level or source.level or 0,
            stages=(*source.stages, *stages),
            **self._net_options,
        )

    def copy_from(self, weights: str | os.PathLike) -> None:
        """Copies parameters from models, comma-separated, into all nets.

        Caffe: src/caffe/solver.cpp, LoadNetWeights; tools/caffe.cpp, CopyLayers.
        """
        for name in str(weights).split(","):
            info(f"Finetuning from {name.strip()}")
            for net in (self.net, *self.test_nets):
                net.copy_from(self._root / name.strip())

    def step(self, iterations: int) -> None:
        """Does some iterations, with the tests, log lines and snapshots that fall among them.

        Caffe: src/caffe/solver.cpp, Step.
        """
        param, start, stop = self.param, self.iter, self.iter + iterations
        self._losses, self._pending, self.smoothed_loss = [], [], 0.0
        while self.iter < stop:
            self.net.clear_param_diffs()
            interval = param.test_interval
            if interval and self.iter % interval == 0 and (self.iter > 0 or param.test_initialization):
                self.test_all()
                if self._stopped:
                    break
            total = 0.0
            for _ in range(param.iter_size):
                self.net()
                loss = self.net.loss()
                self.net.backward()
                total = total + loss.detach()
            self._pending.append(total / param.iter_size)
            display = param.display and self.iter % param.display == 0
            if display or len(self._pending) == _PENDING:
                self._settle(self.iter + 1 - start)
            if display:
                info(f"Iteration {self.iter}, loss = {number(self.smoothed_loss)}")
                self._log_outputs(self.net, "Train", [value for _, value in scores(self.net)])
            self.update.apply(self.iter)
            self.iter += 1
            action = self.get_action()
            if (param.snapshot and self.iter % param.snapshot == 0) or action == "snapshot":
                self.snapshot()
            if action == "stop":
                self._stopped = True
                break
        self._settle(self.iter - start)

    def _settle(self, done: int) -> None:
        """Takes the losses that still wait on the device into the smoothed loss; `done` iterations of this call are done with the last of them.

        Caffe: src/caffe/solver.cpp, UpdateSmoothedLoss.
        """
        losses = torch.stack(self._pending).tolist() if self._pending else []
        window = self.param.average_loss
        for index, loss in enumerate(losses, done - len(losses)):
            if len(self._losses) < window:
                self._losses.append(loss)
                size = len(self._losses)
                self.smoothed_loss = (self.smoothed_loss * (size - 1) + loss) / size
            else:
                self.smoothed_loss += (loss - self._losses[index % window]) / window
                self._losses[index % window] = loss
        self._pending.clear()

    def solve(self, resume: str | os.PathLike | None = None) -> None:
        """Trains to max_iter, snapshots, and displays and tests once more.

        Args:
            resume: A solver state to go on from.

        Caffe: src/caffe/solver.cpp, Solve.
        """
        param = self.param
        info(f"Solving {self.net.name}")
        info(f"Learning Rate Policy: {param.lr_policy}")
        self._stopped = False
        if resume is not None:
            info(f"Restoring previous solver status from {resume}")
            self.restore(resume)
        if param.snapshot or param.snapshot_after_train:
            check_prefix(self._prefix)
        start = self.iter
        self.step(param.max_iter - self.iter)
        if param.snapshot_after_train and (not param.snapshot or self.iter % param.snapshot != 0):
            self.snapshot()
        if self._stopped:
            info("Optimization stopped early.")
            return
        if param.display and self.iter % param.display == 0:
            with torch.no_grad():
                self.net()
                self._pending.append(self.net.loss().detach())
            self._settle(self.iter + 1 - start)
            info(f"Iteration {self.iter}, loss = {number(self.smoothed_loss)}")
        if param.test_interval and self.iter % param.test_interval == 0:
            self.test_all()
        info("Optimization Done.")

    def test_all(self) -> None:
        """Runs every test net.

        Caffe: src/caffe/solver.cpp, TestAll.
        """
        for index in range(len(self.test_nets)):
            if not self._stopped:
                self.test(index)

    @torch.no_grad()
    def test(self, index: int) -> list[float]:
        """Runs a test net over its test_iter batches with the train net's parameters.

        Returns:
            The mean of every number of its outputs; nothing where it was interrupted.

        Caffe: src/caffe/solver.cpp, Test.
        """
        info(f"Iteration {self.iter}, Testing net (#{index})")
        net, count = self.test_nets[index], self.param.test_iter[index]
        share_layers(self.net, net)
        sums: list[float] = []
        loss = 0.0
        for _ in range(count):
            while (action := self.get_action()) != "none":
                if action == "snapshot":
                    self.snapshot()
                self._stopped = self._stopped or action == "stop"
            if self._stopped:
                info("Test interrupted.")
                return []
            net()
            loss += float(net.loss())
            sums = added(sums, [value for _, value in scores(net)])
        if self.param.test_compute_loss and count:
            info(f"Test loss: {number(loss / count)}")
        means = [total / count for total in sums]
        self._log_outputs(net, "Test", means)
        return means

    def _log_outputs(self, net: Net, phase: str, values: list[float]) -> None:
        for index, text in enumerate(described(net, values)):
            info(f"    {phase} net output #{index}: {text}")

    def snapshot(self) -> Path:
        """Writes `<prefix>_iter_<n>.caffemodel` and `.solverstate` (or both `.h5`), and the place in the data stream; returns the solver state's file."""
        check_prefix(self._prefix)
        hdf5 = self.param.snapshot_format == "HDF5"
        state = write_snapshot(self._prefix, hdf5, self.net, self.update, self.iter)
        write_stream(stream_file(state), stream_place((self.net, *self.test_nets), self._rng))
        return state

    def restore(self, path: str | os.PathLike, continue_stream: bool = False) -> None:
        """Goes on from a solver state and the model that it names.

        Args:
            path: A .solverstate or .solverstate.h5, ours or Caffe's.
            continue_stream: Whether data and random numbers go on where the snapshot left them; otherwise they begin anew, as Caffe's do.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: The state is of another net or solver.

        Caffe: src/caffe/solver.cpp, Restore; sgd_solver.cpp, RestoreSolverStateFromBinaryProto and ...FromHDF5.
        """
        path = self._root / path
        state = read_solverstate(path)
        sizes, found = [value.numel() for value in self.update.history], [value.size for value in state.history]
        if sizes != found:
            raise ValueError(
                f"{path}: must have this solver's history, {len(sizes)} blobs of {sum(sizes)} numbers; got {len(found)} of {sum(found)}; name this net's state"
            )
        place = read_stream(stream_file(path), (self.net, *self.test_nets)) if continue_stream else None
        if state.learned_net:
            self.net.copy_from(find_learned_net(path, state.learned_net, self._root))
        self.update.restore([torch.from_numpy(value.copy()) for value in state.history], state.current_step)
        self.iter = state.iter
        if place is not None:
            go_to(place, (self.net, *self.test_nets), self._rng)

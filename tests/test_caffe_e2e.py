"""Whole runs of `caffe train`: every batch, every loss, the rates, the parameters, the snapshot and going on from it, as Caffe's own."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN, assert_close
from float_rule import FLOAT64, Arithmetic, Step, Truth

from caffe_weights import read_caffemodel
from caffe_weights.files.solverstate import read_solverstate
from repro.caffe.solver import Solver
from repro.solver.lr_policy import learning_rate

E2E = GOLDEN / "e2e_run"
CAFFE = dict(np.load(E2E / "expected.npz"))
NAMES = CAFFE["loss_names"].tolist()
# Caffe's own float32 differs from its float64 by at most this in these runs, in losses and in parameters (tests/golden/README.md); what is compared with it is
# our float64, the same on every machine.
CAFFES_FLOAT32_LOSSES, CAFFES_FLOAT32 = 1.0e-6, 4.3e-6


def crc(blob: torch.Tensor, dtype: torch.dtype) -> int:
    return zlib.crc32(blob.to(dtype).contiguous().numpy().tobytes())


class Run:
    """A run of the golden folder, which notes what each forward pass saw and gave; snapshots go to tmp_path."""

    def __init__(self, run: str, tmp_path: Path, dtype=torch.float64, state: str = ""):
        prototxt = tmp_path / f"solver_{run}.prototxt"
        text = (E2E / prototxt.name).read_text().replace('snapshot_prefix: "', f'snapshot_prefix: "{tmp_path}/')
        prototxt.write_text(text.replace("display: 1", "display: 0"))
        self.solver = Solver(prototxt, root=E2E, dtype=dtype)
        if state:
            self.solver.restore(state)
        else:
            self.solver.copy_from("init.caffemodel")
        self.losses: list[torch.Tensor] = []
        self.batches: list[tuple[int, int, list]] = []
        self.solver.net.register_forward_hook(self._note)

    def _note(self, net, given, outputs) -> None:
        blobs = net.blobs
        self.losses.append(torch.stack([blobs[name].detach().reshape(()) for name in NAMES]))
        dim = blobs["dim"].flatten(1).to(torch.int64).tolist()
        self.batches.append((crc(blobs["data"], torch.float32), crc(blobs["label"], torch.uint8), dim))

    def step(self, iterations: int):
        self.solver.step(iterations)
        return self

    def assert_saw_caffes_batches(self, run: str) -> None:
        caffes = (CAFFE[f"{run}/{key}"].tolist() for key in ("data_crc32", "label_crc32", "dim"))
        assert self.batches == list(zip(*caffes, strict=True))[: len(self.batches)]

    def assert_gave_caffes_losses(self, run: str) -> None:
        expected = CAFFE[f"{run}/losses_f64"].reshape(-1, len(NAMES))[: len(self.losses)]
        ours = torch.stack(self.losses).numpy()
        assert len(ours) > 0
        np.testing.assert_allclose(ours, expected, rtol=FLOAT64)

    def assert_has_caffes_parameters(self, run: str) -> None:
        seen = []
        for entry in self.solver.net.learnable:
            name = f"{entry.layer}/{'wb'[entry.index]}"
            flat = entry.tensor.detach().contiguous().flatten()
            kept = CAFFE[f"{run}/params_after40_f64_65/{name}"]
            places = np.linspace(0, flat.numel() - 1, 65).astype(np.int64) if kept.size == 65 else slice(None)
            assert_close(flat[places], kept, FLOAT64, name)
            seen.append(name)
        assert seen == CAFFE["param_order"].tolist()


@pytest.mark.parametrize(
    ("run", "iterations"),
    [
        ("iter2", 4),
        ("poly", 6),
        ("scale", 6),
        *(pytest.param(run, 40, marks=pytest.mark.slow) for run in ("iter2", "poly", "scale")),
    ],
)
def test_runs_in_float64(run, iterations, tmp_path):
    ours = Run(run, tmp_path).step(iterations)
    ours.assert_saw_caffes_batches(run)
    ours.assert_gave_caffes_losses(run)
    if iterations == 40:
        ours.assert_has_caffes_parameters(run)
    table = {
        name: getattr(ours.solver.param, name)
        for name in ("base_lr", "lr_policy", "gamma", "power", "stepsize", "max_iter")
    }
    assert [learning_rate(table, i) for i in range(40)] == CAFFE[f"{run}/lr_f64"].tolist()


def test_the_whole_run_with_its_snapshot_in_float64(tmp_path):
    ours = Run("step", tmp_path).step(20)
    solver = ours.solver
    half = [entry.tensor.detach().clone() for entry in solver.net.learnable], [v.clone() for v in solver.update.history]
    ours.step(20)
    ours.assert_saw_caffes_batches("step")
    ours.assert_gave_caffes_losses("step")
    ours.assert_has_caffes_parameters("step")
    assert ours.solver.iter == 40
    made = sorted(path.name for path in tmp_path.iterdir() if "_iter_" in path.name)
    stems = ("caffemodel", "solverstate", "solverstate.stream.json")
    assert made == [f"step_iter_{i}.{stem}" for i in (20, 40) for stem in stems]

    model, caffes = (read_caffemodel(folder / "step_iter_20.caffemodel") for folder in (tmp_path, E2E))
    assert (model.name, model.format) == (caffes.name, caffes.format)
    assert [(layer.name, layer.type) for layer in model.layers] == [(layer.name, layer.type) for layer in caffes.layers]
    for layer, theirs in zip(model.layers, caffes.layers, strict=True):
        assert len(layer.blobs) == len(theirs.blobs)
        for blob, expected in zip(layer.blobs, theirs.blobs, strict=True):
            assert blob.dtype == expected.dtype
            assert_close(blob, expected, CAFFES_FLOAT32, layer.name)

    state, caffes = (read_solverstate(folder / "step_iter_20.solverstate") for folder in (tmp_path, E2E))
    assert (state.iter, state.current_step) == (caffes.iter, caffes.current_step) == (20, 1)
    assert Path(state.learned_net).name == Path(caffes.learned_net).name
    assert len(state.history) == len(caffes.history) == 36
    for blob, expected in zip(state.history, caffes.history, strict=True):
        assert (blob.dtype, blob.shape) == (expected.dtype, expected.shape)
        assert_close(blob, expected, 1e-4)  # gradients that cancel: what is tested is the format

    # Caffe's float64 program went on from its float64 values, which files of ours round.
    resumed = Run("step", tmp_path, state="step_iter_20.solverstate")
    with torch.no_grad():
        for entry, value in zip(resumed.solver.net.learnable, half[0], strict=True):
            entry.tensor.copy_(value)
    resumed.solver.update.restore(half[1], 1)
    resumed.step(20)
    resumed.assert_saw_caffes_batches("resume")
    resumed.assert_gave_caffes_losses("resume")
    resumed.assert_has_caffes_parameters("resume")


def test_going_on_from_caffes_solverstate(tmp_path):
    ours = Run("step", tmp_path, state="step_iter_20.solverstate")
    assert ours.solver.iter == 20
    assert ours.solver.update.current_step == 1
    ours.step(20)
    ours.assert_saw_caffes_batches("resume")  # the stream begins anew, as Caffe's does
    assert ours.batches[0][:2] == (CAFFE["step/data_crc32"][0], CAFFE["step/label_crc32"][0])
    np.testing.assert_allclose(torch.stack(ours.losses), CAFFE["resume/losses"], rtol=CAFFES_FLOAT32_LOSSES)


def float32_rule(iterations: int, tmp_path: Path) -> Truth:
    def compute(dtype, device, arithmetic: Arithmetic):
        ours = Run("step", tmp_path, dtype)
        learnable = ours.solver.net.learnable
        steps = []
        with arithmetic:
            for _ in range(iterations):
                ours.step(1)
                arithmetic.end_step(entry.tensor.data for entry in learnable)
                after = {f"{e.layer}/{'wb'[e.index]}": e.tensor.detach().clone() for e in learnable}
                steps.append(Step({"losses": ours.losses[-1].double()}, after))
        ours.assert_saw_caffes_batches("step")
        return steps

    truth = Truth(compute)
    assert len(truth.bounds) == 1 + 36
    caffe = [{"losses": losses} for losses in CAFFE["step/losses"][:iterations]]
    truth.assert_holds_caffes_float32(caffe, truth.bounds)
    truth.assert_holds_float32()
    return truth


def test_the_first_iterations_in_float32(tmp_path):
    float32_rule(2, tmp_path)


@pytest.mark.slow
def test_the_whole_run_in_float32(tmp_path):
    float32_rule(40, tmp_path)

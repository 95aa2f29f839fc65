"""Which device a plan means, found out without starting CUDA; and with which algorithms a training computes."""

import os
import platform
import re
import stat
from types import SimpleNamespace

import pytest
import torch
from tiny import main, run_command

from repro.device import Compute, choose_algorithms, choose_device, parse_device, planned_device, processor_name
from repro.records.store import read_record
from repro.run import __main__ as program
from repro.run import row as row_module


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Puts a made-up nvidia-smi first in PATH."""

    def install(script):
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")

    return install


def test_names():
    assert parse_device("cpu") == torch.device("cpu")
    assert parse_device("cuda:1") == torch.device("cuda", 1)
    for name in ("tpu", "meta", "cuda:x"):
        message = f"--device: must be auto, cpu, cuda or cuda:N; got {name!r}; choose one of these"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            parse_device(name)


def test_a_gpu_is_named_by_its_number(monkeypatch):
    chosen = []

    def set_device(device):
        if device.index is None:  # as torch does
            raise ValueError(f"Expected a torch.device with a specified index or an integer, but got:{device}")
        chosen.append(device)

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends, "cudnn", SimpleNamespace())
    monkeypatch.setattr(torch.backends, "cuda", SimpleNamespace(matmul=SimpleNamespace()))
    assert [choose_device(name, "fp32") for name in ("cuda", "auto", "cuda:1")] == chosen
    assert [device.index for device in chosen] == [0, 0, 1]
    assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is False
    with pytest.raises(ValueError, match="cuda:2 must be present and torch built for it; got 2 CUDA devices"):
        choose_device("cuda:2", "fp32")


def test_the_processor_has_a_name(monkeypatch):
    assert processor_name()
    monkeypatch.setattr("pathlib.Path.read_text", lambda *args, **kwargs: (_ for _ in ()).throw(OSError()))
    assert processor_name() == (platform.processor() or platform.machine())


def test_a_plan_for_the_cpu_asks_no_driver(driver):
    driver("echo called >&2; exit 1")
    assert planned_device("cpu") == (torch.device("cpu"), processor_name())


def test_gpus_have_the_drivers_names(driver, monkeypatch):
    driver('[ "$*" = "--query-gpu=name --format=csv,noheader" ] && printf "First GPU\\nSecond GPU\\n"')
    assert planned_device("cuda") == (torch.device("cuda"), "First GPU")
    assert planned_device("cuda:1") == (torch.device("cuda", 1), "Second GPU")
    assert planned_device("cuda:2") == (torch.device("cuda", 2), "")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert planned_device("auto") == (torch.device("cuda"), "First GPU")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert planned_device("auto") == (torch.device("cpu"), processor_name())
    assert not torch.cuda.is_initialized()


def test_without_a_driver(driver):
    driver("exit 9")
    assert planned_device("auto") == (torch.device("cpu"), processor_name())
    assert planned_device("cuda") == (torch.device("cuda"), "")
    with pytest.raises(ValueError, match="must be auto, cpu"):
        planned_device("tpu")


class Sent:
    """Stands in for a tensor, and writes down what becomes of it."""

    def __init__(self):
        self.calls = []

    def pin_memory(self):
        self.calls.append("pinned")
        return self

    def to(self, device, non_blocking):
        self.calls.append((device, non_blocking))
        return self


def test_what_goes_to_a_gpu_goes_through_pinned_memory():
    gpu, cpu = torch.device("cuda", 1), torch.device("cpu")
    assert Compute(gpu).send(Sent()).calls == ["pinned", (gpu, True)]
    assert Compute(cpu).send(Sent()).calls == [(cpu, True)]
    there = torch.ones(2)
    assert Compute(cpu).send(there) is there


@pytest.fixture
def flags(monkeypatch):
    """Reads torch's choice of algorithms: (only deterministic ones, cuDNN's deterministic, cuDNN's benchmark); puts all back."""
    cudnn = torch.backends.cudnn

    def read():
        return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark

    before = read()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that what is set below is taken back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    yield read
    torch.use_deterministic_algorithms(before[0])
    cudnn.deterministic, cudnn.benchmark = before[1:]


def test_a_gpu_trains_with_the_same_bits_or_the_fastest_algorithms_and_a_cpu_as_ever(flags, monkeypatch):
    before = flags()
    for deterministic in (True, False):
        choose_algorithms(torch.device("cpu"), deterministic)
        assert flags() == before
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    gpu = torch.device("cuda", 0)
    choose_algorithms(gpu, deterministic=False)
    assert flags() == (False, False, True)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    choose_algorithms(gpu, deterministic=True)
    assert flags() == (True, True, False)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    choose_algorithms(gpu, deterministic=False)
    assert flags() == (False, False, True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    choose_algorithms(gpu, deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_the_algorithms_are_chosen_once_and_recorded(tmp_path, monkeypatch):
    chosen, command = [], run_command(tmp_path)
    monkeypatch.setattr(
        program, "choose_algorithms", lambda device, deterministic: chosen.append((device.type, deterministic))
    )
    for more in ([], ["--deterministic"]):
        assert main([*command, "--row", "baseline", "--set", "solver.max_iter=1", *more]) == 0
    assert chosen == [("cpu", False), ("cpu", True)]
    (record,) = (read_record(path) for path in (tmp_path / "out").glob("*/*/record.json"))
    assert (record["run"]["deterministic"], record["run"]["cuda_graph"]) == (True, False)  # a CPU always is
    monkeypatch.setattr(row_module, "device_name", lambda device: "A GPU")
    for deterministic, word in ((True, "deterministic"), (False, "fastest")):
        compute = Compute(torch.device("cuda", 0), deterministic=deterministic, cuda_graph=not deterministic)
        assert row_module.circumstances(compute)["algorithms"] == word
        described = row_module.machine(compute)
        assert (described["deterministic"], described["cuda_graph"]) == (deterministic, not deterministic)

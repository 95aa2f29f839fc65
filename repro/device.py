"""Where a program computes: reading --device, and choosing it together with the precision."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Compute:
    """Where and how a program computes.

    device: Where.
    precision: "fp32" (the faithful one), "tf32" or "bf16".
    workers: Processes (threads, at test) that read images ahead; 0 reads between iterations.
    deterministic: Whether a training on a GPU must give the same bits again (see `choose_algorithms`); on the CPU it does anyway.
    cuda_graph: Whether a GPU's work of a training iteration is recorded once and then replayed.
    """

    device: torch.device
    precision: str = "fp32"
    workers: int = 0
    deterministic: bool = False
    cuda_graph: bool = False

    def autocast(self) -> torch.autocast:
        """Makes the context in which convolutions compute in the precision's storage type, where that is not float32."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copies a tensor of the CPU to the device without waiting for it.

        To a GPU it goes through page-locked memory: from any other the copy would wait until the GPU has done what it was given before. torch hands such memory out again only
        when the copy is over.
        """
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def parse_device(name: str) -> torch.device:
    """Reads a device's name without touching the device.

    Raises:
        ValueError: It is no name of a CPU or a CUDA device.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device: must be auto, cpu, cuda or cuda:N; got {name!r}; choose one of these")
    return device


def choose_device(name: str, precision: str) -> torch.device:
    """Resolves --device, and sets the precision of float32 arithmetic.

    Raises:
        ValueError: There is no such device, or it has no such precision.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = parse_device(name)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ValueError(
            f"--device: {name} must be present and torch built for it; got {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    if precision == "tf32" and device.type != "cuda":
        raise ValueError("--precision: tf32 needs a CUDA device; got cpu; use fp32")
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)  # set_device demands an index
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.deterministic = True
    return device


def choose_algorithms(device: torch.device, deterministic: bool) -> None:
    """Chooses what a GPU trains with: algorithms that give the same bits every time, or the fastest, which cuDNN finds by trying all of them on every new shape.

    With the first, an operator of torch that has no such algorithm raises an error. On the CPU there is nothing to choose: two runs give the same bits.
    """
    if device.type != "cuda":
        return
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it torch refuses cuBLAS in this mode
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


def processor_name() -> str:
    """Names the CPU: by Linux's own words where it has them, else by its architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def planned_device(name: str) -> tuple[torch.device, str]:
    """Finds out for a plan which device --device means and what it is called, without starting CUDA: a GPU's name comes from its driver's nvidia-smi.

    Returns:
        The device, and its name or "" where it has none here.

    Raises:
        ValueError: It is no name of a device.
    """
    names: list[str] = []
    if name != "cpu":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
            names = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.split("\n")
    names = [line.strip() for line in names if line.strip()]
    if name == "auto":
        name = "cuda" if names and torch.version.cuda else "cpu"
    device = parse_device(name)
    if device.type == "cpu":
        return device, processor_name()
    index = device.index or 0
    return device, names[index] if index < len(names) else ""

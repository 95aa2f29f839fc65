"""What the machine is: versions, the devices and how they are connected, and which packages are there."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from repro.device import processor_name
from repro.files import write_json
from repro.records.store import git_state
from repro.version import __version__

PACKAGES = ("pytest", "hypothesis", "html5lib", "h5py", "scipy", "matplotlib", "tqdm", "PIL", "ninja", "setuptools")
TOOLS = ("nvcc", "compute-sanitizer", "ncu", "nvidia-smi", "c++")


def find_tool(name: str) -> str | None:
    """Finds a program on PATH, or where the CUDA toolkit installs it."""
    return shutil.which(name) or shutil.which(f"/usr/local/cuda/bin/{name}")


def said(*command: str) -> str:
    """Runs a tool; returns what it printed, nothing where there is none."""
    tool = find_tool(command[0])
    if tool is None:
        return ""
    try:
        return subprocess.run([tool, *command[1:]], capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def devices() -> list[dict[str, Any]]:
    """Describes every CUDA device."""
    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": properties.total_memory,
                "multiprocessors": properties.multi_processor_count,
                "l2_bytes": properties.L2_cache_size,
            }
        )
    return found


def describe() -> dict[str, Any]:
    """Collects everything."""
    return {
        "versions": {
            "repro": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0],
            "nvcc": said("nvcc", "--version").rpartition("\n")[2],
            "compiler": said("c++", "--version").partition("\n")[0],
        },
        "devices": devices(),
        "topology": said("nvidia-smi", "topo", "-m"),
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "git": git_state(),
        "packages": {name: importlib.util.find_spec(name) is not None for name in PACKAGES},
        "tools": {name: find_tool(name) for name in TOOLS},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", required=True, help="what the other steps compute on")
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args()
    found = describe() | {"device": options.device}
    write_json(options.result, found)
    for key, value in (found["versions"] | {"devices": ", ".join(one["name"] for one in found["devices"])}).items():
        print(f"{key}: {value or '-'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

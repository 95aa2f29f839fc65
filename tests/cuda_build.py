"""Builds the extension for CUDA, in a virtual environment of its own with a newer torch than the usual one, checks what it registers, and runs the tests that
are named on it: `python tests/cuda_build.py [TEST ...]`.

No GPU is needed. Where nvcc or such a torch is missing, or they do not fit each other, one line says so; with --where-possible that is no failure.
$REPRO_CUDA_BUILD names another folder than build/cuda, such as one that outlives the checkout.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = Path(os.environ.get("REPRO_CUDA_BUILD", ROOT / "build" / "cuda")).absolute()
PYTHON = FOLDER / "venv" / "bin" / "python"
TORCH = "torch==2.14.1"  # on Linux a build for CUDA 13
ARCHITECTURE = "9.0"
CHECK = """
import torch
from repro import ops
names = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("repro::"))
assert len(names) >= 10, names
for name in names:
    for key in ("CPU", "CUDA", "Meta"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, key), f"{name} has no kernel for {key}"
print(f"cuda-build: {len(names)} operators, each with kernels for CPU, CUDA and Meta; torch {torch.__version__}")
"""


def not_built(reason: str) -> int:
    print(f"cuda-build: not built: {reason}", file=sys.stderr)
    return 0 if "--where-possible" in sys.argv[1:] else 1


def said(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    """Returns 0 where the extension was built and is complete, else 1."""
    if shutil.which("nvcc") is None:
        return not_built("nvcc is not on PATH")
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", FOLDER / "venv"], check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    packages = [
        TORCH,
        "setuptools",
        "wheel",
        "ninja",
        *project["dependencies"],
        *project["optional-dependencies"]["test"],
    ]
    if subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", *packages]).returncode:
        return not_built(f"{TORCH} cannot be installed")
    version = said(PYTHON, "-c", "import torch; print(torch.version.cuda)")
    if version == "None":
        return not_built(f"the {TORCH} that installs is not built for CUDA")
    if f"release {version.partition('.')[0]}." not in said("nvcc", "--version"):
        return not_built(f"nvcc is of another CUDA than {TORCH}, which is built with {version}")
    environment = os.environ | {
        "PATH": f"{PYTHON.parent}:{os.environ['PATH']}",  # ninja
        "REPRO_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST", ARCHITECTURE),
    }
    shutil.copytree(ROOT / "repro", FOLDER / "repro", ignore=shutil.ignore_patterns("_C*"), dirs_exist_ok=True)
    command = [PYTHON, "setup.py", "--quiet", "build_ext", "--build-lib", FOLDER, "--build-temp", FOLDER / "temp"]
    if subprocess.run(command, cwd=ROOT, env=environment).returncode:
        return 1
    environment["PYTHONPATH"] = str(FOLDER)
    failed = subprocess.run([PYTHON, "-P", "-W", "error", "-c", CHECK], env=environment).returncode
    tests = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    if failed or not tests:
        return failed
    command = [PYTHON, "-P", "-m", "pytest", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())

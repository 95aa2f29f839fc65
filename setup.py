"""Builds repro._C. REPRO_CUDA=0|1 overrides whether its CUDA kernels are built; by default they are where torch has CUDA and a toolkit is found."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from setuptools import find_packages, setup

ARCHITECTURES = ("8.0", "9.0", "10.0", "12.0")  # compiled where no GPU is there to ask, as far as nvcc knows them


def ask_nvcc(*question: str) -> str:
    """Runs the nvcc on PATH; returns what it printed, nothing where there is none."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return ""
    answer = subprocess.run([nvcc, *question], capture_output=True, text=True)
    return answer.stdout + answer.stderr


# torch takes the folder above nvcc's for the toolkit, but what is on PATH may be a script elsewhere; nvcc itself knows.
toolkit = re.search(r"^#\$ TOP=(.+)$", ask_nvcc("--dryrun", "-E", "-x", "cu", os.devnull), re.MULTILINE)
if toolkit and not {"CUDA_HOME", "CUDA_PATH"} & os.environ.keys():
    os.environ["CUDA_HOME"] = str(Path(toolkit[1]).resolve())
# torch asks the GPUs for their architectures, and fails without an answer.
if not torch.cuda.is_available():
    known = ask_nvcc("--list-gpu-arch").split()
    chosen = [name for name in ARCHITECTURES if f"compute_{name.replace('.', '')}" in known] or ARCHITECTURES[:2]
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ";".join(chosen) + "+PTX")

from torch.utils.cpp_extension import (  # noqa: E402  reads CUDA_HOME when it is imported
    CUDA_HOME,
    BuildExtension,
    CppExtension,
    CUDAExtension,
    include_paths,
)

ROOT = Path(__file__).resolve().parent  # pip may run this file by a relative name, and ninja elsewhere
# No fused multiply-add: Caffe's order of rounding. torch's own headers are system headers, so that only our warnings show.
CXX_FLAGS = [
    os.environ.get(
        "REPRO_OPTIMIZE", "-O3"
    ),  # `make sanitize` takes less: what watches every address takes minutes to optimise
    "-std=c++20",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",  # vectors are passed between functions of ours only, all of them inlined
    # at::parallel_for is compiled here and would be a plain loop without it. Not a link flag: the runtime is torch's own.
    *(["-fopenmp"] if torch.backends.openmp.is_available() and sys.platform == "linux" else []),
    *(f"-isystem{path}" for path in include_paths()),
]


def with_cuda() -> bool:
    """Decides by what can be compiled, never by whether a GPU is present; prints the decision."""
    possible = torch.version.cuda is not None and CUDA_HOME is not None
    setting = os.environ.get("REPRO_CUDA", "1" if possible else "0")
    if setting not in ("0", "1"):
        raise SystemExit(
            f"setup.py: REPRO_CUDA must be 0 or 1; got {setting!r}; unset it to decide by what is installed"
        )
    if setting == "1" and not possible:
        raise SystemExit(
            f"setup.py: REPRO_CUDA=1 needs a torch built for CUDA and a CUDA toolkit; got torch {torch.__version__} and CUDA_HOME={CUDA_HOME}; "
            "install both or set REPRO_CUDA=0"
        )
    print(
        f"repro._C: CUDA kernels {'on' if setting == '1' else 'off'} (torch {torch.__version__}, CUDA_HOME={os.environ.get('CUDA_HOME', CUDA_HOME)}, "
        f"TORCH_CUDA_ARCH_LIST={os.environ.get('TORCH_CUDA_ARCH_LIST')}, REPRO_CUDA={setting})"
    )
    return setting == "1"


def sources(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


common = {"include_dirs": [str(ROOT / "csrc")]}
if with_cuda():
    extension = CUDAExtension(
        "repro._C",
        sources("csrc/*.cpp", "csrc/torch/*.cpp", "csrc/cpu/*.cpp", "csrc/cuda/*.cpp", "csrc/cuda/*.cu"),
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": ["-O3", "-std=c++20", "-fmad=false"]},
        **common,
    )
else:
    extension = CppExtension(
        "repro._C", sources("csrc/*.cpp", "csrc/torch/*.cpp", "csrc/cpu/*.cpp"), extra_compile_args=CXX_FLAGS, **common
    )


def version() -> str:
    """Makes the version: repro/version.py's, and in a git checkout the commit; an sdist keeps the one that it was made with."""
    stated = ROOT / "PKG-INFO"
    if stated.is_file():
        return re.search(r"^Version: (.+)$", stated.read_text(encoding="utf-8"), re.MULTILINE)[1]
    base = re.search(r'__version__ = "(.+)"', (ROOT / "repro" / "version.py").read_text(encoding="utf-8"))[1]
    described = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty=.dirty", "--abbrev=12", "--exclude=*"],
        capture_output=True,
        text=True,
    )
    return f"{base}+g{described.stdout.strip()}" if described.returncode == 0 and (ROOT / ".git").exists() else base


setup(
    version=version(),
    license="BSD-3-Clause",
    # The protocols stand at the top of the checkout, where people read them, and inside the package where it is installed.
    packages=[*find_packages(include=["repro", "repro.*", "caffe_weights", "caffe_weights.*"]), "repro.protocols"],
    package_dir={"repro.protocols": "protocols"},
    ext_modules=[extension],
    cmdclass={"build_ext": BuildExtension},
)

"""Builds repro._C. REPRO_CUDA=0|1 overrides whether its CUDA kernels are built; by default they are where torch has CUDA and a toolkit is found."""

import os
import sys
from pathlib import Path

import torch
from setuptools import setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension, include_paths

ROOT = Path(__file__).parent
# No fused multiply-add: Caffe's order of rounding. torch's own headers are system headers, so that only our warnings show.
CXX_FLAGS = [
    "-O3",
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
        f"repro._C: CUDA kernels {'on' if setting == '1' else 'off'} (torch {torch.__version__}, CUDA_HOME={CUDA_HOME}, REPRO_CUDA={setting})"
    )
    return setting == "1"


def sources(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


common = {"include_dirs": [str(ROOT / "csrc")]}
if with_cuda():
    extension = CUDAExtension(
        "repro._C",
        sources("csrc/*.cpp", "csrc/cpu/*.cpp", "csrc/cuda/*.cpp", "csrc/cuda/*.cu"),
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": ["-O3", "-std=c++20", "-fmad=false"]},
        **common,
    )
else:
    extension = CppExtension(
        "repro._C", sources("csrc/*.cpp", "csrc/cpu/*.cpp"), extra_compile_args=CXX_FLAGS, **common
    )

setup(ext_modules=[extension], cmdclass={"build_ext": BuildExtension})

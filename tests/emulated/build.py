"""Builds build/emulated/repro: the package with an extension that runs the CUDA kernels on the host, behind the operators of CPU tensors (dispatch.cpp)."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch.utils.cpp_extension import load

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FLAGS = ["-std=c++20", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-psabi",
         "-fsanitize=undefined", "-fno-sanitize-recover"]  # fmt: skip


def main() -> None:
    package, work = ROOT / "build" / "emulated" / "repro", ROOT / "build" / "emulated-temp"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "repro", package, ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    work.mkdir(parents=True, exist_ok=True)
    (work / "lock").unlink(missing_ok=True)  # of a build that was killed: torch would wait for it for ever
    kernels = []
    for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):  # a name that torch does not hand to nvcc
        kernels.append(work / f"{source.stem}_cu.cpp")
        kernels[-1].write_text(
            f'#include "cuda/launch.cuh"  // CUDA\'s words come first\n#include "cuda/{source.name}"\n'
        )
    sources = [*(ROOT / "csrc").glob("*.cpp"), *(ROOT / "csrc" / "torch").glob("*.cpp"), *(ROOT / "csrc" / "cuda").glob("*.cpp")]  # fmt: skip
    load(
        "_C",
        sources=[str(source) for source in (*sources, HERE / "dispatch.cpp", *kernels)],
        extra_cflags=FLAGS,
        extra_ldflags=["-fsanitize=undefined"],
        extra_include_paths=[str(HERE), str(ROOT / "csrc")],
        build_directory=str(work),
        is_python_module=False,
    )
    shutil.copy(work / "_C.so", package)


if __name__ == "__main__":
    main()

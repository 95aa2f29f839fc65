"""Prints registers, shared memory and spills of every CUDA kernel, as ptxas reports them. Needs nvcc, but no GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

CSRC = Path(__file__).parents[1]
ARCHITECTURES = (80, 90)
# As setup.py compiles, for both architectures; warnings are errors.
FLAGS = ["-std=c++20", "-O3", "-fmad=false", "-Werror", "all-warnings", "-Xptxas", "-v", "--threads", "2", f"-I{CSRC}",
         *(f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES)]  # fmt: skip
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for '(?P<architecture>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def find_nvcc() -> str | None:
    """Finds the compiler on PATH or where the toolkit installs it."""
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def compile_source(nvcc: str, source: Path, folder: Path) -> subprocess.CompletedProcess:
    """Compiles one .cu file for every architecture; stderr holds ptxas's report."""
    return subprocess.run(
        [nvcc, *FLAGS, "-c", str(source), "-o", str(folder / "out.o")], capture_output=True, text=True
    )


def demangle(names: list[str]) -> list[str]:
    """Turns symbols into "kernel<arguments>"; leaves them as they are where there is no c++filt."""
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return names
    output = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    # "void repro::(anonymous namespace)::kernel<repro::bfloat16, 3>(repro::Merge, ...)"
    plain = [
        re.sub(r"^void |\(anonymous namespace\)::|_GLOBAL__N_\w+::|repro::", "", line) for line in output.split("\n")
    ]
    return [line.split("(")[0] for line in plain[: len(names)]]


def kernels(report: str) -> list[dict]:
    """Reads ptxas's report.

    Args:
        report: What nvcc -Xptxas -v wrote.

    Returns:
        One dict per kernel and architecture: kernel, architecture, registers, shared (bytes), stack (bytes), spills (bytes stored and loaded).
    """
    found = [match.groupdict() for match in ENTRY.finditer(report)]
    names = demangle([entry["name"] for entry in found])
    return [
        {
            "kernel": name,
            "architecture": entry["architecture"],
            "registers": int(entry["registers"]),
            "shared": sum(int(size) for size in re.findall(r"(\d+) bytes smem", entry["rest"])),
            "stack": int(entry["stack"]),
            "spills": int(entry["stores"]) + int(entry["loads"]),
        }
        for name, entry in zip(names, found, strict=True)
    ]


def main() -> None:
    nvcc = find_nvcc()
    if nvcc is None:
        raise SystemExit("registers: nvcc must be on PATH; got none; install the CUDA toolkit (no GPU is needed)")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted((CSRC / "cuda").glob("*.cu")):
            result = compile_source(nvcc, source, Path(folder))
            if result.returncode:
                raise SystemExit(result.stdout + result.stderr)
            rows += kernels(result.stderr)
    width = max(len(row["kernel"]) for row in rows)
    print(f"{'kernel':{width}}  arch   registers  shared  stack  spills (bytes)")
    for row in sorted(rows, key=lambda row: (row["kernel"], row["architecture"])):
        counts = f"{row['registers']:9}  {row['shared']:6}  {row['stack']:5}  {row['spills']:6}"
        print(f"{row['kernel']:{width}}  {row['architecture']:5}  {counts}")


if __name__ == "__main__":
    main()

"""Runs the tests under processors' settings that differ from this one's: `python tests/matrix.py [SETTING ...] [-- PYTEST ARGUMENT ...]`.

Each setting caps the instructions of torch's own kernels, of oneDNN and of the BLAS, and sets a number of threads, so that float32 sums run in another order. A setting that the
processor lacks is left out by name.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")
SETTINGS = {
    "default": {"ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE", "OPENBLAS_CORETYPE": "Nehalem", "threads": 4},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2", "OPENBLAS_CORETYPE": "Haswell", "threads": 2},
    "avx512": {
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "MKL_CBWR": "AVX512",
        "OPENBLAS_CORETYPE": "SkylakeX",
        "threads": 1,
    },
}


def environment(name: str) -> dict[str, str]:
    """Makes the environment of a setting. MKL_CBWR or OPENBLAS_CORETYPE, whichever names the other BLAS, has no effect; threads
    beyond the cores shall not spin."""
    setting = dict(SETTINGS[name])
    threads = str(setting.pop("threads"))
    return {
        "ATEN_CPU_CAPABILITY": name,
        "REPRO_TEST_THREADS": threads,
        "OMP_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "passive",
    } | setting


def main(arguments: list[str]) -> int:
    """Runs pytest once per setting, and returns 1 where a run failed."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    names, pytest_arguments = arguments[:split] or list(SETTINGS), arguments[split + 1 :]
    unknown = [name for name in names if name not in SETTINGS]
    if unknown:
        print(
            f"matrix: a setting must be one of {', '.join(SETTINGS)}; got {unknown[0]!r}; choose one", file=sys.stderr
        )
        return 2
    own = torch.backends.cpu.get_cpu_capability()
    results = {}
    for name in names:
        if (
            name != "default"
            and name.upper() not in CAPABILITIES[: CAPABILITIES.index(own) + 1 if own in CAPABILITIES else 1]
        ):
            results[name] = f"left out: the processor has {own}"
            continue
        command = [sys.executable, "-m", "pytest", "-n", "auto", "--maxprocesses", "4", *pytest_arguments]
        print(f"matrix: {name}: {environment(name)}", flush=True)
        code = subprocess.run(command, env=os.environ | environment(name), cwd=Path(__file__).parents[1]).returncode
        results[name] = f"failed, exit code {code}" if code else "passed"
    for name, result in results.items():
        print(f"matrix: {name}: {result}")
    return int(any(result.startswith("failed") for result in results.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

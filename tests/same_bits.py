"""Digests of what the operators give in the benchmark's smaller cases: `make sanitize` compares two builds by them, of which one has no code for wider processors.

The argument is the folder in which the build must lie that Python found.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch

from repro import _C, ops
from repro.bench.agreement import call, make_inputs, prepare
from repro.bench.cases import CASES, Case

LARGEST = 8_000_000  # elements of a case's result
ANY_DTYPE = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def digest(case: Case, direction: str, dtype: torch.dtype) -> str:
    """Names a case's results, bit for bit."""
    inputs = make_inputs(case, torch.float32).convert(dtype, torch.channels_last, torch.device("cpu"))
    results = prepare(lambda *tensors: call(ops, case, *tensors), direction, inputs)()
    found = hashlib.sha256()
    for result in results:
        found.update(result.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def main() -> None:
    """Prints a line for every case, direction and type."""
    if Path(_C.__file__).resolve().parents[1] != Path(sys.argv[1]).resolve():
        raise SystemExit(f"same_bits: the build must lie in {sys.argv[1]}; got {_C.__file__}")
    torch.set_num_threads(2)
    for case in CASES:
        if case.batch * case.channels * (case.height or case.side) * case.side > LARGEST:
            continue
        for direction in case.directions:
            for dtype in ANY_DTYPE[:1] if case.op in ("dense_crf", "confusion_matrix") else ANY_DTYPE:
                print(case.op, case.name, direction, dtype, digest(case, direction, dtype))


if __name__ == "__main__":
    main()

"""The CUDA sources on a machine without a GPU: nvcc compiles them without a warning, and the kernels, run by the host (`make emulated`), take the
stated number of launches and give the CPU's bits. The operators' own tests run on them there."""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import cuda_kernels_only
from op_inputs import sparse_pictures
from torch.utils.cpp_extension import include_paths

from repro import ops

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def load_registers():
    """csrc/cuda/registers.py, which is a program, as a module."""
    spec = importlib.util.spec_from_file_location("registers", ROOT / "csrc" / "cuda" / "registers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


registers = load_registers()


@pytest.mark.parametrize("source", SOURCES, ids=[source.stem for source in SOURCES])
def test_nvcc_compiles_without_warnings_and_without_spills(source, tmp_path):
    nvcc = registers.find_nvcc()
    if nvcc is None:
        pytest.skip("needs nvcc of the CUDA toolkit on PATH")
    result = registers.compile_source(nvcc, source, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stderr
    kernels = registers.kernels(result.stderr)
    assert {kernel["architecture"] for kernel in kernels} == {"sm_80", "sm_90"}
    for kernel in kernels:  # of the paper's cases: up to 3 scales, not float64
        if not re.search(r"double|, [4-8]>", kernel["kernel"]):
            assert (kernel["stack"], kernel["spills"]) == (0, 0), kernel


def test_registers_are_read_from_the_report_of_ptxas(monkeypatch):
    report = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z6kernelf' for 'sm_90'
ptxas info    : Function properties for _Z6kernelf
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, 6336 bytes smem
ptxas info    : Compile time = 1.000 ms
ptxas info    : Compiling entry function '_Z5otherv' for 'sm_80'
ptxas info    : Function properties for _Z5otherv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 22 registers, used 0 barriers
"""
    monkeypatch.setattr(registers, "demangle", lambda names: names)
    assert registers.kernels(report) == [
        {"kernel": "_Z6kernelf", "architecture": "sm_90", "registers": 40, "shared": 6336, "stack": 16, "spills": 20},
        {"kernel": "_Z5otherv", "architecture": "sm_80", "registers": 22, "shared": 0, "stack": 0, "spills": 0},
    ]


def test_registers_say_in_one_line_that_there_is_no_compiler(monkeypatch):
    monkeypatch.setattr(registers, "find_nvcc", lambda: None)
    with pytest.raises(SystemExit, match=r"^registers: nvcc must be on PATH; got none; install the CUDA toolkit"):
        registers.main()


def test_the_registration_compiles_against_torch(tmp_path):
    compiler = shutil.which("g++") or shutil.which("c++")
    toolkits = [path.parent for path in Path("/usr/local").glob("cuda*/include/cuda_runtime_api.h")]
    if compiler is None or not toolkits:
        pytest.skip("needs a C++ compiler and the CUDA toolkit's headers in /usr/local/cuda*")
    generated = tmp_path / "c10" / "cuda" / "impl" / "cuda_cmake_macros.h"  # torch's builds without CUDA leave it out
    generated.parent.mkdir(parents=True)
    generated.write_text("#pragma once\n")
    system = [f"-isystem{path}" for path in (tmp_path, *include_paths(), toolkits[0])]
    command = [compiler, "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}", *system]
    result = subprocess.run([*command, str(ROOT / "csrc" / "cuda" / "register.cpp")], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


OPS = torch.ops.repro
SCORES = [torch.linspace(-1, 1, 42 * side * side).reshape(2, 21, side, side).sin() for side in (9, 7, 5)]
LOGITS = torch.linspace(-2, 2, 2 * 3 * 49).reshape(2, 3, 7, 7).cos()
LABELS = torch.arange(2 * 33 * 33).reshape(2, 33, 33) % 21
FILTER = (3, 20.0, 2.0, 0.0)
EDGE, IMAGE = SCORES[0][:, :1].abs(), (SCORES[0][:, :3] * 127 + 128).byte()
CRF = (
    2,
    3.0,
    3.0,
    5.0,
    50.0,
    10.0,
)  # iterations; weight and standard deviations of the positions' and of the colours' term


@cuda_kernels_only
@pytest.mark.parametrize(
    ("launches", "call"),
    [
        (1, lambda: OPS.interp(SCORES[0], (17, 17))),
        (1, lambda: OPS.interp_backward(SCORES[0], (5, 5))),
        (0, lambda: OPS.interp(SCORES[0][:0], (17, 17))),
        (1, lambda: OPS.merge_scores(SCORES, LOGITS, "attention", (9, 9), True)),
        (3, lambda: OPS.merge_scores_backward(SCORES[0], None, SCORES, LOGITS, "attention")),  # the last: of the logits' Interp
        (2, lambda: OPS.merge_scores_backward(SCORES[0], None, SCORES, None, "max")),
        (1, lambda: OPS.merge_scores_backward(SCORES[0], None, SCORES, None, "average")),
        (2, lambda: OPS.predict(SCORES, LOGITS, "attention", (65, 65), (65, 65), True)),
        (2, lambda: OPS.segmentation_loss(SCORES[2], LABELS, 8, 255, True)),
        (3, lambda: OPS.segmentation_loss(SCORES[0], LABELS, 8, 255, True)),  # the last: the adjoint of the scores' Interp
        (2, lambda: OPS.confusion_matrix(LABELS, LABELS, 21, 255)),
        (3 * 3, lambda: OPS.domain_transform(SCORES[0], EDGE, *FILTER, None)),
        (3 * 3 + 1, lambda: OPS.domain_transform(SCORES[0].half(), EDGE.half(), *FILTER, None)),
        (3 + 2 * 2 + 4 * 3, lambda: OPS.domain_transform_backward(SCORES[0], SCORES[0], EDGE, *FILTER, None)),
        # Lattices: 7 launches and a filter (a splat and the blurs) for positions, as much per image for colours. Then a softmax, and both filters and it.
        (7 + 4 + 2 * (7 + 7 + 1 + 2 * (4 + 7 + 1)), lambda: OPS.dense_crf(SCORES[0].log_softmax(1), IMAGE, *CRF)),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)  # fmt: skip
def test_an_operator_takes_few_launches(launches, call):
    call()
    assert torch.ops.repro_emulated.launches() == launches


def crf(n, c, size, iterations, setting, wide):
    """A case of dense_crf."""
    image = torch.randint(0, 256, (n, 3, *size), dtype=torch.uint8)
    return ops.dense_crf(torch.randn(n, c, *size), image - 104.25 if wide else image, iterations, *setting)


def filtered(dtype, c, size):
    """The domain transform and its gradient towards x: nothing of them is summed over channels."""
    x, dy = (torch.randn(2, c, *size).to(dtype) for _ in range(2))
    edge, valid = torch.rand(2, 1, *size).to(dtype), torch.tensor([[*size], [size[0] - 1, 2]])
    return ops.domain_transform(x, edge, *FILTER, valid), OPS.domain_transform_backward(dy, x, edge, *FILTER, valid)[0]


def enlarged(dtype, c, size_in, size_out):
    x = torch.randn(2, c, *size_in).to(dtype)
    return (
        OPS.interp(x, size_out),
        OPS.interp_backward(x, size_out),
        *OPS.predict([x], None, "average", size_out, size_out, False)[:1],
    )


def largest(dtype, c):
    scores = [torch.randn(2, c, *size).to(dtype) for size in ((9, 8), (7, 6), (5, 4))]
    merged, _ = OPS.merge_scores(scores, None, "max", (9, 8), False)
    return merged, *OPS.merge_scores_backward(merged, None, scores, None, "max")[0]


def digests() -> dict[str, str]:
    """Hashes results whose order of rounding is one, whichever kernel computes them."""
    usual = (3, 3, 5, 50, 10)
    calls = {
        "crf": lambda: [crf(2, 5, (7, 9), 2, usual, wide) for wide in (False, True)],
        "crf, more classes than a block has threads": lambda: [crf(1, 200, (3, 5), 1, usual, False)],
        "crf, a vertex with more pixels than a block has threads": lambda: [crf(1, 2, (12, 13), 1, (2, 1e4, 3, 1e4, 1e4), False)],
        "crf, positions only": lambda: [crf(1, 3, (5, 6), 2, (3, 3, 0, 50, 10), False)],
        "crf, colours only": lambda: [crf(2, 3, (5, 6), 1, (0, 3, 5, 50, 10), True)],
        "crf, one pixel": lambda: [crf(1, 2, (1, 1), 2, usual, False)],
        "crf, the last four pixels": lambda: [ops.dense_crf(*sparse_pictures(seed), 1, 0, 3, 5, 3, 10) for seed in range(10)],
    }  # fmt: skip
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for c in (1, 7, 40):
            calls[f"domain transform {dtype} {c}"] = lambda dtype=dtype, c=c: filtered(dtype, c, (6, 9))
            calls[f"interp {dtype} {c}"] = lambda dtype=dtype, c=c: enlarged(dtype, c, (5, 7), (33, 20))
            calls[f"interp of one axis {dtype} {c}"] = lambda dtype=dtype, c=c: enlarged(dtype, c, (5, 7), (2, 7))
            calls[f"max {dtype} {c}"] = lambda dtype=dtype, c=c: largest(dtype, c)
    found = {}
    for name, call in calls.items():
        torch.manual_seed(0)
        hashed = hashlib.sha256()
        for result in call():
            hashed.update(result.contiguous().view(-1).view(torch.uint8).numpy())
        found[name] = hashed.hexdigest()
    return found


@cuda_kernels_only
def test_the_bits_are_the_cpu_kernels():
    """The CPU's kernels, of the usual build, equal Caffe's bits (test_interp.py, test_dense_crf.py) in these."""
    if not list((ROOT / "repro").glob("_C*.so")):
        pytest.skip("needs the usual build of repro._C beside this one: pip install --no-build-isolation -e .")
    printed = subprocess.run(
        [sys.executable, "-P", "-c", "import test_cuda_sources as t; print(t.ops.__file__, t.digests())"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        cwd=ROOT / "tests", check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert printed.strip() == f"{ROOT / 'repro/ops/__init__.py'} {digests()}"

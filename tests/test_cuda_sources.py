"""The CUDA sources on a machine without a GPU: nvcc compiles them without a warning, and the host runs their element functions against the CPU kernels."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.cpp_extension import include_paths

from repro.ops import interp, merge_scores

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
MODES = ["attention", "average", "max"]


@pytest.mark.parametrize("source", SOURCES, ids=[source.stem for source in SOURCES])
def test_nvcc_compiles_without_warnings(source, tmp_path):
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc of the CUDA toolkit on PATH")
    architectures = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in (80, 90)]
    command = [
        nvcc,
        "-std=c++20",
        "-O3",
        "-Werror",
        "all-warnings",
        *architectures,
        f"-I{ROOT / 'csrc'}",
        "-c",
        str(source),
        "-o",
        str(tmp_path / "out.o"),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


def test_the_registration_compiles_against_torch(tmp_path):
    compiler = shutil.which("g++") or shutil.which("c++")
    toolkits = [path.parent for path in Path("/usr/local").glob("cuda*/include/cuda_runtime_api.h")]
    if compiler is None or not toolkits:
        pytest.skip("needs a C++ compiler and the CUDA toolkit's headers in /usr/local/cuda*")
    generated = (
        tmp_path / "c10" / "cuda" / "impl" / "cuda_cmake_macros.h"
    )  # which torch's builds without CUDA leave out
    generated.parent.mkdir(parents=True)
    generated.write_text("#pragma once\n")
    system = [f"-isystem{path}" for path in (tmp_path, *include_paths(), toolkits[0])]
    command = [compiler, "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}", *system]
    result = subprocess.run([*command, str(ROOT / "csrc" / "cuda" / "register.cpp")], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """The element functions of the .cu files in a host library; only the launching is replaced."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler on PATH")
    folder = tmp_path_factory.mktemp("emulated")
    for source in [*SOURCES, ROOT / "csrc" / "cuda" / "gather.cuh"]:
        shutil.copy(source, folder)
    shutil.copy(ROOT / "tests" / "emulated_launch.cuh", folder / "launch.cuh")
    shutil.copy(ROOT / "tests" / "emulated_kernels.cpp", folder)
    library = folder / "libemulated.so"
    command = [
        compiler,
        "-std=c++20",
        "-O2",
        "-ffp-contract=off",
        "-fsanitize=undefined",
        "-fno-sanitize-recover",
        "-shared",
        "-fPIC",
        "-D__device__=",
    ]
    subprocess.run([*command, f"-I{ROOT / 'csrc'}", "emulated_kernels.cpp", "-o", str(library)], cwd=folder, check=True)
    return ctypes.CDLL(str(library))


def nhwc(tensor):
    return np.ascontiguousarray(tensor.detach().permute(0, 2, 3, 1).numpy())


def pointer(array):
    return None if array is None else array.ctypes.data_as(ctypes.c_void_p)


def pair(size):
    return (ctypes.c_int64 * 2)(*size)


def pointers(arrays):
    return (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))


@pytest.mark.parametrize(
    ("size_in", "size_out"),
    [((21, 21), (41, 41)), ((9, 7), (65, 49)), ((33, 20), (9, 11)), ((1, 5), (4, 1)), ((6, 6), (6, 6))],
)
def test_interp_kernels_equal_the_cpu_kernels(emulated, size_in, size_out):
    x = torch.randn(2, 5, *size_in, requires_grad=True)
    y = interp(x, size_out)
    dy = torch.randn_like(y)
    y.backward(dy)
    got, back = np.full((2, *size_out, 5), np.nan, np.float32), np.full((2, *size_in, 5), np.nan, np.float32)
    n, c = ctypes.c_int64(2), ctypes.c_int64(5)
    emulated.interp(pointer(nhwc(x)), pair(size_in), n, c, pair(size_out), pointer(got))
    emulated.interp_backward(pointer(nhwc(dy)), pair(size_out), n, c, pair(size_in), pointer(back))
    assert np.array_equal(got, nhwc(y))
    assert np.array_equal(back, nhwc(x.grad))


@pytest.mark.parametrize("logits_size", [(9, 8), (5, 3)])
@pytest.mark.parametrize("mode", MODES)
def test_merge_kernels_equal_the_cpu_kernels(emulated, mode, logits_size):
    sizes = [(9, 8), (7, 6), (5, 4)]
    scores = [torch.randn(2, 7, *size).mul(2).round().requires_grad_() for size in sizes]  # rounded, so that maxima tie
    logits = torch.randn(2, 3, *logits_size)
    merged, weights = merge_scores(scores, logits if mode == "attention" else None, mode)
    out, n, c, s = (9, 8), ctypes.c_int64(2), ctypes.c_int64(7), 3
    arrays, flat = [nhwc(score) for score in scores], (ctypes.c_int64 * 6)(*sum(sizes, ()))
    got, got_weights = np.full((2, *out, 7), np.nan, np.float32), np.full((2, *out, 3), np.nan, np.float32)
    logits_array = nhwc(logits)
    emulated.merge_scores(
        MODES.index(mode),
        pointers(arrays),
        flat,
        s,
        pointer(logits_array),
        pair(logits_size),
        n,
        c,
        pair(out),
        pointer(got),
        pointer(got_weights),
    )
    assert np.array_equal(got, nhwc(merged))
    if weights is not None:
        assert np.array_equal(got_weights, nhwc(weights))

    dmerged, dweights = torch.randn_like(merged), torch.randn(2, 3, *out)
    given = weights if weights is not None else merged.new_zeros(2, 0, *out)
    dscores, dlogits = torch.ops.repro.merge_scores_backward(
        dmerged, dweights, [score.detach() for score in scores], given.detach(), mode
    )
    back = [np.full_like(array, np.nan) for array in arrays]
    back_logits = np.full((2, *out, 3), np.nan, np.float32) if mode == "attention" else None
    winner = np.zeros((2, *out, 7), np.uint8)
    dmerged_array, dweights_array = nhwc(dmerged), nhwc(dweights)
    emulated.merge_scores_backward(
        MODES.index(mode), pointer(dmerged_array), pointer(dweights_array), pointers(arrays), flat, s, pointer(got_weights), n, c, pair(out),
        pointer(winner), pointers(back), pointer(back_logits),
    )  # fmt: skip
    for array, expected in zip(back, dscores, strict=True):
        assert np.allclose(array, nhwc(expected), rtol=1e-6, atol=1e-6)
    if back_logits is not None:
        assert np.allclose(back_logits, nhwc(dlogits), rtol=1e-6, atol=1e-6)

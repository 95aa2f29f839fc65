"""The CUDA sources on a machine without a GPU: nvcc compiles them without a warning, and the host runs the kernels against Caffe and the float64
reference."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_as_exact_as_reference, assert_close, assert_equals_caffe, golden
from emulated_cuda import MODES, emulated_kernels
from op_inputs import sparse_pictures
from torch.utils.cpp_extension import include_paths

from repro.ops import dense_crf, reference

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
FLOORS = {
    torch.float32: 3e-7,
    torch.float64: 1e-12,
    torch.bfloat16: 4e-3,
    torch.float16: 5e-4,
}  # of 16 bits: half a unit in the last place
DTYPES = pytest.mark.parametrize("dtype", FLOORS, ids=lambda dtype: str(dtype).removeprefix("torch."))
SIZES = pytest.mark.parametrize(
    ("n", "c", "size_in", "size_out"),
    [
        (2, 5, (9, 7), (65, 49)),
        (1, 21, (21, 21), (41, 41)),
        (3, 81, (6, 3), (6, 3)),
        (2, 3, (33, 20), (9, 11)),
        (1, 1, (1, 5), (40, 1)),
        (1, 1, (3, 1), (1, 300)),
        (1, 2, (1, 1), (1, 1)),
        (0, 4, (5, 5), (9, 9)),
    ],
    ids=str,
)


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


@pytest.fixture(scope="module")
def emulated():
    return emulated_kernels()


def wide(dtype):
    """The type in which a kernel of the dtype computes."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def values(shape, dtype, requires_grad=True):
    """Random numbers of the dtype."""
    return torch.randn(shape).to(dtype).requires_grad_(requires_grad)


def truths(op, inputs, dtype):
    """Results of `op`, each and its inputs' gradients by one random gradient: in the accumulator's type, in float64, and the gradients of the results."""
    kept = []
    upstream = None
    for computed in (wide(dtype), torch.float64):
        leaves = [x.detach().to(computed).requires_grad_() for x in inputs]
        results = op(leaves)
        if upstream is None:
            upstream = [torch.randn(result.shape).to(dtype) for result in results]
        grads = torch.autograd.grad(results, leaves, [d.to(computed) for d in upstream], allow_unused=True)
        kept.append([result.detach() for result in results] + [g for g in grads if g is not None])
    return *kept, upstream


def check(got, truth32, truth64, dtype, what, roundings=1):
    """Fails unless the result is as exact as the reference, and what `roundings` to the dtype add."""
    assert_as_exact_as_reference(got.double(), truth32, truth64, roundings * FLOORS[dtype], what)


@DTYPES
@SIZES
def test_interp(emulated, n, c, size_in, size_out, dtype):
    x = values((n, c, *size_in), dtype)
    (y32, dx32), (y64, dx64), (dy,) = truths(lambda leaves: [reference.interp(leaves[0], size_out)], [x], dtype)
    check(emulated.interp(x, size_out), y32, y64, dtype, "y")
    check(emulated.interp_backward(dy, size_in), dx32, dx64, dtype, "dx")


def test_interp_backward_where_an_input_has_more_readers_than_a_block_holds_at_a_time(emulated):
    dy = torch.randn(1, 1, 70, 520, dtype=torch.float64)
    x = torch.zeros(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    reference.interp(x, (70, 520)).backward(dy)
    assert_close(emulated.interp_backward(dy, (2, 2)), x.grad, 1e-13)


CAFFE_INTERP = golden("interp.npz")


@pytest.mark.parametrize("case", [c for c in CAFFE_INTERP["case_names"].tolist() if not c.startswith("crop")])
def test_interp_equals_caffe(emulated, case):
    x, y, dy, dx = (torch.tensor(CAFFE_INTERP[f"{case}/{name}"]) for name in ("x", "y", "dy", "dx"))
    assert torch.equal(emulated.interp(x, y.shape[2:]), y)
    assert torch.equal(emulated.interp_backward(dy, dx.shape[2:]), dx)


@DTYPES
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("n", "c", "maps", "logits_size", "size"),
    [
        (2, 7, [(9, 8), (7, 6), (5, 4)], (9, 8), (9, 8)),
        (1, 21, [(41, 41), (21, 21)], (21, 21), (41, 41)),
        (2, 81, [(6, 5), (3, 3), (2, 1)], (6, 5), (6, 5)),
        (1, 1, [(11, 140), (3, 3)], (5, 3), (11, 140)),
        (1, 3, [(5, 5)], (5, 5), (5, 5)),
        (1, 4, [(3, 4), (9, 9), (1, 1), (2, 5)], (2, 2), (7, 6)),
        (1, 2, [(6, 6), (5, 5), (4, 4), (3, 3), (2, 2), (1, 1), (6, 5), (5, 6)], (6, 6), (6, 6)),
        (3, 5, [(1, 1), (1, 1), (1, 1), (1, 1), (1, 1)], (1, 1), (1, 1)),
    ],
    ids=str,
)
def test_merge_scores(emulated, n, c, maps, logits_size, size, mode, dtype):
    scores = [values((n, c, *shape), dtype) for shape in maps]
    attends = mode == "attention"
    logits = values((n, len(maps), *logits_size), dtype) if attends else None

    def op(leaves):
        merged, weights = reference.merge_scores(leaves[: len(maps)], leaves[-1] if attends else None, mode, size)
        return [merged, weights] if attends else [merged]

    truth32, truth64, upstream = truths(op, [*scores, logits] if attends else scores, dtype)
    got = [result for result in emulated.merge_scores(scores, logits, mode, size) if result is not None]
    assert torch.equal(emulated.merge_scores(scores, logits, mode, size, return_weights=False)[0], got[0])
    dscores, dlogits = emulated.merge_scores_backward(
        upstream[0], upstream[1] if attends else None, scores, logits, mode
    )
    got += dscores
    if attends:  # the adjoint of the logits' own Interp is a second call
        got.append(dlogits if logits_size == size else emulated.interp_backward(dlogits, logits_size))
    for k, (result, result32, result64) in enumerate(zip(got, truth32, truth64, strict=True)):
        rounded_twice = attends and k == len(got) - 1 and logits_size != size
        check(result, result32, result64, dtype, f"result {k}", 2 if rounded_twice else 1)


def test_merge_scores_without_classes_still_writes_the_weights(emulated):
    logits, scores = torch.zeros(2, 2, 3, 5), [torch.zeros(2, 0, 3, 5)] * 2
    merged, weights = emulated.merge_scores(scores, logits, "attention", (3, 5))
    assert merged.shape == (2, 0, 3, 5)
    assert torch.equal(weights, torch.full_like(weights, 0.5))
    dweights = torch.tensor([1.0, 0.0])[None, :, None, None].expand_as(weights)
    _, dlogits = emulated.merge_scores_backward(merged, dweights, scores, logits, "attention")
    assert torch.equal(dlogits, dweights / 2 - 0.25)


CAFFE_MERGE = golden("merge.npz")


@pytest.mark.parametrize("case", CAFFE_MERGE["case_names"].tolist())
def test_merge_scores_equals_caffe(emulated, case):
    mode, results = case.split("_")[0], []
    for dtype in (torch.float32, torch.float64):
        inputs = {
            name: torch.tensor(CAFFE_MERGE[f"{case}/{name}"]).to(dtype)
            for name in ("dmerged", "logits", *(f"score{s}" for s in range(8)))
            if f"{case}/{name}" in CAFFE_MERGE
        }
        dmerged, logits = inputs.pop("dmerged"), inputs.pop("logits", None)
        scores = list(inputs.values())
        merged = emulated.merge_scores(scores, logits, mode, dmerged.shape[2:])[0]
        dscores, dlogits = emulated.merge_scores_backward(dmerged, None, scores, logits, mode)
        results.append({"merged": merged} | {f"dscore{s}": dscore for s, dscore in enumerate(dscores)})
        if logits is not None:
            results[-1]["dlogits"] = dlogits
    for name, low in results[0].items():
        assert_equals_caffe(low, results[1][name], CAFFE_MERGE, f"{case}/{name}")


@DTYPES
@pytest.mark.parametrize(
    ("n", "c", "size_in", "size", "crop"),
    [
        (2, 7, (5, 9), (33, 65), (33, 65)),
        (1, 21, (9, 9), (65, 65), (50, 61)),
        (2, 81, (3, 2), (17, 9), (1, 9)),
        (1, 1, (2, 2), (9, 9), (3, 2)),
        (1, 300, (3, 3), (5, 3), (5, 3)),
        (1, 4, (9, 12), (4, 70), (4, 66)),
        (1, 2, (1, 1), (1, 1), (1, 1)),
    ],
    ids=str,
)
def test_predict(emulated, n, c, size_in, size, crop, dtype):
    x = values((n, c, *size_in), dtype, False)
    if c > 2:
        x[:, c // 2] = x[:, 0]  # ties: the first class is right
    labels, probability = emulated.predict(x, size, crop, probability=True)
    assert torch.equal(emulated.predict(x, size, crop)[0], labels)
    expected, _ = reference.predict([x.to(wide(dtype))], None, "average", size, crop)
    assert torch.equal(labels, expected)  # not merely close: the same order of summation
    _, truth32 = reference.predict([x.to(wide(dtype))], None, "average", size, crop, probability=True)
    _, truth64 = reference.predict([x.double()], None, "average", size, crop, probability=True)
    check(probability, truth32, truth64, wide(dtype), "probability")


@DTYPES
@pytest.mark.parametrize("label_type", [torch.uint8, torch.int64], ids=["uint8", "int64"])
@pytest.mark.parametrize(
    ("n", "c", "size_in", "image", "shrink"),
    [
        (2, 7, (5, 9), (33, 65), 8),
        (2, 21, (7, 5), (73, 81), 8),
        (1, 81, (4, 3), (4, 3), 1),
        (1, 1, (2, 2), (9, 9), 8),
        (2, 3, (1, 1), (1, 1), 16),
        (1, 5, (3, 30), (7, 259), 2),
    ],
    ids=str,
)
def test_segmentation_loss(emulated, n, c, size_in, image, shrink, label_type, dtype):
    scores = values((n, c, *size_in), dtype)
    labels = torch.randint(0, c, (n, *image), dtype=label_type)
    labels[torch.rand(labels.shape) < 0.2] = 255
    labels[0, 0, 0] = 0
    valid = (labels[:, ::shrink, ::shrink] != 255).sum()
    (loss32, dscores32), (loss64, dscores64) = (
        (loss.detach(), torch.autograd.grad(loss, leaf)[0])
        for leaf in (scores.detach().to(computed).requires_grad_() for computed in (wide(dtype), torch.float64))
        for loss in [reference.segmentation_loss(leaf, labels, shrink)]
    )
    loss, counted, dgrid = emulated.segmentation_loss(scores, labels, shrink)
    check(loss, loss32, loss64, wide(dtype), "loss")
    assert counted == valid
    resized = dgrid.shape[2:] != scores.shape[2:]  # the adjoint of the scores' own Interp is a second call
    dscores = emulated.interp_backward(dgrid, size_in) if resized else dgrid
    check(dscores, dscores32, dscores64, dtype, "dscores", 2 if resized else 1)
    assert torch.equal(emulated.segmentation_loss(scores, labels, shrink, gradient=False)[0], loss)


def test_segmentation_loss_at_the_borders(emulated):
    scores = torch.tensor([0.0, 1000.0])[None, :, None, None].expand(1, 2, 2, 2)
    labels = torch.tensor([[[0, 1], [255, 255]]])
    loss, valid, dgrid = emulated.segmentation_loss(scores, labels, 1)
    assert loss.item() == pytest.approx(87.3365447505 / 2)  # a probability is floored at FLT_MIN in the loss
    assert valid == 2
    assert dgrid.tolist() == [[[[-0.5, 0], [0, 0]], [[0.5, 0], [0, 0]]]]  # but not in the gradient
    loss, valid, dgrid = emulated.segmentation_loss(scores, torch.full((1, 2, 2), 255), 1)
    assert (loss, valid, dgrid.abs().sum()) == (0, 0, 0)
    loss, valid, _ = emulated.segmentation_loss(scores[:0], labels[:0], 1)
    assert (loss, valid) == (0, 0)
    for unknown in (2, -1):
        labels[0, 1, 1] = unknown
        loss, _, dgrid = emulated.segmentation_loss(scores, labels, 1)
        assert loss.isnan()
        assert dgrid.isnan().all()


@DTYPES
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_makes_the_loss_none(emulated, bad, dtype):
    for position, labelled in ((0, 0), (3, 2)):
        scores = values((1, 3, 1, 4), dtype, False)
        scores[0, 2, 0, position] = bad
        labels = torch.full((1, 1, 4), labelled)
        assert emulated.segmentation_loss(scores, labels, 1)[0].isnan()


CAFFE_LOSS = golden("softmax_loss.npz")


@pytest.mark.parametrize("case", CAFFE_LOSS["case_names"].tolist())
def test_segmentation_loss_equals_caffe(emulated, case):
    labels = torch.tensor(CAFFE_LOSS[f"{case}/label"])[:, 0].long()
    weight, results = float(CAFFE_LOSS[f"{case}/loss_weight"]), []
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor(CAFFE_LOSS[f"{case}/x"]).to(dtype)
        loss, _, dgrid = emulated.segmentation_loss(x, labels, 1)
        results.append((loss, dgrid * weight))
    for name, low, high in zip(("loss", "dx"), *results, strict=True):
        assert_equals_caffe(low, high, CAFFE_LOSS, f"{case}/{name}")


@pytest.mark.parametrize("label_type", [torch.uint8, torch.int64], ids=["uint8", "int64"])
@pytest.mark.parametrize("num_classes", [1, 7, 32, 33, 81, 91])
@pytest.mark.parametrize(("pixels", "offset"), [(0, 0), (1, 0), (33, 0), (40000, 0), (517, 1)])
def test_confusion_matrix(emulated, pixels, offset, num_classes, label_type):
    high = min(num_classes + 2, 200)  # some are outside
    prediction = torch.randint(0, high, (pixels + offset,)).to(label_type)[offset:]
    label = torch.randint(0, high, (pixels + offset,)).to(label_type)[offset:]
    label[torch.rand(pixels) < 0.2] = 255
    prediction[torch.rand(pixels) < 0.1] = 255
    counts, outside = emulated.confusion_matrix(prediction, label, num_classes)
    expected, expected_outside = reference.confusion_matrix(prediction, label, num_classes)
    assert torch.equal(counts, expected)
    assert outside == expected_outside


CRF_SETTING = (3, 3, 5, 50, 10)


def test_dense_crf_equals_caffe_bit_for_bit(emulated):
    caffe = golden("dense_crf.npz")
    scores, image = (torch.tensor(caffe[f"c3_24x32/{name}"]) for name in ("unary_logprob", "image_bgr_u8"))
    found = emulated.dense_crf(scores, image, 1, *CRF_SETTING)
    assert np.array_equal(found.numpy(), caffe["c3_24x32/prob_iter1"])


@pytest.mark.parametrize(
    ("n", "c", "size", "iterations", "setting"),
    [
        (2, 5, (7, 9), 2, CRF_SETTING),
        (1, 90, (3, 5), 1, CRF_SETTING),  # more classes of a tile's pixels than one block's threads
        (1, 2, (12, 13), 1, (2, 1e4, 3, 1e4, 1e4)),  # one simplex: a vertex has more pixels than a block threads
        (1, 3, (5, 6), 2, (3, 3, 0, 50, 10)),
        (2, 3, (5, 6), 1, (0, 3, 5, 50, 10)),
        (1, 2, (1, 1), 2, CRF_SETTING),
        (2, 4, (3, 4), 0, CRF_SETTING),
        (0, 4, (3, 4), 2, CRF_SETTING),
    ],
    ids=str,
)
@pytest.mark.parametrize("wide", [False, True], ids=["uint8", "float32"])
def test_dense_crf_gives_the_bits_of_the_cpu(emulated, n, c, size, iterations, setting, wide):
    scores = torch.randn(n, c, *size)
    image = torch.randint(0, 256, (n, 3, *size), dtype=torch.uint8)
    image = image - torch.tensor(104.25) if wide else image
    found = emulated.dense_crf(scores, image, iterations, *setting)
    assert torch.equal(found, dense_crf(scores, image, iterations, *setting))  # which equals Caffe


def test_dense_crf_fills_up_the_last_four_pixels_as_the_cpu_does(emulated):
    for seed in range(10):
        given = *sparse_pictures(seed), 1, 0, 3, 5, 3, 10
        assert torch.equal(emulated.dense_crf(*given), dense_crf(*given))

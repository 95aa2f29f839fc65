"""The CUDA kernels run by the host: csrc/cuda compiled with tests/emulated_launch.cuh, and called with torch's tensors."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
MODES = ["attention", "average", "max"]
FLAGS = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off", "-fsanitize=undefined", "-fno-sanitize-recover"]  # fmt: skip


@functools.cache
def emulated_kernels() -> Emulated:
    """The kernels of the .cu files in a host library, compiled once for all tests; only the launching is replaced."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler on PATH")
    with tempfile.TemporaryDirectory() as folder:  # a loaded library needs its file no longer
        return build(compiler, Path(folder))


def build(compiler: str, folder: Path) -> Emulated:
    """Compiles the kernels into a library in the folder."""
    for source in (ROOT / "csrc" / "cuda").glob("*.cu*"):
        shutil.copy(source, folder)
    shutil.copy(ROOT / "tests" / "emulated_launch.cuh", folder / "launch.cuh")
    shutil.copy(ROOT / "tests" / "emulated_kernels.cpp", folder)
    sources = sorted(path.name for pattern in ("*.cu", "*.cpp") for path in folder.glob(pattern))
    command = [compiler, *FLAGS, "-shared", "-fPIC", "-include", "launch.cuh", f"-I{ROOT / 'csrc'}", "-x", "c++"]
    result = subprocess.run([*command, *sources, "-o", "libemulated.so"], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return Emulated(ctypes.CDLL(str(folder / "libemulated.so")))


def dense(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """Lays a map out as the kernels want it."""
    return None if tensor is None else tensor.detach().contiguous(memory_format=torch.channels_last)


def unwritten(shape, dtype: torch.dtype) -> torch.Tensor:
    """Makes a result in which what no kernel writes is seen: NaN, or 99."""
    result = torch.full(tuple(shape), float("nan") if dtype.is_floating_point else 99, dtype=dtype)
    return result.contiguous(memory_format=torch.channels_last) if result.dim() == 4 else result


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Views what a tensor stores as bytes, so that NaN equals NaN."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def pointers(tensors) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def sizes(*pairs) -> ctypes.Array:
    return (ctypes.c_int64 * (2 * len(pairs)))(*(side for pair in pairs for side in pair))


def long(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)


class Emulated:
    """Each op as in repro.ops, by the kernels. Every call runs them twice, the threads and blocks of the second time in reverse order, and fails
    unless both write the same bits in the stated number of launches.

    Args:
        library: What `build` compiled.
    """

    def __init__(self, library: ctypes.CDLL):
        self.library = library

    def _run(self, launches: int, name: str, results: list[torch.Tensor], *arguments) -> None:
        kept = []
        before = [result.clone() for result in results]
        for reverse in (0, 1):
            self.library.set_reversed(reverse)
            for result, fresh in zip(results, before, strict=True):
                result.copy_(fresh)
            start = self.library.launches()
            getattr(self.library, name)(*arguments)
            assert self.library.launches() - start == launches, f"{name}: number of launches"
            kept.append([result.clone() for result in results])
        for forward, backward in zip(*kept, strict=True):
            assert torch.equal(bits(forward), bits(backward)), f"{name}: depends on the order of threads"

    def interp(self, x, size):
        x = dense(x)
        n, c, *size_in = x.shape
        y = unwritten((n, c, *size), x.dtype)
        arguments = (pointer(x), sizes(size_in), long(n), long(c), sizes(size), pointer(y))
        self._run(int(n > 0), "interp", [y], TYPES.index(x.dtype), *arguments)
        return y

    def interp_backward(self, dy, size):
        dy = dense(dy)
        n, c, *size_out = dy.shape
        dx = unwritten((n, c, *size), dy.dtype)
        arguments = (pointer(dy), sizes(size_out), long(n), long(c), sizes(size), pointer(dx))
        self._run(int(n > 0), "interp_backward", [dx], TYPES.index(dy.dtype), *arguments)
        return dx

    def merge_scores(self, scores, logits, mode, size, return_weights=True):
        scores, logits = [dense(score) for score in scores], dense(logits)
        n, c = scores[0].shape[:2]
        merged = unwritten((n, c, *size), scores[0].dtype)
        wanted = return_weights and mode == "attention"
        weights = unwritten((n, len(scores), *size), merged.dtype) if wanted else None
        results = [merged, weights] if wanted else [merged]
        maps = (pointers(scores), sizes(*(score.shape[2:] for score in scores)), len(scores))
        guide = (pointer(logits), sizes(size if logits is None else logits.shape[2:]))
        outputs = (pointer(merged), pointer(weights))
        arguments = (*maps, *guide, long(n), long(c), sizes(size), *outputs)
        self._run(1, "merge_scores", results, TYPES.index(merged.dtype), MODES.index(mode), *arguments)
        return merged, weights

    def merge_scores_backward(self, dmerged, dweights, scores, logits, mode):
        """Returns dscores, and dlogits at the size of dmerged."""
        scores, logits, dmerged, dweights = [dense(s) for s in scores], dense(logits), dense(dmerged), dense(dweights)
        n, c, *size = dmerged.shape
        dtype = dmerged.dtype
        dscores = [unwritten(score.shape, dtype) for score in scores]
        attends, maximum = mode == "attention", mode == "max"
        dlogits = unwritten((n, len(scores), *size), dtype) if attends else None
        scratch = unwritten((n, len(scores), *size), torch.float64 if dtype == torch.float64 else torch.float32)
        winner = unwritten((n, c, *size), torch.uint8) if maximum else None
        maps = (pointers(scores), sizes(*(score.shape[2:] for score in scores)), len(scores))
        guide = (pointer(logits), sizes(size if logits is None else logits.shape[2:]))
        scratches = (pointer(scratch if attends else None), pointer(winner))
        launches = (mode != "average") + (c > 0)  # without classes only the logits have a gradient
        self._run(
            launches, "merge_scores_backward", [*dscores, *([dlogits] if attends else [])],
            TYPES.index(dtype), MODES.index(mode), pointer(dmerged), pointer(dweights), *maps, *guide, long(n), long(c), sizes(size),
            *scratches, pointers(dscores), pointer(dlogits),
        )  # fmt: skip
        return dscores, dlogits

    def predict(self, x, size, crop, probability=False):
        """Labels of one map, already merged."""
        x = dense(x)
        n, c, *size_in = x.shape
        labels = unwritten((n, *crop), torch.uint8 if c <= 256 else torch.int16)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        confidence = unwritten((n, *crop), wide) if probability else None
        outputs = (pointer(labels), pointer(confidence))
        arguments = (pointer(x), sizes(size_in), long(n), long(c), sizes(size), sizes(crop), *outputs)
        results = [labels, confidence] if probability else [labels]
        self._run(1, "predict", results, TYPES.index(x.dtype), *arguments)
        return labels, confidence

    def segmentation_loss(self, scores, labels, shrink, ignore_label=255, gradient=True):
        """Returns loss, the number of valid positions, and the gradient at the label grid."""
        scores = dense(scores)
        n, c, *size_in = scores.shape
        image = labels.shape[1:]
        grid = [(side - 1) // shrink + 1 for side in image]
        loss, counts = unwritten((), torch.float64), torch.zeros(2, dtype=torch.int64)
        terms = unwritten((n, grid[0]), torch.float64)
        dgrid = unwritten((n, c, *grid), scores.dtype) if gradient else None
        results = [loss, counts, *([dgrid] if gradient else [])]
        self._run(
            3 if n else 1, "segmentation_loss", results, TYPES.index(scores.dtype), pointer(scores), sizes(size_in), pointer(labels),
            int(labels.dtype == torch.int64), sizes(image), long(n), long(c), long(shrink), long(ignore_label), pointer(counts), pointer(terms),
            pointer(loss), pointer(dgrid),
        )  # fmt: skip
        return loss, counts[0], dgrid

    def domain_transform(self, x, edge, num_iter, spatial_sigma, range_sigma, min_weight, valid_size=None):
        x, edge = dense(x), dense(edge)
        n, c, *size = x.shape
        narrow = x.dtype in (torch.bfloat16, torch.float16)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        weights, y = unwritten((num_iter, n, *size), wide), unwritten(x.shape, x.dtype)
        map = unwritten(x.shape, wide) if narrow else None
        sigmas = (ctypes.c_float * 3)(spatial_sigma, range_sigma, min_weight)
        launches = num_iter * (n > 0) + (2 * num_iter + narrow) * (n * c > 0)
        self._run(
            launches, "domain_transform", [y], TYPES.index(x.dtype), pointer(x), pointer(edge), pointer(valid_size), sizes(size), long(n),
            long(c), long(num_iter), sigmas, pointer(weights), pointer(map), pointer(y),
        )  # fmt: skip
        return y

    def domain_transform_backward(self, dy, x, edge, num_iter, spatial_sigma, range_sigma, min_weight, valid_size=None):
        dy, x, edge = dense(dy), dense(x), dense(edge)
        n, c, *size = x.shape
        narrow = x.dtype in (torch.bfloat16, torch.float16)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        weights, sums = unwritten((num_iter, n, *size), wide), unwritten((2, n, *size), wide)
        maps = [unwritten(x.shape, wide) for _ in range(num_iter + 2)]
        dmap = unwritten(x.shape, wide) if narrow else None
        dx, dedge = unwritten(x.shape, x.dtype), unwritten(edge.shape, x.dtype)
        sigmas = (ctypes.c_float * 3)(spatial_sigma, range_sigma, min_weight)
        filtered = 2 * (num_iter - 1) + 3 * num_iter + narrow  # again, and each iteration's rows, and the gradients'
        self._run(
            2 * num_iter * (n > 0) + filtered * (n * c > 0), "domain_transform_backward", [dx, dedge], TYPES.index(x.dtype), pointer(dy),
            pointer(x), pointer(edge), pointer(valid_size), sizes(size), long(n), long(c), long(num_iter), sigmas, pointer(weights),
            pointers(maps), pointer(dmap), pointer(sums), pointer(dx), pointer(dedge),
        )  # fmt: skip
        return dx, dedge

    def confusion_matrix(self, prediction, label, num_classes, ignore_label=255):
        counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        outside = torch.zeros((), dtype=torch.int64)
        maps = (int(label.dtype == torch.int64), pointer(prediction), pointer(label), long(label.numel()))
        outputs = (pointer(counts), pointer(outside))
        arguments = (*maps, long(num_classes), long(ignore_label), *outputs)
        self._run(int(label.numel() > 0), "confusion_matrix", [counts, outside], *arguments)
        return counts, outside

    def dense_crf(self, log_prob, image, iterations, pos_w, pos_xy_std, bi_w, bi_xy_std, bi_rgb_std):
        log_prob, image = dense(log_prob), dense(image)
        n, c, *size = log_prob.shape
        probability = unwritten(log_prob.shape, torch.float32)
        self.library.dense_crf_scratch.restype = ctypes.c_int64
        scratch = torch.full((self.library.dense_crf_scratch(sizes(size), long(c)),), 255, dtype=torch.uint8)
        numbers = (ctypes.c_float * 5)(pos_w, pos_xy_std, bi_w, bi_xy_std, bi_rgb_std)
        arguments = (
            int(image.dtype == torch.float32),
            pointer(log_prob),
            pointer(image),
            sizes(size),
            long(n),
            long(c),
        )
        terms = iterations > 0 and pos_w > 0, iterations > 0 and bi_w > 0
        build, step = (7 + 4, 7 + 7), (4, 7)  # of positions, of positions and colours: launches, of which filters
        launches = (n > 0) * terms[0] * build[0] + n * (terms[1] * build[1] + 1)
        launches += n * iterations * (1 + terms[0] * step[0] + terms[1] * step[1])
        self._run(
            launches, "dense_crf", [probability],
            *arguments, long(iterations), numbers, pointer(scratch), pointer(probability),
        )  # fmt: skip
        return probability

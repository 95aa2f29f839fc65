"""Every operator gives the same bits: run again, on a GPU too, on one thread or two, compiled for one instruction set or another."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from repro import ops

ROOT = Path(__file__).parents[1]
SIZES = ((41, 41), (31, 31), (21, 21))


def gradients(results, leaves):
    results = [result for result in results if result is not None]
    return [*results, *torch.autograd.grad(sum(result.square().sum() for result in results), leaves)]


def interp(dtype, images):
    x = torch.randn(images, 21, 41, 41, dtype=dtype, requires_grad=True)
    return [y for size in ((129, 97), (21, 30)) for y in gradients([ops.interp(x, size)], [x])]


def merge_scores(dtype, images, mode):
    scores = [torch.randn(images, 21, *hw, dtype=dtype, requires_grad=True) for hw in SIZES]
    logits = [torch.randn(images, 3, 31, 31, dtype=dtype, requires_grad=True)] if mode == "attention" else []
    return gradients(ops.merge_scores(scores, *logits, mode=mode), [*scores, *logits])


def predict(dtype, images):
    scores = [torch.randn(images, 21, *hw, dtype=dtype) for hw in SIZES]
    logits = torch.randn(images, 3, 31, 31, dtype=dtype)
    return [*ops.predict(scores, logits, "attention", (321, 321), (300, 321), probability=True)]


def segmentation_loss(dtype, images):
    results = []
    for side in (41, 31):
        scores = torch.randn(images, 21, side, side, dtype=dtype, requires_grad=True)
        labels = torch.randint(0, 21, (images, 321, 321), dtype=torch.uint8)
        loss = ops.segmentation_loss(scores, labels, 8)
        results += [loss, torch.autograd.grad(loss, scores)[0]]
    return results


def domain_transform(dtype, images):
    results = []
    for channels in (21, 7):
        x = torch.randn(images, channels, 97, 129, dtype=dtype, requires_grad=True)
        edge = torch.rand(images, 1, 97, 129, dtype=dtype, requires_grad=True)
        valid_size = torch.tensor([[97, 129], [60, 129], [97, 31]])[:images]
        results += gradients([ops.domain_transform(x, edge, 2, 30.0, 1.0, 0.0, valid_size)], [x, edge])
    return results


def confusion_matrix(dtype, images):
    prediction, label = (torch.randint(0, 22, (images, 321, 321)) for _ in range(2))
    return [*ops.confusion_matrix(prediction, label, 21)]


def dense_crf(dtype, images):
    scores = torch.randn(images, 21, 96, 96, dtype=dtype).double()
    image = torch.randint(0, 256, (images, 3, 96, 96), dtype=torch.uint8)
    return [ops.dense_crf(scores, image, 2, 3, 3, 5, 50, 50)]


OPS = {
    "interp": interp,
    "merge_scores-attention": lambda dtype, images: merge_scores(dtype, images, "attention"),
    "merge_scores-average": lambda dtype, images: merge_scores(dtype, images, "average"),
    "merge_scores-max": lambda dtype, images: merge_scores(dtype, images, "max"),
    "predict": predict,
    "segmentation_loss": segmentation_loss,
    "domain_transform": domain_transform,
    "confusion_matrix": confusion_matrix,
    "dense_crf": dense_crf,
}
CASES = [(torch.float32, 1), (torch.float32, 3), (torch.float64, 1), (torch.bfloat16, 1), (torch.float16, 1)]


def digests(device: str = "cpu") -> dict[str, str]:
    """Hashes the results of every operator for several element types and numbers of images."""
    found = {}
    for name, run in OPS.items():
        for dtype, images in CASES:
            torch.manual_seed(0)
            hashed = hashlib.sha256()
            with torch.device(device):
                results = run(dtype, images)
            for result in results:
                hashed.update(result.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
            found[f"{name} {dtype} {images}"] = hashed.hexdigest()
    return found


def test_again_and_on_two_threads(device):
    expected = digests(device)
    torch.set_num_threads(2)
    try:
        again = [digests(device), digests(device)]
    finally:
        torch.set_num_threads(1)
    assert again == [expected, expected]
    assert len(set(expected.values())) == len(expected) - 3  # confusion_matrix is the same for all types of one image


@pytest.mark.skipif(sys.platform != "linux", reason="reads the CPU time of every thread in Linux's /proc")
def test_two_threads_share_the_work():
    scores = torch.randn(1, 21, 65, 65)

    def busy_threads():
        ticks = (Path("/proc/self/task") / thread / "stat" for thread in os.listdir("/proc/self/task"))
        return {path: sum(map(int, path.read_text().rsplit(")", 1)[1].split()[11:13])) for path in ticks}

    torch.set_num_threads(2)
    try:
        before = busy_threads()
        for _ in range(100):  # a second or so: a hundred ticks of 10 ms
            ops.predict([scores], mode="average", size=(513, 513), probability=True)
        spent = sorted(ticks - before.get(path, 0) for path, ticks in busy_threads().items())
    finally:
        torch.set_num_threads(1)
    assert spent[-2] > spent[-1] / 3, f"ticks of 10 ms by thread: {spent}"


@pytest.mark.slow
def test_the_instruction_set_changes_no_bit(tmp_path):
    """Builds the kernels once more without their AVX2 twins (as under a sanitizer) and compares."""
    shutil.copytree(ROOT / "repro", tmp_path / "repro", ignore=shutil.ignore_patterns("_C*"))
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", f"--build-lib={tmp_path}", f"--build-temp={tmp_path}/temp"],
        cwd=ROOT,
        env=os.environ | {"CFLAGS": "-D__SANITIZE_ADDRESS__", "REPRO_CUDA": "0"},
        check=True,
        capture_output=True,
    )
    (extension,) = (tmp_path / "repro").glob("_C*.so")
    assert b"arch_x86_64_v3" not in extension.read_bytes()
    printed = subprocess.run(
        [sys.executable, "-c", "import test_ops_determinism as t; print(t.ops.__file__, t.digests())"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert printed.strip() == f"{tmp_path / 'repro/ops/__init__.py'} {digests()}"

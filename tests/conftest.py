"""What every test shares: the golden data, the error measure, and the rule of tolerance for our own operators (tests/float_rule.py has the other)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import repro.ops  # noqa: F401  registers the operators

# What the package and its tests import at their heads: a bare machine with a GPU may lack it.
OTHERS = {"PIL", "google", "h5py", "html5lib", "jinja2", "markdown_it", "markupsafe", "matplotlib", "scipy", "tqdm"}
GOLDEN = Path(os.environ.get("REPRO_GOLDEN", Path(__file__).parent / "golden"))

# `make emulated`: the operators of CPU tensors run the CUDA side on the host (tests/emulated).
EMULATED = torch._C._dispatch_has_kernel("repro_emulated::launches")
cpu_kernels_only = pytest.mark.skipif(EMULATED, reason="holds for the CPU's kernels, not for CUDA's")
slow_emulated = pytest.mark.skipif(EMULATED, reason="takes minutes where the host runs every CUDA thread by itself")
cuda_kernels_only = pytest.mark.skipif(not EMULATED, reason="needs the CUDA kernels on the host: make emulated")


def golden(name: str) -> dict[str, np.ndarray]:
    """Reads one file of Caffe's own results (tests/golden/README.md says how they were made)."""
    with np.load(GOLDEN / name) as arrays:
        return {key: _followed(array) for key, array in arrays.items()}


def _followed(array: np.ndarray) -> np.ndarray:
    """Reads the array that stands for another one, "@FILE:KEY": what several nets have in common is kept once."""
    if array.dtype.kind != "U" or array.ndim or not str(array).startswith("@"):
        return array
    name, _, key = str(array)[1:].partition(":")
    with np.load(GOLDEN / name) as arrays:
        return arrays[key]


def relative_error(actual, expected) -> float:
    """Computes max|a - b| / max|b| (max|a| where b is all zero)."""
    actual = np.asarray(actual.detach().cpu() if isinstance(actual, torch.Tensor) else actual, dtype=np.float64)
    expected = np.asarray(expected.detach().cpu() if isinstance(expected, torch.Tensor) else expected, dtype=np.float64)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    if expected.size == 0:
        return 0.0
    assert np.isfinite(actual).all(), "not finite"
    return float(np.abs(actual - expected).max() / (np.abs(expected).max() or 1.0))


def assert_close(actual, expected, tolerance: float, what: str = "") -> None:
    """Fails where the relative error exceeds the tolerance; says by how much."""
    error = relative_error(actual, expected)
    assert error <= tolerance, f"{what}: relative error {error:.2e}, tolerance {tolerance:.2e}"


def assert_equals_caffe(actual32, exact64, caffe: dict, key: str) -> None:
    """Compares an operator of our own with Caffe's array `key`.

    float64 must be Caffe's float64 within 1e-10, where it is kept; float32 must be as exact as Caffe's float32.
    """
    if f"{key}_f64" in caffe:
        assert_close(exact64, caffe[f"{key}_f64"], 1e-10, f"{key}_f64")
    assert_as_exact_as_reference(actual32, caffe[key], exact64, what=key)


def assert_as_exact_as_reference(actual, reference32, reference64, floor: float = 3e-7, what: str = "") -> None:
    """Fails unless the float32 result lies within twice the float32 reference's own error, plus a floor, of the float64 reference."""
    assert_close(actual, reference64, 2 * relative_error(reference32, reference64) + floor, what)


# The tests' tensors are small; tests of threading set their own number, tests/matrix.py sets several.
torch.set_num_threads(int(os.environ.get("REPRO_TEST_THREADS", "1")))
# TF32 keeps 10 bits of a factor: on a GPU, float32 means float32 here.
torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


class Module(pytest.Module):
    """A file of tests; one that needs a package of others which is not installed is skipped, and says so, where pytest would end with an error."""

    def collect(self):
        try:
            return super().collect()
        except self.CollectError as error:
            missing = getattr(error.__cause__, "name", None) or ""
            optional = missing.partition(".")[0] in OTHERS and "REPRO_ALL_TESTS" not in os.environ
            if isinstance(error.__cause__, ModuleNotFoundError) and optional:
                pytest.skip(f"needs {missing}: pip install .[test]", allow_module_level=True)
            raise


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> Module:
    return Module.from_parent(parent, path=module_path)


@pytest.fixture(autouse=True)
def _own_random_numbers():
    state = torch.get_rng_state(), np.random.get_state()
    torch.manual_seed(0)
    np.random.seed(0)
    yield
    torch.set_rng_state(state[0])
    np.random.set_state(state[1])


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    """Each device in turn; of the module's scope, for hypothesis calls a test many times and asks for a fixture once."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device and a torch built for it")
    return request.param


@pytest.fixture
def data_root() -> Path:
    """The folder of real images and weights."""
    root = os.environ.get("REPRO_DATA")
    if not root:
        pytest.skip("needs REPRO_DATA, a folder of real data laid out as CONTRIBUTING.md says")
    return Path(root)

"""The tests of the operators run on a machine that has little beside PyTorch, NumPy and pytest; what needs more is skipped, and says so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HIDE = """
import importlib.abc, sys

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
"""
OTHERS = ("PIL", "google", "h5py", "html5lib", "hypothesis", "jinja2", "matplotlib", "scipy", "selenium", "tqdm")


def collected(tmp_path, hidden, *files):
    """Collects these files' tests, and runs those that draw their cases, where some packages cannot be imported."""
    (tmp_path / "hide.py").write_text(f"HIDDEN = {hidden!r}\n{HIDE}")
    command = [sys.executable, "-m", "pytest", "-p", "hide", "-p", "no:hypothesispytest", "-p", "no:cacheprovider"]
    paths = [str(ROOT / "tests" / f"test_{name}.py") for name in files]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    environment.pop("REPRO_ALL_TESTS", None)  # which asks for every package
    return subprocess.run(
        [*command, "-q", "-rs", "-k", "any_shape or by_hand", *paths],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )


def test_a_bare_machine(tmp_path):
    done = collected(tmp_path, OTHERS, "interp", "confusion_matrix", "report_page", "weights", "crf_search", "pool")
    assert done.returncode == 0, done.stdout + done.stderr
    for reason in ("hypothesis: pip", "h5py: pip install", "tqdm: pip install"):
        assert f"needs {reason}" in done.stdout
    assert "4 passed" in done.stdout  # by hand, on the CPU


def test_a_missing_module_of_our_own_is_an_error(tmp_path):
    done = collected(tmp_path, ("repro.ops.interp", "op_inputs"), "interp")
    assert done.returncode == 2
    assert "No module named 'op_inputs'" in done.stdout


@pytest.mark.parametrize("seen", [False, True])
def test_what_a_machine_with_a_gpu_says_ends_no_test(seen, tmp_path):
    said = ["TensorFloat32 is available but not enabled"] if seen else SAID
    source = f"import warnings\n\ndef test_said():\n    for text in {said!r}:\n        warnings.warn(text)\n"
    (tmp_path / "test_said.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    done = subprocess.run([*command, "--rootdir", str(tmp_path), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == (1 if seen else 0), done.stdout


SAID = [
    "Warning: Profiler clears events at the end of each cycle.Only events from the current cycle will be reported.To keep events across cycles, set acc_events=True.",
    "TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled. Consider setting `torch.set_float32_matmul_precision('high')` for better performance.",
    "Please use the new API settings to control TF32 behavior, such as torch.backends.cudnn.conv.fp32_precision = 'tf32'",
    "\nOnline softmax is disabled on the fly since Inductor decides to\nsplit the reduction.",
]

"""setup.py where nvcc is: the toolkit and the architectures are nvcc's own answer."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="the stand-in for nvcc is a shell script")


def decision(folder, answers, **environment):
    """What setup.py prints where the nvcc on PATH is a script that gives these answers."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f"#!/bin/sh\ncase \"$1\" in\n--dryrun) echo '{answers[0]}' >&2;;\n--list-gpu-arch) printf '{answers[1]}';;\nesac\n")  # fmt: skip
    nvcc.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not re.match("CUDA_|TORCH_CUDA_|REPRO_CUDA", name)}
    path = os.pathsep.join([str(nvcc.parent), kept["PATH"]])
    result = subprocess.run(
        [sys.executable, "setup.py", "--name"], cwd=ROOT, capture_output=True, text=True, check=True,
        env=kept | {"PATH": path, "REPRO_CUDA": "0", "CUDA_VISIBLE_DEVICES": ""} | environment,
    )  # fmt: skip
    return dict(re.findall(r"(\w+)=([^,) ]+)", result.stdout))


def test_a_script_on_the_path_is_asked_for_its_toolkit(tmp_path):
    (tmp_path / "toolkit" / "bin").mkdir(parents=True)
    printed = decision(tmp_path, (f"#$ TOP={tmp_path}/toolkit/bin/..", r"compute_80\ncompute_90\ncompute_120\n"))
    assert printed["CUDA_HOME"] == str(tmp_path / "toolkit")
    assert printed["TORCH_CUDA_ARCH_LIST"] == "8.0;9.0;12.0+PTX"


def test_what_the_environment_says_goes_first(tmp_path):
    answers = (f"#$ TOP={tmp_path}", "compute_80")
    printed = decision(tmp_path, answers, CUDA_HOME="/opt/mine", TORCH_CUDA_ARCH_LIST="8.6")
    assert (printed["CUDA_HOME"], printed["TORCH_CUDA_ARCH_LIST"]) == ("/opt/mine", "8.6")


def test_an_nvcc_that_knows_nothing_leaves_the_defaults(tmp_path):
    printed = decision(tmp_path, ("nvcc fatal: unknown option", ""))
    assert printed["TORCH_CUDA_ARCH_LIST"] == "8.0;9.0+PTX"
    assert printed["REPRO_CUDA"] == "0"

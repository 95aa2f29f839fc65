"""The plan of the house: who may import whom, how long a file may be, and which folders there are."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = {"repro", "csrc", "caffe_weights", "protocols", "tests"}
MADE = {"build", "runs", "__pycache__"}  # ignored by git


def test_imports_keep_the_contracts_of_pyproject():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache'])"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert "3 kept, 0 broken" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0


def test_no_file_holds_two_ideas():
    files = [
        path
        for folder in ("repro", "csrc", "tests", "caffe_weights")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".cpp", ".h", ".cu", ".cuh")
    ]
    assert len(files) > 40
    long = {
        str(path.relative_to(ROOT)): lines
        for path in files
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long


def test_top_level_folders_are_the_plans():
    folders = {
        path.name
        for path in ROOT.iterdir()
        if path.is_dir() and not path.name.startswith(".") and not path.name.endswith(".egg-info")
    }
    assert FOLDERS <= folders <= FOLDERS | MADE

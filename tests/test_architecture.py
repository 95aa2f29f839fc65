"""The plan of the house: who may import whom, how long a file may be, and which folders there are."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A module of repro may import only modules of a lower rank; a new module must be given its place here.
RANK = {
    "repro": 0,
    "repro.program": 1,
    "repro.ops.library": 1,
    "repro.ops.reference": 1,
    "repro.ops.interp": 2,
    "repro.ops.merge_scores": 2,
    "repro.ops.predict": 2,
    "repro.ops.segmentation_loss": 2,
    "repro.ops.confusion_matrix": 2,
    "repro.ops": 3,
    "repro.data": 4,
    "repro.data.caffe_rng": 4,
    "repro.data.transforms": 4,
    "repro.data.synthetic_canvas": 4,
    "repro.data.synthetic_people": 5,
    "repro.data.synthetic_scene": 6,
    "repro.data.synthetic": 7,
    "repro.data.lists": 5,
    "repro.data.stream": 6,
    "repro.data.convert": 8,
    "repro.data.check": 9,
    "repro.data.voc": 9,
    "repro.data.person_part": 9,
    "repro.data.coco": 9,
    "repro.data.__main__": 10,
    "repro.models.layers": 4,
    "repro.models.attention": 5,
    "repro.models.largefov": 5,
    "repro.models.multiscale": 6,
    "repro.models": 7,
    "repro.protocol_schema": 4,
    "repro.protocol": 5,
    "repro.records": 4,
    "repro.lr_policy": 3,
    "repro.claims": 6,
    "repro.tables": 7,
    "repro.metrics": 4,
    "repro.solver": 4,
    "repro.loss": 8,
    "repro.weights": 8,
    "repro.train": 9,
    "repro.evaluate": 9,
    "repro.inputs": 9,
    "repro.device": 4,
    "repro.cost": 8,
    "repro.compare": 8,
    "repro.submission": 9,
    "repro.trained": 10,
    "repro.plan": 10,
    "repro.row": 11,
    "repro.jobs": 12,
    "repro.dry_run": 12,
    "repro.run": 16,
    "repro.report": 0,
    "repro.report.provenance": 6,
    "repro.report.collect": 9,
    "repro.report.readme": 10,
    "repro.report.cells": 10,
    "repro.report.measurements": 10,
    "repro.report.data": 11,
    "repro.report.figures": 4,
    "repro.report.words": 11,
    "repro.report.page": 12,
    "repro.report.__main__": 13,
    "repro.visualize.sizes": 4,
    "repro.visualize.draw": 8,
    "repro.visualize.curve": 9,
    "repro.visualize.network": 9,
    "repro.visualize.runs": 10,
    "repro.visualize.photos": 10,
    "repro.visualize.gallery": 11,
    "repro.visualize.choose": 11,
    "repro.visualize.paint": 12,
    "repro.visualize.figures": 13,
    "repro.visualize": 14,
    "repro.visualize.__main__": 15,
    "repro.export": 11,
    "repro.pretext": 11,
    "repro.bench": 4,
    "repro.bench.eager": 4,
    "repro.bench.memory": 4,
    "repro.bench.timing": 4,
    "repro.bench.cases": 8,
    "repro.bench.targets": 9,
    "repro.bench.results": 9,
    "repro.bench.agreement": 9,
    "repro.bench.measure": 10,
    "repro.bench.__main__": 17,
}
WITHOUT_TORCH = ("repro.protocol", "repro.records", "repro.tables", "repro.compare", "repro.report.__main__")
FOLDERS = {"repro", "csrc", "caffe_weights", "protocols", "tests"}
MADE = {"build", "runs", "__pycache__"}  # ignored by git


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path for folder in ("repro", "caffe_weights") for path in sorted((ROOT / folder).rglob("*.py"))
}


def imports(name):
    """Lists the modules that a module names in its import statements, wherever they stand; `from package import module` means that module."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names}
    return found - {"repro._C"}


def closure(name):
    """Lists everything that importing a module may bring in."""
    seen, todo = set(), [name]
    while todo:
        for imported in imports(todo.pop()):
            parts = imported.split(".")
            for module in (".".join(parts[:n]) for n in range(1, len(parts) + 1)):
                if module not in seen:
                    seen.add(module)
                    todo += [module] if module in MODULES else []
    return seen


def test_every_module_has_a_rank():
    ours = {name for name in MODULES if name.partition(".")[0] == "repro"}
    assert ours == set(RANK)


@pytest.mark.parametrize("name", RANK)
def test_imports_go_downwards(name):
    wrong = {
        imported for imported in imports(name) if imported.partition(".")[0] == "repro" and RANK[imported] >= RANK[name]
    }
    assert not wrong, f"{name} (rank {RANK[name]}) imports {', '.join(f'{w} (rank {RANK[w]})' for w in sorted(wrong))}"


def test_ops_import_nothing_else_of_repro():
    for name in RANK:
        if name.startswith("repro.ops"):
            assert {i for i in imports(name) if i.startswith("repro") and not i.startswith("repro.ops")} <= {"repro"}, (
                name
            )


def test_caffe_weights_imports_neither_repro_nor_torch():
    for name in MODULES:
        if name.partition(".")[0] == "caffe_weights":
            allowed = {"torch"} if name == "caffe_weights.importers.torchvision" else set()  # within a function
            assert {i for i in imports(name) if i.partition(".")[0] in ("repro", "torch")} <= allowed, name


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_what_reads_protocols_and_records_needs_no_torch(name):
    assert "torch" not in closure(name)
    assert "torch" in closure("repro.train")


def test_no_file_holds_two_ideas():
    files = [
        p
        for folder in ("repro", "csrc", "tests", "caffe_weights")
        for p in (ROOT / folder).rglob("*")
        if p.suffix in (".py", ".cpp", ".h", ".cu", ".cuh")
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
        p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".") and not p.name.endswith(".egg-info")
    }
    assert FOLDERS <= folders <= FOLDERS | MADE

"""repro/caffe/README.md says what the code does: its table of layers against the code's, its flags against the program's."""

import re
from pathlib import Path

import pytest
from caffe_nets import names, text
from conftest import GOLDEN, golden

import repro.caffe
from repro.caffe.__main__ import main
from repro.caffe.build import REFUSED
from repro.caffe.layers import TYPES
from repro.caffe.proto import fields
from repro.caffe.solver_parameter import TYPES as SOLVERS
from repro.solver.lr_policy import POLICIES

README = (Path(repro.caffe.__file__).parent / "README.md").read_text(encoding="utf-8")
# Fields that the table leaves out: read without an effect, refused, or another layer's.
WITHOUT_EFFECT = {"engine", "force_nd_im2col", "force_color", "force_gray", "stable_prod_grad", "prefetch"}
ELSEWHERE = {
    "ImageSegData": {"scale", "mean_file", "crop_size", "mirror", "max_labels"},
    "ImageData": {
        "scale",
        "mean_file",
        "crop_size",
        "mirror",
        "has_label",
        "max_labels",
        "label_type",
        "ignore_label",
        "scale_factors",
        "crop_width",
        "crop_height",
    },
    "Pooling": {"round_mode"},
    "SoftmaxWithLoss": {"weight_source"},
    "SigmoidCrossEntropyLoss": {"weight_source"},
}


def rows() -> dict[str, tuple[str, str, str]]:
    table = README.partition("## Layers")[2]
    found = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]
    return {name: (status, parameters, note) for name, status, parameters, note in found[2:]}


def compared_with_caffe() -> set[str]:
    """Collects the layer types of all nets of which Caffe's results are kept."""
    texts = [str(value) for name, value in golden("layers.npz").items() if name.endswith("/prototxt")]
    texts += map(text, names())
    texts += [
        path.read_text() for path in (*(GOLDEN / "data_stream").glob("*.prototxt"), *(GOLDEN / "e2e_run").glob("net*"))
    ]
    return set(re.findall(r'type: "(\w+)"', "\n".join(texts)))


def test_every_layer_is_in_the_table_and_no_other():
    found = rows()
    assert found.keys() == TYPES.keys() | REFUSED.keys()
    assert {name for name, row in found.items() if row[0] == "refused"} == REFUSED.keys()
    assert {row[0] for row in found.values()} == {"exact", "source", "deviates", "refused"}


def test_what_is_called_exact_was_compared_with_caffe():
    called = {name for name, row in rows().items() if row[0] == "exact"}
    assert len(called) > 35
    assert called <= compared_with_caffe() | {"Split"}  # which Caffe itself puts into every such net


@pytest.mark.parametrize("name", sorted(TYPES))
def test_every_parameter_is_in_the_table(name):
    _, parameters, _ = rows()[name]
    kinds = fields("LayerParameter")
    for message, keys in re.findall(r"`(\w+)` ([\w ]+)", parameters):
        known = fields(kinds[message].kind).keys()
        listed = set(keys.split())
        assert listed <= known
        assert known - listed <= WITHOUT_EFFECT | ELSEWHERE.get(name, set()), message


def test_solvers_policies_and_fields_are_named():
    table = README.partition("## The solver")[2].partition("## Fused")[0]
    assert ", ".join(POLICIES) in table
    assert all(name in table for name in SOLVERS)
    assert all(name in fields("SolverParameter") for name in re.findall(r"^\| `(\w+)", table, re.MULTILINE))


@pytest.mark.parametrize("verb", ["train", "test", "time", "draw"])
def test_flags_are_the_programs(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    shown = capsys.readouterr().out
    usage = next(line for line in README.splitlines() if line.startswith(f"python -m repro.caffe {verb}"))
    for flag in re.findall(r"--[a-z_-]+", usage):
        assert flag in shown
    common = next(line for line in README.splitlines() if line.startswith("Flags are gflags'"))
    for_all, running = common.partition("for all but `draw`")[::2]
    for flag in re.findall(r"`(--[a-z-]+)", for_all.partition("For all:")[2]):
        assert flag in shown
    for flag in re.findall(r"--[a-z-]+", running):
        assert (flag in shown) == (verb != "draw")

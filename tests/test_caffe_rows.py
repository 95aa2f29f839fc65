"""The two descriptions of a row meet: the prototxt that a protocol's row exports, run by repro.caffe, is the row's own network and solver, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from caffe_dropout import dropout_mask
from float_rule import FLOAT64
from tiny import items_of, write_data, write_protocol

import caffe_weights
from caffe_weights import parse_prototxt
from caffe_weights.deeplab.export import net_spec
from caffe_weights.deeplab.net import net_prototxt
from caffe_weights.deeplab.solver import solver_prototxt
from repro.caffe import Net
from repro.caffe.proto import typed
from repro.caffe.solver import Solver as CaffeSolver
from repro.caffe.update import Update
from repro.data.caffe_rng import CaffeRNG
from repro.device import Compute
from repro.export import export_settings
from repro.models import build
from repro.models.layers import Dropout
from repro.protocol import load_protocol, load_protocols
from repro.solver.loss import losses
from repro.solver.train import Sitting, Training, make_solver

SEED, SIDE, CLASSES = 7, 33, 5
WIDTH = "model.width=0.03125"


def rows() -> dict[str, dict]:
    """Collects the settings of every row whose network no row before it has."""
    found, known = {}, set()
    for table, protocol in load_protocols().items():
        for row in protocol.rows:
            if row.status != "run":
                continue
            model = {key: value for key, value in row.settings["model"].items() if not key.startswith("filler")}
            mark = json.dumps(model, sort_keys=True)
            if mark not in known:
                known.add(mark)
                found[f"{table}/{row.id}"] = (table, row.id)
    return found


ROWS = rows()
WITH_TEN = [name for name in ROWS if name.endswith("attention3-extra")]
STEPS = [(name, 10) if name in WITH_TEN else (name, 2) for name in ROWS]
STEPS += [pytest.param(name, 10, marks=pytest.mark.slow) for name in ROWS if name not in WITH_TEN]


def parameters(network) -> list[torch.nn.Parameter]:
    """Lists a network's parameters in the order of Caffe's learnable_params."""
    return [blob for layer in network.convolutions().values() for blob in (layer.weight, layer.bias)]


def pair(table: str, row: str, dtype: torch.dtype):
    """Builds a row's network and its exported prototxt's net with the same parameters and generators."""
    settings = load_protocol(table, [WIDTH]).row(row).settings
    network = build(settings["model"], CLASSES, seed=1)
    blobs = {
        name: [layer.weight.detach().numpy(), layer.bias.detach().numpy()]
        for name, layer in network.convolutions().items()
    }
    exported = export_settings(settings, Path(), "CPU")
    text = net_prototxt(net_spec(blobs, exported.model, row), "train", None, (2, 3, SIDE, SIDE))
    net = Net(parse_prototxt(text, row), phase="TRAIN", rng=CaffeRNG(SEED), dtype=dtype)
    own = dict(zip([(name, i) for name in blobs for i in range(2)], parameters(network), strict=True))
    assert [(one.layer, one.index) for one in net.learnable] == list(own)
    with torch.no_grad():
        for one in net.learnable:
            one.tensor.copy_(own[one.layer, one.index])
    random = CaffeRNG(SEED)
    for layer in (module for module in network.modules() if isinstance(module, Dropout)):
        layer.mask_source = lambda shape, ratio=layer.ratio: dropout_mask(shape, ratio, random)
    return settings, network.to(dtype).train(), net, exported.solver


def same(one: torch.Tensor | None, other: torch.Tensor | None, exact: bool) -> bool:
    """Compares bit for bit, or as float64 lets two orders of summation differ; a fixed layer has no gradient in either."""
    if one is None or other is None or exact:
        return one is other or (one is not None and other is not None and torch.equal(one, other))
    return bool((one - other).abs().max() <= FLOAT64 * max(float(other.abs().max()), 1e-30))


@pytest.mark.parametrize(("name", "steps"), STEPS)
def test_exported_prototxt_is_the_rows_network_and_solver(name, steps):
    # The edge map of the row's network meets its weights before it is enlarged, Caffe's after: those are compared in float64.
    exact = "dt_num_iter" not in load_protocol(ROWS[name][0], []).row(ROWS[name][1]).settings["model"]
    settings, network, net, solver_table = pair(*ROWS[name], torch.float32 if exact else torch.float64)
    solver = make_solver(network, settings)
    text = solver_prototxt(solver_table, "net.prototxt", "row", "CPU")
    update = Update(typed(parse_prototxt(text, "s"), "SolverParameter", "s"), "SGD", net.learnable)
    random = torch.Generator().manual_seed(3)
    for t in range(steps):
        data = torch.randn(2, 3, SIDE, SIDE, generator=random).to(net.dtype) * 50
        label = torch.randint(0, CLASSES + 1, (2, SIDE, SIDE), generator=random)
        label[label == CLASSES] = settings["data"]["ignore_label"]
        terms = losses(network(data), label, network.scales, settings["model"]["extra_supervision"])
        solver.zero_grad()
        sum(terms.values()).backward()
        net.clear_param_diffs()
        given = {"data": data, "label": label[:, None], "dim": torch.full((2, 1, 1, 2), float(SIDE))}
        outputs = net(**{blob: given[blob] for blob in net.inputs})
        net.backward()
        assert set(outputs) == set(terms)
        assert all(same(outputs[term].detach(), value.detach(), exact) for term, value in terms.items())
        for one, parameter in zip(net.learnable, parameters(network), strict=True):
            assert same(one.tensor.grad, parameter.grad, exact), one.layer
        assert solver.step() == update.apply(t)
    for one, parameter in zip(net.learnable, parameters(network), strict=True):
        assert same(one.tensor.detach(), parameter.detach(), exact), one.layer
    assert all(same(mine, row, exact) for mine, row in zip(update.history, solver.history.values(), strict=True))


def test_exported_files_train_as_the_row_does(tmp_path):
    root = write_data(tmp_path / "data")
    changes = ("dropout_ratio = 0.5", "dropout_ratio = 0.0"), ("max_iter = 6", "max_iter = 3")
    table = load_protocol(write_protocol(tmp_path, *changes), [])
    settings = table.row("attention3-extra").settings
    network = build(settings["model"], 3, seed=1)
    blobs = {n: [p.detach().numpy() for p in (m.weight, m.bias)] for n, m in network.convolutions().items()}
    caffe_weights.to_caffe(blobs, tmp_path / "caffe", export_settings(settings, root, "CPU"), "row")
    file = tmp_path / "caffe/solver.prototxt"
    file.write_text(f"{file.read_text()}random_seed: {SEED}\n")
    lines = [f"/{i.image.relative_to(root)} /{i.label.relative_to(root)}\n" for i in items_of(root, "train")]
    (tmp_path / "caffe/train.txt").write_text("".join(lines))
    compute = Compute(torch.device("cpu"), "float32", 0)
    training = Training(network, items_of(root, "train"), settings, Sitting(SEED, "x", tmp_path / "s.pt", compute))
    training.run()
    solver = CaffeSolver(file, root=tmp_path / "caffe")
    solver.copy_from("row_iter_0.caffemodel")
    curve = []
    for _ in range(3):
        solver.step(1)
        curve.append(solver.net.loss().item())
    assert curve == training.curve
    assert all(map(torch.equal, [one.tensor for one in solver.net.learnable], parameters(network)))

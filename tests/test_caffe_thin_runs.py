"""Steps of Caffe's own solver files on its own nets, as both stand: losses, rates and parameters, float64."""

import numpy as np
import pytest
import torch
from caffe_nets import blob_key, load_golden, text, thin_inputs, variants
from conftest import GOLDEN, assert_close, golden
from float_rule import FLOAT64

from caffe_weights import read_caffemodel
from caffe_weights.files.caffe_hdf5 import write_caffemodel_hdf5
from caffe_weights.files.solverstate import read_solverstate
from repro.caffe import Solver
from repro.caffe.snapshots import owned_blobs
from repro.solver.lr_policy import learning_rate

RATE_FIELDS = ("base_lr", "lr_policy", "gamma", "power", "stepsize", "max_iter")
QUICK = {
    "base": 4,
    "att3_e": 2,
    "aspp": 2,
    "att3_dt": 2,
    "msc_all": 2,
    "msc_frozen": 3,
    "resnet_max3_e": 2,
    "dropout": 2,
}


def solver_of(variant: str, folder, fuse: bool = True) -> Solver:
    """Makes the solver of a variant's own file, or of that which the paper's variants share, in a folder with its net."""
    own = f"net_thin_{variant}_solver.prototxt"
    shared = variant not in ("dropout", "aspp", "att3_dt", "msc_all", "msc_frozen", "resnet_max3_e")
    solver = text("net_thin_solver.prototxt" if shared else own)
    net = f"net_thin_{variant}.prototxt"
    (folder / net).write_text(text(net))
    if "net:" not in solver:
        solver += f'\nnet: "{net}"'
    (folder / own).write_text(solver)
    made = Solver(folder / own, root=folder, dtype=torch.float64, fuse=fuse)
    load_golden(made.net, variant)
    return made


def run(variant: str, steps: int, folder) -> None:
    solver, arrays = solver_of(variant, folder), golden(f"net_thin_{variant}.npz")
    names = [name for name in solver.net.outputs if name.startswith("loss")]
    last = arrays["solver/loss_f64"].size
    frozen = {i: one.tensor.detach().clone() for i, one in enumerate(solver.net.learnable) if one.lr_mult == 0}
    assert names
    for t in range(min(steps, last)):
        solver.net.set_inputs(**thin_inputs(solver.net, t % 3))
        solver.step(1)
        for name in names:
            loss = float(solver.net.blobs[name].detach())
            assert loss == pytest.approx(arrays[f"solver/{name}_f64"][t], rel=FLOAT64), (name, t)
    table = {name: getattr(solver.param, name) for name in RATE_FIELDS}
    if "solver/lr" in arrays:
        rates = [learning_rate(table, t) for t in range(last)]
        np.testing.assert_allclose(rates, arrays["solver/lr"], rtol=1e-7)
    for index, before in frozen.items():
        assert torch.equal(solver.net.learnable[index].tensor, before)
    if solver.iter < last:
        return
    compared = 0
    for one in solver.net.learnable:
        key = f"solver/params_after{last}_257/{blob_key(one.layer, one.index)}_f64"
        if key in arrays:
            flat = one.tensor.detach().contiguous().flatten()
            places = np.linspace(0, flat.numel() - 1, min(257, flat.numel())).astype(np.int64)
            assert_close(flat[places], arrays[key], FLOAT64, key)
            compared += 1
    assert compared > 0 or "solver/params_after10/conv1_1/w" in arrays or variant == "dropout"


@pytest.mark.parametrize("variant", QUICK)
def test_the_first_steps(variant, tmp_path):
    run(variant, QUICK[variant], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("variant", variants())
def test_all_steps(variant, tmp_path):
    run(variant, 10, tmp_path)


def test_every_variant_has_its_files():
    assert len(variants()) == 19
    assert set(QUICK) < set(variants())
    assert all((GOLDEN / f"net_thin_{variant}.npz").exists() for variant in variants())


def test_going_on_from_caffes_files_and_writing_them_again(tmp_path):
    """The net has inputs; Caffe's files of step 4 are written again blob for blob, and the four steps that follow are Caffe's."""
    folder, expected = GOLDEN / "weights", golden("weights/expected.npz")
    path = tmp_path / "solver.prototxt"
    path.write_text((folder / "solver.prototxt").read_text().replace('"thin"', f'"{tmp_path}/thin"'))
    solver = Solver(path, root=folder, dtype=torch.float64)
    solver.restore("thin_iter_4.solverstate")
    assert (solver.iter, solver.update.current_step) == (4, 1)
    solver.snapshot()
    names = [f"thin_iter_4.{kind}" for kind in ("caffemodel", "solverstate")]
    (model, state), (caffes_model, caffes_state) = (
        (read_caffemodel(where / names[0]), read_solverstate(where / names[1])) for where in (tmp_path, folder)
    )
    assert [(one.name, one.type) for one in model.layers] == [(one.name, one.type) for one in caffes_model.layers]
    for (name, blob), (caffes_name, caffes) in zip(model.arrays(), caffes_model.arrays(), strict=True):
        assert name == caffes_name
        np.testing.assert_array_equal(blob, caffes)
    assert (state.iter, state.current_step) == (caffes_state.iter, caffes_state.current_step)
    for blob, caffes in zip(state.history, caffes_state.history, strict=True):
        np.testing.assert_array_equal(blob, caffes)

    write_caffemodel_hdf5(tmp_path / "thin.h5", owned_blobs(solver.net))
    groups = [layer.name for layer in read_caffemodel(tmp_path / "thin.h5").layers]
    assert groups == sorted(expected["layer_names"].tolist())  # as Caffe's own thin_iter_4.caffemodel.h5

    for t in range(4, 8):
        data = torch.tensor(expected["images_u8"][t % 3]).double() - torch.tensor(expected["mean_bgr"]).reshape(3, 1, 1)
        solver.net.set_inputs(data=data, label=torch.tensor(expected["labels_u8"][t % 3]))
        solver.step(1)
        losses = [float(solver.net.blobs[str(name)].detach()) for name in expected["loss_names"]]
        # Caffe's float32 run went on from the same files; ours is float64, so what differs is its rounding (tests/golden/README.md)
        np.testing.assert_allclose(losses, expected["losses_steps4to7"][t - 4], rtol=1e-6)

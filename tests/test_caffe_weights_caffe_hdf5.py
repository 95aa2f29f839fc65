"""Caffe's HDF5 snapshots as Caffe writes them."""

import re

import h5py
import numpy as np
import pytest
from conftest import GOLDEN

import caffe_weights
from caffe_weights.files.caffe_hdf5 import write_caffemodel_hdf5, write_solverstate_hdf5

W, B = np.arange(6, dtype=np.float64).reshape(2, 3), np.float32([1.5])


def test_a_model_is_read_back_and_laid_out_as_caffes(tmp_path):
    path = tmp_path / "m.caffemodel.h5"
    write_caffemodel_hdf5(path, {"conv": {0: W, 1: B}, "copy": {1: B}, "relu": {}, "block/conv": {0: np.float32(2)}})
    model = caffe_weights.read_caffemodel(path)
    assert model.format == "Caffe HDF5"
    assert {layer.name: layer.numbers for layer in model.layers} == {
        "conv": (0, 1),
        "copy": (1,),
        "relu": (),
        "block/conv": (0,),
    }
    np.testing.assert_array_equal(model["conv"].blobs[0], W)
    assert model["block/conv"].blobs[0].shape == ()
    with h5py.File(path) as file:
        assert list(file) == ["data"]
        assert file["data/conv/0"].dtype == np.float32
        assert len(file["data/relu"]) == 0


def test_a_state_is_read_back_and_laid_out_as_caffes(tmp_path):
    path = tmp_path / "s.solverstate.h5"
    write_solverstate_hdf5(path, 7, [W, B], "m_iter_7.caffemodel.h5", 2)
    state = caffe_weights.read_solverstate(path)
    assert (state.iter, state.current_step, state.learned_net) == (7, 2, "m_iter_7.caffemodel.h5")
    assert [value.tolist() for value in state.history] == [W.tolist(), B.tolist()]
    with h5py.File(path) as file:
        # what Caffe's own thin_iter_4.solverstate.h5 has (H5LTread_dataset_string needs the zero at the end)
        assert sorted(file) == ["current_step", "history", "iter", "learned_net"]
        assert (file["iter"].shape, file["iter"].dtype) == ((1,), np.int32)
        text = file["learned_net"].id.get_type()
        assert (text.get_size(), text.get_strpad(), file["learned_net"].shape) == (23, h5py.h5t.STR_NULLTERM, ())
        assert (file["history/0"].dtype, file["history/0"].shape) == (np.float32, (2, 3))


def test_a_binary_snapshot_of_caffe_survives_the_change_of_form(tmp_path):
    model = caffe_weights.read_caffemodel(GOLDEN / "weights" / "thin_iter_4.caffemodel")
    write_caffemodel_hdf5(tmp_path / "m.h5", {layer.name: dict(enumerate(layer.blobs)) for layer in model.layers})
    copied = caffe_weights.read_caffemodel(tmp_path / "m.h5")
    assert len(copied.layers) == len(model.layers)
    for name, array in model.arrays():
        np.testing.assert_array_equal(dict(copied.arrays())[name], array)


@pytest.mark.parametrize("name", ["a//b", "", "a\0b", "./x"])
def test_a_name_that_cannot_be_a_group_is_refused(name, tmp_path):
    message = re.escape(
        f"a layer name must serve as an HDF5 path of groups; got {name!r}; rename the layer, or write BINARYPROTO"
    )
    with pytest.raises(ValueError, match=message):
        write_caffemodel_hdf5(tmp_path / "m.h5", {name: {}})
    assert not (tmp_path / "m.h5").exists()


def test_numbers_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match=re.escape("iter and current_step must lie in 0..2^31-1; got -1 and 0")):
        write_solverstate_hdf5(tmp_path / "s.h5", -1, [B], "m")
    with pytest.raises(FileNotFoundError, match="its folder must exist"):
        write_solverstate_hdf5(tmp_path / "none" / "s.h5", 1, [B], "m")

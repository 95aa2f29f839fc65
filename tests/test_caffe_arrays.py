"""MemoryData, DummyData and HDF5Data: Caffe's batches, and one line for what cannot be used."""

import re

import h5py
import numpy as np
import pytest
import torch
from caffe_layers import data_layer

from caffe_weights import parse_prototxt
from repro.caffe import Net


def layer(kind: str, params: str, tops=("a", "b")) -> str:
    names = " ".join(f'top: "{name}"' for name in tops)
    return f'layer {{ name: "d" type: "{kind}" {names} {params} }}'


MEMORY = layer("MemoryData", "memory_data_param { batch_size: 2 channels: 1 height: 1 width: 3 }")


@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray])
def test_memory_data_goes_round(kind):
    data, shapes = data_layer(MEMORY)
    assert shapes == [(2, 1, 1, 3), (2,)]
    values = torch.arange(12.0).reshape(4, 1, 1, 3)
    data.reset(kind(values), kind(torch.arange(4.0).reshape(4, 1, 1, 1)))
    seen = [data.next()[1].tolist() for _ in range(3)]
    assert seen == [[0, 1], [2, 3], [0, 1]]
    data.seek(1)
    assert torch.equal(data.next()[0], values[2:])


def test_memory_data_says_what_it_needs():
    data, _ = data_layer(MEMORY)
    with pytest.raises(
        ValueError, match=re.escape("its data must be set before the first pass; got none; call reset(data, labels)")
    ):
        data.next()
    with pytest.raises(
        ValueError,
        match=re.escape("data must be a multiple of 2 items of shape [1, 1, 3]; got [3, 1, 1, 3]; reshape it"),
    ):
        data.reset(torch.zeros(3, 1, 1, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="there must be 2 labels; got 3; give one for each item"):
        data.reset(torch.zeros(2, 1, 1, 3), torch.zeros(3))
    with pytest.raises(
        ValueError, match=re.escape("batch_size, channels, height and width must be above 0; got (2, 1, 1, 0)")
    ):
        data_layer(MEMORY.replace("width: 3", "width: 0"))


def test_dummy_data_draws_anew_but_keeps_constants():
    fillers = 'data_filler { type: "uniform" } data_filler { value: 3 }'
    text = layer("DummyData", f"dummy_data_param {{ shape {{ dim: 2 dim: 5 }} shape {{ dim: 4 }} {fillers} }}")
    data, shapes = data_layer(text)
    assert shapes == [(2, 5), (4,)]
    first, second = data.next(), data.next()
    assert not torch.equal(first[0], second[0])
    assert first[1].tolist() == second[1].tolist() == [3] * 4
    _, shapes = data_layer(layer("DummyData", "dummy_data_param { num: 2 channels: 3 height: 4 height: 6 width: 5 }"))
    assert shapes == [(2, 3, 4, 5), (2, 3, 6, 5)]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            "shape { dim: 1 } data_filler { } data_filler { } data_filler { }",
            "data_filler must be given 0, 1 or 2 times; got 3",
        ),
        (
            "num: 2 channels: 3 height: 4",
            "num, channels, height and width must be given 1 or 2 times each, without shape; got otherwise",
        ),
        ("", "shape must be given 1 or 2 times; got 0"),
        ("shape { dim: -1 }", "a shape must have no negative side; got [-1]"),
    ],
)
def test_dummy_data_says_what_it_needs(params, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        data_layer(layer("DummyData", f"dummy_data_param {{ {params} }}"))


@pytest.fixture
def folder(tmp_path):
    for number, rows in enumerate((3, 2)):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file["a"] = np.arange(rows * 4, dtype=np.float32).reshape(rows, 2, 2) + 100 * number
            file["b"] = np.arange(rows, dtype=np.int64) + 10 * number
    (tmp_path / "list.txt").write_text("0.h5\n1.h5\n")
    return tmp_path


HDF5 = layer("HDF5Data", 'hdf5_data_param { source: "list.txt" batch_size: 2 }')


def test_hdf5_data_reads_row_after_row_file_after_file(folder):
    data, shapes = data_layer(HDF5, folder)
    assert shapes == [(2, 2, 2), (2,)]
    batches = [data.next() for _ in range(5)]
    assert [batch[1].tolist() for batch in batches] == [[0, 1], [2, 10], [11, 0], [1, 2], [10, 11]]
    assert batches[1][0].flatten(1).tolist() == [[8, 9, 10, 11], [100, 101, 102, 103]]
    assert batches[0][0].dtype == batches[0][1].dtype == torch.float32
    assert data.position == 5
    data.seek(2)
    assert data.next()[1].tolist() == [11, 0]


def test_hdf5_data_shuffles_files_and_rows(folder):
    text = HDF5.replace("batch_size: 2", "batch_size: 5 shuffle: true")
    orders = set()
    for seed in range(3):
        data, _ = data_layer(text, folder, seed=seed)
        first, second = (data.next()[1].tolist() for _ in range(2))
        assert sorted(first) == sorted(second) == [0, 1, 2, 10, 11]
        blocks = {tuple(value >= 10 for value in first)}
        assert blocks <= {(False,) * 3 + (True,) * 2, (True,) * 2 + (False,) * 3}  # files are not mixed
        orders |= {tuple(first), tuple(second)}
        data.seek(1)
        assert data.next()[1].tolist() == second
    assert len(orders) > 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("batch_size: 2", "batch_size: 0"), "batch_size must be at least 1; got 0"),
        (('source: "list.txt"', ""), "hdf5_data_param must name its list in source; got none"),
        (("type:", "transform_param { } type:"), "there must be no transform_param; got one"),
        (('top: "b"', 'top: "c"'), "must have a dataset for every top of layer 'd'; got no c"),
        (("list.txt", "bad.txt"), "its datasets must have one and the same number of rows, above 0; got [3, 2]"),
        (("list.txt", "none.txt"), "none.txt: list must exist"),
    ],
)
def test_hdf5_data_says_what_it_needs(change, message, folder):
    with h5py.File(folder / "bad.h5", "w") as file:
        file["a"], file["b"] = np.zeros((3, 2), np.float32), np.zeros(2, np.float32)
    (folder / "bad.txt").write_text("bad.h5\n")
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        data_layer(HDF5.replace(*change), folder)


def test_a_later_file_of_another_shape_is_refused(folder):
    with h5py.File(folder / "1.h5", "w") as file:
        file["a"], file["b"] = np.zeros((2, 3, 2), np.float32), np.zeros(2, np.float32)
    data, _ = data_layer(HDF5, folder)
    data.next()
    with pytest.raises(ValueError, match="its datasets must have the shapes of the first file's; got others"):
        data.next()


def test_a_net_takes_its_batches(folder):
    net = Net(
        parse_prototxt(f'{HDF5} layer {{ name: "s" type: "Silence" bottom: "b" }}', "n"),
        root=folder,
        dtype=torch.float64,
    )
    assert net()["a"].dtype == torch.float64
    assert net()["a"][0].flatten().tolist() == [8, 9, 10, 11]

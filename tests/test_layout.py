"""Maps and weights are channels_last from the data stream to the update, in training and at test: nothing is laid out anew on the way."""

import pytest
import torch
from tiny import DT, MSC, items_of, write_data, write_protocol
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from repro.device import Compute, choose_device
from repro.evaluate.labels import evaluate
from repro.models import build
from repro.protocol import load_protocol
from repro.solver.train import Sitting, Training, training_stream


def is_channels_last(map_):
    return map_.is_contiguous(memory_format=torch.channels_last)


class Watch(TorchDispatchMode):
    """Counts convolutions and their backward passes; notes each that takes or gives anything in another layout, and every copy of a map that changes no type or device."""

    def __init__(self):
        super().__init__()
        self.convolutions, self.wrong = 0, []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        name = str(operator)
        maps = [one for one in tree_leaves((args, result)) if isinstance(one, torch.Tensor) and one.dim() == 4]
        if "convolution" in name:
            self.convolutions += 1
            self.wrong += [(name, tuple(map_.shape), map_.stride()) for map_ in maps if not is_channels_last(map_)]
        if maps and any(word in name for word in ("clone", "copy", "contiguous")):
            first, last = maps[0], maps[-1]
            if (first.dtype, first.device) == (last.dtype, last.device):
                self.wrong.append((name, tuple(first.shape), first.stride()))
        return result


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "root")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("images", [1, 2])  # of a batch of one torch may take any layout for the other
@pytest.mark.parametrize(("row", "change"), [("attention3-extra", DT), ("max2", DT), ("baseline", MSC)])
def test_nothing_is_laid_out_anew(root, tmp_path, row, change, images, precision, device):
    path = write_protocol(tmp_path, change)  # its narrowest map has two channels: one channel alone fits every layout
    batches = [f"solver.batch_size={images}", f"test.batch_size={images}"]
    settings = load_protocol(path, batches).row(row).settings
    compute = Compute(choose_device(device, precision), precision)
    network = build(settings["model"], 3, 1).to(compute.device)
    training = Training(network, [], settings, Sitting(1, "me", tmp_path / "snapshot.pt", compute))
    stream = training_stream(items_of(root, "train"), settings, seed=1)
    with Watch() as watch:
        training.step(iter(stream))
    assert watch.wrong == []
    layers = network.convolutions()
    passes = 2 * len(settings["model"]["scales"]) * len(layers)
    assert watch.convolutions > passes / 2
    for layer in layers.values():
        for blob in (layer.weight, layer.weight.grad):
            assert is_channels_last(blob)
    assert all(is_channels_last(value) for value in training._solver.history.values() if value.dim() == 4)
    with Watch() as watch:
        evaluate(network, items_of(root, "val"), settings, compute)
    assert watch.wrong == []
    assert watch.convolutions >= len(layers)

"""What a net's outputs say: the numbers of the log, and the parameters that a test net borrows."""

from __future__ import annotations

from collections.abc import Sequence

from repro.caffe.log import number
from repro.caffe.net import Net


def scores(net: Net) -> list[tuple[str, float]]:
    """Lists every number of a net's outputs with its blob's name."""
    return [(name, value) for name in net.outputs for value in net.blobs[name].detach().flatten().tolist()]


def added(sums: list[float], values: list[float]) -> list[float]:
    """Adds a batch's numbers to those of the batches before, of which there may be none yet.

    Raises:
        ValueError: They are not as many.
    """
    if sums and len(sums) != len(values):
        raise ValueError(
            f"test: every batch must give as many numbers; got {len(values)} after {len(sums)}; give the data layer a crop_size"
        )
    return [a + b for a, b in zip(sums, values, strict=True)] if sums else values


def described(net: Net, values: Sequence[float]) -> list[str]:
    """Writes each of a net's output numbers as Caffe does: "loss = 0.69 (* 1 = 0.69 loss)", without the bracket where it adds nothing to the loss.

    Args:
        net: Whose outputs these are.
        values: One for each of `scores`, for example means.

    Caffe: src/caffe/solver.cpp, Step and Test; tools/caffe.cpp, test.
    """
    lines = []
    for (name, _), value in zip(scores(net), values, strict=True):
        weight = net.loss_weights.get(name, 0.0)
        adds = f" (* {number(weight)} = {number(weight * value)} loss)" if weight else ""
        lines.append(f"{name} = {number(value)}{adds}")
    return lines


def share_layers(source: Net, target: Net) -> None:
    """Lets a net's layers use the parameters of the layers of the same names in another.

    Raises:
        ValueError: A layer has other parameters there.

    Caffe: src/caffe/net.cpp, ShareTrainedLayersWith.
    """
    for name, layer in source.layers.items():
        if name not in target.layers or not len(layer.blobs):
            continue
        other = target.layers[name]
        if [blob.shape for blob in layer.blobs] != [blob.shape for blob in other.blobs]:
            raise ValueError(
                f"test net: layer {name!r} must have the train net's parameters; got other shapes; correct the prototxt"
            )
        for mine, given in zip(other.blobs, layer.blobs, strict=True):
            mine.data = given.data

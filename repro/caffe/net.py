"""A net built from its prototxt as Caffe builds it: pycaffe's `Net` over torch tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from caffe_weights import Message
from repro.caffe.layers.base import Layer


@dataclass
class Learnable:
    """A parameter that a layer owns: one of Caffe's learnable_params, in their order, which is that of a solverstate's history.

    layer: The owner's name.
    index: Of the parameter among the owner's blobs.
    tensor: The parameter; the layers that share it hold the same object. After `Net.backward` its grad is never None where lr_mult is not 0.
    lr_mult, decay_mult: As the prototxt gives them (1 where it gives none), float32. With lr_mult 0 no gradient is computed and the solver leaves it alone.
    """

    layer: str
    index: int
    tensor: nn.Parameter
    lr_mult: float
    decay_mult: float


class Net(nn.Module):
    """A net.

    Args:
        prototxt: The file, or a NetParameter that caffe_weights.parse_prototxt read.
        weights: Caffe models to copy parameters from, one after the other; none keeps the fillers'.
        phase: "TEST" or "TRAIN"; with `level` and `stages` the NetState that include and exclude rules ask for.
        defines: Values of the ${VAR}s that DeepLab's scripts fill in.
        fuse: Whether layers that one of our kernels computes together are joined (repro/caffe/fuse.py).
        allow_large: Whether blobs may be larger than the bounds MAX_COUNT and half of the machine's memory.
        device, dtype: Of parameters and blobs.
        root: The folder that relative paths in the prototxt start from; by default the current one, as Caffe's.
        seed: Caffe's random_seed: of the generator that Dropout and data layers draw from, in the net's order. Without one it comes from torch.
        rng: That generator itself, where a solver has it already.
        log: Takes each line that Caffe would log and that says something of the result.

    Attributes:
        name: Of the net.
        layers: Layer name to layer, in order.
        blobs: Blob name to its tensor of the last forward pass.
        params: Layer name to its parameters, of layers that have any; a shared one is the owner's object.
        learnable: Every parameter that a layer owns.
        inputs, outputs: Names of blobs that are set from outside, and of those that no layer takes.
        rng: Caffe's generator.

    Raises:
        FileNotFoundError, ValueError: The prototxt or the weights are unusable; one line that names file, line and layer.

    Caffe: src/caffe/net.cpp.
    """

    name: str
    layers: Mapping[str, Layer]
    blobs: dict[str, torch.Tensor]
    params: dict[str, list[nn.Parameter]]
    learnable: list[Learnable]
    inputs: list[str]
    outputs: list[str]

    def __init__(
        self,
        prototxt: str | os.PathLike | Message,
        weights: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
        phase: str = "TEST",
        *,
        stages: Sequence[str] = (),
        level: int = 0,
        defines: Mapping[str, str] | None = None,
        fuse: bool = True,
        allow_large: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        root: Path | None = None,
        seed: int | None = None,
        rng=None,
        log: Callable[[str], None] = lambda line: None,
    ):
        super().__init__()
        raise NotImplementedError

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Computes all blobs.

        Args:
            inputs: By name; one that is left out keeps its last value, at first zeros. Another shape than the prototxt's reshapes the net.

        Returns:
            The output blobs by name.
        """
        raise NotImplementedError

    def loss(self) -> torch.Tensor:
        """Returns the loss of the last forward pass: every top times its loss_weight, summed; a scalar, 0 where the net has no loss."""
        raise NotImplementedError

    def backward(self) -> None:
        """Adds the gradients of the loss to the parameters' grad, as Caffe's Backward adds to diff."""
        raise NotImplementedError

    def clear_param_diffs(self) -> None:
        """Forgets the gradients (Caffe: Net::ClearParamDiffs); call it before an iteration's first pass."""
        raise NotImplementedError

    def copy_from(self, weights: str | os.PathLike) -> None:
        """Copies the parameters of a .caffemodel or .caffemodel.h5, matched by layer name; layers that it lacks keep theirs, each with a line in the log.

        Raises:
            ValueError: A layer has another number of blobs, or a blob another shape.

        Caffe: Net::CopyTrainedLayersFrom.
        """
        raise NotImplementedError

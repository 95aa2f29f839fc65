"""A filler that looks at data: layers that no file has are scaled until their outputs have unit variance."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from repro.models.multiscale import MultiScale


@torch.no_grad()
def scale_to_unit_variance(
    network: MultiScale, names: Sequence[str], batches: Sequence[torch.Tensor]
) -> dict[str, float]:
    """Divides a layer's weights by its outputs' standard deviation over some batches and all scales, layer after layer.

    Args:
        network: Its weights are changed in place; the layers named have a bias of zero. Left in the mode that it had.
        names: Convolutions by Caffe's layer name; they are taken in the network's order.
        batches: Of images, (N, 3, H, W) BGR minus the mean, on the network's device.

    Returns:
        What each layer's weights were multiplied by.

    Raises:
        ValueError: A layer's output does not vary.

    Source: Mishkin and Matas, "All you need is a good init" (ICLR 2016), algorithm 1. The bias is zero, so that one step reaches what its loop approaches.
    Deviates: from it, the weights are not made orthonormal first; they are as the protocol's filler drew them. Caffe has no such filler.
    """
    mode = network.training
    network.eval()
    factors = {}
    try:
        for name, layer in network.convolutions().items():
            if name not in names:
                continue
            sums = torch.zeros(3, dtype=torch.float64, device=layer.weight.device)  # of ones, of values, of squares

            def gather(module, inputs, output, sums=sums) -> None:
                values = output.double()
                sums.add_(torch.stack([values.new_tensor(values.numel()), values.sum(), values.square().sum()]))

            hook = layer.register_forward_hook(gather)
            try:
                for batch in batches:
                    network(batch)
            finally:
                hook.remove()
            count, total, squares = sums.tolist()
            variance = squares / count - (total / count) ** 2
            if not 0 < variance < float("inf"):
                raise ValueError(
                    f"fill: the output of {name} must vary over the first batches; got a variance of {variance:.3g}; "
                    'check the weights of the layers below, or take "filler" for it'
                )
            factors[name] = variance**-0.5
            layer.weight.mul_(factors[name])
    finally:
        network.train(mode)
    return factors

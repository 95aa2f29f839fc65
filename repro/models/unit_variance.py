"""A filler that looks at data: layers that no file has are scaled and shifted until every output channel has mean 0 and unit variance."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from repro.models.multiscale import MultiScale


@torch.no_grad()
def scale_to_unit_variance(
    network: MultiScale, names: Sequence[str], batches: Sequence[torch.Tensor]
) -> dict[str, float]:
    """Gives every output channel of a layer mean 0 and variance 1 over the positions of some batches and all scales, layer after layer.

    A channel's weights are divided by its outputs' standard deviation, and its bias becomes the negative of their mean. The channels of a random layer have means of their own,
    as large as what varies in them; were they left, the next layers would see them and little else.

    Args:
        network: Its weights are changed in place. Left in the mode that it had.
        names: Convolutions by Caffe's layer name; they are taken in the network's order.
        batches: Of images, (N, 3, H, W) BGR minus the mean, on the network's device.

    Returns:
        What each layer's weights were multiplied by, the mean over its channels.

    Raises:
        ValueError: A channel's output does not vary.

    Source: Krahenbuhl, Doersch, Donahue and Darrell, "Data-dependent Initializations of Convolutional Neural Networks" (ICLR 2016), section 3.1. Caffe has no such filler.
    Deviates: from it, the weights are as the protocol's filler drew them, and layers are not balanced against one another afterwards (its section 3.2).
    """
    mode = network.training
    network.eval()
    factors = {}
    try:
        for name, layer in network.convolutions().items():
            if name not in names:
                continue
            sums = torch.zeros(3, layer.out_channels, dtype=torch.float64, device=layer.weight.device)

            def gather(module, inputs, output, sums=sums) -> None:
                values = output.double().movedim(1, 0).flatten(1)
                count = torch.full_like(values[:, 0], values.shape[1])
                sums.add_(torch.stack([count, values.sum(dim=1), values.square().sum(dim=1)]))

            hook = layer.register_forward_hook(gather)
            try:
                for batch in batches:
                    network(batch)
            finally:
                hook.remove()
            mean, square = sums[1:] / sums[0]
            variance = square - mean**2
            least = variance.min().item()
            if not 0 < least < float("inf") or not variance.isfinite().all():
                raise ValueError(
                    f"fill: every channel of {name} must vary over the first batches; got a variance of {least:.3g}; "
                    'check the weights of the layers below, or take "filler" for it'
                )
            factor = variance.rsqrt()
            layer.weight.mul_(factor[:, None, None, None])
            layer.bias.sub_(mean).mul_(factor)
            factors[name] = factor.mean().item()
    finally:
        network.train(mode)
    return factors

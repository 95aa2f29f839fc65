"""Caffe's layers, as far as the paper's network uses them and torch's defaults differ."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def convolution(channels_in: int, channels_out: int, kernel_size: int, dilation: int = 1, stride: int = 1) -> nn.Conv2d:
    """Makes a convolution of pad = dilation * (kernel - 1) / 2, which at stride 1 keeps the size of its input.

    Args:
        channels_in: Input channels.
        channels_out: Output channels (Caffe's num_output).
        kernel_size: Odd kernel side, pixels.
        dilation: Step between the taps (Caffe's dilation, DeepLab v1's hole), pixels.
        stride: Step between the outputs, pixels.

    Returns:
        The layer, not yet filled: `fill` or a caffemodel gives its values.
    """
    pad = dilation * (kernel_size - 1) // 2
    sizes = {"stride": stride, "padding": pad, "dilation": dilation}
    return nn.utils.skip_init(nn.Conv2d, channels_in, channels_out, kernel_size, **sizes)


def fill(layer: nn.Conv2d, filler: str, std: float = 0.0, generator: torch.Generator | None = None) -> None:
    """Fills a convolution's weight in place, and its bias with zeros.

    Args:
        layer: The convolution.
        filler: "gaussian" (mean 0, standard deviation `std`), "msra" (gaussian of variance 2 / fan-in) or "constant" (zeros).
        std: Standard deviation for "gaussian".
        generator: Where the numbers come from.

    Raises:
        ValueError: The filler is not one of these three.

    Caffe: include/caffe/filler.hpp, GaussianFiller, MSRAFiller, ConstantFiller.
    Deviates: the numbers come from torch's generator, not from boost's; only their distribution is Caffe's.
    """
    fan_in = layer.weight[0].numel()
    stds = {"gaussian": std, "msra": (2.0 / fan_in) ** 0.5, "constant": 0.0}
    if filler not in stds:
        raise ValueError(f"fill: filler must be one of {', '.join(stds)}; got {filler!r}; correct the protocol")
    with torch.no_grad():
        # Drawn in float32 and in the plain layout whatever the layer's, so that one seed gives one network.
        values = torch.randn(layer.weight.shape, generator=generator) * stds[filler]
        layer.weight.copy_(values)
        layer.bias.zero_()


def max_pool(x: torch.Tensor, stride: int) -> torch.Tensor:
    """Takes the maximum over 3x3 windows, pad 1; the first maximum in row order receives the gradient.

    Args:
        x: (N, C, H, W).
        stride: 1 keeps the size; 2 gives ceil((H - 1) / 2) + 1 rows, one less where the last window would start beyond the input.

    Returns:
        (N, C, H_out, W_out).

    Caffe: src/caffe/layers/pooling_layer.cpp, Reshape (ceil) and Forward_cpu (padding is never the maximum).
    """
    return F.max_pool2d(x, 3, stride, padding=1, ceil_mode=True)


def ave_pool(x: torch.Tensor) -> torch.Tensor:
    """Averages 3x3 windows at stride 1, pad 1; the padding's zeros count, so the divisor is 9 at the border too.

    Args:
        x: (N, C, H, W).

    Returns:
        (N, C, H, W).

    Caffe: src/caffe/layers/pooling_layer.cpp, PoolingParameter_PoolMethod_AVE: the window is clipped to H + pad.
    """
    return F.avg_pool2d(x, 3, 1, padding=1, count_include_pad=True)


def dropout(x: torch.Tensor, ratio: float) -> torch.Tensor:
    """Computes F.dropout in training, on the CPU in less time and with the same masks from every build of torch.

    Args:
        x: Any.
        ratio: Probability of zero, in (0, 1).

    An element stays where a uniform float64 number, drawn in the order of memory, is below 1 - ratio. So does bernoulli_, by which F.dropout draws its masks (the same bits, under torch
    2.11 to 2.14 on x86), but in one thread and in twice the time: of a thin network's iteration dropout was a tenth.
    """
    if x.device.type != "cpu":
        return F.dropout(x, ratio)
    keep = 1.0 - ratio
    return x * (torch.empty_like(x, dtype=torch.float64).uniform_() < keep).to(x.dtype).div_(keep)


class Dropout(nn.Module):
    """Zeroes each element with probability `ratio` in training and scales the others by 1 / (1 - ratio).

    Args:
        ratio: Probability of zero (Caffe's dropout_ratio), in [0, 1).

    Caffe: src/caffe/layers/dropout_layer.cpp, Forward_cpu. Its mask comes from the global Mersenne twister; give the same masks by setting `mask_source` to a function from
        the (N, C, H, W) shape to a {0, 1} array, called once for each forward pass.
    Where a batch is divided among processes, `share` says how: (the images of the whole batch, which of them are here). Each process then draws the whole batch's mask and
        takes its part, so that any number of processes has one and the same mask.
    Deviates: without `mask_source` the mask comes from torch's generator of the input's device.
    """

    def __init__(self, ratio: float):
        super().__init__()
        self.ratio = ratio
        self.mask_source = None
        self.share: tuple[int, slice] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.ratio == 0.0:
            return x
        if self.mask_source is None and self.share is not None:
            images, own = self.share
            nhwc = x.is_contiguous(memory_format=torch.channels_last)
            layout = torch.channels_last if nhwc else torch.contiguous_format  # in whose order the numbers are drawn
            ones = torch.ones((images, *x.shape[1:]), dtype=x.dtype, device=x.device).contiguous(memory_format=layout)
            return x * dropout(ones, self.ratio)[own].clone()  # of a slice the backward pass would keep the whole
        if self.mask_source is None:
            return dropout(x, self.ratio)
        mask = torch.as_tensor(self.mask_source(tuple(x.shape))).to(x)
        return x * mask * (1.0 / (1.0 - self.ratio))


def convolutions(net: nn.Module) -> dict[str, nn.Conv2d]:
    """Collect a network's convolutions by Caffe's layer name, the last part of the attribute path, in Caffe's order.

    Raises:
        ValueError: two convolutions have the same name.
    """
    found: dict[str, nn.Conv2d] = {}
    for path, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            name = path.rpartition(".")[2]
            if name in found:
                raise ValueError(
                    f"convolutions: every convolution must have a layer name of its own; got {name!r} twice; rename one"
                )
            found[name] = module
    return found

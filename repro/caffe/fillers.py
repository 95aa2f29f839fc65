"""Caffe's fillers: how a parameter begins."""

from __future__ import annotations

import math

import numpy as np
import torch

from repro.caffe.proto import Typed
from repro.data.caffe_rng import CaffeRNG


def _fan(shape: tuple[int, ...], norm: str) -> float:
    """Returns n of xavier and msra: fan_in = count / num, fan_out = count / channels (Caffe: include/caffe/filler.hpp)."""
    count = math.prod(shape)
    fan_in = count // shape[0] if shape and shape[0] else 0
    fan_out = count // shape[1] if len(shape) > 1 and shape[1] else count
    return {"FAN_IN": fan_in, "FAN_OUT": fan_out, "AVERAGE": (fan_in + fan_out) / 2}[norm]


def _bilinear(shape: tuple[int, ...], filler: Typed) -> torch.Tensor:
    """Makes every plane the weights of bilinear upsampling (Caffe: BilinearFiller)."""
    if len(shape) != 4 or shape[2] != shape[3]:
        raise ValueError(
            f"{filler.where}: a bilinear filler must fill square kernels of 4 axes; got shape {list(shape)}; use another filler"
        )
    side = shape[3]
    factor = math.ceil(side / 2)
    centre = (2 * factor - 1 - factor % 2) / (2.0 * factor)
    profile = torch.tensor([1 - abs(x / factor - centre) for x in range(side)], dtype=torch.float32)
    return (profile[:, None] * profile[None, :]).expand(shape)


@torch.no_grad()
def fill(value: torch.Tensor, filler: Typed, rng: CaffeRNG, generator: torch.Generator) -> None:
    """Fills a parameter in place.

    Args:
        value: float32.
        filler: Its FillerParameter.
        rng: Caffe's generator, which uniform, xavier and positive_unitball draw from, once for each element.
        generator: torch's, which gaussian and msra draw from.

    Raises:
        ValueError: The type is unknown, or does not suit the shape.

    Caffe: include/caffe/filler.hpp. constant, bilinear, uniform, xavier and positive_unitball are exact.
    Deviates: gaussian and msra are torch's numbers of Caffe's distribution; Caffe's depend on its version of boost, and on how many draws that takes.
    """
    shape, kind = tuple(value.shape), filler.type
    if kind == "constant":
        value.fill_(filler.value)
    elif kind == "uniform":
        if filler.min > filler.max:
            raise ValueError(
                f"{filler.where}: uniform's min must be at most max; got {filler.min} and {filler.max}; correct the prototxt"
            )
        _uniform(value, filler.min, filler.max, rng)
    elif kind == "xavier":
        bound = math.sqrt(3 / max(1.0, _fan(shape, filler.variance_norm)))
        _uniform(value, -bound, bound, rng)
    elif kind == "msra":
        value.normal_(0, math.sqrt(2 / max(1.0, _fan(shape, filler.variance_norm))), generator=generator)
    elif kind == "gaussian":
        if filler.std < 0:
            raise ValueError(
                f"{filler.where}: gaussian's std must not be negative; got {filler.std}; correct the prototxt"
            )
        value.normal_(filler.mean, filler.std, generator=generator)
        if filler.sparse >= 0:  # Caffe: on average `sparse` inputs of every output are kept
            kept = min(1.0, filler.sparse / max(1, shape[0] if shape else 1))
            value.mul_(torch.rand(shape, generator=generator) < kept)
    elif kind == "positive_unitball":
        _uniform(value, 0.0, 1.0, rng)
        if shape:
            value.div_(
                value.flatten(1).sum(1).reshape(-1, *[1] * (len(shape) - 1)) if len(shape) > 1 else value.clone()
            )
    elif kind == "bilinear":
        value.copy_(_bilinear(shape, filler))
    else:
        raise ValueError(
            f"{filler.where}: a filler's type must be constant, uniform, xavier, msra, gaussian, positive_unitball or bilinear; "
            f"got {kind!r}; correct the prototxt"
        )


def _uniform(value: torch.Tensor, low: float, high: float, rng: CaffeRNG) -> None:
    """Draws as boost::uniform_real<float> does: draw / 2^32 * (high - low) + low."""
    low, high = np.float32(low), np.float32(high)
    draws = rng.draw(value.numel()).astype(np.float32) / np.float32(2**32)
    value.copy_(torch.from_numpy(draws * (high - low) + low).reshape(value.shape))

"""OpenCV's recursive filter, the domain transform's rival on the CPU where cv2.ximgproc is installed (the extra `bench`).

It takes its edges from a picture of its own, so it can filter with our edge map only where there is no edge: a picture of one colour and an edge map of zeros. That is what it is held to,
and what it is timed on: its time does not depend on the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch

from repro.ops import reference

FILTER = (3, 100.0, 1.0, 0.0)  # num_iter, spatial_sigma, range_sigma, min_weight of the authors' net
GROUP = 4  # channels that it takes at once


def find() -> ModuleType | None:
    """Imports cv2.ximgproc; None where it is not installed."""
    try:
        from cv2 import ximgproc
    except ImportError:
        return None
    return ximgproc if hasattr(ximgproc, "createDTFilter") else None


def contestant(
    ximgproc: ModuleType, maps: torch.Tensor, threads: int
) -> tuple[Callable[[], list[torch.Tensor]], list[torch.Tensor]]:
    """Makes its call, which is charged for the filter's weights and passes but for no conversion.

    Args:
        ximgproc: What `find` found.
        maps: (1, C, H, W) float32.
        threads: Of OpenCV.

    Returns:
        A function that gives the filtered map in groups of up to 4 channels, and what it must give, in float64.
    """
    import cv2

    cv2.setNumThreads(threads)
    num_iter, spatial_sigma, range_sigma, _ = FILTER
    groups = [np.ascontiguousarray(part[0].permute(1, 2, 0).numpy()) for part in maps.detach().split(GROUP, dim=1)]
    picture = np.zeros((*maps.shape[2:], 3), dtype=np.uint8)

    def call() -> list[torch.Tensor]:
        made = ximgproc.createDTFilter(picture, spatial_sigma, range_sigma, mode=ximgproc.DTF_RF, numIters=num_iter)
        filtered = (made.filter(group) for group in groups)
        return [
            torch.from_numpy(part if part.ndim == 3 else part[..., None]).permute(2, 0, 1)[None] for part in filtered
        ]

    wide = maps.detach().double()
    expected = reference.domain_transform(wide, torch.zeros_like(wide[:, :1]), *FILTER)
    return call, list(expected.split(GROUP, dim=1))

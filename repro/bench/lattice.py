"""The permutohedral lattice as a PyTorch user writes it, in any floating type: the benchmark's rival of dense_crf, and what it is checked with."""

from __future__ import annotations

import numpy as np
import torch

_BITS = 12  # of a coordinate in a key; the remainder stands below, in 3


class Lattice:
    """The lattice of features, which filters with a Gaussian of standard deviation 1.

    Caffe fills up the last four features with zeros and keeps their vertices, through which blurs go; so does this one.

    Args:
        features: (P, D) float32, D at most 5, none further from 0 than a thousand or so.
    """

    def __init__(self, features: torch.Tensor):
        count, d = features.shape
        self.dimensions = d
        if count % 4:
            features = torch.cat([features, torch.zeros_like(features[:1])])
        lifted = [torch.zeros_like(features[:, 0])] * (d + 1)
        total = torch.zeros_like(features[:, 0])
        width = float(np.float32(np.sqrt(2 / 3) * (d + 1)))
        for j in range(d, 0, -1):
            part = features[:, j - 1] * float(np.float32(width / np.sqrt((j + 1) * j)))
            lifted[j] = total - j * part
            total = total + part
        lifted[0] = total
        lifted = torch.stack(lifted, dim=1)
        nearest = (lifted * (1 / (d + 1))).round()
        order = (lifted - nearest * (d + 1)).sort(dim=1, descending=True, stable=True).indices
        rank = order.argsort(dim=1) + nearest.sum(dim=1, keepdim=True).long()
        step = (rank < 0).long() - (rank > d).long()
        rank, nearest = rank + step * (d + 1), nearest + step
        distance = (lifted - nearest * (d + 1)) * (1 / (d + 1))
        ordered = torch.empty_like(distance).scatter_(1, rank, distance)
        weights = torch.cat(
            [ordered[:, d:] + (1 - ordered[:, :1]), ordered[:, :d].flip(1) - ordered[:, 1:].flip(1)], dim=1
        )
        self.weights = weights[:count]
        units = 2 ** (3 + _BITS * torch.arange(d, device=features.device))
        remainders = torch.arange(d + 1, device=features.device)
        below = rank[:, None, :d] > d - remainders[:, None]
        keys = remainders + ((nearest.long()[:, None, :d] - below.long() + 2 ** (_BITS - 1)) * units).sum(dim=2)
        known, vertices = keys.unique(return_inverse=True)
        self.vertices = vertices[:count]
        self.count = len(known)
        self.neighbours = []
        for axis in range(d + 1):
            own = units[axis] if axis < d else 0
            key = torch.where(known % 8 == 0, known + d - units.sum(), known - 1) + own
            found = torch.searchsorted(known, key).clamp(max=self.count - 1)
            lower = torch.where(known[found] == key, found, self.count)  # a row of zeros stands for none
            upper = torch.full_like(lower, self.count)
            has = lower < self.count
            upper[lower[has]] = torch.arange(self.count, device=known.device)[has]
            self.neighbours.append((lower, upper))

    def filter(self, x: torch.Tensor) -> torch.Tensor:
        """Filters (P, C) values, not normalised."""
        weights = self.weights.to(x.dtype)
        values = x.new_zeros(self.count + 1, x.shape[1])
        for r in range(self.dimensions + 1):
            values.index_add_(0, self.vertices[:, r], weights[:, r : r + 1] * x)
        for lower, upper in self.neighbours:
            blurred = values[lower].add_(values[upper]).mul_(0.5).add_(values[:-1])
            values[:-1] = blurred
        y = torch.zeros_like(x)
        for r in range(self.dimensions + 1):
            y.addcmul_(weights[:, r : r + 1], values[self.vertices[:, r]])
        return y.mul_(1 / (1 + 2**-self.dimensions))


def dense_crf(
    log_prob: torch.Tensor,
    image: torch.Tensor,
    iterations: int,
    pos_w: float,
    pos_xy_std: float,
    bi_w: float,
    bi_xy_std: float,
    bi_rgb_std: float,
) -> torch.Tensor:
    """See repro.ops.dense_crf; of one image, in log_prob's dtype but for the features."""
    rows, columns = (torch.arange(side, dtype=torch.float32, device=image.device) for side in image.shape[2:])
    xy = torch.stack([x.flatten() for x in torch.meshgrid(columns, rows, indexing="xy")], dim=1)
    colours = image.permute(0, 2, 3, 1).reshape(-1, 3).float()
    scores = log_prob.permute(0, 2, 3, 1).reshape(len(xy), -1)
    terms = []
    for weight, features in (
        (pos_w, xy / pos_xy_std),
        (bi_w, torch.cat([xy / bi_xy_std, colours / bi_rgb_std], dim=1)),
    ):
        lattice = Lattice(features)
        terms.append((lattice, weight / (lattice.filter(torch.ones_like(scores[:, :1])) + 1e-20)))
    q = torch.softmax(scores, dim=1)
    for _ in range(iterations):
        total = scores
        for lattice, share in terms:
            total = torch.addcmul(total, share, lattice.filter(q))
        q = torch.softmax(total, dim=1)
    return q.reshape(1, *image.shape[2:], -1).permute(0, 3, 1, 2)

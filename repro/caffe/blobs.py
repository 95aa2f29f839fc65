"""The blobs of a net by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from repro.caffe.build import Built


class Blobs(Mapping):
    """Every blob's tensor of the last forward pass by name, in the net's order; before the first pass the inputs, and zeros in the others' shapes.

    One that fused layers left out is computed when it is asked for, without a gradient.
    """

    def __init__(self, made: Built, values: dict):
        self._made, self._values = made, values

    def __getitem__(self, name: str) -> torch.Tensor:
        index = self._made.names[name]
        with torch.no_grad():
            return self._computed(index)

    def __contains__(self, name: object) -> bool:
        return name in self._made.names

    def __iter__(self) -> Iterator[str]:
        return iter(self._made.names)

    def __len__(self) -> int:
        return len(self._made.names)

    @property
    def left_out(self) -> list[str]:
        """The names of those that fused layers left out and nobody has asked for yet."""
        return [name for name, index in self._made.names.items() if index not in self._values]

    def _computed(self, index: int) -> torch.Tensor:
        if index not in self._values:
            step = next(step for step in self._made.steps if index in step.tops)
            tops = step.layer([self._computed(bottom) for bottom in step.bottoms])
            self._values.update(zip(step.tops, tops, strict=True))
        return self._values[index]

"""Layers that make their tops themselves, batch after batch."""

from repro.caffe.layers.base import DataLayer

TYPES: dict[str, type[DataLayer]] = {}

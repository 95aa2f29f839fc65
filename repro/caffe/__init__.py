"""Caffe's own files, as they stand: a net's prototxt becomes a module over torch tensors, with Caffe's semantics forward and backward, and a solver's trains it."""

from repro.caffe.net import Net
from repro.caffe.solver import Solver

__all__ = ["Net", "Solver"]

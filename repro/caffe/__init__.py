"""Caffe's own files, as they stand: a net's prototxt becomes a module over torch tensors, with Caffe's semantics forward and backward."""

from repro.caffe.net import Net

__all__ = ["Net"]

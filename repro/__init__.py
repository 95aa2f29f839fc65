"""Attention to Scale (Chen et al., CVPR 2016), reproduced with the numerics of the authors' Caffe."""

__version__ = "0.1.0"

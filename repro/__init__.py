"""Attention to Scale (Chen et al., CVPR 2016), reproduced with the numerics of the authors' Caffe."""

from repro.version import __version__
from repro.waiting import wait_passively_where_busy

__all__ = ["__version__", "load"]

wait_passively_where_busy()


def __getattr__(name: str):
    """Loads `repro.load` when it is asked for, so that what needs no torch does not wait for it."""
    if name == "load":
        from repro.inference import load

        return load
    raise AttributeError(f"module 'repro' has no attribute {name!r}")

"""The paper's custom operators: each module is one op, `reference` holds their pure-PyTorch twins of the same names."""

from .interp import interp
from .library import backend
from .merge_scores import merge_scores

__all__ = ["backend", "interp", "merge_scores"]

"""The paper's custom operators: each module is one op, `reference` holds their pure-PyTorch twins of the same names."""

from .confusion_matrix import confusion_matrix
from .interp import interp
from .library import backend
from .merge_scores import merge_scores
from .predict import predict
from .segmentation_loss import segmentation_loss

__all__ = ["backend", "confusion_matrix", "interp", "merge_scores", "predict", "segmentation_loss"]

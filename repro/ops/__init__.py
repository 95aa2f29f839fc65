"""The paper's custom operators: each module is one op, `reference` holds their pure-PyTorch twins of the same names."""

from repro.ops.confusion_matrix import confusion_matrix
from repro.ops.dense_crf import dense_crf
from repro.ops.domain_transform import domain_transform
from repro.ops.interp import interp
from repro.ops.library import backend
from repro.ops.merge_scores import merge_scores
from repro.ops.predict import predict
from repro.ops.segmentation_loss import segmentation_loss

__all__ = [
    "backend",
    "confusion_matrix",
    "dense_crf",
    "domain_transform",
    "interp",
    "merge_scores",
    "predict",
    "segmentation_loss",
]

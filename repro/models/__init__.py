"""The paper's networks: the shared LargeFOV, the attention over scales, and the multi-scale network of both."""

from caffe_weights.deeplab.spec import OUTPUT_STRIDE
from repro.models.attention import Attention
from repro.models.build import build
from repro.models.largefov import LargeFOV
from repro.models.multiscale import MultiScale, Output, enlarged_scores, merged_scores, output_stride

__all__ = [
    "OUTPUT_STRIDE",
    "Attention",
    "LargeFOV",
    "MultiScale",
    "Output",
    "build",
    "enlarged_scores",
    "merged_scores",
    "output_stride",
]

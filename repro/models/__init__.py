"""The paper's networks: the shared LargeFOV, the attention over scales, and the multi-scale network of both."""

from repro.models.attention import Attention
from repro.models.build import build
from repro.models.largefov import OUTPUT_STRIDE, LargeFOV
from repro.models.multiscale import MultiScale, Output, output_stride

__all__ = ["OUTPUT_STRIDE", "Attention", "LargeFOV", "MultiScale", "Output", "build", "output_stride"]

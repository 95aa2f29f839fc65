"""The paper's networks: the shared LargeFOV, the attention over scales, and the multi-scale network of both."""

from .attention import Attention
from .largefov import OUTPUT_STRIDE, LargeFOV
from .multiscale import MultiScale, Output, build, output_stride

__all__ = ["OUTPUT_STRIDE", "Attention", "LargeFOV", "MultiScale", "Output", "build", "output_stride"]

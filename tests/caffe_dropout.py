"""Caffe's Dropout masks, with which the tests of networks replay Caffe's own steps."""

import numpy as np

from repro.data.caffe_rng import MAX_DRAW, CaffeRNG


def dropout_mask(shape: tuple[int, ...], dropout_ratio: float, rng: CaffeRNG) -> np.ndarray:
    """Draws the mask of a Dropout layer in blob order, one draw per element.

    Args:
        shape: shape of the blob, (N, C, H, W).
        dropout_ratio: chance of dropping an element, 0 <= ratio < 1; a float32 in Caffe.
        rng: Caffe's global generator.

    Returns:
        `shape`, bool, True where the element is kept (and scaled by 1 / (1 - dropout_ratio)).

    Caffe: `DropoutLayer::Forward_cpu` (src/caffe/layers/dropout_layer.cpp), `caffe_rng_bernoulli` (boost::bernoulli_distribution<float>), whose
        comparison the compiled program makes in double.
    """
    threshold = (1 - float(np.float32(dropout_ratio))) * MAX_DRAW
    draws = rng.draw(int(np.prod(shape, dtype=np.int64)))
    return (draws.astype(np.float64) <= threshold).reshape(shape)

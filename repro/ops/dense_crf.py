"""The authors' DenseCRF layer: mean-field inference in a fully connected CRF over the pixels of an image."""

from __future__ import annotations

import torch

from repro.ops import reference
from repro.ops.library import COMPILED, backend, check_one_device


@torch.no_grad()
def dense_crf(
    log_prob: torch.Tensor,
    image: torch.Tensor,
    iterations: int,
    pos_w: float,
    pos_xy_std: float,
    bi_w: float,
    bi_xy_std: float,
    bi_rgb_std: float,
) -> torch.Tensor:
    """Sharpens per-pixel probabilities along the edges of their image.

    With q = softmax(log_prob) at first, every iteration computes q = softmax(log_prob + pos_w K_pos q + bi_w K_bi q). K_pos is a Gaussian of the distance of
    two pixels, K_bi of their distance and their difference of colours; the pixel itself counts, and every pixel's row is divided by its sum. The kernel filters
    with the permutohedral lattice, which approximates the Gaussians; the reference twin takes them exactly, of small images only.

    Args:
        log_prob: (N, C, H, W) float32 or float64, finite; computed in float32 as Caffe does. Scores serve as well: what all classes of a pixel share cancels.
        image: (N, 3, H, W) uint8 or float32, finite; taken as it is. (Nets are fed mean-subtracted BGR: a shift of the colours changes no Gaussian but the
            lattice, and so the last bits and a few pixels.)
        iterations: At least 0, which gives softmax(log_prob).
        pos_w: Weight of K_pos, at least 0.
        pos_xy_std: Standard deviation of K_pos, pixels.
        bi_w: Weight of K_bi, at least 0.
        bi_xy_std: Standard deviation of K_bi in position, pixels.
        bi_rgb_std: Standard deviation of K_bi in colour, units of `image`.

    Returns:
        Probabilities (N, C, H, W), float32, channels_last; on CUDA after a wait for the device, to see that all is finite. Not differentiable.

    Raises:
        ValueError: A shape, dtype, device or number is wrong.
        RuntimeError: It runs under vmap.

    Paper: table 4, rows with CRF; Kraehenbuehl and Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials".
    Caffe: src/caffe/layers/densecrf_layer.cpp, output_probability true. Its e^x is a polynomial, and exactly 0 at 20 and more below the pixel's maximum.
    Deviates: Caffe builds the kernels of every item of a batch from the image of item 0; here each has its own. (The authors test with batch 1.)
    """
    if backend() == "reference":
        return reference.dense_crf(log_prob, image, iterations, pos_w, pos_xy_std, bi_w, bi_xy_std, bi_rgb_std)
    return torch.ops.repro.dense_crf(log_prob, image, iterations, pos_w, pos_xy_std, bi_w, bi_xy_std, bi_rgb_std)


if COMPILED:

    @torch.library.register_fake("repro::dense_crf")
    def _fake_dense_crf(log_prob, image, iterations, pos_w, pos_xy_std, bi_w, bi_xy_std, bi_rgb_std):
        check_one_device("dense_crf", log_prob, image)
        return log_prob.new_empty(log_prob.shape, dtype=torch.float32).contiguous(memory_format=torch.channels_last)

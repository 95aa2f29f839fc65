"""The ops again in plain PyTorch: same names and signatures, autograd's own gradients, any device. Slow, and the truth that kernels are tested against."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from repro.ops.library import check_one_device

_MOST_PIXELS = 8192  # of dense_crf: its matrix of Gaussians takes 0.5 GB
_STORAGE = (torch.bfloat16, torch.float16)  # dtypes that compute in float32
_LARGEST_TERM = -float(
    torch.log(torch.tensor(torch.finfo(torch.float32).tiny, dtype=torch.float64))
)  # 87.3365: probabilities are floored at FLT_MIN


def _taps(n_in: int, n_out: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the lower and upper source index and the upper one's weight for every output of an axis (csrc/shared/interp_geometry.h)."""
    # Divided by the host: a GPU would multiply by the reciprocal. Rounded from float64, it is the float32 quotient of two integers below 2^24.
    ratio = torch.tensor((n_in - 1) / (n_out - 1) if n_out > 1 else 0.0, dtype=torch.float32).item()
    source = (
        torch.arange(n_out, dtype=torch.float32, device=like.device) * ratio
    )  # Caffe: float32 in float64 programs too
    lo = source.to(torch.int64).clamp(max=n_in - 1)
    return lo, (lo + 1).clamp(max=n_in - 1), (source - lo).to(like.dtype)


def _resampled(x: torch.Tensor, n_out: int, dim: int) -> torch.Tensor:
    """Resamples one axis; copies it where it keeps its length."""
    if x.shape[dim] == n_out:
        return x
    lo, hi, w_hi = _taps(x.shape[dim], n_out, x)
    w_hi = w_hi.reshape(-1, *[1] * (x.dim() - 1 - dim))
    upper = x.index_select(dim, hi)
    # From a weight of 0 no gradient comes back: one that is no number would still count.
    upper = torch.where(w_hi == 0, upper.detach(), upper)
    return (1 - w_hi) * x.index_select(dim, lo) + w_hi * upper


def interp(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """See repro.ops.interp."""
    wide = x.float() if x.dtype in _STORAGE else x
    y = _resampled(_resampled(wide, size[1], 3), size[0], 2)
    return y.to(x.dtype, memory_format=torch.channels_last, copy=True)


def merge_scores(
    scores: Sequence[torch.Tensor],
    logits: torch.Tensor | None = None,
    mode: str = "attention",
    size: Sequence[int] | None = None,
    return_weights: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """See repro.ops.merge_scores."""
    check_one_device("merge_scores", *scores, logits)
    size = scores[0].shape[2:] if size is None else size
    dtype = scores[0].dtype
    wide = torch.float32 if dtype in _STORAGE else dtype
    maps = [interp(score.to(wide), size) for score in scores]
    weights = None
    if mode == "attention":
        weights = torch.softmax(interp(logits.to(wide), size), dim=1)
        merged = sum(weights[:, s : s + 1] * score for s, score in enumerate(maps))
    elif mode == "average":
        weight = torch.tensor(1.0 / len(maps), dtype=torch.float32).item()  # Caffe: Eltwise's coefficients are float32
        merged = sum(weight * score for score in maps)
    elif mode == "max":
        merged = maps[0]
        for s, score in enumerate(maps[1:], start=1):
            kept = (
                merged > score if s == 1 else ~(score > merged)
            )  # Caffe: so NaN of map 1 is taken, of a later one not
            merged = torch.where(kept, merged, score)
    else:
        raise ValueError(
            f'merge_scores: mode must be "attention", "average" or "max"; got "{mode}"; choose one of the three'
        )
    merged = merged.to(dtype).contiguous(memory_format=torch.channels_last)
    if weights is None or not return_weights:
        return merged, None
    return merged, weights.to(dtype).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def predict(
    scores: Sequence[torch.Tensor],
    logits: torch.Tensor | None = None,
    mode: str = "attention",
    size: Sequence[int] | None = None,
    crop: Sequence[int] | None = None,
    probability: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """See repro.ops.predict."""
    check_one_device("predict", *scores, logits)
    merged = merge_scores(scores, logits, mode, return_weights=False)[0]
    merged = merged.float() if merged.dtype in _STORAGE else merged
    large = interp(merged, merged.shape[2:] if size is None else size)
    if crop is not None:
        large = large[:, :, : crop[0], : crop[1]]
    labels = large.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).argmax(dim=1)  # NaN is no best score
    confidence = torch.softmax(large, dim=1).amax(dim=1) if probability else None
    return labels.to(torch.uint8 if large.shape[1] <= 256 else torch.int16), confidence


class _Floored(torch.autograd.Function):
    """-log p with p floored at FLT_MIN, whose derivative is that of -log p."""

    generate_vmap_rule = True

    @staticmethod
    def forward(terms):
        return terms.clamp(max=_LARGEST_TERM)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient

    @staticmethod
    def jvp(ctx, tangent):
        return tangent.clone()


def segmentation_loss(scores: torch.Tensor, labels: torch.Tensor, shrink: int, ignore_label: int = 255) -> torch.Tensor:
    """See repro.ops.segmentation_loss."""
    check_one_device("segmentation_loss", scores, labels)
    if shrink < 1 or any((side - 1) % shrink for side in labels.shape[1:]):
        raise ValueError(
            f"segmentation_loss: height - 1 and width - 1 of the labels must be multiples of {shrink}; got shape {list(labels.shape)}; "
            f"choose a crop_size of the form {shrink}k+1"
        )
    labels = labels[:, ::shrink, ::shrink].long()
    if scores.shape[2:] != labels.shape[1:]:
        scores = interp(scores.float() if scores.dtype in _STORAGE else scores, labels.shape[1:])
    ignored = labels == ignore_label
    scores = scores.masked_fill(ignored[:, None], 0)  # so that no gradient comes back, whatever stands there
    terms = F.nll_loss(
        F.log_softmax(scores, dim=1, dtype=torch.float64), labels, ignore_index=ignore_label, reduction="none"
    )
    return _Floored.apply(terms).sum() / (~ignored).sum().clamp(min=1)


def confusion_matrix(
    prediction: torch.Tensor, label: torch.Tensor, num_classes: int, ignore_label: int = 255
) -> tuple[torch.Tensor, torch.Tensor]:
    """See repro.ops.confusion_matrix."""
    check_one_device("confusion_matrix", prediction, label)
    label, prediction = label.long(), prediction.long()
    inside = (label >= 0) & (label < num_classes) & (prediction >= 0) & (prediction < num_classes)
    valid = label != ignore_label
    cell = (label * num_classes + prediction)[valid & inside]
    counts = torch.bincount(cell, minlength=num_classes**2).reshape(num_classes, num_classes)
    return counts, (valid & ~inside).sum()


class _Weight(torch.autograd.Function):
    """exp(distance), clipped to min_weight..1, whose derivative is the clipped weight (Caffe: ComputeReferenceGradientDiff)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(distance, min_weight):
        return distance.double().exp().to(distance.dtype).clamp(min_weight, 1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0], None

    @staticmethod
    def jvp(ctx, tangent, _):
        return tangent * ctx.saved_tensors[0]


def _check_filter(x, edge, num_iter, spatial_sigma, range_sigma, min_weight, valid_size) -> None:
    """Refuses what would broadcast or mean nothing, as csrc/torch/domain_transform.h does."""

    def check(holds: bool, message: str) -> None:
        if not holds:
            raise ValueError(f"domain_transform: {message}")

    n, _, height, width = x.shape
    expected = [n, 1, height, width]
    check(
        list(edge.shape) == expected,
        f"edge must have shape {expected}; got {list(edge.shape)}; give one edge map of x's size per image",
    )
    check(num_iter >= 1, f"num_iter must be at least 1; got {num_iter}; use 3 as Caffe's nets do")
    for name, sigma, unit in (
        ("spatial_sigma", spatial_sigma, "pixels"),
        ("range_sigma", range_sigma, "units of edge"),
    ):
        kept = torch.tensor(sigma, dtype=torch.float32).item()
        check(
            0 < kept < math.inf,
            f"{name} must be positive and finite in float32; got {sigma:g}; give a standard deviation in {unit}",
        )
    check(
        0 <= min_weight < 1,
        f"min_weight must be 0 or more and below 1; got {min_weight:g}; use 0 for no least weight",
    )
    if valid_size is None:
        return
    check(
        valid_size.dtype == torch.int64 and valid_size.shape == (n, 2),
        f"valid_size must be int64 of shape (N={n}, 2); got {valid_size.dtype} of shape {list(valid_size.shape)}; "
        "give each image's height and width",
    )
    for image, (h, w) in enumerate(valid_size.tolist()):
        check(
            0 <= h <= height and 0 <= w <= width,
            f"valid_size must lie within the map of {height} x {width}; got {h} x {w} for image {image}; "
            "give the image's own height and width",
        )


def _there_and_back(x: torch.Tensor, weight: torch.Tensor, dim: int) -> torch.Tensor:
    """Filters along an axis, from its first line to its last and back. A line's weight is that of its link to the line before it."""
    lines, weights = list(x.unbind(dim)), weight.unbind(dim)
    for i in range(1, len(lines)):
        lines[i] = lines[i] + weights[i] * (lines[i - 1] - lines[i])
    for i in reversed(range(len(lines) - 1)):
        lines[i] = lines[i] + weights[i + 1] * (lines[i + 1] - lines[i])
    return torch.stack(lines, dim)


def domain_transform(
    x: torch.Tensor,
    edge: torch.Tensor,
    num_iter: int,
    spatial_sigma: float,
    range_sigma: float,
    min_weight: float,
    valid_size: torch.Tensor | None = None,
) -> torch.Tensor:
    """See repro.ops.domain_transform."""
    check_one_device("domain_transform", x, edge, valid_size)
    _check_filter(x, edge, num_iter, spatial_sigma, range_sigma, min_weight, valid_size)
    wide = torch.float32 if x.dtype in _STORAGE else x.dtype

    def rounded(number: float, dtype: torch.dtype = wide) -> float:
        return torch.tensor(number, dtype=dtype).item()

    # Caffe: DomainTransformParameter's numbers are float32, in the float64 program too.
    spatial_sigma, range_sigma, min_weight = (
        rounded(number, torch.float32) for number in (spatial_sigma, range_sigma, min_weight)
    )
    whole = x.to(wide)
    sizes = [x.shape[2:]] * x.shape[0] if valid_size is None else valid_size.tolist()
    images = []
    for n, (height, width) in enumerate(sizes):
        image, guide = whole[n : n + 1], edge[n : n + 1].to(wide)
        if height == 0 or width == 0:
            images.append(image)
            continue
        y, distance = (
            image[:, :, :height, :width],
            1 + guide[:, :, :height, :width] * rounded(spatial_sigma / range_sigma),
        )
        for i in range(num_iter):
            sigma = rounded(spatial_sigma * math.sqrt(3) * 2.0 ** (num_iter - (i + 1)) / math.sqrt(4.0**num_iter - 1))
            weight = _Weight.apply(distance * rounded(-math.sqrt(2) / sigma), min_weight)
            y = _there_and_back(_there_and_back(y, weight, 3), weight, 2)
        beside = torch.cat([y, image[:, :, :height, width:]], dim=3)
        images.append(torch.cat([beside, image[:, :, height:]], dim=2))
    y = torch.cat(images) if images else whole
    return y.to(x.dtype, memory_format=torch.channels_last, copy=True)


def _gaussian_rows(features: torch.Tensor) -> torch.Tensor:
    """Computes exp(-|f_i - f_j|^2 / 2) of (P, D) features, each row divided by its sum."""
    squares = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist").square_()
    kernel = squares.mul_(-0.5).exp_()
    return kernel.div_(kernel.sum(dim=1, keepdim=True))


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
    """See repro.ops.dense_crf. Exact Gaussians in float64, (H*W)^2 of them: images of at most 8192 pixels."""
    check_one_device("dense_crf", log_prob, image)
    height, width = log_prob.shape[2:]
    if height * width > _MOST_PIXELS:
        raise ValueError(
            f"reference.dense_crf: an image must have at most {_MOST_PIXELS} pixels; got {height} x {width}; "
            "run the kernel (REPRO_REFERENCE=0), or a smaller image"
        )
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=torch.float64, device=image.device),
        torch.arange(width, dtype=torch.float64, device=image.device),
        indexing="ij",
    )
    xy = torch.stack([columns.flatten(), rows.flatten()], dim=1)
    positions = pos_w * _gaussian_rows(xy / pos_xy_std)
    result = torch.empty(log_prob.shape, device=log_prob.device, memory_format=torch.channels_last)
    for probability, score, pixels in zip(result, log_prob.double().flatten(2), image.double().flatten(2), strict=True):
        weights = bi_w * _gaussian_rows(torch.cat([xy / bi_xy_std, pixels.T / bi_rgb_std], dim=1)) + positions
        q = torch.softmax(score, dim=0)
        for _ in range(iterations):
            q = torch.softmax(score + q @ weights.T, dim=0)
        probability.copy_(q.reshape(probability.shape))
    return result

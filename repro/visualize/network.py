"""What a trained network sees in an image: its labels, and which scale it listened to where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from repro.data.lists import Item
from repro.device import Compute
from repro.evaluate.labels import padded_batches
from repro.evaluate.postprocess import final_labels
from repro.models import OUTPUT_STRIDE, MultiScale, Output, build
from repro.models.weights import load_caffemodel
from repro.ops import interp, merge_scores, predict
from repro.protocol import Row

# What the mean of a scale's map is called.
SHARE = {"attention": "mean weight", "max": "wins"}


class Seen(NamedTuple):
    """An image as a network sees it.

    Args:
        prediction: (H, W) uint8 classes.
        label: (H, W) uint8, or None.
        maps: (S, H, W) float32, 0..1, which sum to 1 over S: the attention weights, or for "max" 1 where a scale's score won and 0
            elsewhere; None where every scale has the same weight everywhere.
        edge: (H, W) float32, at least 0: the edge map of the domain transform, or None.
        before_crf: (H, W) uint8 classes before the CRF, or None.
    """

    prediction: np.ndarray
    label: np.ndarray | None
    maps: np.ndarray | None
    edge: np.ndarray | None = None
    before_crf: np.ndarray | None = None


def caffe_network(row: Row, weights: Path) -> MultiScale:
    """Builds a row's network with the weights of a .caffemodel, which must hold every layer.

    Args:
        row: Of a protocol.
        weights: The file.

    Returns:
        The network on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError, ValueError: The file is missing, damaged, or another network's.
    """
    network = build(row.settings["model"], len(row.settings["data"]["class_names"]), seed=0)
    report = load_caffemodel(network, weights)
    if report.absent_in_file:
        raise ValueError(
            f"{weights}: must hold every layer of row {row.id}; got none for {', '.join(report.absent_in_file)}; "
            "choose a trained model, or the row that it was trained for"
        )
    return network.eval()


def scale_maps(output: Output) -> torch.Tensor | None:
    """Says how much each scale counts at every position of the finest map.

    Args:
        output: Of a network.

    Returns:
        (N, S, H, W) in 0..1: the attention weights; for "max", 1 for the scale whose score won in the class that is predicted there; None for
        "average", whose weights are the same everywhere.

    Paper: figures 4 and 5. Caffe: Eltwise MAX; of equal scores map 1 wins over map 0, a later map only where it is strictly greater.
    """
    if output.mode == "attention":
        return merge_scores(output.scores, output.logits, output.mode)[1]
    if output.mode != "max":
        return None
    size = output.scores[0].shape[2:]
    chosen = predict(output.scores, mode="max")[0].long().unsqueeze(1)
    best = interp(output.scores[0], size).gather(1, chosen)
    winner = torch.zeros_like(chosen)
    for s, scores in enumerate(output.scores[1:], start=1):
        score = interp(scores, size).gather(1, chosen)
        wins = score >= best if s == 1 else score > best
        winner[wins], best = s, torch.where(wins, score, best)
    return torch.cat([winner == s for s in range(len(output.scores))], dim=1).float()


def enlarged_maps(maps: torch.Tensor, mode: str, size: Sequence[int]) -> torch.Tensor:
    """Enlarges maps to the input's size: attention weights as Caffe enlarges scores, binary maps without blending.

    Args:
        maps: (N, S, H, W), of `scale_maps`.
        mode: "attention" or "max".
        size: (H_out, W_out), pixels, of the form 8k+1.

    Returns:
        (N, S, H_out, W_out).
    """
    if mode == "attention":
        return interp(maps, size)
    rows, columns = (
        ((torch.arange(side, device=maps.device) + OUTPUT_STRIDE // 2) // OUTPUT_STRIDE).clamp(max=maps.shape[axis] - 1)
        for axis, side in zip((2, 3), size, strict=True)
    )
    return maps[:, :, rows[:, None], columns]


@torch.no_grad()
def look(
    network: MultiScale,
    data: torch.Tensor,
    sizes: Sequence[tuple[int, int]],
    settings: dict[str, Any],
    compute: Compute,
) -> list[Seen]:
    """Labels a padded batch as the test does, and maps its scales and edges.

    Args:
        network: In evaluation mode.
        data: (N, 3, P, P) BGR minus the mean on the network's device, P of the form 8k+1.
        sizes: (height, width) of each image within it.
        settings: The row's, for its CRF.
        compute: Where and how.

    Returns:
        What is seen of each image, cut to its size, without the label.
    """
    size = data.shape[2:]
    with compute.autocast():
        output = network(data)
    labels = final_labels(output, data, sizes, settings.get("crf"))
    maps = scale_maps(output)
    maps = None if maps is None else enlarged_maps(maps.float(), output.mode, size)
    edges = None if output.edge is None else output.edge[:, 0].float()

    def cut(found: torch.Tensor | None, i: int) -> np.ndarray | None:
        return None if found is None else found[i, ..., : sizes[i][0], : sizes[i][1]].cpu().numpy()

    def classes(found: torch.Tensor | None) -> np.ndarray | None:
        return None if found is None else found.to(torch.uint8).cpu().numpy()

    return [
        Seen(classes(after), None, cut(maps, i), cut(edges, i), classes(before))
        for i, (after, before) in enumerate(labels)
    ]


def see(network: MultiScale, items: Sequence[Item], settings: dict[str, Any], compute: Compute) -> Iterator[Seen]:
    """Looks at images as the test of a row does.

    Args:
        network: On the device, in evaluation mode.
        items: What to look at.
        settings: The row's.
        compute: Where and how; "bf16" computes as the test of a record of that precision did.

    Yields:
        What is seen of item after item, cut to the image's size.

    Raises:
        FileNotFoundError, ValueError: A file is unusable; the message names it.
    """
    for images, data in padded_batches(items, settings, compute):
        looked = look(network, data, [image.size for image in images], settings, compute)
        for image, seen in zip(images, looked, strict=True):
            yield seen._replace(label=None if image.label is None else image.label.numpy())

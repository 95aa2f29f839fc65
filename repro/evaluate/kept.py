"""What a network computed for a list of images, kept on disk: whoever tries many CRFs on it runs the network once."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from caffe_weights.files.atomic import replacing
from repro.data.lists import Item
from repro.data.stream import read_test_item
from repro.device import Compute
from repro.evaluate.labels import padded_batches
from repro.evaluate.postprocess import final_labels
from repro.models import MultiScale, Output
from repro.shell import one_line


def output_path(folder: Path, item: Item) -> Path:
    """Says where the output for an image is kept."""
    return folder / f"{item.name}.pt"


@torch.no_grad()
def keep_outputs(
    network: MultiScale,
    items: Sequence[Item],
    settings: dict[str, dict],
    compute: Compute,
    folder: Path,
    progress: Callable[[int], None] = lambda images: None,
) -> None:
    """Runs a network over those images of a list whose output is not kept yet; each file is written whole or not at all.

    Args:
        network: On the device; put into evaluation mode.
        items: The list.
        settings: The row's.
        compute: Where and how.
        folder: Made where it is missing.
        progress: Called with the number of images just finished; what it raises ends the work.
    """
    network.eval()
    folder.mkdir(parents=True, exist_ok=True)
    missing = [item for item in items if not output_path(folder, item).is_file()]
    for images, data in padded_batches(missing, settings, compute):
        with compute.autocast():
            output = network(data)
        for i, image in enumerate(images):
            own = slice(i, i + 1)
            kept = {
                "scores": [scores[own].cpu().clone() for scores in output.scores],
                "logits": None if output.logits is None else output.logits[own].cpu().clone(),
                "mode": output.mode,
                "edge": None if output.edge is None else output.edge[own].cpu().clone(),
                "transform": None if output.transform is None else list(output.transform),
            }
            content = io.BytesIO()
            torch.save(kept, content)
            with replacing(output_path(folder, image.item)) as part:
                part.write_bytes(content.getbuffer())
        progress(len(images))


def kept_labels(
    item: Item, settings: dict[str, dict], folder: Path, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Labels an image from the output that is kept of it, as `repro.evaluate.labels.label_maps` does.

    Args:
        item: With a label.
        settings: The row's, with any CRF or none.
        folder: Of the outputs.
        device: Where to.

    Returns:
        (H, W) classes, those before the CRF (None without one), and the label, all on the device.

    Raises:
        ValueError, FileNotFoundError: A file is unusable; the message names it.
    """
    path = output_path(folder, item)
    try:
        kept = torch.load(path, map_location=device, weights_only=True)
        output = Output(**{**kept, "transform": kept["transform"] and tuple(kept["transform"])})
    except Exception as error:  # torch.load's failures have no type of their own
        raise ValueError(
            f"{path}: must be a network's output as it was kept; got {one_line(error)[:200]}; delete it"
        ) from error
    data, label, size = read_test_item(item, tuple(settings["transform"]["mean_bgr"]), settings["test"]["crop_size"])
    ((labels, before),) = final_labels(output, data.to(device), [size], settings.get("crf"))
    return labels, before, label.to(device)

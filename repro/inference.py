"""A trained network as a library: `repro.load("x.caffemodel").predict("photo.jpg")`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

import caffe_weights
from repro.device import Compute, choose_device
from repro.evaluate.postprocess import best_classes, crf_probabilities, whole_scores
from repro.models import MultiScale
from repro.ops import interp, merge_scores
from repro.protocol import PAPER, Row, load_protocol
from repro.records.store import read_recorded
from repro.solver.snapshot import trained_network
from repro.visualize.network import caffe_network
from repro.visualize.photos import padded, read_photo


class Prediction(NamedTuple):
    """An image as a network sees it; H and W are the image's.

    labels: (H, W) uint8 classes.
    probabilities: (C, H, W) float32, the softmax of the merged scores enlarged to the image; where the row has a CRF, the CRF's.
    weights: (S, H, W) float32, the attention weight of every scale, which sum to 1; None where the network has no attention.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    weights: np.ndarray | None


class Model:
    """A trained network with the settings of its row.

    Attributes:
        network: On the device, in evaluation mode.
        settings: The row's.
        class_names: In the order of the labels.
        scales: Of the inputs, the finest first.
    """

    def __init__(self, network: MultiScale, settings: dict[str, Any], compute: Compute):
        self.network, self.settings, self._compute = network.to(compute.device).eval(), settings, compute
        self.class_names: list[str] = settings["data"]["class_names"]
        self.scales = network.scales

    @torch.no_grad()
    def predict(self, image: str | Path | Image.Image | np.ndarray) -> Prediction:
        """Labels an image of any size.

        Args:
            image: A file (read as people see it: turned as its EXIF data say), a Pillow image, or an (H, W, 3) uint8 RGB array.

        Returns:
            Labels, probabilities and the weights of every scale, at the image's size.

        Raises:
            FileNotFoundError, ValueError: It is no image.
        """
        pixels = _pixels(image)
        height, width = pixels.shape[:2]
        data = padded(pixels, self.settings["transform"]["mean_bgr"], self.settings["test"]["crop_size"])
        data = data.to(self._compute.device)
        with self._compute.autocast():
            output = self.network(data)
        size = data.shape[2:]
        scores = whole_scores(output, size, [(height, width)])[:, :, :height, :width]
        weights = merge_scores(output.scores, output.logits, output.mode)[1] if output.logits is not None else None
        seen = None if weights is None else interp(weights.float(), size)[0, :, :height, :width].cpu().numpy()
        probabilities = scores.softmax(1)
        if "crf" in self.settings:
            scores = probabilities = crf_probabilities(scores, data[:, :, :height, :width], self.settings["crf"])
        labels = best_classes(scores)[0].to(torch.uint8).cpu().numpy()
        return Prediction(labels, probabilities[0].cpu().numpy(), seen)


def _pixels(image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    if isinstance(image, str | Path):
        return read_photo(Path(image))
    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise ValueError(
            f"predict: an array must be (H, W, 3) uint8 RGB; got {pixels.dtype} of shape {pixels.shape}; convert it"
        )
    return pixels


def _row_that_fits(path: Path) -> Row:
    """Finds the row of the paper that a caffemodel's layers fit: its classes, scales, and whether it has an attention head, DeepLab-MSc's branches or an edge map.

    Raises:
        ValueError: None does, or the file does not tell, as where scales are merged without weights.
    """
    blobs = caffe_weights.read_caffemodel(path).with_blobs()
    classes = blobs["fc8"].blobs[0].shape[0] if "fc8" in blobs else None
    scales = blobs["att_fc"].blobs[0].shape[0] if "att_fc" in blobs else 1
    merge = "attention" if scales > 1 else "none"
    parts = {key: layer in blobs for key, layer in (("msc_filters", "data_ms1"), ("dt_num_iter", "edge"))}
    for table in PAPER:
        for row in load_protocol(table).runnable:
            model = row.settings["model"]
            fits = len(row.settings["data"]["class_names"]) == classes and len(model["scales"]) == scales
            if fits and model["merge"] == merge and all((key in model) == there for key, there in parts.items()):
                return row
    raise ValueError(
        f'{path}: must fit a row of the paper\'s tables; got {classes} classes and {scales} scales; name its row, such as row="table3/max3"'
    )


def load(source: str | Path, row: str | None = None, device: str = "auto", precision: str = "fp32") -> Model:
    """Loads a trained network.

    Args:
        source: A .caffemodel, or the folder of a recorded row (runs/table1/attention3-extra-seed1).
        row: "TABLE/ROW" of a .caffemodel; by default the row that its layers fit. TABLE may be a .toml file.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "fp32", "tf32" or "bf16".

    Returns:
        The model.

    Raises:
        FileNotFoundError: There is no such file, or no record in the folder.
        ValueError: It is damaged, or does not fit its row.
    """
    source = Path(source)
    compute = Compute(choose_device(device, precision), precision)
    if source.is_dir():
        record = read_recorded(source)
        return Model(trained_network(record, source / "snapshot.pt"), record["settings"], compute)
    if row is None:
        found = _row_that_fits(source)
    else:
        table, _, row_id = row.rpartition("/")
        found = load_protocol(table).row(row_id)
    return Model(caffe_network(found, source), found.settings, compute)

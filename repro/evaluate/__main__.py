"""Scores label maps, whoever made them: `python -m repro.evaluate --pred DIR --table table3 --data-root ROOT`. See --help."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from repro.data.lists import read_items
from repro.data.transforms import read_label
from repro.evaluate.metrics import ConfusionMatrix, iou
from repro.files import write_text
from repro.protocol import load_protocol
from repro.shell import exit_code


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m repro.evaluate",
        description="Compares index PNGs with the labels of a list, by one confusion matrix over the set, as the paper's tables are made.",
    )
    add = parser.add_argument
    add("--pred", type=Path, required=True, metavar="DIR", help="the label maps: <id>.png, of the images' sizes")
    add(
        "--table",
        required=True,
        metavar="TABLE",
        help="the protocol that names classes, labels and list: table3, or a .toml file",
    )
    add("--data-root", type=Path, required=True, metavar="ROOT", help="the data set's folder")
    add("--list", metavar="NAME", help="a list under the data root (default: the protocol's validation list)")
    add(
        "--confusion",
        type=Path,
        metavar="CSV",
        help="write the confusion matrix too: a row per label, a column per prediction, pixels",
    )
    add("--traceback", action="store_true", help="show where an error comes from")
    return parser.parse_args(arguments)


def evaluate_folder(folder: Path, data_root: Path, data: dict, list_name: str | None = None) -> tuple[np.ndarray, int]:
    """Scores a folder of label maps.

    Args:
        folder: Holds <id>.png of every image in the list.
        data_root: The data set's folder.
        data: A protocol's data section.
        list_name: Of the images; None for the validation list.

    Returns:
        (C, C) int64 confusion matrix, row = label, column = prediction; and the number of images.

    Raises:
        FileNotFoundError: A list, a label or a prediction is missing.
        ValueError: A file is unusable, of another size than its label, or holds what is no class.
    """
    items = read_items(data_root, list_name or data["val_list"], data["images"], data["labels"])
    missing = [item.name for item in items if not (folder / f"{item.name}.png").is_file()]
    if missing:
        raise FileNotFoundError(
            f"--pred: {folder} must hold a PNG of each of the {len(items)} images; got none of {len(missing)}, the first {missing[0]}.png; "
            "complete it, or choose --list"
        )
    classes, ignore = len(data["class_names"]), data["ignore_label"]
    counts = ConfusionMatrix(classes, ignore)
    for item in tqdm(items, "  test", unit="image", disable=not sys.stderr.isatty(), leave=False):
        if item.label is None:
            raise ValueError(f"{item.name}: must have a label; got none in the list; use a list with labels")
        label, prediction = read_label(item.label), read_label(folder / f"{item.name}.png")
        if label.shape != prediction.shape:
            raise ValueError(
                f"{folder / item.name}.png: must have its label's (height, width) {label.shape}; got {prediction.shape}; "
                "write label maps at the images' own size"
            )
        foreign = prediction[(label != ignore) & (prediction >= classes)]
        if foreign.size:
            raise ValueError(
                f"{folder / item.name}.png: classes must be 0..{classes - 1}; got {foreign.max()}; check the protocol's class_names"
            )
        counts.add(torch.tensor(prediction), torch.tensor(label))
    return counts.result(), len(items)


def lines_of(confusion: np.ndarray, class_names: list[str], images: int) -> list[str]:
    """Lays the result out: IoU of every class in percent, and the mean."""
    values = 100 * iou(confusion)
    wide = max(len(name) for name in (*class_names, "mean IoU"))
    lines = [f"{name:<{wide}}  {value:6.2f}" for name, value in zip(class_names, values, strict=True)]
    return [
        *lines,
        f"{'mean IoU':<{wide}}  {values.mean():6.2f}",
        f"{images} images, {confusion.sum()} pixels with a label",
    ]


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    options = parse_arguments(arguments)

    def run() -> None:
        data = load_protocol(options.table).rows[0].settings["data"]
        confusion, images = evaluate_folder(options.pred, options.data_root, data, options.list)
        if options.confusion is not None:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(
                [["label", *data["class_names"]]]
                + [[n, *row] for n, row in zip(data["class_names"], confusion.tolist(), strict=True)]
            )
            write_text(options.confusion, text.getvalue())
        print("\n".join(lines_of(confusion, data["class_names"], images)))

    return exit_code(run, options.traceback)


if __name__ == "__main__":
    sys.exit(main())

"""Scores label maps, whoever made them: `python -m repro.evaluate --pred DIR --table table3 --data-root ROOT`; or the network of a recorded row, before and
after its CRF: `python -m repro.evaluate --run runs/table3/attention3-extra-seed1 --data-root ROOT`. See --help."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from repro.data.lists import read_items
from repro.data.transforms import read_label
from repro.device import Compute, choose_device
from repro.evaluate.labels import Counts, evaluate
from repro.evaluate.metrics import ConfusionMatrix, iou
from repro.evaluate.trimap import trimap_band, trimap_label
from repro.files import write_text
from repro.protocol import Metric, load_protocol, metric_name, metric_value
from repro.records.store import metric_of, read_recorded
from repro.shell import exit_code
from repro.solver.snapshot import trained_network

MOST_WORKERS = 1024


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m repro.evaluate",
        description="Compares index PNGs, or what a recorded row's network sees, with the labels of a list, by one confusion matrix over the set, as the "
        "paper's tables are made.",
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--pred", type=Path, metavar="DIR", help="the label maps: <id>.png, of the images' sizes")
    source.add_argument(
        "--run", type=Path, metavar="DIR", help="the folder of a recorded row, whose network labels the images anew"
    )
    add(
        "--table",
        metavar="TABLE",
        help="with --pred, the protocol that names classes, labels and list: table3, or a .toml file",
    )
    add("--data-root", type=Path, required=True, metavar="ROOT", help="the data set's folder")
    add("--list", metavar="NAME", help="a list under the data root (default: the protocol's validation list)")
    add(
        "--confusion",
        type=Path,
        metavar="CSV",
        help="write the confusion matrix too: a row per label, a column per prediction, pixels",
    )
    add(
        "--trimap",
        type=float,
        metavar="PIXELS",
        help="give the IoU of the pixels near the boundaries too, those whose nearest pixel of another label (the ignored one included) is at most so far "
        "away; the DeepLab papers draw 1 to 40",
    )
    add("--device", default="auto", help="with --run: auto (the default), cpu, cuda or cuda:N")
    add(
        "--workers",
        type=int,
        default=2,
        metavar="N",
        help="with --run: threads that read images ahead, and as many that run the CRF beside the network (default 2)",
    )
    add("--traceback", action="store_true", help="show where an error comes from")
    return parser.parse_args(arguments)


def evaluate_folder(
    folder: Path, data_root: Path, data: dict, list_name: str | None = None, trimap: float | None = None
) -> tuple[Counts, int]:
    """Scores a folder of label maps.

    Args:
        folder: Holds <id>.png of every image in the list.
        data_root: The data set's folder.
        data: A protocol's data section.
        list_name: Of the images; None for the validation list.
        trimap: As of `repro.evaluate.labels.evaluate`.

    Returns:
        The counts, and the number of images.

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
    counts, near = ConfusionMatrix(classes, ignore), ConfusionMatrix(classes, ignore)
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
        if trimap is not None:
            near.add(torch.tensor(prediction), torch.tensor(trimap_label(label, trimap, ignore)))
    banded = None if trimap is None else Counts(near.result())
    return Counts(counts.result(), trimap=banded), len(items)


def evaluate_run(
    folder: Path, data_root: Path, list_name: str | None, trimap: float | None, compute: Compute
) -> tuple[Counts, int, dict, Metric]:
    """Scores a list with the network of a recorded row.

    Args:
        folder: The row's, with record.json and snapshot.pt.
        data_root: The data set's folder.
        list_name: Of the images; None for the validation list.
        trimap: As of `repro.evaluate.labels.evaluate`.
        compute: Where; in the precision of the record.

    Returns:
        The counts, the number of images, the data section of the row, and its metric as the record states it.

    Raises:
        FileNotFoundError: There is no record or no snapshot, or a list, an image or a label is missing.
        ValueError: A file is unusable.
    """
    record = read_recorded(folder)
    data = record["settings"]["data"]
    items = read_items(data_root, list_name or data["val_list"], data["images"], data["labels"])
    unlabelled = next((item.name for item in items if item.label is None), None)
    if unlabelled is not None:
        raise ValueError(f"{unlabelled}: must have a label; got none in the list; use a list with labels")
    network = trained_network(record, folder / "snapshot.pt").to(compute.device)
    compute = replace(compute, precision=record["provenance"]["precision"])
    with tqdm(total=len(items), desc="  test", unit="image", disable=not sys.stderr.isatty(), leave=False) as bar:
        counts = evaluate(network, items, record["settings"], compute, bar.update, trimap)
    return counts, len(items), data, metric_of(record)


def columns_of(counts: Counts, trimap: float | None) -> dict[str, np.ndarray]:
    """Names what was counted."""
    found: dict[str, np.ndarray] = {}
    for where, one in (("", counts), (f"trimap {trimap:g} " if trimap else "", counts.trimap)):
        if one is not None and one.before_crf is not None:
            found[f"{where}before CRF"] = one.before_crf
            found[f"{where}after CRF"] = one.confusion
        elif one is not None:
            found[where.strip() or "IoU"] = one.confusion
    return found


def lines_of(columns: dict[str, np.ndarray], class_names: list[str], images: int, metric: Metric) -> list[str]:
    """Lays the result out: IoU of every class in percent, and the mean, a column per confusion matrix; a single one needs no head. A metric of several classes follows, with its classes."""
    wide = max(len(name) for name in (*class_names, "mean IoU"))
    widths = [max(6, len(name)) for name in columns] if len(columns) > 1 else [6]
    values = [100 * iou(confusion) for confusion in columns.values()]
    head = [f"{'':<{wide}}  " + "  ".join(f"{name:>{w}}" for name, w in zip(columns, widths, strict=True))]
    rows = [(name, [of[n] for of in values]) for n, name in enumerate(class_names)]
    rows.append(("mean IoU", [of.mean() for of in values]))
    lines = [
        f"{name:<{wide}}  " + "  ".join(f"{v:{w}.2f}" for v, w in zip(row, widths, strict=True)) for name, row in rows
    ]
    if not isinstance(metric, str):
        means = [metric_value(metric, dict(zip(class_names, of, strict=True))) for of in values]
        named = [
            f"{name} {mean:.2f}" if len(columns) > 1 else f"{mean:.2f}"
            for name, mean in zip(columns, means, strict=True)
        ]
        lines.append(f"{metric_name(metric)}: {', '.join(named)}")
    pixels = next(iter(columns.values())).sum()
    return [*(head if len(columns) > 1 else []), *lines, f"{images} images, {pixels} pixels with a label"]


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    options = parse_arguments(arguments)

    def run() -> None:
        if options.trimap is not None:
            trimap_band(np.zeros((1, 1), np.uint8), options.trimap)  # its width is looked at before anything is read
        if options.run is None:
            if options.table is None:
                raise ValueError(
                    "--pred: needs --table, the protocol of the label maps; got none; for example --table table3"
                )
            row = load_protocol(options.table).rows[0]
            data, metric = row.settings["data"], row.metric
            counts, images = evaluate_folder(options.pred, options.data_root, data, options.list, options.trimap)
        else:
            if options.table is not None:
                raise ValueError(
                    "--table: goes with --pred alone; got --run, whose record names the protocol; leave it out"
                )
            if not 0 <= options.workers <= MOST_WORKERS:
                raise ValueError(f"--workers: must be 0..{MOST_WORKERS}; got {options.workers}; use 0 for no threads")
            compute = Compute(choose_device(options.device, "fp32"), workers=options.workers)
            counts, images, data, metric = evaluate_run(
                options.run, options.data_root, options.list, options.trimap, compute
            )
        if options.confusion is not None:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(
                [["label", *data["class_names"]]]
                + [[n, *row] for n, row in zip(data["class_names"], counts.confusion.tolist(), strict=True)]
            )
            write_text(options.confusion, text.getvalue())
        print("\n".join(lines_of(columns_of(counts, options.trimap), data["class_names"], images, metric)))

    return exit_code(run, options.traceback)


if __name__ == "__main__":
    sys.exit(main())

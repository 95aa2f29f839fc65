"""Writes a training snapshot as files of the DeepLab fork of Caffe: `python -m repro.export SNAPSHOT FOLDER TABLE --row ID --data-root DIR`.

The folder gets the weights (V2 .caffemodel), the momentum (.solverstate), train, test, deploy and solver prototxts and DeepLab's list files.
Started in that folder, `caffe train --solver=solver.prototxt --snapshot=<name>_iter_<n>.solverstate` goes on training, and
`caffe test --model=test.prototxt --weights=<name>_iter_<n>.caffemodel --iterations=<images>` evaluates.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

import caffe_weights
from repro.data.lists import read_items
from repro.files import write_text
from repro.protocol import Row, load_protocol


def export_settings(row: Row, data_root: Path, mode: str) -> caffe_weights.ExportSettings:
    """Translates a row's settings into what the prototxts need.

    Args:
        row: Of a protocol.
        data_root: The data set's folder; the lists are written beside the prototxts.
        mode: Caffe's solver_mode, "GPU" or "CPU".
    """
    settings = row.settings
    model, solver, transform = settings["model"], settings["solver"], settings["transform"]
    kept = {
        key: model[key]
        for key in ("scales", "merge", "extra_supervision", "pool5a", "dropout_ratio", "attention_input", "decay_mult")
    }
    backbone = [f"conv{block}_{i}" for block in range(1, 6) for i in (1, 2, 3)] + ["fc6", "fc7"]
    lr_mult = (
        dict.fromkeys(backbone, model["lr_mult"])
        | {"fc8": model["fc8_lr_mult"]}
        | dict.fromkeys(("att_conv1", "att_fc"), model["attention_lr_mult"])
    )
    data = {
        "root_folder": str(data_root.resolve()),
        "train_source": "train.txt",
        "test_source": "val.txt",
        "batch_size": solver["batch_size"],
        "crop_size": transform["crop_size"],
        "test_crop_size": settings["test"]["crop_size"],
        "mean_bgr": transform["mean_bgr"],
        "mirror": transform["mirror"],
        "scale_factors": transform["scale_factors"],
    }
    caffes_solver = {key: value for key, value in solver.items() if key != "batch_size"}
    kept |= {"lr_mult": lr_mult, "ignore_label": settings["data"]["ignore_label"]}
    return caffe_weights.ExportSettings(kept, caffes_solver, data, mode)


def read_snapshot(path: Path) -> dict:
    """Reads a snapshot as repro.train writes it.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: It is no snapshot.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: must be a snapshot; got no such file; see the run's --out folder")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        complete = {"parameters", "history", "iteration"} <= set(state)
    except Exception as error:
        raise ValueError(
            f"{path}: must be a snapshot; got {' '.join(str(error).split())[:200]}; choose a snapshot.pt"
        ) from error
    if not complete:
        raise ValueError(
            f"{path}: must hold parameters, history and iteration; got {', '.join(map(str, state))}; choose a snapshot.pt"
        )
    return state


def export_snapshot(snapshot: Path, folder: Path, row: Row, data_root: Path, mode: str = "GPU") -> list[Path]:
    """Writes everything; returns the files.

    Args:
        snapshot: Of a run of this row.
        folder: Where to write.
        row: The row, overrides applied.
        data_root: The data set's folder.
        mode: Caffe's solver_mode.

    Raises:
        FileNotFoundError, ValueError: The snapshot, the lists or the settings are unusable.
    """
    state = read_snapshot(snapshot)
    layers: dict[str, list] = {}
    for name, value in state["parameters"].items():
        layers.setdefault(name.rpartition(".")[0], []).append(value.contiguous().numpy())
    history = [value.contiguous().numpy() for value in state["history"].values()]
    data = row.settings["data"]
    lists = {
        name: read_items(data_root, data[key], data["images"], data["labels"])
        for name, key in (("train.txt", "train_list"), ("val.txt", "val_list"))
    }
    files = caffe_weights.to_caffe(
        layers, folder, export_settings(row, data_root, mode), row.id, state["iteration"], history
    )
    for name, items in lists.items():
        lines = [
            " ".join(f"/{path.relative_to(data_root)}" for path in (item.image, item.label) if path) for item in items
        ]
        write_text(folder / name, "\n".join(lines) + "\n")
        files.append(folder / name)
    return files


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m repro.export", description=__doc__.splitlines()[0])
    parser.add_argument("snapshot", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("table", help="the protocol that the run followed")
    parser.add_argument("--row", required=True, metavar="ID")
    parser.add_argument("--data-root", type=Path, required=True, metavar="DIR", help="the images, labels and lists")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="the overrides that the run was given"
    )
    parser.add_argument("--mode", default="GPU", choices=("GPU", "CPU"), help="Caffe's solver_mode (default GPU)")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    options = parser.parse_args(arguments)
    try:
        row = load_protocol(options.table, options.set).row(options.row)
        for file in export_snapshot(options.snapshot, options.folder, row, options.data_root, options.mode):
            print(file)
    except (ValueError, OSError) as error:
        if options.traceback:
            raise
        print(f"repro.export: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

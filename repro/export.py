"""Writes a training snapshot as files of the DeepLab fork of Caffe: `python -m repro.export SNAPSHOT FOLDER --data-root DIR`.

The settings are those of the record.json beside the snapshot. A run that has none yet, being interrupted, is named by TABLE, --row and --set.
The folder gets the weights (V2 .caffemodel), the momentum (.solverstate), train, test, deploy and solver prototxts and DeepLab's list files.
Started in that folder, `caffe train --solver=solver.prototxt --snapshot=<name>_iter_<n>.solverstate` goes on training, and
`caffe test --model=test.prototxt --weights=<name>_iter_<n>.caffemodel --iterations=<images>` evaluates.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import caffe_weights
from caffe_weights.deeplab.spec import NEW_LAYERS, VGG16_LAYERS
from repro.data.lists import read_items
from repro.files import write_text
from repro.models.build import lr_mult_key
from repro.protocol import load_protocol
from repro.protocol.reading import parse_override
from repro.records.store import RECORD, read_record
from repro.shell import exit_code
from repro.solver.snapshot import read_snapshot, training_identity

# What the prototxts need of a protocol's `model` table, beside the rates.
EXPORTED = (
    "scales",
    "merge",
    "extra_supervision",
    "pool5a",
    "dropout_ratio",
    "attention_input",
    "decay_mult",
    "msc_dropout_ratio",
    "dt_num_iter",
    "dt_spatial_sigma",
    "dt_range_sigma",
    "dt_min_weight",
)


def export_settings(settings: dict, data_root: Path, mode: str) -> caffe_weights.ExportSettings:
    """Translates a row's settings into what the prototxts need.

    Args:
        settings: Of a run's record, or of a protocol's row.
        data_root: The data set's folder; the lists are written beside the prototxts.
        mode: Caffe's solver_mode, "GPU" or "CPU".
    """
    model, solver, transform = settings["model"], settings["solver"], settings["transform"]
    kept = {key: value for key, value in model.items() if key in EXPORTED}
    rates = {name: lr_mult_key(name) for name in (*(layer.name for layer in VGG16_LAYERS), *NEW_LAYERS)}
    lr_mult = {name: model[key] for name, key in rates.items() if key in model}
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


def settings_of(
    snapshot: Path, identity: str, table: str | None, row_id: str | None, overrides: list[str]
) -> tuple[str, dict]:
    """Finds the row that a snapshot was trained for and the settings of its run.

    Args:
        snapshot: The file.
        identity: The run's, as the snapshot states it.
        table, row_id, overrides: As given; needed where no record lies beside the snapshot, and never other than the record's.

    Returns:
        The row's id and its settings.

    Raises:
        ValueError: There is neither a record nor a row, or they differ.
    """
    path = snapshot.with_name(RECORD)
    if not path.exists():
        if table is None or row_id is None:
            raise ValueError(f"{snapshot}: must have its {RECORD} beside it; got none; name TABLE and --row")
        return row_id, load_protocol(table, overrides).row(row_id).settings
    record = read_record(path)
    if identity != training_identity(record["provenance"], record["settings"]):
        raise ValueError(f"{snapshot}: must be of the run recorded beside it; got another run's; export it elsewhere")
    given = {"table": Path(table).stem if table else record["table"], "row": row_id or record["row"]}
    for key, value in given.items():
        if value != record[key]:
            raise ValueError(f"{path}: the {key} must be the record's, {record[key]}; got {value}; leave it out")
    for text in overrides:
        section, key, value = parse_override(text)
        recorded = record["settings"].get(section, {}).get(key)
        if value != recorded:
            raise ValueError(f"{path}: {section}.{key} must be the record's, {recorded}; got {value}; leave it out")
    return record["row"], record["settings"]


def export_snapshot(
    path: Path,
    folder: Path,
    data_root: Path,
    table: str | None = None,
    row_id: str | None = None,
    overrides: Sequence[str] = (),
    mode: str = "GPU",
) -> list[Path]:
    """Writes everything; returns the files.

    Args:
        path: The snapshot of a run.
        folder: Where to write.
        table, row_id, overrides: As for `settings_of`.
        data_root: The data set's folder.
        mode: Caffe's solver_mode.

    Raises:
        FileNotFoundError, ValueError: The snapshot, the lists or the settings are unusable.
    """
    snapshot = read_snapshot(path)
    row_id, settings = settings_of(path, snapshot.identity, table, row_id, list(overrides))
    layers: dict[str, list] = {}
    for name, value in snapshot.parameters.items():
        layers.setdefault(name.rpartition(".")[0], []).append(value.contiguous().numpy())
    history = [value.contiguous().numpy() for value in snapshot.history.values()]
    data = settings["data"]
    lists = {
        name: read_items(data_root, data[key], data["images"], data["labels"])
        for name, key in (("train.txt", "train_list"), ("val.txt", "val_list"))
    }
    files = caffe_weights.to_caffe(
        layers, folder, export_settings(settings, data_root, mode), row_id, snapshot.iteration, history
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
    parser.add_argument("table", nargs="?", help="the protocol that the run followed, where no record.json lies beside")
    parser.add_argument("--row", metavar="ID", help="its row, likewise")
    parser.add_argument("--data-root", type=Path, required=True, metavar="DIR", help="the images, labels and lists")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="the overrides that the run was given, likewise"
    )
    parser.add_argument("--mode", default="GPU", choices=("GPU", "CPU"), help="Caffe's solver_mode (default GPU)")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    options = parser.parse_intermixed_args(arguments)  # TABLE may come last
    given = options.table, options.row, options.set, options.mode

    def export() -> None:
        for file in export_snapshot(options.snapshot, options.folder, options.data_root, *given):
            print(file)

    return exit_code(export, options.traceback)


if __name__ == "__main__":
    sys.exit(main())

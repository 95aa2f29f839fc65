"""One row of a table: build, train, evaluate, record."""

from __future__ import annotations

import contextlib
import datetime
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from repro import __version__
from repro.device import processor_name
from repro.evaluate.archive import FOLDER, unfinished, write_archive, write_label_maps
from repro.evaluate.labels import evaluate, label_maps
from repro.evaluate.metrics import iou
from repro.models import MultiScale, build
from repro.models.weights import save_caffemodel
from repro.ops import backend
from repro.protocol import UNFELT, Protocol, Row, settings_sha256
from repro.records.store import FORMAT, SUBMISSION, git_state, read_record, record_path, write_record
from repro.run.inputs import Inputs, load_weights
from repro.shell import log
from repro.solver.snapshot import identity_of, trained_network
from repro.solver.train import train


@dataclass(frozen=True)
class Options:
    """How to run: everything that is not the protocol's.

    out: The output folder.
    device: Where.
    precision: "fp32", "tf32" or "bf16".
    workers: Processes (threads, at test) that read images ahead.
    should_stop: Asked between iterations; where it says so the row is saved and KeyboardInterrupt raised.
    """

    out: Path
    device: torch.device
    precision: str
    workers: int
    should_stop: Callable[[], bool]

    @property
    def autocast(self) -> torch.dtype | None:
        """The type that convolutions compute in where it is not float32."""
        return torch.bfloat16 if self.precision == "bf16" else None


def provenance(protocol: Protocol, row: Row, inputs: Inputs, seed: int, precision: str) -> dict:
    """Collects the fingerprints that make a result: the same ones make the same run, which may be skipped or resumed."""
    return {
        "protocol_sha256": protocol.sha256,
        "settings_sha256": settings_sha256(row.settings),
        "data_sha256": inputs.data_sha256,
        "weights": inputs.weights.name if inputs.weights else None,
        "weights_sha256": inputs.weights_sha256,
        "seed": seed,
        "precision": precision,
    }


def existing_record(protocol: Protocol, row: Row, seed: int, inputs: Inputs | None, options: Options) -> dict | None:
    """Reads a row's record, if it has one.

    Args:
        protocol, row, seed: Which.
        inputs: What the row would read now; None where that was not looked for, and the record's word is taken for data and weights.
        options: Of this run.

    Raises:
        ValueError: The record was made with other settings, data, weights or precision.
    """
    path = record_path(options.out, protocol.name, row.id, seed)
    if not path.exists():
        return None
    record = read_record(path)
    if inputs is None:
        expected = {"settings_sha256": settings_sha256(row.settings), "seed": seed, "precision": options.precision}
    else:
        expected = provenance(protocol, row, inputs, seed, options.precision)
    different = [key for key in expected if key != "protocol_sha256" and record["provenance"].get(key) != expected[key]]
    if different:
        raise ValueError(
            f"{path}: must have been made with the settings asked for; got other {', '.join(different)}; choose another --out, or delete it"
        )
    return record


def machine(device: torch.device) -> dict:
    """Describes where the run took place."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
        "versions": {
            "repro": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "git": git_state(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


@contextlib.contextmanager
def _counted(total: int, options: Options) -> Iterator[Callable[[int], None]]:
    """Shows the images that were tested, and stops where the run was asked to."""
    with tqdm(total=total, desc="  test", unit="image", disable=not sys.stderr.isatty(), leave=False) as bar:

        def progress(images: int) -> None:
            bar.update(images)
            if options.should_stop():
                raise KeyboardInterrupt

        yield progress


def _train(
    network: MultiScale, row: Row, seed: int, inputs: Inputs, options: Options, identity: str, snapshot: Path
) -> tuple[list[float], float]:
    """Trains the network, showing where it is; returns the loss of every iteration and the seconds."""
    max_iter = row.settings["solver"]["max_iter"]
    terminal = sys.stderr.isatty()
    with tqdm(total=max_iter, desc="  train", unit="it", disable=not terminal, leave=False) as bar:

        def report(iteration: int, loss: float, rate: float) -> None:
            bar.update(iteration - bar.n)
            bar.set_postfix(loss=f"{loss:.4f}")
            if not terminal:
                log(
                    f"  Iteration {iteration}, loss = {loss:.6g}, lr = {rate:.3g}"
                    if rate
                    else f"  Starting at iteration {iteration} of {max_iter}"
                )

        return train(
            network,
            inputs.train,
            row.settings,
            seed=seed,
            identity=identity,
            snapshot=snapshot,
            device=options.device,
            autocast=options.autocast,
            workers=options.workers,
            report=report,
            should_stop=options.should_stop,
        )


def _how(row: Row, options: Options) -> dict[str, Any]:
    """Says how the trained network is applied to an image."""
    return {
        "mean_bgr": row.settings["transform"]["mean_bgr"],
        "crop_size": row.settings["test"]["crop_size"],
        "batch_size": row.settings["test"]["batch_size"],
        "device": options.device,
        "autocast": options.autocast,
        "workers": options.workers,
    }


def _validate(network: MultiScale, row: Row, inputs: Inputs, options: Options) -> dict[str, Any]:
    """Measures the trained network on the labelled images."""
    data = row.settings["data"]
    with _counted(len(inputs.val), options) as progress:
        confusion = evaluate(
            network,
            inputs.val,
            num_classes=len(data["class_names"]),
            ignore_label=data["ignore_label"],
            progress=progress,
            **_how(row, options),
        )
    per_class = dict(zip(data["class_names"], (100 * iou(confusion)).tolist(), strict=True))
    value = float(np.mean(list(per_class.values()))) if row.metric == "mean_iou" else per_class[row.metric]
    return {"value": value, "per_class": per_class, "confusion": confusion.tolist()}


def _submit(network: MultiScale, row: Row, inputs: Inputs, options: Options, identity: str, folder: Path) -> dict:
    """Labels the images that a server scores, and packs its archive; goes on where an earlier run was stopped."""
    todo = unfinished(folder, inputs.val, identity)
    log(f"  {len(inputs.val) - len(todo)} of {len(inputs.val)} images are labelled already, in {folder / FOLDER}")
    with _counted(len(todo), options) as progress:
        write_label_maps(label_maps(network, todo, **_how(row, options)), folder, progress)
    submission = write_archive(folder, inputs.val, f"{folder.name}.tgz")
    return {"value": None, "per_class": {}, "confusion": [], SUBMISSION: submission}


def run_row(protocol: Protocol, row: Row, seed: int, inputs: Inputs, options: Options) -> dict:
    """Trains a row (unless its iterations are 0) and evaluates it, writes its record and returns it."""
    settings = row.settings
    path = record_path(options.out, protocol.name, row.id, seed)
    made_from = provenance(protocol, row, inputs, seed, options.precision)
    identity = identity_of(made_from)
    trains = settings["solver"]["max_iter"] > 0
    network = build(settings["model"], len(settings["data"]["class_names"]), seed)
    log("  " + load_weights(network, inputs.weights, complete=not trains))
    network.to(options.device)
    curve, seconds = [], 0.0
    if trains:
        curve, seconds = _train(network, row, seed, inputs, options, identity, path.parent / "snapshot.pt")
    started = time.monotonic()
    if SUBMISSION in settings:
        result = _submit(network, row, inputs, options, identity, path.parent)
    else:
        result = _validate(network, row, inputs, options)
    deviates = (
        {key: value for key, value in protocol.overrides.items() if key not in UNFELT}
        | inputs.deviates
        | ({"precision": options.precision} if options.precision != "fp32" else {})
    )
    record = result | {
        "format": FORMAT,
        "table": protocol.name,
        "row": row.id,
        "seed": seed,
        "paper": row.paper,
        "n_images": len(inputs.val),
        "loss_curve": curve,
        "deviates": deviates,
        "synthetic": "synthetic" in settings,
        "note": protocol.note,
        "settings": settings,
        "provenance": made_from | {"backend": backend()},
        "run": machine(options.device) | {"seconds": seconds + time.monotonic() - started, "train_seconds": seconds},
    }
    write_record(path, record)
    return record


def stage_weights(record: dict, out: Path) -> Path:
    """Makes a .caffemodel of what a recorded row trained, for the rows that start from it; an earlier one is taken as it is.

    Args:
        record: The row's.
        out: The output folder.

    Returns:
        The file, beside the row's record.

    Raises:
        FileNotFoundError, ValueError: There is neither a .caffemodel nor a snapshot of this very run.
    """
    table, row, seed = record["table"], record["row"], record["seed"]
    folder = record_path(out, table, row, seed).parent
    path = folder / f"{table}-{row}-seed{seed}.caffemodel"
    if not path.exists():
        save_caffemodel(trained_network(record, folder / "snapshot.pt"), path, f"{table} {row}")
    return path

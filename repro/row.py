"""One row of a table: build, train, evaluate, record."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from . import __version__
from .evaluate import evaluate
from .inputs import Inputs, load_weights
from .metrics import iou
from .models import build
from .ops import backend
from .protocol import UNFELT, Protocol, Row, settings_sha256
from .records import FORMAT, git_state, read_record, record_path, write_record
from .train import train


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


def log(text: str) -> None:
    """Writes a progress line to stderr, above a progress bar if there is one."""
    tqdm.write(text, file=sys.stderr)


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


def existing_record(protocol: Protocol, row: Row, seed: int, inputs: Inputs, options: Options) -> dict | None:
    """Reads a row's record, if it has one.

    Raises:
        ValueError: The record was made with other settings, data, weights or precision.
    """
    path = record_path(options.out, protocol.name, row.id, seed)
    if not path.exists():
        return None
    record = read_record(path)
    expected = provenance(protocol, row, inputs, seed, options.precision)
    different = [key for key in expected if key != "protocol_sha256" and record["provenance"].get(key) != expected[key]]
    if different:
        raise ValueError(
            f"{path}: must have been made with the settings asked for; got other {', '.join(different)}; choose another --out, or delete it"
        )
    return record


def processor_name() -> str:
    """Names the CPU: by Linux's own words where it has them, else by its architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


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


def run_row(protocol: Protocol, row: Row, seed: int, inputs: Inputs, options: Options) -> dict:
    """Trains and evaluates one row, writes its record and returns it."""
    settings = row.settings
    path = record_path(options.out, protocol.name, row.id, seed)
    made_from = provenance(protocol, row, inputs, seed, options.precision)
    identity = hashlib.sha256(json.dumps(made_from | {"protocol_sha256": None}, sort_keys=True).encode()).hexdigest()
    network = build(settings["model"], len(settings["data"]["class_names"]), seed)
    log("  " + load_weights(network, inputs.weights))
    device = options.device
    network.to(device)
    autocast = torch.bfloat16 if options.precision == "bf16" else None
    max_iter = settings["solver"]["max_iter"]
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

        curve, seconds = train(
            network,
            inputs.train,
            settings,
            seed=seed,
            identity=identity,
            snapshot=path.parent / "snapshot.pt",
            device=device,
            autocast=autocast,
            workers=options.workers,
            report=report,
            should_stop=options.should_stop,
        )
    started = time.monotonic()
    with tqdm(total=len(inputs.val), desc="  test", unit="image", disable=not terminal, leave=False) as bar:

        def progress(images: int) -> None:
            bar.update(images)
            if options.should_stop():
                raise KeyboardInterrupt

        confusion = evaluate(
            network,
            inputs.val,
            num_classes=len(settings["data"]["class_names"]),
            ignore_label=settings["data"]["ignore_label"],
            mean_bgr=settings["transform"]["mean_bgr"],
            crop_size=settings["test"]["crop_size"],
            batch_size=settings["test"]["batch_size"],
            device=device,
            autocast=autocast,
            workers=options.workers,
            progress=progress,
        )
    per_class = dict(zip(settings["data"]["class_names"], (100 * iou(confusion)).tolist(), strict=True))
    deviates = (
        {key: value for key, value in protocol.overrides.items() if key not in UNFELT}
        | inputs.deviates
        | ({"precision": options.precision} if options.precision != "fp32" else {})
    )
    record = {
        "format": FORMAT,
        "table": protocol.name,
        "row": row.id,
        "seed": seed,
        "value": float(np.mean(list(per_class.values())))
        if protocol.metric == "mean_iou"
        else per_class[protocol.metric],
        "paper": row.paper,
        "per_class": per_class,
        "confusion": confusion.tolist(),
        "n_images": len(inputs.val),
        "loss_curve": curve,
        "deviates": deviates,
        "synthetic": protocol.synthetic,
        "note": protocol.note,
        "settings": settings,
        "provenance": made_from | {"backend": backend()},
        "run": machine(device) | {"seconds": seconds + time.monotonic() - started, "train_seconds": seconds},
    }
    write_record(path, record)
    return record

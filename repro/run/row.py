"""One row of a table: build, train, evaluate, record."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from caffe_weights.files.atomic import replacing
from repro.data.fingerprint import require_unchanged
from repro.device import Compute, processor_name
from repro.distributed import broadcast, from_main, rank, total, wait_for_all, world_size
from repro.evaluate.archive import FOLDER, unfinished, write_archive, write_label_maps
from repro.evaluate.labels import evaluate, label_maps, share_of_batches
from repro.evaluate.metrics import summary
from repro.models import MultiScale, build
from repro.models.unit_variance import scale_to_unit_variance
from repro.ops import backend
from repro.protocol import UNFELT, plain_metric, settings_sha256
from repro.records.store import BEFORE_CRF, FORMAT, SUBMISSION, git_state, read_record, record_path, walk, write_record
from repro.run.inputs import READ, Inputs, filled_layers, load_weights
from repro.run.lock import locked
from repro.run.options import Options
from repro.run.plan import Job
from repro.shell import log
from repro.solver.snapshot import identity_of, read_snapshot, training_identity
from repro.solver.train import Sitting, Training, training_stream
from repro.version import __version__

# Variables by which a user chooses instructions, and with them the last bits of sums.
_INSTRUCTIONS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "OPENBLAS_CORETYPE")


def provenance(job: Job, inputs: Inputs, precision: str) -> dict:
    """Collects the fingerprints that make a result: the same ones make the same run, which may be skipped or resumed."""
    return {
        "protocol_sha256": job.protocol.sha256,
        "settings_sha256": settings_sha256(job.row.settings),
        "data_sha256": inputs.data_sha256,
        "weights": inputs.weights.name if inputs.weights else None,
        "weights_sha256": inputs.weights_sha256,
        "seed": job.seed,
        "precision": precision,
    }


def existing_record(job: Job, inputs: Inputs | None, options: Options) -> dict | None:
    """Reads a job's record, if it has one.

    Args:
        job: Which.
        inputs: What the row would read now; None where that was not looked for, and the record's word is taken for data and weights.
        options: Of this run.

    Raises:
        ValueError: The record was made with other settings, data, weights or precision.
    """
    path = record_path(options.out, *job.key)
    if not path.exists():
        return None
    record, precision = read_record(path), options.compute.precision
    if inputs is None:
        expected = {"settings_sha256": settings_sha256(job.row.settings), "seed": job.seed, "precision": precision}
    else:
        expected = provenance(job, inputs, precision)
    different = [key for key in expected if key != "protocol_sha256" and record["provenance"].get(key) != expected[key]]
    if different:
        raise ValueError(
            f"{path}: must have been made with the settings asked for; got other {', '.join(different)}; choose another --out, or delete it"
        )
    return record


def device_name(device: torch.device) -> str:
    """Names the GPU or the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def is_deterministic(compute: Compute) -> bool:
    """Tells whether another run gives the same bits: on the CPU always, on a GPU where it was asked for."""
    return compute.device.type == "cpu" or compute.deterministic


def circumstances(compute: Compute) -> dict[str, str]:
    """Collects what may change the last bits of a run's numbers and is no setting: a resumed run says where they differ."""
    git = git_state()
    chosen = [f"{name}={os.environ[name]}" for name in _INSTRUCTIONS if name in os.environ]
    return {
        "code": f"{__version__} {git['commit'] or 'without git'}{' with changes' if git['dirty'] else ''}",
        "torch": str(torch.__version__),
        "device": device_name(compute.device),
        "algorithms": "deterministic" if is_deterministic(compute) else "fastest",
        "threads": str(torch.get_num_threads()),
        "world_size": str(world_size()),
        "instructions": " ".join([torch.backends.cpu.get_cpu_capability(), *chosen]),
        "backend": backend(),
    }


def resumed_under(sittings: list[dict[str, str]]) -> dict[str, list[str]]:
    """Lists the circumstances that changed between the sittings of one training, each with its values in order."""
    values = {key: [sitting.get(key, "unknown") for sitting in sittings] for key in sittings[0]} if sittings else {}
    return {key: found for key, found in values.items() if len(set(found)) > 1}


def machine(compute: Compute) -> dict:
    """Describes where and how the run took place."""
    return {
        "device": str(compute.device),
        "device_name": device_name(compute.device),
        "deterministic": is_deterministic(compute),
        "cuda_graph": compute.cuda_graph,
        "threads": torch.get_num_threads(),
        "world_size": world_size(),
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


def _has(settings: dict[str, dict], name: str) -> bool:
    """Tells whether a row has a key "section.key": an override may be of a section that only other rows have."""
    section, _, key = name.partition(".")
    return key in settings.get(section, {})


def _train(training: Training, max_iter: int) -> None:
    """Trains a network, showing where it is."""
    terminal = sys.stderr.isatty()
    if not terminal and not training.finished:
        log(f"  Starting at iteration {training.iteration} of {max_iter}")
    with tqdm(
        total=max_iter, initial=training.iteration, desc="  train", unit="it", disable=not terminal, leave=False
    ) as bar:

        def report(iteration: int, loss: float, rate: float) -> None:
            bar.update(iteration - bar.n)
            bar.set_postfix(loss=f"{loss:.4f}")
            if not terminal:
                log(f"  Iteration {iteration}, loss = {loss:.6g}, lr = {rate:.3g}")

        training.run(report)


def _validate(network: MultiScale, job: Job, inputs: Inputs, options: Options) -> dict[str, Any]:
    """Measures the trained network on the labelled images, before and after the CRF where the row has one."""
    settings, names = job.row.settings, job.row.settings["data"]["class_names"]
    own = share_of_batches(inputs.val, settings, rank(), world_size())
    with _counted(len(own), options) as progress:
        counts = evaluate(network, own, settings, options.compute, progress)

    def of_all(confusion: np.ndarray) -> dict[str, Any]:
        return summary(total(torch.from_numpy(confusion)).numpy(), names, job.row.metric)

    result = of_all(counts.confusion)
    if counts.before_crf is not None:
        result[BEFORE_CRF] = of_all(counts.before_crf)
    return result


def _submit(network: MultiScale, job: Job, inputs: Inputs, options: Options, identity: str) -> dict:
    """Labels the images that a server scores, and packs its archive, with a CRF two; goes on where an earlier run was stopped."""
    folder = record_path(options.out, *job.key).parent
    before = folder / BEFORE_CRF if "crf" in job.row.settings else None
    todo = from_main(lambda: unfinished([folder] if before is None else [folder, before], inputs.val, identity))
    log(f"  {len(inputs.val) - len(todo)} of {len(inputs.val)} images are labelled already, in {folder / FOLDER}")
    if not (folder / FOLDER).is_dir():
        raise FileNotFoundError(
            f"--out: every process must see {folder / FOLDER}, to write its label maps there; got no such folder on {platform.node()}; "
            "give an --out that all machines share"
        )
    own = share_of_batches(todo, job.row.settings, rank(), world_size())
    with _counted(len(own), options) as progress:
        write_label_maps(label_maps(network, own, job.row.settings, options.compute), folder, before, progress)
    wait_for_all()  # then the archive is packed

    def archived(maps: Path, name: str) -> dict[str, Any]:
        submission = write_archive(maps, inputs.val, folder / name)
        return {"value": None, "per_class": {}, "confusion": [], SUBMISSION: submission}

    if rank() > 0:
        return {}
    result = archived(folder, f"{folder.name}.tgz")
    return result if before is None else result | {BEFORE_CRF: archived(before, f"{folder.name}-before-crf.tgz")}


def run_row(job: Job, inputs: Inputs, options: Options) -> dict:
    """Trains a row (unless its iterations are 0) and evaluates it, writes its record and returns it.

    Raises:
        RuntimeError: Another process is at work on the same row.
        ValueError, FileNotFoundError: A file is unusable, or the snapshot another run's.
        KeyboardInterrupt: The run was asked to stop; what was done is saved.
    """
    path = record_path(options.out, *job.key)
    with locked(path.parent) if rank() == 0 else contextlib.nullcontext():
        record = _run_row(job, inputs, options, path.parent / "snapshot.pt")
        if rank() == 0:
            write_record(path, record)
    return from_main(lambda: record)


def _fill(network: MultiScale, job: Job, inputs: Inputs, compute: Compute) -> None:
    """Scales the layers whose filler looks at data, over the first batches that the row will train on."""
    names = [name for name, filler in filled_layers(job.row).items() if filler == "unit_variance"]
    if not names:
        return
    count = job.row.settings["fill"]["batches"]
    stream = itertools.islice(training_stream(inputs.train, job.row.settings, job.seed), count)
    factors = scale_to_unit_variance(network, names, [batch.data.to(compute.device) for batch in stream])
    scaled = ", ".join(f"{name} times {factor:.3g}" for name, factor in factors.items())
    log(f"  filled to unit variance over {count} batches: {scaled}")


def _take_over(identity: str, snapshot: Path, out: Path) -> None:
    """Copies the snapshot of a recorded row that was trained alike, such as that of the same row without a CRF, where there is none yet."""
    for stored in () if snapshot.exists() else walk([out]):
        other, record = stored.path.with_name("snapshot.pt"), stored.record
        if stored.reason or training_identity(record["provenance"], record["settings"]) != identity:
            continue
        with contextlib.suppress(FileNotFoundError, ValueError):  # not kept, or damaged: then the row trains by itself
            read_snapshot(other, identity)
            with replacing(snapshot) as part:
                shutil.copyfile(other, part)
            log(f"  trained already, as {record['table']} {record['row']}")
            return


def _run_row(job: Job, inputs: Inputs, options: Options, snapshot: Path) -> dict:
    settings, compute = job.row.settings, options.compute
    made_from = provenance(job, inputs, compute.precision)
    max_iter = settings["solver"]["max_iter"]
    network = build(settings["model"], len(settings["data"]["class_names"]), job.seed)
    if rank() == 0:
        log("  " + load_weights(network, inputs.weights, max_iter == 0, filled_layers(job.row)))
    network.to(compute.device)
    identity = training_identity(made_from, settings)
    if max_iter > 0 and rank() == 0:
        if "crf" in settings:
            _take_over(identity, snapshot, options.out)
        if not snapshot.exists():
            _fill(network, job, inputs, compute)
    broadcast(network.parameters())
    curve, seconds, sittings = [], 0.0, []
    if max_iter > 0:
        sitting = Sitting(job.seed, identity, snapshot, compute, circumstances(compute), options.should_stop)
        training = Training(network, inputs.train, settings, sitting)
        _train(training, max_iter)
        curve, seconds, sittings = training.curve, training.seconds, training.sittings
    started = time.monotonic()
    if SUBMISSION in settings:
        result = _submit(network, job, inputs, options, identity_of(made_from))
    else:
        result = _validate(network, job, inputs, options)
    if rank() == 0:
        require_unchanged(inputs.train, inputs.val, inputs.data_sha256, options.out / READ)
    deviates = (
        {key: value for key, value in job.protocol.overrides.items() if key not in UNFELT and _has(settings, key)}
        | inputs.deviates
        | ({"precision": compute.precision} if compute.precision != "fp32" else {})
    )
    times = {"seconds": seconds + time.monotonic() - started, "train_seconds": seconds}
    return result | {
        "format": FORMAT,
        "table": job.protocol.name,
        "row": job.row.id,
        "seed": job.seed,
        "paper": job.row.paper,
        "n_images": len(inputs.val),
        "loss_curve": curve,
        "deviates": deviates,
        "synthetic": "synthetic" in settings,
        "note": job.protocol.note,
        "settings": settings,
        "provenance": made_from | {"backend": backend(), "metric": plain_metric(job.row.metric)},
        "run": machine(compute) | {"resumed_under": resumed_under(sittings)} | times,
    }

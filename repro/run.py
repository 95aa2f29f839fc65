"""Runs the rows of one of the paper's tables: `python -m repro.run table1`. See --help, README and protocols/README.md."""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import traceback
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from .inputs import load_weights, prepare
from .models import build
from .protocol import Protocol, Row, load_protocol
from .records import git_state, record_path
from .row import Options, existing_record, log, run_row
from .tables import as_markdown, as_text, metric_name, per_class_line

_stop_asked = False


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m repro.run", description=__doc__)
    parser.add_argument("table", metavar="TABLE", help="a protocol: table1, table3, ... or a .toml file")
    parser.add_argument("--row", action="append", metavar="ID", help="run this row only (may be repeated)")
    parser.add_argument(
        "--data-root",
        type=Path,
        metavar="DIR",
        help="the real images, labels and lists; without it table1 runs its synthetic stand-in",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="initial .caffemodel, or none; by default the protocol's file under the data root",
    )
    parser.add_argument("--device", default="auto", help="auto (the default), cpu, cuda or cuda:N")
    parser.add_argument(
        "--precision", default="fp32", choices=("fp32", "tf32", "bf16"), help="fp32 (the default) is the faithful one"
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that decode images ahead (default: one per spare core; 0 for synthetic data)",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="Caffe's random_seed (default 1)")
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="K",
        help="run every row with K seeds, from --seed on; the table gives mean and spread",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="records, snapshots and tables (default runs/)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the protocol, e.g. solver.max_iter=200",
    )
    parser.add_argument(
        "--subset", action="store_true", help="declare that the lists hold a subset of the protocol's images"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved plan and its cost, and stop")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    return parser.parse_args(arguments)


def parse_device(name: str) -> torch.device:
    """Reads a device's name without touching the device.

    Raises:
        ValueError: It is no name of a CPU or a CUDA device.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device: must be auto, cpu, cuda or cuda:N; got {name!r}; choose one of these")
    return device


def choose_device(name: str, precision: str) -> torch.device:
    """Resolves --device, and sets the precision of float32 arithmetic.

    Raises:
        ValueError: There is no such device, or it has no such precision.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = parse_device(name)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ValueError(
            f"--device: {name} must be present and torch built for it; got {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    if precision == "tf32" and device.type != "cuda":
        raise ValueError("--precision: tf32 needs a CUDA device; got cpu; use fp32")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.deterministic = True
    return device


def forward_flops(row: Row) -> float:
    """Counts the floating-point operations of the convolutions of one training image's forward pass (a multiplication and an addition count 2)."""
    side = row.settings["transform"]["crop_size"]
    network = build(row.settings["model"], len(row.settings["data"]["class_names"]), seed=0).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops()


def print_plan(protocol: Protocol, rows: list[Row], seeds: list[int], options: Options) -> None:
    """Prints the resolved settings and the cost of every row; needs neither data nor a GPU."""
    print(
        f"{protocol.name}: {protocol.title}; {len(rows)} rows x {len(seeds)} seeds; records under {options.out}; device {options.device}, {options.precision}"
    )
    shared = [
        (s, k)
        for s, table in rows[0].settings.items()
        for k in table
        if all(r.settings[s][k] == table[k] for r in rows)
    ]
    for section, key in shared:
        print(f"  {section}.{key} = {json.dumps(rows[0].settings[section][key])}")
    print("rows, with training cost (3 x forward x images):")
    for row in rows:
        own = {f"{s}.{k}": v for s, table in row.settings.items() for k, v in table.items() if (s, k) not in shared}
        solver = row.settings["solver"]
        images = solver["max_iter"] * solver["batch_size"] * solver["iter_size"]
        flops = forward_flops(row)
        recorded = [record_path(options.out, protocol.name, row.id, seed).exists() for seed in seeds]
        state = f", {sum(recorded)} of {len(seeds)} recorded" if any(recorded) else ""
        print(
            f"  {row.id}: {images} images, {flops / 1e9:.3g} GFLOP forward each, {3 * flops * images * len(seeds) / 1e15:.3g} PFLOP in all{state}; {json.dumps(own)}"
        )


def run(arguments: argparse.Namespace) -> None:
    """Does what the command line asks."""
    git_state()
    stand_in = load_protocol(arguments.table).stand_in if arguments.data_root is None else ""
    protocol = load_protocol(stand_in or arguments.table, arguments.set)
    if stand_in:
        log(f"{arguments.table}: no --data-root given, so its stand-in {protocol.name} runs: {protocol.note}")
    if arguments.seeds < 1 or not 0 <= arguments.seed <= 2**32 - arguments.seeds:
        raise ValueError(
            f"--seeds, --seed: must be at least 1 and 0..2^32-1; got {arguments.seeds}, {arguments.seed}; correct them"
        )
    seeds = list(range(arguments.seed, arguments.seed + arguments.seeds))
    rows = [protocol.row(row_id) for row_id in dict.fromkeys(arguments.row)] if arguments.row else protocol.rows
    workers = arguments.workers
    if workers is None:
        workers = 0 if protocol.synthetic else max(1, (os.cpu_count() or 1) - 1)
    if workers < 0:
        raise ValueError(f"--workers: must be at least 0; got {workers}; use 0 to decode in the training process")
    if arguments.dry_run:
        device = parse_device("cpu" if arguments.device == "auto" else arguments.device)
        print_plan(protocol, rows, seeds, Options(arguments.out, device, arguments.precision, workers, lambda: False))
        return

    device = choose_device(arguments.device, arguments.precision)
    options = Options(arguments.out, device, arguments.precision, workers, lambda: bool(_stop_asked))
    check_writable(options.out)
    inputs = prepare(protocol, rows[0], arguments.data_root, arguments.weights, arguments.subset, options.out, workers)
    # A wrong setting of the last row, or a foreign caffemodel, shall be found before the first row is trained.
    for row in rows:
        load_weights(build(row.settings["model"], len(row.settings["data"]["class_names"]), seed=0), inputs.weights)

    plan = [(row, seed) for seed in seeds for row in rows]
    found = {
        (row.id, seed): record
        for row, seed in plan
        if (record := existing_record(protocol, row, seed, inputs, options))
    }
    for number, (row, seed) in enumerate(plan, start=1):
        title = f"[{number}/{len(plan)}] {protocol.name} {row.id}, seed {seed}"
        if (row.id, seed) in found:
            log(f"{title}: recorded, {found[row.id, seed]['value']:.2f}")
            continue
        log(title)
        record = found[row.id, seed] = run_row(protocol, row, seed, inputs, options)
        paper = f" (paper {row.paper:.2f})" if row.paper is not None else ""
        log(
            f"{title}: {metric_name(protocol)} {record['value']:.2f}{paper}, {record['run']['seconds']:.0f} s; {per_class_line(record)}"
        )

    # Rows recorded earlier under the same settings stand in the table too.
    for row, seed in [(row, seed) for seed in seeds for row in protocol.rows if (row.id, seed) not in found]:
        with contextlib.suppress(ValueError):
            found[row.id, seed] = existing_record(protocol, row, seed, inputs, options)
    records = {row.id: [record for seed in seeds if (record := found.get((row.id, seed)))] for row in protocol.rows}
    (options.out / protocol.name / "table.md").write_text(as_markdown(protocol, records), encoding="utf-8")
    print(as_text(protocol, records), end="")


def check_writable(out: Path) -> None:
    """Raises RuntimeError unless files can be made in the output folder, which is made where it is missing."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".writable-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise RuntimeError(
            f"--out: {out} must be a folder that can be written; got {error.strerror}; choose another --out"
        ) from error


def ask_to_stop(signum: int, frame: object) -> None:
    """On the first Ctrl-C or SIGTERM asks the run to save and stop; a second one stops at once."""
    global _stop_asked
    if multiprocessing.parent_process() is not None:
        return  # A data worker, which inherits this handler and gets a terminal's Ctrl-C too: the main process ends it.
    if _stop_asked:
        raise KeyboardInterrupt
    _stop_asked = True
    log("stopping after this iteration (once more to stop at once) ...")


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit code: 0, 2 for an error, 130 where it was interrupted."""
    options = parse_arguments(arguments)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, ask_to_stop)
    try:
        run(options)
    except KeyboardInterrupt:
        log("interrupted; the same command goes on from the last snapshot")
        return 130
    except (ValueError, FileNotFoundError, RuntimeError, OSError) as error:
        if options.traceback:
            traceback.print_exc()
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

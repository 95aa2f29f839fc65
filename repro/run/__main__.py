"""Runs the rows of the paper's tables: `python -m repro.run table1`, or all of them: `python -m repro.run all`. See --help, README and protocols/README.md."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shlex
import signal
import sys
from pathlib import Path

from repro.data.pool import interruptible
from repro.device import Compute, choose_algorithms, choose_device, planned_device
from repro.distributed import end_at_once, joined, launched, listen_only, local_world_size, own_device, rank, world_size
from repro.files import write_text
from repro.protocol import load_protocol, load_protocols
from repro.records import check, score
from repro.records.own import known_protocols
from repro.records.store import git_state
from repro.records.tables import as_markdown, as_text, learnt_line
from repro.run import crf_search
from repro.run.cost import row_flops
from repro.run.dry_run import idle_lines, plan_lines
from repro.run.inputs import Given
from repro.run.jobs import Sources, look_at_sources, table_records, train_all
from repro.run.memory import check_memory
from repro.run.options import Options
from repro.run.plan import Plan, list_lines, parse_shard, share, tables_of
from repro.shell import check_writable, exit_code, log, one_line
from repro.visualize import figures_of_run

MOST_WORKERS = 1024
RUNS = Path("runs")
MOST_SEEDS = 1000
FILL_BATCHES = 4  # that --fill looks at
_stop_asked = False

COMMANDS = """other commands, each with its own --help:
  python -m repro.run check   compares records with the paper; exit code 1 where something lies outside its tolerance
  python -m repro.run score   enters the VOC server's score of a submission
  python -m repro.run crf-search   tries a grid of CRFs on a trained row's validation images

torchrun --nproc-per-node N -m repro.run TABLE ... trains each row on N GPUs, or N processes of a CPU; see README
"""


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m repro.run",
        description=__doc__,
        epilog=COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("table", metavar="TABLE", nargs="?", help="a protocol: table1, ..., text, a .toml file, or all")
    add("--list", action="store_true", help="list tables, rows and what is recorded under --out, and stop")
    add("--row", action="append", metavar="ID", help="run this row only (may be repeated)")
    add(
        "--data-root",
        type=Path,
        metavar="DIR",
        help="the real images, labels and lists: a data set's folder, or one that holds person_part/, voc2012/ and coco/; without it table1 runs its synthetic stand-in",
    )
    add(
        "--weights",
        metavar="FILE",
        help="initial .caffemodel, or none; by default the protocol's file under the data root",
    )
    add("--device", default="auto", help="auto (the default), cpu, cuda or cuda:N")
    add("--precision", default="fp32", choices=("fp32", "tf32", "bf16"), help="fp32 (the default) is the faithful one")
    add(
        "--deterministic",
        action="store_true",
        help="on a GPU: the same bits every time, from slower algorithms; without it cuDNN takes the fastest, and last bits may differ from run to run; "
        "a CPU gives the same bits anyway",
    )
    add(
        "--cuda-graph",
        action="store_true",
        help="on one GPU: record the forward and backward pass of an iteration once, after three plain ones, and start each later one by one launch",
    )
    add(
        "--workers",
        type=int,
        metavar="N",
        help="processes that decode images ahead (default: one per spare core; 0 for synthetic data)",
    )
    add("--seed", type=int, default=1, metavar="N", help="Caffe's random_seed (default 1)")
    add(
        "--seeds",
        type=int,
        default=1,
        metavar="K",
        help="run every row with K seeds, from --seed on; the table gives mean and spread",
    )
    add("--shard", metavar="I/N", help="run share I of N, of equal cost; a stage is the first machine's")
    add("--out", type=Path, default=RUNS, metavar="DIR", help="records, snapshots and tables (default runs/)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the protocol, e.g. solver.max_iter=200; solver.max_iter=0 evaluates --weights as they are",
    )
    add(
        "--fill",
        metavar="LAYERS",
        help="declare layers that --weights lacks, e.g. fc6,fc7: each is drawn, then scaled and shifted until every channel has mean 0 and unit variance over "
        "the first batches; fc6=filler leaves it as it was drawn",
    )
    add("--subset", action="store_true", help="declare that the lists hold a subset of the protocol's images")
    add(
        "--dry-run",
        action="store_true",
        help="look at data and weights, print the resolved plan and its cost, and stop",
    )
    add("--traceback", action="store_true", help="show where an error comes from")
    options = parser.parse_args(arguments)
    if options.table is None and not options.list:
        parser.error("TABLE must be given, or --list")
    return options


def make_options(arguments: argparse.Namespace, device, synthetic: bool) -> Options:
    """Collects how to run.

    Raises:
        ValueError: The number of workers is out of range, or a CUDA graph is asked for where there can be none.
    """
    workers = arguments.workers
    if workers is None:
        workers = 0 if synthetic else max(1, (os.cpu_count() or 1) // local_world_size() - 1)
    if not 0 <= workers <= MOST_WORKERS:
        raise ValueError(
            f"--workers: must be 0..{MOST_WORKERS}; got {workers}; use 0 to decode in the training process"
        )
    if arguments.cuda_graph and device.type != "cuda":
        raise ValueError(f"--cuda-graph: needs a CUDA device; got {device.type}; leave it out")
    if arguments.cuda_graph and world_size() > 1:
        raise ValueError(
            f"--cuda-graph: must be one process's, for no graph holds the sums over several; got {world_size()} processes; leave it out, or torchrun"
        )
    how = {"deterministic": arguments.deterministic, "cuda_graph": arguments.cuda_graph}
    return Options(arguments.out, Compute(device, arguments.precision, workers, **how), lambda: bool(_stop_asked))


def fill_overrides(text: str) -> list[str]:
    """Writes --fill as the overrides that it stands for.

    Raises:
        ValueError: A layer has no name.
    """
    pairs = [layer.partition("=")[::2] for layer in text.split(",")]
    if not all(re.fullmatch(r"\w+", layer) for layer, _ in pairs):
        raise ValueError(f"--fill: must be layers' names, joined by commas; got {text!r}; for example --fill fc6,fc7")
    fillers = [filler or "unit_variance" for _, filler in pairs]
    lists = {"layers": [layer for layer, _ in pairs], "fillers": fillers}
    return [*(f"fill.{key}={json.dumps(names)}" for key, names in lists.items()), f"fill.batches={FILL_BATCHES}"]


def run(arguments: argparse.Namespace) -> None:
    """Does what the command line asks."""
    git_state()
    names = tables_of(arguments.table or "all")
    if arguments.row and len(names) > 1:
        raise ValueError("--row: must go with one table; got all; name the row's table")
    if not 1 <= arguments.seeds <= MOST_SEEDS or not 0 <= arguments.seed <= 2**32 - arguments.seeds:
        raise ValueError(
            f"--seeds, --seed: must be 1..{MOST_SEEDS} and 0..2^32-1; got {arguments.seeds}, {arguments.seed}; correct them"
        )
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    if arguments.list:
        if arguments.table is None:  # the paper's, this package's others, one's own
            names += [name for name in load_protocols() if name not in names]
            names += map(str, known_protocols([arguments.out]).own.values())
        print("\n".join(list_lines(names, arguments.out, seeds)))
        return
    stand_in = load_protocol(names[0]).stand_in if arguments.data_root is None and len(names) == 1 else ""
    if stand_in:
        note = load_protocol(stand_in).note
        log(f"{names[0]}: no --data-root given, so its stand-in {stand_in} runs: {note}")
    overrides = [*(fill_overrides(arguments.fill) if arguments.fill is not None else []), *arguments.set]
    plan = Plan([stand_in] if stand_in else names, arguments.row or [], seeds, overrides)
    jobs = plan.jobs
    if arguments.shard:
        index, count = parse_shard(arguments.shard)
        jobs = share(jobs, index, count, lambda job: row_flops(job.row.settings))
        log(f"shard {index} of {count}: {len(jobs)} of {len(plan.jobs)} trainings")
    given = Given(arguments.data_root, arguments.weights, arguments.subset)
    synthetic = all("synthetic" in job.row.settings for job in jobs)
    if arguments.dry_run:
        if rank() > 0:
            return
        device, name = planned_device(arguments.device)
        options = make_options(arguments, device, synthetic)
        # Without a data root there is nothing to look at yet; with one, what the run would refuse is refused now.
        looked = synthetic or given.data_root is not None
        found = look_at_sources(given, plan, jobs) if looked else None
        if options.compute.device.type == "cpu":
            check_memory(jobs, options.compute)
        print("\n".join(plan_lines(plan, jobs, options, name, found)))
        if found is None:
            log("data and weights were not looked at: no --data-root given")
        return

    device = choose_device(own_device(arguments.device), arguments.precision)
    options = make_options(arguments, device, synthetic)
    choose_algorithms(device, options.compute.deterministic)
    check_memory(jobs, options.compute)
    if rank() == 0:
        check_writable(options.out)
    for line in idle_lines(plan):
        log(line)
    with interruptible():  # nothing is trained yet, so nothing is lost
        sources = Sources(given, plan, jobs, options)
    found, waiting = train_all(plan, jobs, sources, options)
    if rank() > 0:
        return
    draw_figures(plan, arguments, options)
    tables = [(protocol, table_records(protocol, plan, found, sources, options)) for protocol in plan.tables]
    for protocol, records in tables:
        write_text(options.out / protocol.name / "table.md", as_markdown(protocol, records))
        print(as_text(protocol, records))
    print(last_line(learnt_line(tables), options.out))
    if waiting:
        stages = sorted({str(plan.stage_job(job.row)) for job in waiting})
        raise RuntimeError(
            f"--shard: {' and '.join(stages)} must be recorded under {options.out} before the rows that start from it; got {len(waiting)} rows that wait; "
            "run shard 1 (or copy its record and .caffemodel here), then this command again"
        )


def last_line(learnt: str, out: Path) -> str:
    """Says what was learnt, and the command that comes next."""
    runs = "" if out == RUNS else f" --runs {shlex.quote(str(out))}"
    return (f"Learnt: {learnt}. " if learnt else "") + f"Next: python -m repro.report{runs}"


def draw_figures(plan: Plan, arguments: argparse.Namespace, options: Options) -> None:
    """Draws what the networks see where it takes seconds, which is on synthetic data; says how it is done elsewhere. Never costs a run its table."""
    for protocol in plan.tables:
        if protocol.view:
            continue
        if not protocol.synthetic:
            log(
                f"{protocol.name}: its figures are drawn by python -m repro.visualize --run {options.out} --table {protocol.name} --data-root {arguments.data_root}"
            )
            continue
        try:
            figures_of_run(options.out, protocol.name, device=options.compute.device, log=log)
        except Exception as error:  # whatever a figure fails of, the table is printed
            log(f"{protocol.name}: no figures; {one_line(error)}")


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
    """Runs the program; returns its exit code: 0, 1 where `check` found something outside, 2 for an error, 130 where it was interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    listen_only()
    commands = {"check": check.main, "score": score.main, "crf-search": crf_search.main}
    if arguments[:1] and arguments[0] in commands:
        if launched() and os.environ["RANK"] != "0":
            return 0  # they are one process's work
        return commands[arguments[0]](arguments[1:])
    options = parse_arguments(arguments)

    def run_joined() -> None:
        with joined(options.device):  # until then there is nothing to save, and a signal ends what waits for others
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, ask_to_stop)
            run(options)

    code = exit_code(run_joined, options.traceback, "the same command goes on from the last snapshot")
    end_at_once(code)
    return code


if __name__ == "__main__":
    sys.exit(main())

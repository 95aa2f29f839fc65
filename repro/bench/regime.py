"""Measures what a study of a scale model's regime asks beside IoU: `python -m repro.bench.regime cost` and `... branches`.

`cost`: the processor time of one training iteration for crops and batches, which take turns: one thread's own time, the least of all rounds, so that other work on the machine hardly counts.
`branches`: of trained rows, what the scores of every scale see by themselves, and the norm of the gradient of the merged scores' loss beside that of the sum with extra supervision.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import caffe_weights
from repro.data.lists import read_items
from repro.data.stream import Batch, ImageSegData
from repro.data.synthetic.cache import draw_data
from repro.device import Compute, processor_name
from repro.evaluate.labels import evaluate
from repro.evaluate.metrics import summary
from repro.files import write_json
from repro.models import MultiScale, Output, build
from repro.models.weights import load_caffemodel
from repro.ops import interp
from repro.protocol import load_protocol
from repro.records.store import git_state, read_record
from repro.shell import exit_code
from repro.solver.loss import losses
from repro.solver.snapshot import trained_network
from repro.solver.train import iteration_seed, make_solver, training_stream

FORMAT = 1


class Branch(nn.Module):
    """One scale of a network by itself: its own scores, enlarged to the finest map as for merging, are all that it says.

    Args:
        network: With several scales.
        number: Of the scale, in the network's order.
    """

    def __init__(self, network: MultiScale, number: int):
        super().__init__()
        self.network, self.number = network, number

    def forward(self, x: torch.Tensor) -> Output:
        """Scores a batch, as `MultiScale.forward`."""
        scores = self.network(x).scores
        return Output([interp(scores[self.number], scores[0].shape[2:])], None, "average")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m repro.bench.regime", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    cost = commands.add_parser("cost", help="processor time of an iteration for crops and batches")
    cost.add_argument("table", help="a protocol with synthetic data, whose own crop and batch are measured too")
    cost.add_argument("row", help="its row")
    cost.add_argument("shapes", nargs="+", metavar="CROPxBATCH", help="such as 97x4")
    cost.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides of the protocol")
    branches = commands.add_parser("branches", help="every scale by itself, and gradient norms, of trained rows")
    branches.add_argument(
        "runs", nargs="+", type=Path, metavar="DIR", help="folders of recorded rows of several scales"
    )
    for command, count, what in ((cost, 10, "rounds"), (branches, 20, "batches")):
        command.add_argument(f"--{what}", type=int, default=count, metavar="N", help=f"(default {count})")
        command.add_argument("--out", type=Path, required=True, metavar="FILE", help="the JSON file to write")
        command.add_argument("--traceback", action="store_true", help="show where an error comes from")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    options = parse_arguments(arguments)
    return exit_code(lambda: _run(options), options.traceback)


def _run(options: argparse.Namespace) -> None:
    counted = "rounds" if options.command == "cost" else "batches"
    if getattr(options, counted) < 1:
        raise ValueError(f"--{counted}: must be at least 1; got {getattr(options, counted)}; correct it")
    if options.command == "cost":
        found = {"row": f"{options.table}/{options.row}", "rounds": options.rounds, "results": _costs(options)}
    else:
        found = {"batches": options.batches, "results": [_branches(run, options.batches) for run in options.runs]}
    versions = {"torch": str(torch.__version__)}
    made = {"threads": torch.get_num_threads(), "device_name": processor_name(), "versions": versions}
    finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_json(options.out, {"format": FORMAT, "git": git_state(), "finished": finished} | made | found)
    print(f"{options.out}: {len(found['results'])} results")


def parse_shape(text: str) -> tuple[int, int]:
    """Reads "97x4" as a crop of 97 pixels and a batch of 4.

    Raises:
        ValueError: It is no such pair.
    """
    crop, _, batch = text.partition("x")
    if not (crop.isdecimal() and batch.isdecimal()):
        raise ValueError(f"shape: must be CROPxBATCH, whole numbers; got {text!r}; write such as 97x4")
    return int(crop), int(batch)


def batches_of(settings: dict[str, dict], seed: int) -> ImageSegData:
    """Makes the batches of a row's training on drawn data, from the first."""
    data = settings["data"]
    items = read_items(draw_data(settings), data["train_list"], data["images"], data["labels"])
    return training_stream(items, settings, seed)


def all_losses(network: MultiScale, batch: Batch, ignore_label: int) -> dict[str, torch.Tensor]:
    """Computes every loss of a batch, extra supervision's too, whether the row has it or not."""
    return losses(network.train()(batch.data), batch.label, network.scales, True, ignore_label, batch.dim)


def _costs(options: argparse.Namespace) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    own = load_protocol(options.table, options.set).row(options.row).settings
    shapes = [(own["transform"]["crop_size"], own["solver"]["batch_size"]), *map(parse_shape, options.shapes)]
    steps = {shape: _stepper(options, *shape) for shape in dict.fromkeys(shapes)}
    seconds: dict[tuple[int, int], list[float]] = {shape: [] for shape in steps}
    for number in range(1 + options.rounds):
        for shape, step in steps.items():
            started = time.process_time()
            step()
            seconds[shape] += [time.process_time() - started] * (number > 0)
    return [
        {"crop_size": crop, "batch_size": batch, "cpu_ms": 1000 * min(seconds[crop, batch])} for crop, batch in steps
    ]


def _stepper(options: argparse.Namespace, crop: int, batch: int) -> Callable[[], None]:
    """Makes a function that does one iteration of a row at another crop and batch: all losses, gradients and update; the images are always the same."""
    overrides = [*options.set, f"transform.crop_size={crop}", f"solver.batch_size={batch}"]
    settings = load_protocol(options.table, overrides).row(options.row).settings
    network = initial_network(settings, seed=1)
    solver = make_solver(network, settings)
    images = next(iter(batches_of(settings, seed=1)))

    def step() -> None:
        solver.zero_grad()
        sum(all_losses(network, images, settings["data"]["ignore_label"]).values()).backward()
        solver.step()

    return step


def initial_network(settings: dict[str, dict], seed: int) -> MultiScale:
    """Makes the network with which the training of a row starts that is shipped with its weights."""
    network = build(settings["model"], len(settings["data"]["class_names"]), seed)
    load_caffemodel(network, Path(caffe_weights.__file__).parent / settings["weights"]["file"])
    return network


def gradient_norm(network: nn.Module) -> float:
    """Computes the Euclidean norm of all gradients together."""
    return float(torch.stack([p.grad.double().norm() for p in network.parameters() if p.grad is not None]).norm())


def gradient_norms(network: MultiScale, settings: dict[str, dict], seed: int, batches: int) -> dict[str, float]:
    """Measures the gradient at a network's parameters as they are, over the first batches of a training.

    Returns:
        Medians over the batches: "merged", the norm for the merged scores' loss alone; "all", for the sum of all losses.
    """
    norms: dict[str, list[float]] = {"merged": [], "all": []}
    for number, images in enumerate(itertools.islice(batches_of(settings, seed), batches)):
        torch.manual_seed(iteration_seed(seed, number))
        found = all_losses(network, images, settings["data"]["ignore_label"])
        for name, loss in (("merged", found["loss"]), ("all", sum(found.values()))):
            network.zero_grad()
            loss.backward(retain_graph=name == "merged")
            norms[name].append(gradient_norm(network))
    return {name: statistics.median(values) for name, values in norms.items()}


def _branches(run: Path, batches: int) -> dict[str, Any]:
    record = read_record(run / "record.json")
    settings, seed = record["settings"], record["seed"]
    scales, data = settings["model"]["scales"], settings["data"]
    if "synthetic" not in settings or len(scales) < 2:
        raise ValueError(
            f"{run}: must be a row of several scales on drawn data; got {record['table']}/{record['row']}; name another"
        )
    network = trained_network(record, run / "snapshot.pt")
    items = read_items(draw_data(settings), data["val_list"], data["images"], data["labels"])
    compute = Compute(torch.device("cpu"))
    alone = {}
    for number, scale in enumerate(scales):
        counts = evaluate(Branch(network, number), items, settings, compute)
        alone[f"{scale:g}"] = summary(counts.confusion, data["class_names"], "mean_iou")["value"]
    return {
        "row": record["row"],
        "seed": seed,
        "value": record["value"],
        "settings_sha256": record["provenance"]["settings_sha256"],
        "alone": alone,
        "gradient_at_start": gradient_norms(initial_network(settings, seed), settings, seed, batches),
        "gradient_at_end": gradient_norms(network, settings, seed, batches),
    }


if __name__ == "__main__":
    sys.exit(main())

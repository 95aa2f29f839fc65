"""Searches the CRF of a trained row on its validation images: `python -m repro.run crf-search table3 --row baseline --data-root DIR`.

The network runs once over the images and its scores are kept; then every setting of the grid is tried on them. Each result is written at once, so that the same
command goes on where it was stopped; a larger grid keeps what was tried. The results, one table, one plot and the chosen keys as a piece of protocol
lie in the row's folder, under crf-search/.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from repro.charts.crf_search import crf_search as chart
from repro.charts.style import LIGHT, plain, save_png, svg
from repro.data.fingerprint import fingerprint
from repro.data.lists import Item, read_items
from repro.data.pool import interruptible
from repro.device import Compute, choose_device
from repro.documents import document_bytes, parse_json
from repro.evaluate.kept import keep_outputs, kept_labels, output_path
from repro.evaluate.labels import ahead
from repro.evaluate.metrics import ConfusionMatrix, summary
from repro.files import write_json, write_text
from repro.protocol import Row, load_protocol, metric_name
from repro.protocol.bounds import BOUNDS
from repro.records.store import Record, read_record, record_path
from repro.run.inputs import dataset_root
from repro.run.lock import locked
from repro.shell import exit_code, log
from repro.solver.snapshot import trained_network, training_identity

FORMAT = 1
FOLDER = "crf-search"  # in the row's folder
MOST_WORKERS = 1024
GRID = ("bi_w", "bi_xy_std", "bi_rgb_std")
Numbers = list[int | float]


def _numbers(text: str) -> Numbers:
    """Reads a list such as 3,4,5 of the command line."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be numbers with commas between them, such as 3,4,5; got {text!r}"
        ) from None
    return [int(number) if number.is_integer() else number for number in dict.fromkeys(found)]


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line; the grid's defaults are the authors' (bi_w in [3:6], bi_xy_std in [30:10:100], bi_rgb_std in [3:6])."""
    parser = argparse.ArgumentParser(
        prog="python -m repro.run crf-search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("table", metavar="TABLE", help="a protocol: table3, or a .toml file")
    add("--row", required=True, metavar="ID", help="the row, which is recorded under --out with its snapshot")
    add("--data-root", type=Path, required=True, metavar="DIR", help="the data set's folder, or one that holds several")
    add("--out", type=Path, default=Path("runs"), metavar="DIR", help="the run's --out (default runs/)")
    add("--seed", type=int, default=1, metavar="N", help="of the run (default 1)")
    add(
        "--images",
        type=int,
        default=100,
        metavar="N",
        help="validation images, evenly drawn from the list (default 100)",
    )
    add("--bi-w", type=_numbers, default=[3, 4, 5, 6], metavar="LIST", help="default 3,4,5,6")
    add("--bi-xy-std", type=_numbers, default=[*range(30, 101, 10)], metavar="LIST", help="default 30,40,...,100")
    add("--bi-rgb-std", type=_numbers, default=[3, 4, 5, 6], metavar="LIST", help="default 3,4,5,6")
    add("--pos-w", type=_numbers, default=[3], metavar="N", help="default 3")
    add("--pos-xy-std", type=_numbers, default=[3], metavar="N", help="default 3")
    add("--max-iter", type=_numbers, default=[10], metavar="N", help="default 10")
    add("--device", default="auto", help="auto (the default), cpu, cuda or cuda:N")
    add(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="images that are tried at once, in threads (default: one per CPU)",
    )
    add("--traceback", action="store_true", help="show where an error comes from")
    return parser.parse_args(arguments)


def settings_of_grid(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Lists the grid's settings, each a protocol's section.

    Raises:
        ValueError: A number is not one that a protocol may have.
    """
    for key in ("max_iter", "pos_w", "pos_xy_std"):
        if len(getattr(options, key)) != 1:
            raise ValueError(f"--{key.replace('_', '-')}: must be one number; got {getattr(options, key)}; leave one")
    for key, (least, most) in BOUNDS["crf"].items():
        for value in getattr(options, key):
            if not least <= value <= most or (key == "max_iter" and not isinstance(value, int)):
                what = "an integer " if key == "max_iter" else ""
                raise ValueError(
                    f"--{key.replace('_', '-')}: must be {what}within {least} and {most}; got {value}; correct it"
                )
    fixed = {key: getattr(options, key)[0] for key in ("max_iter", "pos_w", "pos_xy_std")}
    values = itertools.product(*(getattr(options, key) for key in GRID))
    return [fixed | dict(zip(GRID, one, strict=True)) for one in values]


def drawn(items: list[Item], number: int) -> list[Item]:
    """Draws so many images evenly from a list, the first among them."""
    number = min(number, len(items))
    return [items[k * len(items) // number] for k in range(number)]


class Search:
    """A row's search: its images, what is known of them, and what was tried.

    Args:
        row: Of the protocol.
        record: The row's.
        items: The images.
        folder: Of the search, in the row's folder.
        compute: Where, and how many images at once.

    Raises:
        ValueError: The folder holds another network's or other images' search, or a damaged one.
    """

    def __init__(self, row: Row, record: Record, items: list[Item], folder: Path, compute: Compute):
        self.row, self.items, self.folder, self.compute = row, items, folder, compute
        self.settings = {section: table for section, table in record["settings"].items() if section != "crf"}
        self.path = folder / "search.json"
        self.document: dict[str, Any] = {
            "format": FORMAT,
            "identity": self._identity(record),
            "table": record["table"],
            "row": record["row"],
            "seed": record["seed"],
            "images": [item.name for item in items],
            "before_crf": None,
            "tried": [],
        }
        self.outputs = folder / f"scores-{self.document['identity'][:16]}"
        if self.path.exists():
            self._read()

    def _identity(self, record: Record) -> str:
        """Names everything that a value depends on but the CRF: the training, the images, how they are tested, and the metric."""
        files = fingerprint(self.items, self.folder / "data_read.json")
        tested = [training_identity(record["provenance"], record["settings"]), files, self.row.metric]
        return hashlib.sha256(json.dumps(tested).encode()).hexdigest()

    def _read(self) -> None:
        """Takes over what an earlier command found."""
        try:
            found = parse_json(document_bytes(self.path))
            same = found["format"] == FORMAT and found["identity"] == self.document["identity"]
            self.document |= {"before_crf": found["before_crf"], "tried": list(found["tried"])} if same else {}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}: must be a search's results; got {error}; delete {self.folder}") from error
        if not same:
            raise ValueError(
                f"{self.path}: must be of this very network and these images; got another search; delete {self.folder}, or choose the same --images"
            )

    def value_of(self, crf: dict[str, Any]) -> float | None:
        """Finds the value of a setting that was tried."""
        return next((one["value"] for one in self.document["tried"] if one["crf"] == crf), None)

    def score(self, network: Any) -> None:
        """Runs the network over the images whose scores are not kept yet, and measures them without a CRF."""
        todo = sum(not output_path(self.outputs, item).is_file() for item in self.items)
        with self._bar(todo, "scores") as bar:
            keep_outputs(network, self.items, self.settings, self.compute, self.outputs, bar.update)
        if self.document["before_crf"] is None:
            self.document["before_crf"] = self.measured(None)
            write_json(self.path, self.document)

    def measured(self, crf: dict[str, Any] | None) -> float:
        """Measures one setting on all images, percent."""
        data, settings = self.settings["data"], self.settings | ({} if crf is None else {"crf": crf})
        counts = ConfusionMatrix(len(data["class_names"]), data["ignore_label"])

        def labelled(item: Item) -> tuple[torch.Tensor, torch.Tensor]:
            labels, _, label = kept_labels(item, settings, self.outputs, self.compute.device)
            return labels, label

        with self._bar(len(self.items), "  images") as bar:
            for labels, label in ahead(labelled, self.items, self.compute.workers):
                counts.add(labels, label)
                bar.update()
        return summary(counts.result(), data["class_names"], self.row.metric)["value"]

    def try_one(self, crf: dict[str, Any]) -> float:
        """Measures a setting, unless it was tried, and writes the result at once."""
        value = self.value_of(crf)
        if value is None:
            started = time.monotonic()
            value = self.measured(crf)
            self.document["tried"].append({"crf": crf, "value": value, "seconds": time.monotonic() - started})
            write_json(self.path, self.document)
        return value

    @staticmethod
    def _bar(total: int, what: str) -> tqdm:
        return tqdm(total=total, desc=what, unit="image", disable=not sys.stderr.isatty(), leave=False)


@contextlib.contextmanager
def shared_threads(workers: int) -> Iterator[None]:
    """Shares the operators' threads among images that are tried at once, in place of as many for each."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // max(1, workers)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def table_lines(tried: list[dict[str, Any]], best: dict[str, Any]) -> list[str]:
    """Lays the grid out: a line for each weight and colour width, a column for each width in position; the best one is marked."""
    values = {tuple(one["crf"][key] for key in GRID): one["value"] for one in tried}
    columns = sorted({key[1] for key in values})
    lines = [["bi_w", "bi_rgb_std", *(f"{xy:g}" for xy in columns)]]
    for weight, rgb in sorted({(key[0], key[2]) for key in values}):
        cells = []
        for xy in columns:
            value = values.get((weight, xy, rgb))
            mark = "*" if (weight, xy, rgb) == tuple(best["crf"][key] for key in GRID) else ""
            cells.append("-" if value is None else f"{value:.2f}{mark}")
        lines.append([f"{weight:g}", f"{rgb:g}", *cells])
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]


def overrides(crf: dict[str, Any]) -> str:
    """Writes a setting as options of repro.run."""
    return " ".join(f"--set crf.{key}={json.dumps(value)}" for key, value in crf.items())


def write_results(search: Search, grid: list[dict[str, Any]]) -> list[str]:
    """Writes the plot, the table and the chosen keys; returns what the terminal shows."""
    document, folder, name = search.document, search.folder, metric_name(search.row.metric)
    tried = [one for one in document["tried"] if one["crf"] in grid]
    tried.sort(key=lambda one: grid.index(one["crf"]))
    best = max(tried, key=lambda one: one["value"])  # of equal ones the first of the grid
    place = f"{document['table']} {document['row']}, seed {document['seed']}"
    title = f"{place}: {len(search.items)} images"
    fixed = ", ".join(f"{key} {best['crf'][key]:g}" for key in ("pos_w", "pos_xy_std", "max_iter"))
    lines = [
        f"{title}; {name}, percent; by bi_xy_std; {fixed}",
        *table_lines(tried, best),
        f"without a CRF {document['before_crf']:.2f}; best* {best['value']:.2f}: {overrides(best['crf'])}",
    ]
    write_text(folder / "table.txt", "\n".join(lines) + "\n")
    write_text(folder / "search.svg", plain(svg(chart(tried, document["before_crf"], name, title))))
    save_png(chart(tried, document["before_crf"], name, title, LIGHT), folder / "search.png")
    keys = "".join(f"{key} = {json.dumps(value)}\n" for key, value in best["crf"].items())
    write_text(
        folder / "crf.toml",
        f"# inferred: the best of {len(tried)} settings on {title}: {best['value']:.2f}, without a CRF {document['before_crf']:.2f}\n[common.crf]\n{keys}",
    )
    write_json(search.path, document | {"best": best})
    return [*lines, f"{folder}: search.json, table.txt, search.svg, search.png, crf.toml"]


def run(options: argparse.Namespace) -> None:
    """Does what the command line asks."""
    grid = settings_of_grid(options)
    if options.images < 1 or not 0 <= options.workers <= MOST_WORKERS:
        raise ValueError(
            f"--images, --workers: must be at least 1, and 0..{MOST_WORKERS}; got {options.images}, {options.workers}; correct them"
        )
    protocol = load_protocol(options.table)
    row = protocol.row(options.row)
    path = record_path(options.out, protocol.name, row.id, options.seed)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: must be the record of a trained row; got no such file; run {options.table} --row {row.id} --out {options.out} first"
        )
    record = read_record(path)
    data = record["settings"]["data"]
    root = dataset_root(options.data_root, row.dataset, several=False)
    items = drawn(read_items(root, data["val_list"], data["images"], data["labels"]), options.images)
    unlabelled = next((item.name for item in items if item.label is None), None)
    if unlabelled is not None:
        raise ValueError(
            f"{unlabelled}: must have a label; got none in the list {data['val_list']}; use a list with labels"
        )
    precision = record["provenance"]["precision"]
    compute = Compute(choose_device(options.device, precision), precision, options.workers)
    folder = path.parent / FOLDER
    with interruptible(), locked(folder):
        search = Search(row, record, items, folder, compute)
        search.score(trained_network(record, path.with_name("snapshot.pt")).to(compute.device))
        log(f"{len(items)} images; without a CRF {search.document['before_crf']:.2f}")
        with shared_threads(options.workers):
            for number, crf in enumerate(grid, start=1):
                known = search.value_of(crf) is not None
                value = search.try_one(crf)
                keys = ", ".join(f"{key} {crf[key]:g}" for key in GRID)
                log(f"[{number}/{len(grid)}] {keys}: {value:.2f}{', tried before' if known else ''}")
        print("\n".join(write_results(search, grid)))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 2 for an error, 130 where it was interrupted."""
    options = parse_arguments(arguments)
    return exit_code(lambda: run(options), options.traceback, "the same command goes on where it stopped")

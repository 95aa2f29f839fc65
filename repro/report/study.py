"""The page of a study, such as protocols/studies/demo_regime: `python -m repro.report.study FOLDER`. Needs no torch.

A study's folder holds study.toml (question, rule of choice, what was found), trials.json (what is kept of the runs' records), cost.json and branches.json (of repro.bench.regime); README.md
is written from these. `--add` keeps the records of more runs, `--check` fails where the page is stale.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from repro.documents import document_bytes, parse_json
from repro.files import write_text
from repro.protocol import Protocol, load_protocol
from repro.records.claims import claims
from repro.records.store import Record, read_document, walk
from repro.records.verdict import measure
from repro.report.words import signed, two
from repro.shell import exit_code

FORMAT = 1
PAGE, TEXT, TRIALS = "README.md", "study.toml", "trials.json"
KEYS = {"title", "protocol", "rows", "question", "rule", "cost_limit", "chosen_seeds", "found"}
# What a trial may change, as (section, key); the trial of a study's table names them in this order.
CHANGES = (
    ("solver", "base_lr"),
    ("solver", "max_iter"),
    ("solver", "stepsize"),
    ("solver", "batch_size"),
    ("transform", "crop_size"),
)
EXTRA, ATTENTION = "extra supervision helps", "attention is at least as good as average and max"  # as claims.py says


class Regime(NamedTuple):
    """What a trial changes, and one row of the table."""

    base_lr: float
    max_iter: int
    stepsize: int
    batch_size: int
    crop_size: int

    @property
    def shape(self) -> tuple[int, int]:
        """Crop and batch, by which an iteration costs."""
        return self.crop_size, self.batch_size


class Study(NamedTuple):
    """A study's folder, read.

    text: Of study.toml.
    trials: Of trials.json.
    costs: Processor time of an iteration by crop and batch, ms; the first is the protocol's as it stood.
    cost, branches: The whole documents of repro.bench.regime.
    """

    text: dict[str, Any]
    trials: list[dict[str, Any]]
    costs: dict[tuple[int, int], float]
    cost: dict[str, Any]
    branches: dict[str, Any]

    @property
    def protocol(self) -> Protocol:
        """The protocol whose regime is studied, as it is now."""
        return load_protocol(self.text["protocol"])

    def values(self, regime: Regime, seeds: Iterable[int] = (1,)) -> dict[str, list[float]]:
        """Lists the IoU of a regime's rows, percent, by row."""
        found: dict[str, list[float]] = {}
        for trial in self.trials:
            if regime_of(trial) == regime and trial["seed"] in seeds:
                found.setdefault(trial["row"], []).append(trial["value"])
        return found

    def relative_cost(self, regime: Regime) -> float:
        """Computes what a regime's training costs, of the first trial's."""
        first = regime_of(self.trials[0])
        return self.costs[regime.shape] * regime.max_iter / (self.costs[first.shape] * first.max_iter)

    def mean(self, regime: Regime) -> float | None:
        """Computes the mean IoU of the study's rows, seed 1; None where one is missing."""
        values = self.values(regime)
        return (
            measure(values[row][0] for row in self.text["rows"]).mean
            if values.keys() >= set(self.text["rows"])
            else None
        )

    @property
    def regimes(self) -> list[Regime]:
        """Every regime, in the order of the trials."""
        return list(dict.fromkeys(map(regime_of, self.trials)))

    @property
    def chosen(self) -> Regime:
        """The regime that the rule chooses."""
        within = [one for one in self.regimes if self.mean(one) and self.relative_cost(one) <= self.text["cost_limit"]]
        return max(within, key=self.mean)


def regime_of(trial: dict[str, Any]) -> Regime:
    """Reads the regime of a trial."""
    return Regime(*(trial["regime"][key] for key in Regime._fields))


def compact(record: Record) -> dict[str, Any]:
    """Keeps of a record what a study's tables and its reader need."""
    run = record["run"]
    return {
        "row": record["row"],
        "seed": record["seed"],
        "value": record["value"],
        "regime": {key: record["settings"][section][key] for section, key in CHANGES},
        "settings_sha256": record["provenance"]["settings_sha256"],
        "commit": run["git"]["commit"],
        "device_name": run["device_name"],
        "threads": run["threads"],
        "torch": run["versions"]["torch"],
        "finished": run["finished"],
    }


def add(folder: Path, runs: list[Path]) -> None:
    """Keeps what is needed of the records of some runs: of the study's protocol and rows; those known already are passed over.

    Raises:
        ValueError: A record is damaged.
    """
    text = _read_text(folder)
    path = folder / TRIALS
    trials = parse_json(document_bytes(path))["trials"] if path.exists() else []
    for stored in walk(runs, text["protocol"]):
        if stored.reason:
            raise ValueError(f"{stored.path}: must be a record of a run; got {stored.reason}; remove it")
        if stored.record["row"] in text["rows"] and (trial := compact(stored.record)) not in trials:
            trials.append(trial)
    lines = ",\n".join(f"  {json.dumps(trial, sort_keys=True, allow_nan=False)}" for trial in trials)
    write_text(path, f'{{"format": {FORMAT}, "trials": [\n{lines}\n]}}\n')


def _read_text(folder: Path) -> dict[str, Any]:
    try:
        text = tomllib.loads(document_bytes(folder / TEXT).decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / TEXT}: must be TOML; got {error}; correct it") from error
    if different := sorted(KEYS ^ set(text)):
        raise ValueError(
            f"{folder / TEXT}: must have exactly the known keys; got a difference in {', '.join(different)}; correct it"
        )
    return text


def read_study(folder: Path) -> Study:
    """Reads a study's folder.

    Raises:
        ValueError: A file is missing, damaged, foreign or newer than this program, or the files do not fit together.
    """
    text = _read_text(folder)
    documents = {}
    for name in (TRIALS, "cost.json", "branches.json"):
        try:
            documents[name] = read_document(folder / name, "part of a study", FORMAT)[0]
        except ValueError as error:
            raise ValueError(f"{folder / name}: must be part of a study; got {error}; measure it again") from error
    costs = {(one["crop_size"], one["batch_size"]): one["cpu_ms"] for one in documents["cost.json"]["results"]}
    trials = documents[TRIALS]["trials"]
    if unknown := sorted({regime_of(trial).shape for trial in trials} - costs.keys()):
        raise ValueError(
            f"{folder / 'cost.json'}: must have the cost of every crop and batch that was tried; got none of {unknown}; measure them with repro.bench.regime cost"
        )
    return Study(text, trials, costs, documents["cost.json"], documents["branches.json"])


def _table(head: list[str], lines: list[list[str]]) -> list[str]:
    align = [":--", *(["--:"] * (len(head) - 1))]
    return ["", *(f"| {' | '.join(line)} |" for line in (head, align, *lines)), ""]


def _verdict(study: Study, claim: str, values: dict[str, list[float]]) -> str:
    """Says in how many of the measured pairs a claim's upper row is above, and by how much in each."""
    pairs = [pair for one in claims(study.protocol, values) if one.text == claim for pair in one.pairs if pair.measured]
    ups = [pair.measured.mean for pair in pairs]
    return f"{sum(up > 0 for up in ups)} of {len(ups)} ({', '.join(map(signed, ups))})" if ups else "–"


def _regime_cells(regime: Regime) -> list[str]:
    return [f"{regime.base_lr:g}", str(regime.max_iter), str(regime.batch_size), str(regime.crop_size)]


def regimes_table(study: Study) -> list[str]:
    """Renders every regime with the IoU of its rows, seed 1."""
    rows = study.text["rows"]
    head = ["base_lr", "iterations", "batch", "crop", "cost", *rows, "mean", "extra helps in", "attention leads in"]
    lines = []
    for regime in study.regimes:
        values = study.values(regime)
        cells = [
            *_regime_cells(regime),
            f"{study.relative_cost(regime):.2f}",
            *(two(values[row][0]) if row in values else "–" for row in rows),
            two(study.mean(regime)),
            *(_verdict(study, claim, values) for claim in (EXTRA, ATTENTION)),
        ]
        lines.append([f"**{cell}**" for cell in cells] if regime == study.chosen else cells)
    return _table(head, lines)


def seeds_table(study: Study) -> list[str]:
    """Renders the chosen regime over its seeds."""
    seeds, rows = study.text["chosen_seeds"], study.text["rows"]
    lines = []
    for seed in seeds:
        values = study.values(study.chosen, [seed])
        cells = [two(values[row][0]) if row in values else "–" for row in rows]
        lines.append([f"seed {seed}", *cells, *(_verdict(study, claim, values) for claim in (EXTRA, ATTENTION))])
    values = study.values(study.chosen, seeds)
    cells = [measure(values.get(row, [])) for row in rows]
    shown = ["–" if c is None else f"{two(c.mean)} ± {two(c.spread)}" for c in cells]
    lines.append(
        ["mean ± standard deviation", *shown, *(_verdict(study, claim, values) for claim in (EXTRA, ATTENTION))]
    )
    return _table(["", *rows, "extra helps in", "attention leads in"], lines)


def branches_table(study: Study) -> list[str]:
    """Renders what the scores of every scale see by themselves."""
    results = study.branches["results"]
    scales = sorted(results[0]["alone"], key=float, reverse=True)
    head = ["row", "merged", *(f"scale {scale} alone" for scale in scales)]
    return _table(
        head,
        [
            [f"{one['row']}, seed {one['seed']}", two(one["value"]), *(two(one["alone"][s]) for s in scales)]
            for one in results
        ],
    )


def gradients_table(study: Study) -> list[str]:
    """Renders the gradient's norms without and with extra supervision, at the same parameters."""
    lines = []
    for one in study.branches["results"]:
        cells = [f"{one['row']}, seed {one['seed']}"]
        for when in ("gradient_at_start", "gradient_at_end"):
            norms = one[when]
            cells += [f"{norms['merged']:.3g}", f"{norms['all']:.3g}", f"{norms['all'] / norms['merged']:.2f}"]
        lines.append(cells)
    head = ["parameters of", "start: loss alone", "with extra", "ratio", "end: loss alone", "with extra", "ratio"]
    return _table(head, lines)


def page(study: Study) -> str:
    """Renders the page."""
    text = study.text
    machines = sorted(
        {
            f"{t['device_name']}, {t['threads']} threads, torch {t['torch']}, commit {str(t['commit'])[:10]}"
            for t in study.trials
        }
    )
    lines = [
        f"# {text['title']}",
        "",
        f"*Written by `python -m repro.report.study` from the files beside it; do not edit. Rows of `{text['protocol']}`: {study.protocol.note}.*",
        "",
        f"**Question.** {text['question'].strip()}",
        "",
        f"**Rule of choice**, written before the first trial. {text['rule'].strip()}",
        "",
        f"**Found.** {text['found'].strip()}",
        "",
        "## Regimes",
        "",
        f"Mean IoU, percent, seed 1. The first line is the regime as it stood; cost is relative to it, and must be at most {text['cost_limit']:g}. The chosen regime is bold.",
        *regimes_table(study),
        "## The chosen regime with more seeds",
        *seeds_table(study),
        "## Every scale by itself",
        "",
        "Mean IoU, percent, of the trained rows when the scores of one scale alone are enlarged and labelled: what extra supervision is for.",
        *branches_table(study),
        "## Gradients",
        "",
        f"Norm of the whole gradient at the same parameters, on the same batches and dropout masks, for the merged scores' loss alone and for the sum with every scale's own loss: "
        f"medians over {study.branches['batches']} batches, at the start of the training and at its end.",
        *gradients_table(study),
        "## Where the numbers come from",
        "",
        *(f"- Trials: {machine}." for machine in machines),
        f"- Cost: processor time of one thread, the least of {study.cost['rounds']} rounds, {study.cost['row']} with extra supervision, {study.cost['device_name']}, torch {study.cost['versions']['torch']}: "
        + ", ".join(f"crop {crop} batch {batch}: {ms:.0f} ms" for (crop, batch), ms in study.costs.items())
        + ".",
        f"- Scales and gradients: {study.branches['device_name']}, {study.branches['threads']} threads, torch {study.branches['versions']['torch']}.",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit code: 0, 1 where --check found a stale page, 2 for an error."""
    parser = argparse.ArgumentParser(prog="python -m repro.report.study", description=__doc__)
    parser.add_argument("folder", type=Path, help="the study's, such as protocols/studies/demo_regime")
    parser.add_argument(
        "--add",
        type=Path,
        nargs="+",
        default=[],
        metavar="OUT",
        help="keep the records of these runs' --out folders too",
    )
    parser.add_argument("--check", action="store_true", help="fail where the page is stale; nothing is written")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if options.add:
        add(options.folder, options.add)
    path, text = options.folder / PAGE, page(read_study(options.folder))
    if options.check and (not path.exists() or path.read_text(encoding="utf-8") != text):
        print(f"{path}: the page is stale; run python -m repro.report.study {options.folder}", file=sys.stderr)
        return 1
    if not options.check:
        write_text(path, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The page of a study, such as protocols/studies/demo_regime: `python -m repro.report.study FOLDER`. Needs no torch.

README.md is written from the folder's files (repro/records/study.py). `--add` keeps the records of more runs first, `--check` fails where the page is stale.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from repro.files import write_text
from repro.records.claims import claims
from repro.records.study import Regime, Study, add, read_study, regime_of
from repro.records.verdict import measure
from repro.report.words import signed, two
from repro.shell import exit_code

PAGE = "README.md"
EXTRA, ATTENTION = "extra supervision helps", "attention is at least as good as average and max"  # as claims.py says


def _table(head: list[str], lines: list[list[str]]) -> list[str]:
    align = [":--", *(["--:"] * (len(head) - 1))]
    return ["", *(f"| {' | '.join(line)} |" for line in (head, align, *lines)), ""]


def _differences(study: Study, claim: str, values: dict[str, list[float]]) -> list[float]:
    """Lists by how much the upper row of each of a claim's measured pairs is above."""
    found = [pair for one in claims(study.protocol, values) if one.text == claim for pair in one.pairs]
    return [pair.measured.mean for pair in found if pair.measured]


def _verdict(study: Study, claim: str, values: dict[str, list[float]]) -> str:
    """Says in how many of the measured pairs a claim's upper row is above, and by how much in each."""
    ups = _differences(study, claim, values)
    return f"{sum(up > 0 for up in ups)} of {len(ups)} ({', '.join(map(signed, ups))})" if ups else "–"


def _regime_cells(regime: Regime) -> list[str]:
    return [f"{regime.base_lr:g}", str(regime.max_iter), str(regime.batch_size), str(regime.crop_size)]


def _threads(number: int) -> str:
    return f"{number} thread" if number == 1 else f"{number} threads"


def _asked(study: Study) -> tuple[str, ...]:
    """Lists the claims that the study's rows can answer: of one row alone, none."""
    anything = {row: [0.0] for row in study.text["rows"]}
    return tuple(claim for claim in (EXTRA, ATTENTION) if _differences(study, claim, anything))


def _heads(study: Study) -> list[str]:
    return [{EXTRA: "extra helps in", ATTENTION: "attention leads in"}[claim] for claim in _asked(study)]


def regimes_table(study: Study) -> list[str]:
    """Renders every regime with the IoU of its rows, seed 1."""
    rows = study.text["rows"]
    mean = ["mean"] * (len(rows) > 1)
    head = ["base_lr", "iterations", "batch", "crop", "cost", *rows, *mean, *_heads(study)]
    lines = []
    for regime in study.regimes:
        values = study.values(regime)
        cells = [
            *_regime_cells(regime),
            f"{study.relative_cost(regime):.2f}",
            *(two(values[row][0]) if row in values else "–" for row in rows),
            *(two(study.mean(regime)) for _ in mean),
            *(_verdict(study, claim, values) for claim in _asked(study)),
        ]
        lines.append([f"**{cell}**" for cell in cells] if regime == study.chosen else cells)
    return _table(head, lines)


def counted(study: Study) -> str:
    """Counts the pairs of all regimes that speak for each claim, in one sentence; nothing where the rows answer none."""
    if not _asked(study):
        return ""
    within = [regime for regime in study.regimes if study.relative_cost(regime) <= study.text["cost_limit"]]
    counts = []
    for claim in _asked(study):
        ups = [up for regime in within for up in _differences(study, claim, study.values(regime))]
        counts.append(
            f"{claim}: {sum(up > 0 for up in ups)} of {len(ups)} pairs, mean difference {signed(measure(ups).mean)}"
        )
    return f"Over the {len(within)} regimes within the cost, {'; '.join(counts)}."


def seeds_table(study: Study) -> list[str]:
    """Renders the chosen regime over its seeds; nothing where there is one."""
    rows, chosen = study.text["rows"], study.chosen
    seeds = sorted({trial["seed"] for trial in study.trials if regime_of(trial) == chosen})
    if len(seeds) == 1:
        return ["", "No other seed was run.", ""]
    lines = []
    for seed in seeds:
        values = study.values(study.chosen, [seed])
        cells = [two(values[row][0]) if row in values else "–" for row in rows]
        lines.append([f"seed {seed}", *cells, *(_verdict(study, claim, values) for claim in _asked(study))])
    values = study.values(study.chosen, seeds)
    cells = [measure(values.get(row, [])) for row in rows]
    shown = ["–" if c is None else f"{two(c.mean)} ± {two(c.spread)}" for c in cells]
    lines.append(["mean ± standard deviation", *shown, *(_verdict(study, claim, values) for claim in _asked(study))])
    return _table(["", *rows, *_heads(study)], lines)


def branches_regime(study: Study) -> Regime:
    """Finds the regime in which the rows were trained whose scales were looked at."""
    known = {trial["settings_sha256"]: regime_of(trial) for trial in study.trials}
    return known[study.branches["results"][0]["settings_sha256"]]


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


def branches_sections(study: Study) -> list[str]:
    """Renders the sections on the scales by themselves and on gradients."""
    regime = branches_regime(study)
    return [
        "## Every scale by itself",
        "",
        f"Mean IoU, percent, of the trained rows when the scores of one scale alone are enlarged and labelled: what extra supervision is for. In this section and the next the regime is base_lr "
        f"{regime.base_lr:g}, {regime.max_iter} iterations, batch {regime.batch_size}, crop {regime.crop_size}.",
        *branches_table(study),
        "## Gradients",
        "",
        f"Norm of the whole gradient at the same parameters, on the same batches and dropout masks, for the merged scores' loss alone and for the sum with every scale's own loss: "
        f"medians over {study.branches['batches']} batches, at the start of the training and at its end.",
        *gradients_table(study),
    ]


def measurement_lines(study: Study) -> list[str]:
    """Says how cost, scales and gradients were measured."""
    lines, cost, branches = [], study.cost, study.branches
    if cost:
        times = ", ".join(f"crop {crop} batch {batch}: {ms:.0f} ms" for (crop, batch), ms in study.costs.items())
        lines.append(
            f"- Cost: processor time of one thread, the least of {cost['rounds']} rounds, {cost['row']} with extra supervision, {cost['device_name']}, torch {cost['versions']['torch']}: {times}."
        )
    else:
        lines.append("- Cost: iterations times the pixels of a batch.")
    if branches:
        where = f"{branches['device_name']}, {_threads(branches['threads'])}, torch {branches['versions']['torch']}"
        lines.append(f"- Scales and gradients: {where}.")
    return lines


def page(study: Study) -> str:
    """Renders the page."""
    text = study.text
    machines = sorted(
        {
            f"{t['device_name']}, {_threads(t['threads'])}, torch {t['torch']}, commit {str(t['commit'])[:10]}"
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
        f"**Rule of choice.** {text['rule'].strip()}",
        "",
        f"**Found.** {text['found'].strip()}",
        "",
        "## Regimes",
        "",
        f"Mean IoU, percent, seed 1. The first line is the regime as it stood; cost is relative to it, and must be at most {text['cost_limit']:g}. The chosen regime is bold.",
        *regimes_table(study),
        *([line, ""] if (line := counted(study)) else []),
        "## The chosen regime with more seeds",
        *seeds_table(study),
        *(branches_sections(study) if study.branches else []),
        "## Where the numbers come from",
        "",
        *(f"- Trials: {machine}." for machine in machines),
        *measurement_lines(study),
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

"""Curves: the loss and the learning rate over iterations, attention weights over object size."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from repro.charts.style import STAND_IN, WIDTH, Colours, empty, short, style

FEW_OBJECTS = 10  # a bin of fewer is drawn hollow
_MARKERS = "os^D"  # of the scales, finest first


def _smooth(values: Sequence[float], reach: int) -> list[float]:
    return [sum(part) / len(part) for part in (values[max(0, n - reach) : n + reach + 1] for n in range(len(values)))]


def loss_curve(row: str, curve: dict[str, Any], colours: Colours = STAND_IN) -> Figure:
    """Draws the training loss of every seed, its running mean, and the learning rate below."""
    with rc_context(style(colours, 8)):
        figure = Figure(figsize=(3.3, 2.05))
        figure.subplots_adjust(left=0.145, right=0.97, top=0.9, bottom=0.1, hspace=0.12)  # the same for every row
        rates = curve["learning_rate"]
        loss, *below = figure.subplots(
            1 + bool(rates), 1, sharex=True, height_ratios=[4, 1][: 1 + bool(rates)], squeeze=False
        )[:, 0]
        for seed, values in curve["loss"].items():
            loss.plot(curve["starts"], values, color=colours.base, linewidth=0.5, label=f"seed {seed}")
        for values in curve["loss"].values():
            mean = _smooth(values, max(1, len(values) // 20))
            loss.plot(curve["starts"], mean, color=colours.accent, linewidth=1.1, alpha=0.85)
        loss.grid(axis="y")
        loss.set_title(short(row, 40), loc="left", fontsize=8.5, color=colours.ink)
        loss.set_ylim(bottom=0)
        loss.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        loss.set_ylabel("loss")
        for rate in below:
            loss.tick_params(labelbottom=False)
            edges = [*curve["starts"], curve["iterations"]]
            rate.step(edges, [*rates, rates[-1]], where="post", color=colours.second, linewidth=1.1)
            if min(rates) > 0:
                rate.set_yscale("log")
                powers = range(math.floor(math.log10(min(rates)) + 1e-6), math.ceil(math.log10(max(rates)) - 1e-6) + 1)
                rate.set_ylim(10.0 ** (powers[0] - 0.5), 10.0 ** (powers[-1] + 0.5))
                rate.set_yticks([10.0**power for power in (powers[0], powers[-1])][: len(powers)])
                rate.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-")))
                rate.yaxis.set_minor_locator(NullLocator())
            rate.set_ylabel("rate")
        lowest = below[0] if below else loss
        lowest.set_xlim(0, curve["iterations"])
        lowest.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
        figure.align_ylabels()
        return figure


def attention_by_size(
    entries: Sequence[dict[str, Any]], title: str = "", note: str = "", colours: Colours = STAND_IN
) -> Figure:
    """Draws the mean attention weight of every scale against object size, a panel per row of the table, each averaged over seeds (weighted by objects).

    Args:
        entries: As in figures.json, "attention_by_size": "row", "seed", "scales" and "bins"; of one row all have the same scales.
        title: Above all.
        note: Below all.
        colours: Of the chart.

    Returns:
        The figure. Bars are one standard deviation over objects; bins of few objects are hollow.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        rows.setdefault(entry["row"], []).append(entry)
    columns = min(len(rows), 2)
    lines = -(-len(rows) // columns)
    with rc_context(style(colours)):
        figure = empty(WIDTH * columns, 2.7 * lines)
        grid = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
        for axes in grid[len(rows) :]:
            axes.set_visible(False)
        for axes, (row, found) in zip(grid, rows.items(), strict=False):
            _size_panel(axes, found, colours)
            seeds = f", {len(found)} seeds" if len(found) > 1 else ""
            axes.set_title(short(row, 30) + seeds, loc="left", fontsize=9, color=colours.ink)
        most = max(rows.values(), key=lambda found: len(found[0]["scales"]))
        panel = grid[list(rows.values()).index(most)]
        figure.legend(*panel.get_legend_handles_labels(), loc="outside upper right", ncols=4, handlelength=1.6)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=9.5, weight="bold")
        if note:
            wrapped = textwrap.fill(note, 84 * columns)
            figure.supxlabel(wrapped, x=0.01, ha="left", fontsize=7, color=colours.muted)
        return figure


def pooled(entries: Sequence[dict[str, Any]], scale: int) -> list[tuple[float, float, float, bool]]:
    """Pools the bins of several seeds: size (pixels, the middle of the bin), mean weight, its standard deviation over objects, and whether objects are many."""
    points = []
    for edges in sorted({(b["size_min"], b["size_max"]) for entry in entries for b in entry["bins"]}):
        same = [b for e in entries for b in e["bins"] if (b["size_min"], b["size_max"]) == edges and b["n_objects"]]
        if same:
            objects = sum(b["n_objects"] for b in same)
            mean = sum(b["mean_weight"][scale] * b["n_objects"] for b in same) / objects
            square = sum((b["std"][scale] ** 2 + b["mean_weight"][scale] ** 2) * b["n_objects"] for b in same) / objects
            many = max(b["n_objects"] for b in same) >= FEW_OBJECTS
            points.append((math.sqrt(edges[0] * edges[1]), mean, math.sqrt(max(square - mean**2, 0.0)), many))
    return points


def _size_panel(axes: Axes, entries: Sequence[dict[str, Any]], colours: Colours) -> None:
    scales = entries[0]["scales"]
    axes.grid()
    for index, scale in enumerate(scales):
        points = pooled(entries, index)
        colour, marker = colours.series[index % 4], _MARKERS[index % 4]
        apart = 2 ** (0.05 * (index - (len(scales) - 1) / 2))  # so that bars do not hide each other
        x, mean, std = ([point[n] for point in points] for n in range(3))
        x = [size * apart for size in x]
        axes.errorbar(x, mean, std, fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.45)
        axes.plot(x, mean, linewidth=1.5, color=colour)
        for many in (False, True):
            axes.plot(
                [a for a, point in zip(x, points, strict=True) if point[3] is many],
                [point[1] for point in points if point[3] is many],
                linestyle="",
                marker=marker,
                markersize=4.5,
                color=colour,
                markerfacecolor=colour if many else "none",
                label=f"scale {scale:g}" if many else None,
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    axes.tick_params(labelleft=True)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("object size: square root of its area, pixels")
    axes.set_ylabel("mean attention weight")

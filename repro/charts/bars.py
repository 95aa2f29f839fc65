"""Bars, marks and heat maps: the rows of a table, IoU by class, the confusion matrix, a benchmark."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from repro.charts.style import STAND_IN, WIDTH, Colours, empty, name_places, short, style

MOST_CLASSES = 24


def table_marks(table: dict[str, Any], colours: Colours = STAND_IN) -> Figure:
    """Draws a grid of cells: a line per scale set and merge, with the value without (hollow) and with extra supervision, the spread over seeds, and the printed values.

    Args:
        table: From the report's data, of the layout "grid". Printed values are drawn where the data are the paper's.
        colours: Of the chart.
    """
    cells = {cell["row"]: cell for cell in table["cells"] if cell["mean"] is not None}
    layout = table["layout"]
    lines = [("Single scale", [layout["baseline"]])] if layout["baseline"] else []
    for block in layout["blocks"]:
        lines += [(f"{line['merge']} {block['scales']}", line["cells"]) for line in block["lines"]]
    with rc_context(style(colours)):
        figure = empty(WIDTH, 0.62 + 0.34 * len(lines))
        axes = figure.add_subplot()
        axes.grid(axis="x")
        for filled in (False, True):
            shown = [
                (place, cells[ids[filled]])
                for place, (_, ids) in enumerate(lines)
                if len(ids) > filled and ids[filled] in cells
            ]
            if not shown:
                continue
            places = [place + (0.14 if filled else -0.14) for place, _ in shown]
            axes.errorbar(
                [cell["mean"] for _, cell in shown],
                places,
                xerr=[cell["spread"] or 0.0 for _, cell in shown],
                fmt="o",
                markersize=5.5,
                color=colours.accent,
                markerfacecolor=colours.accent if filled else "none",
                elinewidth=1,
                label="with extra supervision" if filled else "without",
            )
            printed = [
                (cell["paper"], place)
                for place, (_, cell) in zip(places, shown, strict=True)
                if cell["paper"] is not None
            ]
            if printed and not table["scale_model"]:
                style_ = {"linestyle": "", "marker": "|", "markersize": 8, "markeredgewidth": 1.6}
                axes.plot(
                    *zip(*printed, strict=True), color=colours.second, label=None if filled else "printed", **style_
                )
        name_places(axes, [name for name, _ in lines], colours, fontsize=7)
        axes.set_xlabel(textwrap.fill(f"{short(table['metric'], 120)}, percent", 46))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        figure.legend(loc="outside upper left", ncols=3, handlelength=1.1, columnspacing=1.2)
        return figure


def class_bars(classes: dict[str, Any], colours: Colours = STAND_IN) -> Figure:
    """Draws IoU by class: baseline and best row as bars with the spread of seeds, the paper's numbers as ticks.

    Args:
        classes: From the report's data. Of more than 24 classes the 12 best and the 12 worst are drawn.
        colours: Of the chart.
    """
    names, last = classes["classes"], classes["series"][-1]["mean"]
    shown = list(range(len(names)))
    if len(shown) > MOST_CLASSES:
        ranked = sorted(shown, key=lambda n: -last[n])
        shown = ranked[: MOST_CLASSES // 2] + ranked[-MOST_CLASSES // 2 :]
    with rc_context(style(colours)):
        figure = empty(WIDTH, 0.62 + (0.42 if len(shown) <= 10 else 0.3) * len(shown))
        axes = figure.add_subplot()
        axes.grid(axis="x")
        series = classes["series"]
        thick = 0.76 / len(series)
        for index, one in enumerate(series):
            y = [place - 0.38 + thick * (index + 0.5) for place in range(len(shown))]
            spread = [one["spread"][n] or 0.0 for n in shown]
            last_one = index == len(series) - 1
            axes.barh(
                y,
                [one["mean"][n] for n in shown],
                thick * 0.92,
                color=colours.accent if last_one else colours.base,
                label=short(one["row"]),
                xerr=spread if any(spread) else None,
                error_kw={"ecolor": colours.ink, "elinewidth": 0.8},
            )
        printed = [(n, classes["printed"][names[n]]) for n in shown if names[n] in classes["printed"]]
        if printed:
            places = [shown.index(n) for n, _ in printed]
            axes.vlines(
                [value for _, value in printed],
                [place - 0.44 for place in places],
                [place + 0.44 for place in places],
                color=colours.second,
                linewidth=1.8,
                label="printed",
            )
        # The numbers stand in a column of their own, where no bar, whisker or tick reaches.
        for place, n in enumerate(shown):
            axes.text(109, place, f"{last[n]:.1f}", va="center", ha="right", fontsize=7.5)
        name_places(axes, [short(names[n]) for n in shown], colours)
        axes.set_xlim(0, 109)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("IoU, percent")
        handles, _ = axes.get_legend_handles_labels()
        handles.sort(key=lambda handle: handle.get_label() == "printed")
        figure.legend(handles=handles, loc="outside upper left", ncols=3, handlelength=1.1, columnspacing=1.4)
        return figure


def confusion_map(confusion: dict[str, Any], colours: Colours = STAND_IN) -> Figure:
    """Draws a confusion matrix as a heat map: each label's pixels as shares of where they were predicted, with numbers for up to ten classes."""
    names, shares = [short(name) for name in confusion["classes"]], confusion["shares"]
    count = len(names)
    small = count <= 10
    with rc_context(style(colours)):
        figure = Figure(figsize=(WIDTH, WIDTH * 0.93), layout="constrained")
        axes = figure.add_subplot()
        values = [[math.nan if share is None else 100 * share for share in line] for line in shares]
        # viridis is even in lightness: it reads in grey and on either ground.
        image = axes.pcolormesh(values, cmap="viridis", vmin=0, vmax=100, edgecolors="none", rasterized=count > 30)
        axes.set_aspect("equal")
        axes.invert_yaxis()
        for y, line in enumerate(values if small else []):
            for x, value in enumerate(line):
                if value == value:
                    red, green, blue = image.cmap(value / 100)[:3]
                    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
                    colour = "#ffffff" if dark else "#000000"
                    axes.text(x + 0.5, y + 0.5, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
        step = max(1, math.ceil(count / 27))
        places = [n + 0.5 for n in range(0, count, step)]
        size = 8 if small else 6.5
        axes.set_xticks(
            places,
            names[::step],
            rotation=40 if small else 90,
            ha="right" if small else "center",
            rotation_mode="anchor" if small else "default",
            color=colours.ink,
            fontsize=size,
        )
        axes.set_yticks(places, names[::step], color=colours.ink, fontsize=size)
        axes.set_xlabel("predicted")
        axes.set_ylabel("label")
        for spine in axes.spines.values():
            spine.set_visible(False)
        bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=28, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_ticks([0, 50, 100], labels=["0", "50", "100 %"])
        return figure


# What of a benchmark is drawn -> in which unit, where a bar begins, what the line at `limit` is, and what the axis says.
_BENCH = {
    "ratio": (1, 1, "best eager PyTorch", "times faster than the best eager PyTorch"),
    "share_of_copy": (100, 0, "measured copy", "share of the measured copy bandwidth"),
}


def bench_bars(
    results: Sequence[dict[str, Any]], keys: Sequence[str], title: str = "", colours: Colours = STAND_IN
) -> Figure:
    """Draws a benchmark's bars, beside each other where there are several keys.

    Args:
        results: Of one file.
        keys: "ratio": how many times faster than the best eager PyTorch, of every contestant that is not eager; "share_of_copy": of our operators.
        title: Above all.
        colours: Of the chart.
    """
    ours = [r for r in results if not r["contestant"].startswith("eager")]
    cases = list(dict.fromkeys((r["op"], r["case"], r["direction"]) for r in ours))
    contestants = {
        key: list(dict.fromkeys(r["contestant"] for r in ours if key == "ratio" or r["contestant"] == "ours"))
        for key in keys
    }
    most = max(len(found) for found in contestants.values())
    with rc_context(style(colours)):
        figure = empty(WIDTH * len(keys), 0.75 + (0.2 + 0.13 * most) * len(cases))
        figure.suptitle(title or None, fontsize=8.5)
        for axes, key in zip(figure.subplots(1, len(keys), sharey=True, squeeze=False)[0], keys, strict=True):
            _bench_panel(axes, ours, cases, contestants[key], key, colours)
        way = {"forward": "fwd", "forward+backward": "fwd+bwd"}
        names = [f"{short(op)}\n{short(case)}, {short(way.get(to, to), 12)}" for op, case, to in cases]
        name_places(figure.axes[0], names, colours, fontsize=7)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=3, handlelength=1.1, columnspacing=1.4)
        return figure


def _bench_panel(
    axes: Axes,
    results: Sequence[dict[str, Any]],
    cases: Sequence[tuple[str, str, str]],
    contestants: Sequence[str],
    key: str,
    colours: Colours,
) -> None:
    unit, start, line, label = _BENCH[key]
    limit = max(unit, start)
    axes.grid(axis="x")
    thick = 0.78 / max(1, len(contestants))
    widest = limit
    for index, contestant in enumerate(contestants):
        of = {(r["op"], r["case"], r["direction"]): r[key] * unit for r in results if r["contestant"] == contestant}
        places = [n for n, case in enumerate(cases) if case in of]
        y = [n - 0.39 + thick * (index + 0.5) for n in places]
        values = [of[cases[n]] for n in places]
        widest = max([widest, *values])
        colour = colours.accent if contestant == "ours" else colours.base
        # A ratio's bar begins at 1: slower goes to the left.
        axes.barh(y, [v - start for v in values], thick * 0.9, left=start, color=colour, label=short(contestant))
        for place, value in zip(y, values, strict=True):
            written = f"{value:.0f} %" if unit == 100 else f"{value:#.3g}×"
            # Beside the bar and beside the line.
            end = max(value, limit) if unit == 1 or value > 0.86 * limit else value
            axes.annotate(written, (end, place), (3, 0), textcoords="offset points", va="center", fontsize=7)
    if unit == 1:
        axes.set_xscale("log")
        axes.set_xlim(0.8 * min([1, *(r[key] for r in results)]), widest * 2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    else:
        axes.set_xlim(0, widest * 1.16)
    axes.axvline(limit, color=colours.second, linewidth=1.2, label=line)
    axes.set_xlabel(label)

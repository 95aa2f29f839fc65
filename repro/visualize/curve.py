"""Drawing the curve of mean attention weight against object size."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from caffe_weights.files.atomic import replacing
from repro.visualize.draw import GREY, INK, head_height, wrapped_head

# One colour and marker per scale, finest first: Okabe and Ito's, dark enough for lines on white.
_SCALES = (("#0072b2", "o"), ("#009e73", "s"), ("#d55e00", "D"), ("#cc79a7", "^"))
_PANEL_HEIGHT, _PANEL_WIDTH, DPI = 360, 540, 150  # pixels, and pixels per inch


def draw_curves(entries: Sequence[dict[str, Any]], title: str, subtitle: str) -> Figure:
    """Draws mean attention weight per scale against object size, a panel per row of the table.

    Args:
        entries: As in figures.json, "attention_by_size": "row", "seed", "scales" and "bins".
        title: Above all.
        subtitle: Under the title, smaller.

    Returns:
        The figure; several seeds of a row are thin lines of the same colour, a single one carries bars of one standard deviation.
    """
    rows = list(dict.fromkeys(entry["row"] for entry in entries))
    columns = min(len(rows), 2)
    lines = -(-len(rows) // columns)
    body = _PANEL_HEIGHT * lines
    width = max(_PANEL_WIDTH * columns, 640)
    titles, notes = wrapped_head(width, title, subtitle)
    head = head_height(titles, notes)
    figure = Figure(figsize=(width / DPI, (head + body) / DPI), dpi=DPI, facecolor="white")
    for text, y, style in (
        ("\n".join(titles), 12, {"fontsize": 8.2, "weight": "bold", "color": INK}),
        ("\n".join(notes), 14 + 22 * len(titles), {"fontsize": 6.3, "color": GREY}),
    ):
        figure.text(12 / width, 1 - y / (head + body), text, va="top", linespacing=1.3, parse_math=False, **style)
    figure.set_layout_engine("constrained", rect=(0, 0, 1, body / (head + body)), w_pad=0.06, h_pad=0.06)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    edges = [edge for entry in entries for one in entry["bins"] for edge in (one["size_min"], one["size_max"])]
    for axes in grid[len(rows) :]:
        axes.set_visible(False)
    for axes, row in zip(grid, rows, strict=False):
        ours = [entry for entry in entries if entry["row"] == row]
        for entry in ours:
            _draw_entry(axes, entry, alone=len(ours) == 1)
        axes.set_title(row if len(ours) == 1 else f"{row}, {len(ours)} seeds", fontsize=8, color=INK, parse_math=False)
        axes.set_xscale("log", base=2)
        axes.set_xlim(min(edges, default=1), max(edges, default=2))
        axes.set_ylim(0, 1)
        axes.xaxis.set_major_locator(FixedLocator([2.0**k for k in range(13)]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.tick_params(labelsize=7, colors=INK, labelbottom=True, length=3)
        axes.grid(color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.set_xlabel("object size: root of its area, pixels", fontsize=7, color=INK)
        axes.set_ylabel("mean attention weight", fontsize=7, color=INK)
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        axes.legend(handles.values(), handles, fontsize=7, frameon=False, loc="upper center", ncols=4, handlelength=1.6)
    return figure


def _draw_entry(axes: Axes, entry: dict[str, Any], alone: bool) -> None:
    centre = np.array([(one["size_min"] * one["size_max"]) ** 0.5 for one in entry["bins"]])
    for s, scale in enumerate(entry["scales"]):
        colour, marker = _SCALES[s % len(_SCALES)]
        mean = np.array([one["mean_weight"][s] for one in entry["bins"]])
        x = centre * 2 ** (0.03 * (s - (len(entry["scales"]) - 1) / 2))  # apart, so that bars do not hide each other
        if alone:
            std = [one["std"][s] for one in entry["bins"]]
            axes.errorbar(x, mean, std, fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.45)
        axes.plot(
            x,
            mean,
            color=colour,
            marker=marker,
            markersize=3.4,
            linewidth=1.5 if alone else 0.8,
            label=f"scale {scale:g}",
        )
    if alone:
        note = {"textcoords": "offset points", "ha": "center", "fontsize": 5.6, "color": GREY}
        for x, one in zip(centre, entry["bins"], strict=True):
            axes.annotate(str(one["n_objects"]), (x, 0), (0, 3), **note)
        axes.annotate("n", (0, 0), (-6, 3), xycoords="axes fraction", **note)


def save_curves(figure: Figure, path: Path) -> None:
    """Writes the figure as PNG or SVG, by the path's suffix, whole or not at all; the same figure gives the same bytes."""
    buffer, kind = io.BytesIO(), path.suffix[1:]
    FigureCanvasAgg(figure)
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "repro"}):
        warnings.filterwarnings("ignore", "Glyph")  # a row's note may be in any script
        figure.savefig(buffer, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else {"Software": None})
    with replacing(path) as part:
        part.write_bytes(buffer.getvalue())

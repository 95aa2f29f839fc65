"""The search for a CRF's keys: IoU over the width of its second kernel, a panel for each colour width, a line for each weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from repro.charts.style import STAND_IN, WIDTH, Colours, empty, short, style

_MARKERS = "os^Dvp*h"


def crf_search(
    tried: Sequence[dict[str, Any]], before: float, metric: str, title: str = "", colours: Colours = STAND_IN
) -> Figure:
    """Draws what every setting gave.

    Args:
        tried: One entry per setting: "crf", a protocol's section, and "value", percent.
        before: Without a CRF, percent; a line across.
        metric: What the values are.
        title: Above all.
        colours: Of the chart.
    """
    panels = sorted({one["crf"]["bi_rgb_std"] for one in tried})
    weights = sorted({one["crf"]["bi_w"] for one in tried})
    columns = min(len(panels), 2)
    with rc_context(style(colours)):
        figure = empty(WIDTH * columns, 2.5 * -(-len(panels) // columns) + 0.3)
        grid = figure.subplots(-(-len(panels) // columns), columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        for axes, rgb in zip(grid, panels, strict=False):
            axes.grid()
            axes.axhline(before, color=colours.muted, linewidth=1, linestyle="--", label="no CRF")
            for n, weight in enumerate(weights):
                points = sorted(
                    (one["crf"]["bi_xy_std"], one["value"])
                    for one in tried
                    if (one["crf"]["bi_rgb_std"], one["crf"]["bi_w"]) == (rgb, weight)
                )
                if points:
                    axes.plot(
                        *zip(*points, strict=True),
                        marker=_MARKERS[n % len(_MARKERS)],
                        markersize=4,
                        linewidth=1.2,
                        color=colours.series[n % len(colours.series)],
                        label=f"bi_w {weight:g}",
                    )
            axes.set_title(f"bi_rgb_std {rgb:g}", loc="left", fontsize=9, color=colours.ink)
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            axes.tick_params(labelleft=True, labelbottom=True)
            axes.set_xlabel("bi_xy_std, pixels")
            axes.set_ylabel(f"{short(metric, 32)}, percent")
        found = {
            label: handle for axes in grid for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(found.values(), found.keys(), loc="outside upper right", ncols=5, handlelength=1.6)
        figure.suptitle(title or None, x=0.01, ha="left", fontsize=9.5, weight="bold")
        return figure

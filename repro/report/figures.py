"""The report's figures, as SVG: drawn once in stand-in colours, which become those of a light or a dark page."""

from __future__ import annotations

import io
import math
import re
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

# Stand-in colour -> its name, on light and on dark. Series: Okabe and Ito's colours, which the colour-blind tell apart, darkened or lightened for contrast.
INK, MUTED, GRID, BASE, ACCENT, SECOND, THIRD, FOURTH = (f"#1000{n:02x}" for n in range(1, 9))
SERIES = (ACCENT, SECOND, THIRD, FOURTH)
LIGHT = {
    INK: "#1d2126",
    MUTED: "#646b75",
    GRID: "#e2e4e8",
    BASE: "#a9b0ba",
    ACCENT: "#0f6aa8",
    SECOND: "#c2570c",
    THIRD: "#117a5c",
    FOURTH: "#a4447c",
}
DARK = {
    INK: "#e6e8eb",
    MUTED: "#9aa2ad",
    GRID: "#343a43",
    BASE: "#69717d",
    ACCENT: "#5bb0ea",
    SECOND: "#f0954a",
    THIRD: "#4cc29c",
    FOURTH: "#e08fbf",
}
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "repro",  # the same ids in every run
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # a name from a record is never a formula
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "savefig.transparent": True,
}
WIDTH = 4.7  # inches: 451 CSS pixels, which a phone shows at three quarters
MOST_CLASSES = 24
FEW_OBJECTS = 10  # a bin of fewer is drawn hollow


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # The renderer measures with its own font; the reader's system chooses among these.
    return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)


def adaptive(svg: str) -> str:
    """Colours a figure for a page that follows the reader's light or dark scheme, and for print."""
    names = {colour: f"--c{number}" for number, colour in enumerate(LIGHT)}
    rules = ["svg{" + ";".join(f"{names[c]}:{scheme[c]}" for c in names) + "}" for scheme in (LIGHT, DARK)]
    for colour, name in names.items():
        svg = svg.replace(colour, f"var({name})")
    head, close, rest = svg.partition(">")
    return f"{head}{close}<style>{rules[0]}@media screen and (prefers-color-scheme:dark){{{rules[1]}}}</style>{rest}"


def plain(svg: str) -> str:
    """Colours a figure for any page: light, on a white ground."""
    for colour, value in LIGHT.items():
        svg = svg.replace(colour, value)
    head, close, rest = svg.partition(">")
    return f'{head}{close}<rect width="100%" height="100%" fill="#ffffff"/>{rest}'


def _short(name: str, most: int = 24) -> str:
    """Cuts a name that would leave a figure no room."""
    return name if len(name) <= most else name[: most - 1] + "…"


def _axes(width: float, height: float, **grid: Any) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
    axes = figure.add_subplot()
    axes.grid(**grid)
    return figure, axes


def class_bars(classes: dict[str, Any]) -> str:
    """Draws IoU by class: baseline and best row as bars with the spread of seeds, the paper's numbers as ticks.

    Args:
        classes: From the report's data. Of more than 24 classes the 12 best and the 12 worst are drawn.
    """
    names, last = classes["classes"], classes["series"][-1]["mean"]
    shown = list(range(len(names)))
    if len(shown) > MOST_CLASSES:
        ranked = sorted(shown, key=lambda n: -last[n])
        shown = ranked[: MOST_CLASSES // 2] + ranked[-MOST_CLASSES // 2 :]
    with rc_context(STYLE):
        figure, axes = _axes(WIDTH, 0.62 + (0.42 if len(shown) <= 10 else 0.3) * len(shown), axis="x")
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
                color=ACCENT if last_one else BASE,
                label=_short(one["row"]),
                xerr=spread if any(spread) else None,
                error_kw={"ecolor": INK, "elinewidth": 0.8},
            )
            if last_one:
                for place, n in zip(y, shown, strict=True):
                    axes.text(
                        one["mean"][n] + (one["spread"][n] or 0.0) + 1,
                        place,
                        f"{one['mean'][n]:.1f}",
                        va="center",
                        fontsize=7.5,
                    )
        printed = [
            (place, classes["printed"][names[n]]) for place, n in enumerate(shown) if names[n] in classes["printed"]
        ]
        if printed:
            axes.vlines(
                [value for _, value in printed],
                [place - 0.44 for place, _ in printed],
                [place + 0.44 for place, _ in printed],
                color=SECOND,
                linewidth=1.8,
                label="printed",
            )
        axes.set_yticks(range(len(shown)), [_short(names[n]) for n in shown], color=INK)
        axes.set_ylim(len(shown) - 0.45, -0.55)
        axes.set_xlim(0, 108)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("IoU, percent")
        axes.spines["left"].set_visible(False)
        handles, _ = axes.get_legend_handles_labels()
        bars = [handle for handle in handles if handle.get_label() != "printed"]
        ticks = [handle for handle in handles if handle.get_label() == "printed"]
        figure.legend(handles=bars + ticks, loc="outside upper left", ncols=3, handlelength=1.1, columnspacing=1.4)
        return _svg(figure)


def confusion_map(confusion: dict[str, Any]) -> str:
    """Draws a confusion matrix as a heat map: each label's pixels as shares of where they were predicted, with numbers for up to ten classes."""
    names, shares = [_short(name) for name in confusion["classes"]], confusion["shares"]
    count = len(names)
    small = count <= 10
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, WIDTH * 0.93), layout="constrained")
        axes = figure.add_subplot()
        values = [[math.nan if share is None else 100 * share for share in line] for line in shares]
        # viridis is even in lightness: it reads in grey and on either ground.
        image = axes.pcolormesh(values, cmap="viridis", vmin=0, vmax=100, edgecolors="none", rasterized=count > 30)
        axes.set_aspect("equal")
        axes.invert_yaxis()
        if small:
            for y, line in enumerate(values):
                for x, value in enumerate(line):
                    if value == value:
                        red, green, blue = image.cmap(value / 100)[:3]
                        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
                        axes.text(
                            x + 0.5,
                            y + 0.5,
                            f"{value:.0f}",
                            ha="center",
                            va="center",
                            color="#ffffff" if dark else "#000000",
                            fontsize=8,
                        )
        step = max(1, math.ceil(count / 27))
        places = [n + 0.5 for n in range(0, count, step)]
        size = 8 if small else 6.5
        axes.set_xticks(
            places,
            names[::step],
            rotation=90 if count > 10 else 40,
            ha="center" if count > 10 else "right",
            rotation_mode="default" if count > 10 else "anchor",
            color=INK,
            fontsize=size,
        )
        axes.set_yticks(places, names[::step], color=INK, fontsize=size)
        axes.set_xlabel("predicted")
        axes.set_ylabel("label")
        for spine in axes.spines.values():
            spine.set_visible(False)
        bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=28, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_ticks([0, 50, 100], labels=["0", "50", "100 %"])
        return _svg(figure)


def _smooth(values: list[float], reach: int) -> list[float]:
    return [sum(part) / len(part) for part in (values[max(0, n - reach) : n + reach + 1] for n in range(len(values)))]


def loss_curve(row: str, curve: dict[str, Any]) -> str:
    """Draws the training loss of every seed, its running mean, and the learning rate below."""
    with rc_context(STYLE | {"font.size": 8}):
        figure = Figure(figsize=(3.3, 2.05))
        figure.subplots_adjust(left=0.145, right=0.97, top=0.9, bottom=0.1, hspace=0.12)  # the same for every row
        rates = curve["learning_rate"]
        loss, *below = figure.subplots(
            1 + bool(rates), 1, sharex=True, height_ratios=[4, 1][: 1 + bool(rates)], squeeze=False
        )[:, 0]
        for seed, values in curve["loss"].items():
            loss.plot(curve["starts"], values, color=BASE, linewidth=0.5, label=f"seed {seed}")
        for values in curve["loss"].values():
            loss.plot(
                curve["starts"], _smooth(values, max(1, len(values) // 20)), color=ACCENT, linewidth=1.1, alpha=0.85
            )
        loss.grid(axis="y")
        loss.set_title(_short(row, 40), loc="left", fontsize=8.5, color=INK)
        loss.set_ylim(bottom=0)
        loss.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        loss.set_ylabel("loss")
        for rate in below:
            loss.tick_params(labelbottom=False)
            rate.step(
                [*curve["starts"], curve["iterations"]], [*rates, rates[-1]], where="post", color=SECOND, linewidth=1.1
            )
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
        return _svg(figure)


def attention_by_size(row: str, entries: list[dict[str, Any]]) -> str:
    """Draws the mean attention weight of every scale against object size, averaged over seeds (weighted by objects); bins of few objects are hollow."""
    scales = entries[0]["scales"]
    with rc_context(STYLE):
        figure, axes = _axes(WIDTH, 2.7)
        sizes = [(b["size_min"], b["size_max"]) for b in entries[0]["bins"]]
        for index, scale in enumerate(scales):
            points = []
            for low, high in sizes:
                same = [
                    b
                    for e in entries
                    for b in e["bins"]
                    if (b["size_min"], b["size_max"]) == (low, high) and b["n_objects"]
                ]
                if same:
                    objects = [b["n_objects"] for b in same]
                    mean = sum(b["mean_weight"][index] * b["n_objects"] for b in same) / sum(objects)
                    points.append((math.sqrt(max(low, 1.0) * high), mean, max(objects) >= FEW_OBJECTS))
            colour, marker = SERIES[index % len(SERIES)], "os^D"[index % 4]
            axes.plot([x for x, _, _ in points], [y for _, y, _ in points], linewidth=1.5, color=colour)
            for many in (False, True):
                axes.plot(
                    [x for x, _, enough in points if enough is many],
                    [y for _, y, enough in points if enough is many],
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
        axes.set_ylim(bottom=0)
        axes.set_title(_short(row, 40), loc="left", fontsize=9, color=INK)
        axes.set_xlabel("object size: square root of its area, pixels")
        axes.set_ylabel("mean attention weight")
        figure.legend(loc="outside upper right", ncols=len(scales), handlelength=1.6)
        return _svg(figure)


def bench_bars(results: list[dict[str, Any]], key: str) -> str:
    """Draws a benchmark's bars.

    Args:
        results: Of one file.
        key: "ratio": how many times faster than the best eager PyTorch, of every contestant that is not eager; "share_of_copy": of our operators.
    """
    kept = [
        r
        for r in results
        if (r["contestant"] == "ours" if key == "share_of_copy" else not r["contestant"].startswith("eager"))
    ]
    cases = list(dict.fromkeys((r["op"], r["case"], r["direction"]) for r in kept))
    contestants = list(dict.fromkeys(r["contestant"] for r in kept))
    scale = 100 if key == "share_of_copy" else 1
    with rc_context(STYLE):
        figure, axes = _axes(WIDTH, 0.75 + (0.2 + 0.13 * len(contestants)) * len(cases), axis="x")
        thick = 0.78 / max(1, len(contestants))
        limit = 100 if scale == 100 else 1
        widest = max([limit, *(r[key] * scale for r in kept)])
        for index, contestant in enumerate(contestants):
            of = {(r["op"], r["case"], r["direction"]): r[key] * scale for r in kept if r["contestant"] == contestant}
            places = [n for n, case in enumerate(cases) if case in of]
            y = [n - 0.39 + thick * (index + 0.5) for n in places]
            values = [of[cases[n]] for n in places]
            from_ = 0 if scale == 100 else 1  # a ratio's bar begins at 1: slower goes to the left
            widths = [value - from_ for value in values]
            colour = ACCENT if contestant == "ours" else BASE
            axes.barh(y, widths, thick * 0.9, left=from_, color=colour, label=_short(contestant))
            for place, value in zip(y, values, strict=True):
                written = f"{value:.0f} %" if scale == 100 else f"{value:#.3g}×"
                end = value + widest / 80 if scale == 100 else max(value, 1) * 1.06
                axes.text(end, place, written, va="center", fontsize=7)
        short = {"forward": "fwd", "forward+backward": "fwd+bwd"}
        axes.set_yticks(
            range(len(cases)),
            [f"{_short(op)}\n{_short(case)}, {_short(short.get(way, way), 12)}" for op, case, way in cases],
            color=INK,
            fontsize=7,
        )
        axes.set_ylim(len(cases) - 0.45, -0.55)
        if scale == 100:
            axes.set_xlim(0, widest * 1.16)
        else:
            axes.set_xscale("log")
            axes.set_xlim(0.8 * min([1, *(r[key] for r in kept if r[key] > 0)]), widest * 2)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
        axes.axvline(
            limit, color=SECOND, linewidth=1.2, label="measured copy" if scale == 100 else "best eager PyTorch"
        )
        axes.set_xlabel(
            "share of the measured copy bandwidth" if scale == 100 else "times faster than the best eager PyTorch"
        )
        axes.spines["left"].set_visible(False)
        figure.legend(loc="outside upper left", ncols=3, handlelength=1.1, columnspacing=1.4)
        return _svg(figure)

"""How charts look, and how they become SVG for a light or a dark page, or PNG."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from caffe_weights.files.atomic import replacing

DPI = 150  # of a PNG
WIDTH = 4.7  # inches: 451 CSS pixels, which a phone shows at three quarters


class Colours(NamedTuple):
    """The colours of a chart; the last four are the series: Okabe and Ito's, which the colour-blind tell apart, darkened or lightened for contrast."""

    ink: str
    muted: str
    grid: str
    base: str
    accent: str
    second: str
    third: str
    fourth: str

    @property
    def series(self) -> tuple[str, ...]:
        """What tells scales apart, finest first."""
        return self[4:]


# Stand-ins, which `adaptive` and `plain` replace.
STAND_IN = Colours(*(f"#1000{n:02x}" for n in range(1, 9)))
LIGHT = Colours("#1d2126", "#646b75", "#e2e4e8", "#a9b0ba", "#0f6aa8", "#c2570c", "#117a5c", "#a4447c")
DARK = Colours("#e6e8eb", "#9aa2ad", "#343a43", "#69717d", "#5bb0ea", "#f0954a", "#4cc29c", "#e08fbf")


def style(colours: Colours, size: float = 8.5) -> dict[str, Any]:
    """Makes matplotlib's settings; a chart is drawn and saved under the same.

    Args:
        colours: Its colours.
        size: Of its text, points.
    """
    return {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "repro",  # the same ids in every run
        "font.family": "sans-serif",
        "font.sans-serif": ["Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
        "font.size": size,
        "text.color": colours.ink,
        "text.parse_math": False,  # a name from a record is never a formula
        "axes.edgecolor": colours.muted,
        "axes.labelcolor": colours.muted,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": colours.grid,
        "grid.linewidth": 0.7,
        "xtick.color": colours.muted,
        "ytick.color": colours.muted,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "legend.frameon": False,
        "legend.fontsize": 8,
    }


def empty(width: float, height: float) -> Figure:
    """Makes a figure of so many inches that lays its axes out by itself."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
    return figure


def short(name: str, most: int = 24) -> str:
    """Cuts a name that would leave a figure no room, and puts a sign in the place of characters that cannot be drawn."""
    name = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
    return name if len(name) <= most else name[: most - 1] + "…"


def name_places(axes: Axes, names: list[str], colours: Colours, **text: Any) -> None:
    """Names the places of a chart of horizontal bars, the first one above."""
    axes.set_yticks(range(len(names)), names, color=colours.ink, **text)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.spines["left"].set_visible(False)


def svg(figure: Figure) -> str:
    """Writes a figure as SVG, without the moment of its making."""
    buffer = io.StringIO()
    with rc_context(style(STAND_IN)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the reader's system has fonts for a name in any script
        warnings.filterwarnings(
            "ignore", "constrained_layout not applied"
        )  # long names from a foreign file: drawn as they fall
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # The renderer measures with its own font; the reader's system chooses among these.
    return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)


def adaptive(svg: str) -> str:
    """Colours a figure in stand-ins for a page that follows the reader's light or dark scheme, and for print."""
    names = {colour: f"--c{number}" for number, colour in enumerate(STAND_IN)}
    rules = [
        "svg{" + ";".join(f"{name}:{colour}" for name, colour in zip(names.values(), scheme, strict=True)) + "}"
        for scheme in (LIGHT, DARK)
    ]
    for colour, name in names.items():
        svg = svg.replace(colour, f"var({name})")
    head, close, rest = svg.partition(">")
    return f"{head}{close}<style>{rules[0]}@media screen and (prefers-color-scheme:dark){{{rules[1]}}}</style>{rest}"


def plain(svg: str) -> str:
    """Colours a figure in stand-ins for any page: light, on a white ground."""
    for colour, value in zip(STAND_IN, LIGHT, strict=True):
        svg = svg.replace(colour, value)
    head, close, rest = svg.partition(">")
    return f'{head}{close}<rect width="100%" height="100%" fill="#ffffff"/>{rest}'


def save_png(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, whole or not at all; the same figure gives the same bytes."""
    FigureCanvasAgg(figure)
    with replacing(path) as part, warnings.catch_warnings(), rc_context(style(LIGHT)):
        warnings.filterwarnings("ignore", "Glyph")  # a row's note may be in any script
        figure.savefig(part, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})

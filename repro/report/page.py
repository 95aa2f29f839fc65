"""Writes the report: report.html, which holds everything, report.md with its figures beside it, and report.json, the data behind both."""

from __future__ import annotations

import base64
import io
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from repro.charts.bars import bench_bars, class_bars, confusion_map, table_marks
from repro.charts.curves import attention_by_size, loss_curve
from repro.charts.style import adaptive, plain, svg
from repro.files import json_text, write_together
from repro.report.data import printable
from repro.report.pictures import read_picture
from repro.report.words import FILTERS, GLYPHS, MARKS, by_row_lists, heading, marks_alt, shown, single_picture, size_alt

TEMPLATES = Path(__file__).parent / "templates"
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")
# What means something anywhere in a line of Markdown, before //, and at the beginning of a line.
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~&$]|:(?=//)|^#|^[-+=](?=[-+=\s]|$)|(?<=^\d)[.)](?=\s))")


def shown_text(text: str) -> str:
    """Puts a sign in the place of control characters, which neither HTML nor SVG may hold."""
    return _CONTROL.sub("\ufffd", text)


def markdown_text(value: object) -> str:
    """Escapes text so that Markdown, and the HTML in it, shows it as it is, on one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(str(value).split()))


def markdown_code(value: object) -> Markup:
    """Writes text as Markdown code that holds on one line and in a cell of a table."""
    text = " ".join(str(value).split()).replace("|", "\\|")
    if not text:
        return Markup()
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    edge = " " if text.startswith("`") or text.endswith("`") else ""
    return Markup(f"{fence}{edge}{text}{edge}{fence}")


def draw(data: dict[str, Any]) -> dict[tuple, str]:
    """Draws every figure of the report.

    Returns:
        SVG in stand-in colours (see charts.style), by (table, kind, row) or ("bench", number, kind).
    """
    drawn: dict[tuple, Figure] = {}
    for table in data["tables"]:
        name = table["name"]
        if table["counts"]["measured"] and table["layout"]["kind"] == "grid":
            drawn[name, "marks"] = table_marks(table)
        if table["classes"]:
            # The paper's values are no ticks beside those of a scale model, whose data are others.
            drawn[name, "classes"] = class_bars(table["classes"] | ({"printed": {}} if table["scale_model"] else {}))
            drawn[name, "confusion"] = confusion_map(table["confusion"])
        for row, curve in table["curves"].items():
            drawn[name, "loss", row] = loss_curve(row, curve)
        for row, entries in by_row_lists((table["figures"] or {}).get("attention_by_size", [])):
            drawn[name, "size", row] = attention_by_size(entries)
    for number, bench in enumerate(data["benchmarks"]):
        for kind in ("ratio", "share_of_copy") if bench["results"] else ():
            drawn["bench", number, kind] = bench_bars(bench["results"], [kind])
    return {key: svg(figure) for key, figure in drawn.items()}


def _svg_size(drawing: str) -> dict[str, int]:
    points = (float(re.search(rf'{side}="([\d.]+)pt"', drawing)[1]) for side in ("width", "height"))
    return dict(zip(("width", "height"), (round(value * 4 / 3) for value in points), strict=True))


def followed(href: str, out: Path) -> Path:
    """Finds the file that a page in `out` links, also before that folder is there."""
    return Path(os.path.normpath(out / os.fsdecode(unquote_to_bytes(href))))


def _photo(path: Path) -> dict[str, Any]:
    """Embeds a picture; as WebP, a sixth of a PNG's bytes, for the file itself is one click away."""
    buffer = io.BytesIO()
    picture = read_picture(path)
    picture.save(buffer, format="WEBP", quality=90, method=2)
    src = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"src": src, "width": picture.width, "height": picture.height}


def _of(table: dict[str, Any]) -> str:
    other = " (synthetic data)" if table["synthetic"] else " (reduced protocol)" if table["scale_model"] else ""
    return f"{heading(table)}{other}"


def hero(data: dict[str, Any]) -> dict[str, Any]:
    """Chooses what the first screen shows beside the claims: a grid of cells that was measured, a curve of attention, and the strip of one image; each of the paper's tables where there is one, else of one's own.

    Returns:
        "drawn": for up to two charts a key of `draw`, "alt" and "caption"; "picture": a figure, or None.
    """
    tables = sorted(data["tables"], key=lambda table: (table["synthetic"], table["own"], table["scale_model"]))
    drawn = []
    for table in [t for t in tables if t["counts"]["measured"] and t["layout"]["kind"] == "grid"][:1]:
        drawn.append({"key": (table["name"], "marks"), "alt": marks_alt(table), "caption": f"{_of(table)}."})
    for table in [t for t in tables if t["figures"] and t["figures"]["attention_by_size"]][:1]:
        curves = dict(by_row_lists(table["figures"]["attention_by_size"]))
        row = max(curves, key=lambda row: (row == "attention3-extra", len(curves[row][0]["scales"])))
        caption = f"Attention weight against object size, {_of(table)}; hollow: few objects."
        drawn.append({"key": (table["name"], "size", row), "alt": size_alt(curves[row], row), "caption": caption})
    pictures = (single_picture(table["figures"]) for table in tables if table["figures"])
    return {"drawn": drawn, "picture": next(filter(None, pictures), None)}


def _context(data: dict[str, Any], runs: list[Path]) -> dict[str, Any]:
    hrefs = {
        f"{table['name']}/{one['row']}/{one['seed']}": one["href"]
        for table in data["tables"]
        for one in table["provenance"]["records"]
    }
    measured = [table for table in data["tables"] if table["speed"]]
    sections = {"details": "Classes, training and speed"} if measured else {}
    sections |= {"pictures": "Pictures", "provenance": "Provenance", "kernels": "Kernels", "gpu": "On a GPU"}
    sections |= {"not-used": "Not used"} if data["not_used"] else {}
    return {
        "data": data,
        "hrefs": hrefs,
        "hero": hero(data),
        "measured": measured,
        "marked": any(cell["mark"] for table in data["tables"] for cell in table["cells"]),
        "sections": list(sections.items()),
        "glyphs": GLYPHS,
        "marks": MARKS,
        "runs": ", ".join(map(printable, runs)),
    }


def html(data: dict[str, Any], drawn: dict[tuple, str], runs: list[Path], out: Path) -> str:
    """Renders the page, images and styles inside it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    embedded = {
        key: {"src": "data:image/svg+xml;base64," + base64.b64encode(adaptive(drawing).encode()).decode()}
        | _svg_size(drawing)
        for key, drawing in drawn.items()
    }
    context = _context(data, runs)
    figures = [figure for table in data["tables"] if table["figures"] for figure in shown(table["figures"])]
    figures += [context["hero"]["picture"]] if context["hero"]["picture"] else []
    photos = {href: _photo(followed(href, out)) for href in dict.fromkeys(figure["href"] for figure in figures)}
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return shown_text(
        environment.get_template("report.html.j2").render(context, figures=embedded, photos=photos, style=style)
    )


def markdown(data: dict[str, Any], files: dict[tuple, str], runs: list[Path]) -> str:
    """Renders the same in Markdown.

    Args:
        data: The document.
        files: Of every figure, its address from the page.
        runs: Where the records came from.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=False,  # finalize escapes, for Markdown
        finalize=lambda value: value if isinstance(value, Markup) else markdown_text(value),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS | {"code": markdown_code, "raw": Markup}
    text = environment.get_template("report.md.j2").render(_context(data, runs), figures=files)
    return shown_text(re.sub(r"\n{3,}", "\n\n", text).strip()) + "\n"


def write(data: dict[str, Any], runs: list[Path], out: Path) -> None:
    """Writes the three files and the Markdown's figures into a folder, all or none; it is made where it is missing."""
    drawn = draw(data)
    files: dict[tuple, str] = {}
    for number, key in enumerate(drawn):
        name = re.sub(r"[^\w-]+", "-", "-".join(map(str, key)))
        files[key] = f"figures/{name}.svg" if name not in str(files.values()) else f"figures/{name}-{number}.svg"
    write_together(
        {out / files[key]: plain(drawing) for key, drawing in drawn.items()}
        | {
            out / "report.json": json_text(data),
            out / "report.md": markdown(data, files, runs),
            out / "report.html": html(data, drawn, runs, out),
        }
    )

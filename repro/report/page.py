"""Writes the report: report.html, which holds everything, report.md with its figures beside it, and report.json, the data behind both."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jinja2
from markupsafe import Markup

from repro.data.pictures import open_picture
from repro.files import write_json
from repro.report import figures
from repro.report.words import FILTERS, GLYPHS, MARKS, by_row_lists, shown

TEMPLATES = Path(__file__).parent / "templates"
# What means something anywhere in a line of Markdown, before //, and at the beginning of a line.
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~&$]|:(?=//)|^#|^[-+=](?=[-+=\s]|$)|(?<=^\d)[.)](?=\s))")


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
        SVG in stand-in colours (see figures.adaptive and figures.plain), by (table, kind, row) or ("bench", number, kind).
    """
    drawn: dict[tuple, str] = {}
    for table in data["tables"]:
        name = table["name"]
        if table["classes"]:
            drawn[name, "classes"] = figures.class_bars(table["classes"])
            drawn[name, "confusion"] = figures.confusion_map(table["confusion"])
        for row, curve in table["curves"].items():
            drawn[name, "loss", row] = figures.loss_curve(row, curve)
        for row, entries in by_row_lists((table["figures"] or {}).get("attention_by_size", [])):
            drawn[name, "size", row] = figures.attention_by_size(row, entries)
    for number, bench in enumerate(data["benchmarks"]):
        for kind in ("ratio", "share_of_copy") if bench["results"] else ():
            drawn["bench", number, kind] = figures.bench_bars(bench["results"], kind)
    return drawn


def _svg_size(svg: str) -> dict[str, int]:
    points = (float(re.search(rf'{side}="([\d.]+)pt"', svg)[1]) for side in ("width", "height"))
    return dict(zip(("width", "height"), (round(value * 4 / 3) for value in points), strict=True))


def _photo(path: Path) -> dict[str, Any]:
    """Embeds a picture; as WebP, a sixth of a PNG's bytes, for the file itself is one click away."""
    buffer = io.BytesIO()
    with open_picture(path) as picture:
        size = picture.size
        picture.convert("RGB").save(buffer, format="WEBP", quality=90, method=2)
    src = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"src": src, "width": size[0], "height": size[1]}


def _context(data: dict[str, Any], runs: list[Path]) -> dict[str, Any]:
    hrefs = {
        f"{table['name']}/{one['row']}/{one['seed']}": one["href"]
        for table in data["tables"]
        for one in table["provenance"]["records"]
    }
    measured = [table for table in data["tables"] if table["speed"]]
    return {
        "data": data,
        "hrefs": hrefs,
        "measured": measured,
        "glyphs": GLYPHS,
        "marks": MARKS,
        "runs": ", ".join(str(run) for run in runs),
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
        key: {"src": "data:image/svg+xml;base64," + base64.b64encode(figures.adaptive(svg).encode()).decode()}
        | _svg_size(svg)
        for key, svg in drawn.items()
    }
    photos = {
        figure["href"]: _photo(out / unquote(figure["href"]))
        for table in data["tables"]
        if table["figures"]
        for figure in shown(table["figures"])
    }
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return environment.get_template("report.html.j2").render(
        _context(data, runs), figures=embedded, photos=photos, style=style
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
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def write(data: dict[str, Any], runs: list[Path], out: Path) -> None:
    """Writes the three files and the Markdown's figures into a folder, which is made where it is missing."""
    drawn = draw(data)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    files: dict[tuple, str] = {}
    for number, (key, svg) in enumerate(drawn.items()):
        name = re.sub(r"[^\w-]+", "-", "-".join(map(str, key)))
        files[key] = f"figures/{name}.svg" if name not in str(files.values()) else f"figures/{name}-{number}.svg"
        (out / files[key]).write_text(figures.plain(svg), encoding="utf-8")
    write_json(out / "report.json", data)
    (out / "report.md").write_text(markdown(data, files, runs), encoding="utf-8")
    (out / "report.html").write_text(html(data, drawn, runs, out), encoding="utf-8")
